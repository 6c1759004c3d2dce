r"""Final answers: taken out of a text, compared with what was expected, and the troubles that show in a text.

The rule of comparison is *no false accept*: two notations of one value are equal (`\frac{1}{2}`, `0.5`, `1/2`; `016`, `16`;
`1{,}234`), exactly and never by rounding; whatever is not understood must be the same text. Units may be left out but not
changed. Every function takes time linear in the text (bounded where it backtracks), whatever the text.
"""

from __future__ import annotations

import json
import re
from fractions import Fraction

from loadtest.notation import Value, parse
from loadtest.prompts import Prompt

ANSWER_LIMIT_CHARS = 2000
_TAIL_CHARS = 4000
_TAIL_WORDS = 400


def check(answer_text: str, prompt: Prompt) -> bool | None:
    r"""Is the final answer in this text the prompt's? Null where the prompt has none, or none that can be checked here.

    The text is the answer after the thinking. A text without an answer in the form asked for is wrong, not unknown.
    Programs are never run while measuring: they stay null (see `programs`).

    >>> ask = Prompt(id="a", messages=({"role": "user", "content": "2+2?"},), answer="4", answer_format="boxed")
    >>> check(r"So it is $\boxed{4}$.", ask), check("So it is 4.", ask)
    (True, False)
    """
    if prompt.answer is None or prompt.answer_format not in ("boxed", "json"):
        return None
    got = extract(answer_text, prompt)
    if got is None:
        return False
    if prompt.answer_format == "json" and re.fullmatch("[A-Z]", prompt.answer):
        return _letter(got, prompt) == prompt.answer
    return equal(prompt.answer, got)


def extract(answer_text: str, prompt: Prompt) -> str | None:
    """The final answer as it was written, by the prompt's answer format; null where there is none."""
    return extract_json(answer_text) if prompt.answer_format == "json" else extract_boxed(answer_text)


def extract_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{}` that is not empty, braces nested; null without one, or where the last one is cut off.

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
    """What stands in the braces at `at` (after spaces), or the bare number there; null where the braces do not close."""
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
    """Value (text or number) of the last JSON `answer` field, in a fenced block or not; null without one.

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
    """The outermost JSON object that holds place `at` and has an `answer` of its own; null where none can be read."""
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
    """The JSON value at the start of a text; null where there is none, or it ends before `past`."""
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return value if end > past else None


_WRAPPER = re.compile(r"\*\*(.{1,400})\*\*|\$(.{1,400})\$|\\(?:text|boxed|mathrm|textbf)\{(.{1,400})\}", re.DOTALL)
_LETTER = re.compile(
    r"(?:(?:the )?(?:correct |right |final |best )?(?:answer|option|choice)(?: is| would be)?:? (?:option |choice )?)?"
    r"[(\[]?([A-Za-z])[)\]]?(?:[.:)]\s*(.{1,300}))?[.]?",
    re.DOTALL | re.IGNORECASE,
)


def _letter(got: str, prompt: Prompt) -> str | None:
    """The chosen letter; text after it must be that option as the prompt words it."""
    wrapped = _WRAPPER.fullmatch(got.strip())
    match = _LETTER.fullmatch((wrapped[1] or wrapped[2] or wrapped[3]).strip() if wrapped else got.strip())
    if match is None:
        return None
    letter, rest = match[1].upper(), (match[2] or "").strip()
    asked = prompt.messages[-1]["content"]
    if rest and not any(f"\n{letter}{mark} {rest}\n" in f"\n{asked}\n" for mark in (".", ")", ":")):
        return None
    return letter


def equal(expected: str, got: str) -> bool:
    r"""Do two notations mean the same answer? Exact for numbers, tuples, intervals and sets; else the same text.

    >>> equal("1/2", r"\dfrac{1}{2}"), equal("0.33", "1/3"), equal("5 cm", "5"), equal("5 cm", "5 m")
    (True, False, True, False)
    """
    if len(expected) > ANSWER_LIMIT_CHARS or len(got) > ANSWER_LIMIT_CHARS:
        return expected == got
    return _same(parse(expected), parse(got))


def _same(a: Value, b: Value) -> bool:
    """Equal values; a unit may be missing on one side; percent is a share, or the bare number where that is above 1."""
    if a.unit and b.unit and a.unit != b.unit:
        return False
    if a.percent != b.percent:
        return _same_percent(a, b)
    if a.name and b.name and a.name != b.name:
        return False
    if a.number is not None or b.number is not None:
        return a.number == b.number
    if a.items or b.items:
        return _same_items(a, b)
    return a.text == b.text and a.text != ""


def _same_percent(a: Value, b: Value) -> bool:
    percent, bare = (a, b) if a.percent else (b, a)
    if percent.number is None or bare.number is None or bare.unit:
        return False
    return bare.number == (percent.number if abs(bare.number) > 1 else percent.number / Fraction(100))


def _same_items(a: Value, b: Value) -> bool:
    if a.brackets != b.brackets or len(a.items) != len(b.items):
        return False
    if a.brackets != "{}":
        return all(map(_same, a.items, b.items))
    rest = list(b.items)
    for item in a.items:
        match = next((i for i, other in enumerate(rest) if _same(item, other)), None)
        if match is None:
            return False
        del rest[match]
    return True


# --- troubles

_CJK = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af]")


TROUBLES = ("empty_answer", "repetition", "wrong_language")
_MARKUP = re.compile(r'\\[A-Za-z]+|"answer"')


def troubles(text: str, prompt: Prompt | None = None) -> tuple[str, ...]:
    """What went wrong in an answer, in the order of `TROUBLES`.

    Repetition: the end of the text repeats itself (see `repeats`). Wrong language: Chinese, Japanese or Korean characters
    where the prompt has none; where no prompt is given, fewer of them than there are Latin letters outside LaTeX commands.
    The other troubles (no closing tag, cut by the limit) show in the record.

    >>> troubles("The answer is 4."), troubles(" "), troubles("So 答案 is 4.")
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
