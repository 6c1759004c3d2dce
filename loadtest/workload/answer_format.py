"""The final answer in a reply: in \\boxed{}, or in the `answer` field of JSON."""

from __future__ import annotations

import json
import re

from loadtest.workload.prompts import Prompt

ANSWER_LIMIT_CHARS = 2000


def extract_answer(answer_text: str, prompt: Prompt) -> str | None:
    """The final answer as it was written, by the prompt's answer format; None where there is none."""
    return extract_json(answer_text) if prompt.answer_format == "json" else extract_boxed(answer_text)


def extract_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{}` that is not empty, braces nested; None without one, or where the last one is cut off.

    >>> extract_boxed(r"\boxed{1}, no: \boxed{\frac{1}{2}}")
    '\\frac{1}{2}'
    """
    for box in reversed(list(_BOX.finditer(text))):
        content = _braced(text, box.end())
        if content is None:
            return None
        if content:
            return f"-{content}" if _MINUS_BEFORE.search(text, max(0, box.start() - 3), box.start()) else content
    return None


_MINUS_BEFORE = re.compile(r"(?:^|[\s=$({:])[-−]\Z")

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")

_BOX_START = re.compile(r"\s{0,8}(?:(\{)|([-+]?[0-9]{1,200}(?![0-9.,/])|(?=\S)|\Z))")


def _braced(text: str, at: int) -> str | None:
    """What stands in the braces at `at` (after spaces), or the bare number there; None where the braces do not close."""
    bare = _BOX_START.match(text, at)
    if bare is None:
        return None
    if not bare[1]:
        return bare[2] or ""
    depth, start = 1, bare.end()
    for mark in re.finditer(r"\\.|[{}]", text[start : start + ANSWER_LIMIT_CHARS], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(mark[0], 0)
        if depth == 0:
            return text[start : start + mark.start()].strip()
    return None


_ANSWER_KEY = re.compile(r'(?:^|(?<=[{,`*\n ]))"answer"[ \t\n]{0,20}:[ \t\n]{0,20}')


def extract_json(text: str) -> str | None:
    """Value (text or number) of the last JSON `answer` field, in a fenced block or not; None without one.

    >>> extract_json('```json\\n{"answer": "C"}\\n```')
    'C'
    """
    last = None
    for last in _ANSWER_KEY.finditer(text):  # noqa: B007 - the last one counts
        pass
    if last is None:
        return None
    around = _object_around(text, last.start())
    value = around["answer"] if around is not None else _decoded(text[last.end() : last.end() + ANSWER_LIMIT_CHARS])
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value).strip()


_BRACES_BACK = 32  # so many opening braces before the last answer may be that of the object around it


def _object_around(text: str, at: int) -> dict[str, object] | None:
    """The outermost JSON object that holds place `at` and has an `answer` of its own; None where none can be read."""
    found, start = None, at
    for _ in range(_BRACES_BACK):
        start = text.rfind("{", max(0, at - ANSWER_LIMIT_CHARS), start)
        if start < 0:
            break
        value = _decoded(text[start : at + ANSWER_LIMIT_CHARS], past=at - start)
        if isinstance(value, dict) and "answer" in value:
            found = value
    return found


def _decoded(text: str, past: int = 0) -> object:
    """The JSON value at the start of a text; None where there is none, or it ends before `past`."""
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return value if end > past else None
