r"""Notations of a mathematical answer, read into values that can be compared exactly.

Understood: integers (leading zeros, thousands as `1,234`, `1{,}234`, `1\,234`, `1 234`), decimals (repeating ones, and
`4.2e3`), fractions, mixed numbers, powers, sums and products of numbers; percent, degrees, currency, units; tuples,
intervals, lists, sets; `x = 5`.
Anything else is a text, compared after spaces and purely visual LaTeX are gone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from loadtest.grading import units

_MAX_DIGITS = 200
_MAX_EXPONENT = 400
_MAX_DEPTH = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """An answer understood: a number, or a row of items in brackets, or (neither) a canonical text."""

    text: str = ""
    number: Fraction | None = None
    items: tuple[Value, ...] = ()
    brackets: str = ""
    unit: str = ""
    percent: bool = False
    name: str = ""  # of `x = 5`: x


def parse(notation: str, depth: int = 0) -> Value:
    r"""What an answer means.

    >>> parse(r"\dfrac{3}{4}").number, parse("1,234").number, parse("(1,234)").brackets
    (Fraction(3, 4), Fraction(1234, 1), '()')
    """
    text = _plain(notation)
    name, text = _named(text)
    text, unit, percent = units.split(text)
    if (number := _number(text)) is not None:
        return Value(text=text, number=number, unit=unit, percent=percent, name=name)
    if not unit and not percent and depth < _MAX_DEPTH and (row := _row(text, depth)) is not None:
        return replace(row, name=name)
    return Value(text=_canonical(text), unit=unit, percent=percent, name=name)


# --- visual LaTeX and Unicode

_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹"
_SUBSCRIPTS = "₀₁₂₃₄₅₆₇₈₉"
_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("−－﹣‐‑‒–", "-"),
        "×": r"\times ",
        "·": r"\cdot ",
        "⋅": r"\cdot ",
        "÷": "/",
        "∕": "/",
        "⁄": "/",
        "π": r"\pi ",
        "∞": r"\infty ",
        "√": r"\sqrt ",
        "°": r"^\circ ",
        "％": "%",
        "，": ",",
        "（": "(",
        "）": ")",
        "\u00a0": " ",
        "\u2009": r"\,",
        "\u202f": r"\,",
    }
    | {chr(0xFF10 + d): str(d) for d in range(10)}
    | {c: f" {n}/{d}" for c, n, d in (("½", 1, 2), ("⅓", 1, 3), ("⅔", 2, 3), ("¼", 1, 4), ("¾", 3, 4), ("⅛", 1, 8))}
)
_RANGE = re.compile(r"(?<=[0-9])(\s?)[–‒](?=\s?[0-9])")
_SUPER_RUN = re.compile(f"[{_SUPERSCRIPTS}]+")
_SUB_RUN = re.compile(f"[{_SUBSCRIPTS}]+")
_THIN = re.compile(r"\\[,;:]|\{,\}")
_INVISIBLE = re.compile(
    r"\\(?:left|right|displaystyle|textstyle|limits|big|Big|bigl|bigr|Bigl|Bigr)(?![A-Za-z])|\\[!()\[\]]|(?<!\\)\\(?=\s|$)|(?<=\S)~|\$(?!\s*[0-9])"
)
_GROUPED = re.compile(r"(?<![0-9.,])([0-9]{1,3}(?:(?:\\,|\{,\}|\\;|\\:)[0-9]{3})+)(?![0-9])")
_FONT = re.compile(r"\\(?:mathbf|boldsymbol|textbf|mathit|bm)\{([^{}]*)\}")
_WRAPPED = re.compile(r"\\(?:text|mathrm|textrm|mbox|operatorname|textit)\{([^{}]*)\}")


def _plain(notation: str) -> str:
    """Without `$`, `\\left`, spacing commands, and Unicode look-alikes; `\\dfrac` is `\\frac`."""
    text = _SUPER_RUN.sub(lambda m: "^{" + "".join(str(_SUPERSCRIPTS.index(c)) for c in m[0]) + "}", notation)
    text = _SUB_RUN.sub(lambda m: "_{" + "".join(str(_SUBSCRIPTS.index(c)) for c in m[0]) + "}", text)
    text = _RANGE.sub(r"\1 to ", text).translate(_CHARACTERS).replace(r"\!", "")
    text = _GROUPED.sub(lambda m: _THIN.sub("", m[1]), text)
    text = text.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac").replace(r"\cfrac", r"\frac")
    text = _INVISIBLE.sub(" ", _THIN.sub(" ", text.replace(r"\$", "USD ")))
    text = _FONT.sub(r"\1", text)
    if text.count("$") == 1 and text.lstrip().startswith("$"):
        text = text.replace("$", "USD ")
    text = re.sub(r"\$(?=\s*[0-9])", "", text)
    text = re.sub(r"\s+", " ", text).strip()
    return _unwrapped(text if text.endswith("..") else text.removesuffix(".").rstrip())


def _unwrapped(text: str) -> str:
    """Without `\\text{...}`, or braces, around the whole of it."""
    for _ in range(_MAX_DEPTH):
        match = _WRAPPED.fullmatch(text)
        if match:
            text = match[1].strip()
        elif text.startswith("{") and text.endswith("}") and _closes(text) == len(text) - 1 and "," not in text:
            text = text[1:-1].strip()
        else:
            break
    return text


def _closes(text: str) -> int:
    """Index of the bracket that closes the one at 0; -1 where none does."""
    depth = 0
    for index, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if depth == 0:
            return index
    return -1


_NAME = re.compile(
    r"([A-Za-z](?: ?[-+] ?[A-Za-z]){1,9}|\\?[A-Za-z]+(?:_\{?[A-Za-z0-9]{1,20}\}?)?"
    r"|[A-Za-z]\([A-Za-z]\)|\([A-Za-z](?: ?, ?[A-Za-z]){1,9}\)) ?= ?(?=[^=])"
)


def _named(text: str) -> tuple[str, str]:
    """`x = 5` as x and 5; the name is empty where there is none."""
    match = _NAME.match(text)
    if match is None or "=" in text[match.end() :]:
        return "", text
    return match[1], _unwrapped(text[match.end() :])


# --- rows: tuples, intervals, sets, lists

_AND = re.compile(r" ?(?:,? (?:and|or) |, ?\\text\{ ?(?:and|or) ?\}|\\text\{,? ?(?:and|or) ?\}) ?")


def _row(text: str, depth: int) -> Value | None:
    brackets, inner = "", text
    opened = text.replace(r"\{", "{").replace(r"\}", "}") if text.startswith(r"\{") else text
    if opened[:1] in ("(", "[", "{") and opened[-1:] in (")", "]", "}") and _closes(opened) == len(opened) - 1:
        brackets, inner = opened[0] + opened[-1], opened[1:-1]
    parts = _split(_AND.sub(",", inner))
    if parts is None or (len(parts) < 2 and brackets != "{}"):
        return None
    if not all(part.strip() for part in parts):
        return None
    return Value(items=tuple(parse(part, depth + 1) for part in parts), brackets=brackets)


def _split(text: str) -> list[str] | None:
    """Split at the commas outside brackets; None where brackets are not balanced."""
    depth, start, parts = 0, 0, []
    for index, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if depth < 0:
            return None
        if char == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    parts.append(text[start:])
    return parts if depth == 0 else None


# --- numbers

_THOUSANDS = re.compile(r"[-+]?[1-9][0-9]{0,2}(?:(?:,[0-9]{3})+|(?: [0-9]{3})+)(?:\.[0-9]+)?")
_SCIENTIFIC = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]{1,3}")
_OVER = re.compile(r"([-+]?[0-9]+) ?\\over ?([0-9]+)")
_FRACTION_SHORT = re.compile(r"\\frac ?(?:([0-9])|\{([^{}]*)\}) ?(?:([0-9])|\{([^{}]*)\})")
_TOKEN = re.compile(r" ?(?:([0-9]+(?:\.[0-9]*)?|\.[0-9]+)|(\\frac|\\cdot|\\times|[-+*/^(){}]))")
_REPEATING = re.compile(r"([-+]?)([0-9]{0,100})\.([0-9]{0,100}) ?\\(?:overline|bar) ?\{ ?([0-9]{1,100}) ?\}")
_MIXED = re.compile(r"([-+]?)([0-9]+) ?(?:\\frac ?\{ ?([0-9]+) ?\} ?\{ ?([0-9]+) ?\}| ([0-9]+) ?/ ?([0-9]+))")


def _number(text: str) -> Fraction | None:
    """The exact value of a notation of a number; None where it is not one, or an absurdly long one."""
    if len(text) > 4 * _MAX_DIGITS or not re.search("[0-9]", text):
        return None
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "").replace(" ", "")
    if _SCIENTIFIC.fullmatch(text):
        return Fraction(text)
    text = _OVER.sub(r"\1/\2", text) if _OVER.fullmatch(text) else text
    text = _FRACTION_SHORT.sub(lambda m: rf"\frac{{{m[1] or m[2]}}}{{{m[3] or m[4]}}}", text)
    mixed = _MIXED.fullmatch(text)
    if mixed:
        return _mixed(mixed)
    if repeating := _REPEATING.fullmatch(text):
        return _repeating(repeating)
    tokens = _tokens(text)
    if tokens is None:
        return None
    try:
        return _Arithmetic(tokens).value()
    except (ValueError, ZeroDivisionError, OverflowError):
        return None


def _mixed(match: re.Match[str]) -> Fraction | None:
    numerator, denominator = int(match[3] or match[5]), int(match[4] or match[6])
    if not numerator < denominator:
        return None
    value = int(match[2]) + Fraction(numerator, denominator)
    return -value if match[1] == "-" else value


def _repeating(match: re.Match[str]) -> Fraction:
    """A repeating decimal, 0.1\\overline{6}: the digits before, and the repeated ones over as many nines."""
    sign, whole, fixed, repeated = match.groups()
    value = Fraction(int((whole or "0") + fixed), 10 ** len(fixed))
    value += Fraction(int(repeated), (10 ** len(repeated) - 1) * 10 ** len(fixed))
    return -value if sign == "-" else value


def _tokens(text: str) -> list[str] | None:
    tokens, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or len(match[0]) > _MAX_DIGITS:
            return None
        tokens.append(match[1] or match[2])
        at = match.end()
    return tokens


class _Arithmetic:
    """Recursive descent over sums, products, powers and fractions of plain numbers; raises `ValueError` on all else."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.at = 0
        self.depth = 0

    def value(self) -> Fraction:
        result = self._sum()
        if self.at != len(self.tokens):
            raise ValueError("not a number")
        return result

    def _peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def _take(self, *tokens: str) -> str:
        token = self._peek()
        if token not in tokens or not token:
            return ""
        self.at += 1
        return token

    def _sum(self) -> Fraction:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise ValueError("too deep")
        result = self._product()
        while sign := self._take("+", "-"):
            term = self._product()
            result = result + term if sign == "+" else result - term
        self.depth -= 1
        return result

    def _product(self) -> Fraction:
        result = self._signed()
        while sign := self._take("*", r"\cdot", r"\times", "/"):
            factor = self._signed()
            result = result / factor if sign == "/" else result * factor
        return result

    def _signed(self) -> Fraction:
        sign = self._take("+", "-")
        value = self._power()
        return -value if sign == "-" else value

    def _power(self) -> Fraction:
        base = self._atom()
        if not self._take("^"):
            return base
        exponent = self._atom(short=True)
        if (
            exponent.denominator != 1
            or abs(exponent) > _MAX_EXPONENT
            or abs(base.numerator) > 10**6
            or base.denominator > 10**6
        ):
            raise ValueError("power too large")
        return Fraction(base ** int(exponent))

    def _atom(self, *, short: bool = False) -> Fraction:
        token = self._peek()
        if token in ("(", "{"):
            return self._group()
        self.at += 1
        if token == r"\frac":
            numerator = self._group()
            return numerator / self._group()
        if not token[:1].isdigit() and not token.startswith("."):
            raise ValueError("not a number")
        if short and len(token) > 1 and self.at > 1:
            raise ValueError("LaTeX reads 2^10 as 2^1 followed by 0")
        return Fraction(token)

    def _group(self) -> Fraction:
        closing = {"(": ")", "{": "}"}.get(self._peek())
        if closing is None:
            raise ValueError("not a number")
        self.at += 1
        result = self._sum()
        if not self._take(closing):
            raise ValueError("not a number")
        return result


# --- texts

_GROUP = r"\{((?:[^{}]|\{[^{}]*\})*)\}"
_FRAC = re.compile(rf"\\frac ?{_GROUP} ?{_GROUP}")
_ATOM = re.compile(r"-?(?:[A-Za-z0-9.]+|[0-9]*\\(?:sqrt\{[^{}]*\}|[A-Za-z]+))")
_BELOW = re.compile(r"[0-9.]+|[A-Za-z]|\\sqrt\{[^{}]*\}|\\[A-Za-z]+")  # what needs no brackets after a slash


_WORD = re.compile("[A-Za-z]?[a-z_]{2,}|[A-Z_]{5,}|[Nn]o|NO|YES|TRUE|NONE")  # no name in letters, such as AB for ab


def _canonical(text: str) -> str:
    """One spelling of what is no number: no spaces, `\\sqrt 3` in braces, fractions with a slash, words in lower case."""
    text = re.sub(r"\\sqrt ?([0-9A-Za-z])", r"\\sqrt{\1}", text)
    text = re.sub(r"([_^]) ?\{ ?([0-9A-Za-z]) ?\}", r"\1\2", text)
    text = _WRAPPED.sub(r"\1", text)
    for _ in range(4):
        text, changed = _FRAC.subn(_slash, text)
        if not changed:
            break
    text = re.sub(r"\\(?:cdot|times)(?![A-Za-z])", "*", text)
    text = re.sub(r"(\\[A-Za-z]+) (?=[A-Za-z])", r"\1{}", text)
    text = re.sub(r"(?<=[A-Za-z]{2}) (?=[A-Za-z])|(?<=[0-9]) (?=[0-9])", "_", text).replace(" ", "")
    if text.startswith("(") and text.endswith(")") and _closes(text) == len(text) - 1:
        text = text[1:-1]
    return text.casefold() if _WORD.fullmatch(text) else text


def _slash(match: re.Match[str]) -> str:
    parts = [part.strip() for part in match.groups()]
    top, bottom = (part if rule.fullmatch(part) else f"({part})" for rule, part in zip((_ATOM, _BELOW), parts, strict=True))
    whole = match.string[: match.start()].strip() in ("", "-") and match.end() == len(match.string)
    return f"{top}/{bottom}" if whole else f"({top}/{bottom})"
