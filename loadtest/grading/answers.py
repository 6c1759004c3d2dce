r"""Final answers: taken out of a text, compared with what was expected, and the troubles that show in a text.

The rule of comparison is *no false accept*: two notations of one value are equal (`\frac{1}{2}`, `0.5`, `1/2`; `016`, `16`;
`1{,}234`), exactly and never by rounding; whatever is not understood must be the same text. Units may be left out but not
changed. Every function takes time linear in the text (bounded where it backtracks), whatever the text.
"""

from __future__ import annotations

import re
from fractions import Fraction

from loadtest.grading.forms import is_right_value
from loadtest.grading.notation import Value, parse
from loadtest.workload.answer_format import ANSWER_LIMIT_CHARS, extract_answer
from loadtest.workload.prompts import Prompt


def check(answer_text: str, prompt: Prompt) -> bool | None:
    r"""Is the final answer in this text the prompt's? Null where the prompt has none, or none that can be checked here.

    The text is the answer after the thinking. A text without an answer in the form asked for is wrong, not unknown.
    Programs are never run while measuring: they stay None (see `programs`).

    >>> ask = Prompt(id="a", messages=({"role": "user", "content": "2+2?"},), answer="4", answer_format="boxed")
    >>> check(r"So it is $\boxed{4}$.", ask), check("So it is 4.", ask)
    (True, False)
    """
    if prompt.answer is None or prompt.answer_format not in ("boxed", "json", "value"):
        return None
    if prompt.answer_format == "value":
        return is_right_value(answer_text, prompt.answer)
    got = extract_answer(answer_text, prompt)
    if got is None:
        return False
    if prompt.answer_format == "json" and re.fullmatch("[A-Z]", prompt.answer):
        return _letter(got, prompt) == prompt.answer
    return equal(prompt.answer, got)


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
