"""Thinking and answer told apart on the stream itself, the same for every engine.

==================  =======================================================================================
reasoning           the server splits; vLLM's field. Content is the answer.
reasoning_content   the server splits; the field of SGLang and of older vLLM. Content is the answer.
inline              all comes as content. `</think>` ends the thinking; `<think>` may have come with the prompt
None                no thinking: the whole content is the answer
==================  =======================================================================================
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field as attribute
from itertools import accumulate

from loadtest.workload.contract import Contract

OPEN, CLOSE = "<think>", "</think>"
_BLOCK = 256  # chunks skipped at a time when one is looked for
_THINKERS = re.compile(r"qwq|deepseek-r1|\br1\b|reason|think", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Split:
    """Where the answer starts: index of the first chunk with answer text that is not blank (None: none came).

    `field` says where thinking arrived (table above), `closed` whether inline thinking met its `</think>` (None where the
    server splits or there is none).
    """

    first_answer_chunk: int | None
    answer: str
    field: str | None
    closed: bool | None
    thinking: str = attribute(default="", repr=False, compare=False)  # inline, its tags left out


def opens_in_prompt(model: str) -> bool:
    """Whether the chat template of this model, told by its name, ends the prompt with `<think>`.

    >>> opens_in_prompt("Qwen/QwQ-32B-AWQ"), opens_in_prompt("Qwen2.5-7B-Instruct")
    (True, False)
    """
    return _THINKERS.search(model) is not None


def prompt_opens(contract: Contract, model: str) -> bool:
    """Whether the prompt ends inside the thinking, so that the output closes what it never opened."""
    return contract.thinking_prelude == "template" and opens_in_prompt(model)


def split_fields(contents: Sequence[str], field: str, blank: int = 0) -> Split:
    """Split where the server has put the thinking into a field of its own; `contents` has one entry a chunk.

    The first `blank` of them are known to be blank.
    """
    first = next((i for i in range(blank, len(contents)) if not contents[i].isspace() and contents[i]), None)
    return Split(first, "".join(contents).strip(), field, None)


def split_inline(contents: Sequence[str], *, opened: bool) -> Split:
    """Split content that may hold thinking; `opened`: the prompt ended in `<think>`.

    The closing tag alone suffices. With no tag at all the content is unfinished thinking where the prompt opened it,
    else the answer.

    >>> split_inline(["12", "</th", "ink>", "\\n\\n", "4", "2"], opened=True)
    Split(first_answer_chunk=4, answer='42', field='inline', closed=True)
    """
    text = "".join(contents)
    begins = text.lstrip().startswith(OPEN)
    close = text.find(CLOSE)
    if close >= 0:
        start = close + len(CLOSE)
        return Split(_chunk_of_text(contents, text, start), text[start:].strip(), "inline", True, _untagged(text[:close]))
    if (opened or begins) and text:
        return Split(None, "", "inline", False, _untagged(text))
    return Split(_chunk_of_text(contents, text, 0), text.strip(), None, None)


def _untagged(text: str) -> str:
    return text.lstrip().removeprefix(OPEN).strip()


def _chunk_of_text(contents: Sequence[str], text: str, start: int) -> int | None:
    """Index of the chunk that holds the first character from `start` on that is not blank."""
    rest = text[start:]
    blank = len(rest) - len(rest.lstrip())
    if blank == len(rest):
        return None
    wanted, before = start + blank, 0
    for first in range(0, len(contents), _BLOCK):
        lengths = list(map(len, contents[first : first + _BLOCK]))
        if before + sum(lengths) > wanted:
            return first + bisect_right(list(accumulate(lengths)), wanted - before)
        before += sum(lengths)
    return None
