"""Known troubles of reasoning models in a reply: endless repetition, thinking left open, another language."""

from __future__ import annotations

import re
from collections.abc import Iterable

from loadtest.records.schema import FINISHED, RequestRecord
from loadtest.workload.prompts import Prompt

_TAIL_CHARS = 4000

_TAIL_WORDS = 400

_CJK = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af]")

TROUBLES = ("empty_answer", "repetition", "wrong_language")

_MARKUP = re.compile(r'\\[A-Za-z]+|"answer"')


def answer_troubles(text: str, prompt: Prompt | None = None) -> tuple[str, ...]:
    """What went wrong in an answer, in the order of `TROUBLES`.

    Repetition: the end of the text repeats itself (see `repeats`). Wrong language: Chinese, Japanese or Korean characters
    where the prompt has none; where no prompt is given, fewer of them than there are Latin letters outside LaTeX commands.
    The other troubles (no closing tag, cut by the limit) show in the record.

    >>> answer_troubles("The answer is 4."), answer_troubles(" "), answer_troubles("So 答案 is 4.")
    ((), ('empty_answer',), ('wrong_language',))
    """
    if not text.strip():
        return ("empty_answer",)
    found = ["repetition"] if repeats(text) else []
    if _CJK.search(text) and not _is_asked_in_cjk(text, prompt):
        found.append("wrong_language")
    return tuple(found)


def _is_asked_in_cjk(text: str, prompt: Prompt | None) -> bool:
    """Is the answer rightly in such characters: the prompt has some, or, without a prompt, the answer is mostly of them?"""
    if prompt is not None:
        return any(_CJK.search(message["content"]) for message in prompt.messages)
    return len(_CJK.findall(text)) >= len(re.findall("[A-Za-z]", _MARKUP.sub("", text)))


def repeats(text: str) -> bool:
    """Does the end of the text go round in circles? Two signs, each over a bounded end of the text.

    A period: the last 4,000 characters end in one piece repeated at least 6 times over at least 400 characters, or at
    least 3 times over 1,200. Poverty: of the 4-word groups in the last 400 words (at least 200), under 20 % are distinct.
    """
    tail = text.strip()[-_TAIL_CHARS:]
    if tail.count(tail[-12:]) >= 3:  # no loop without it, and the test below is the costly one
        for period, covered in enumerate(_z_function(tail[::-1])):
            if period and covered and _is_loop(period, covered + period):
                return True
    words = re.sub(r"[0-9]+", "0", tail).split()[-_TAIL_WORDS:]
    groups = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return len(words) >= 200 and len(set(groups)) < 0.2 * len(groups)


def _is_loop(period: int, covered: int) -> bool:
    return (covered >= 400 and covered >= 6 * period) or (covered >= 1200 and covered >= 3 * period)


def _z_function(text: str) -> list[int]:
    """z[i]: how many characters from i on equal the beginning of the text. Linear time (Gusfield 1997, 1.3)."""
    z = [0] * len(text)
    left = right = 0
    for i in range(1, len(text)):
        length = min(right - i, z[i - left]) if i < right else 0
        while i + length < len(text) and text[length] == text[i + length]:
            length += 1
        if i + length > right:
            left, right = i, i + length
        z[i] = length
    return z


def count_troubles(records: Iterable[RequestRecord], *, simulated: bool) -> dict[str, int]:
    """How many measured requests show each known trouble of a reasoning model.

    `no_closing_think`: the output ended inside the thinking; where the server splits, only the limit shows that. Not counted
    where a length was forced. `empty_answer`: it stopped by itself after the thinking (as far as one can tell) without an
    answer. `repetition` and `wrong_language` are read from the answer, `repetition` also from the end of an output that has
    none; not in simulated text, which is filler.
    """
    names = ("no_closing_think", "truncated", "no_answer", *TROUBLES)
    counts = dict.fromkeys(names, 0)
    for record in records:
        counts["no_closing_think"] += _is_unclosed(record)
        counts["truncated"] += record.outcome == "truncated"
        counts["no_answer"] += record.outcome == "no_answer"
        for name in _seen(record, simulated=simulated):
            counts[name] += 1
    return counts


def _is_unclosed(record: RequestRecord) -> bool:
    if record.outcome not in FINISHED or record.forced_tokens is not None:
        return False
    cut = record.outcome == "truncated" and record.thinking_field is not None and record.first_answer_chunk is None
    return record.think_closed is False or (cut and record.think_closed is None)


def _seen(record: RequestRecord, *, simulated: bool) -> tuple[str, ...]:
    """Troubles in the text that is kept; an empty answer counts where the model stopped and no length was forced."""
    text = (record.answer or "").strip()
    if (
        not text
        and record.outcome in ("ok", "no_answer")
        and record.forced_tokens is None
        and record.think_closed is not False
    ):
        found = answer_troubles(text)
    else:
        found = answer_troubles(text) if text and not simulated else ()
    looped = not simulated and "repetition" not in found and repeats(record.output_end or "")
    return (*found, "repetition") if looped else found
