"""What plots and the page read out of `metrics.json`: figures with intervals, names of cells, and how both are written.

Nothing is computed here that `metrics.json` does not hold; a null stays a null and carries the n that it needs.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]

DASH = "—"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval, n samples, and, where it is null, the n it would need. No unit of its own."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    n_needed: int | None = None

    @property
    def known(self) -> bool:
        return self.value is not None


UNKNOWN = Estimate(None)


def users(of: int) -> str:
    """
    >>> users(1), users(8)
    ('1 user', '8 users')
    """
    return f"{of} user{'' if of == 1 else 's'}"


def value_and_span(of: Estimate) -> list[str]:
    """Two cells of a table: the figure and its interval, or a dash and the n it needs."""
    if of.value is None:
        return [DASH, f"needs n ≥ {of.n_needed}" if of.n and of.n_needed else "no data"]
    return [number(of.value), span(of) or DASH]


def rows(of: Json, key: str) -> list[Json]:
    """A list of objects at `key`; null, absent or anything else is an empty list."""
    value = of.get(key)
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, (list, tuple)) else []


def section(of: Json | None, key: str) -> Json:
    """An object at `key`; null or absent is an empty one."""
    value = of.get(key) if isinstance(of, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def estimate(of: Json | None, key: str, which: str = "value") -> Estimate:
    """The figure at `key`: a single one (`value`) or a statistic of a distribution (`mean`, `p50`, ...).

    >>> estimate({"ttft_s": {"n": 8, "p50": 0.5, "ci95": {"p50": [0.4, 0.7]}}}, "ttft_s", "p50").high
    0.7
    """
    found = section(of, key)
    interval = found.get("ci95")
    if isinstance(interval, Mapping):
        interval = interval.get(which)
    low, high = (interval[0], interval[1]) if isinstance(interval, (list, tuple)) and len(interval) == 2 else (None, None)
    needed = found.get("n_needed")
    if isinstance(needed, Mapping):
        needed = needed.get(which)
    return Estimate(finite(found.get(which)), finite(low), finite(high), whole(found.get("n")), whole(needed))


def mean(of: Json | None, key: str) -> Estimate:
    """The mean; where censored requests leave none, the mean up to the longest time seen (`restricted_mean`)."""
    found = estimate(of, key, "mean")
    return found if found.known else estimate(section(of, key), "restricted_mean")


def finite(value: Any) -> float | None:
    """The value as a number, or None where it is none (also for NaN and infinity)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def whole(value: Any) -> int | None:
    number = finite(value)
    return None if number is None else int(number)


def clean(text: Any) -> str:
    """Text with every invisible or direction-changing character written out, so that what is read is what is there.

    >>> clean("a" + chr(0x202E) + "b" + chr(0))
    'a\\\\u202eb\\\\u0000'
    """
    return "".join(_visible(character) for character in str(text))


def _visible(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return character
    return f"\\u{ord(character):04x}"


def number(value: float | None, digits: int = 3) -> str:
    """A number with `digits` significant digits and thousands separated; null is a dash.

    >>> number(0.01234), number(1234567.0), number(34.96), number(0.9999), number(None), number(0)
    ('0.0123', '1,230,000', '35.0', '1.00', '—', '0')
    """
    if value is None:
        return DASH
    if abs(value) < 5e-7:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    places = digits - 1 - math.floor(math.log10(abs(rounded)))
    return f"{rounded:,.{max(0, min(6, places))}f}"


def percent(share: float | None) -> str:
    """A share in whole percent.

    >>> percent(0.744), percent(None)
    ('74 %', '—')
    """
    return DASH if share is None else f"{share * 100:.0f} %"


def signed(value: float | None) -> str:
    """A difference with its sign.

    >>> signed(1.234), signed(-0.5), signed(None)
    ('+1.23', '−0.500', '—')
    """
    return DASH if value is None else f"{'−' if value < 0 else '+'}{number(abs(value))}"


def count(value: Any) -> str:
    """A whole number with thousands separated; null is a dash."""
    found = finite(value)
    return DASH if found is None else f"{found:,.0f}"


def span(of: Estimate, digits: int = 3, scale: float = 1.0) -> str:
    """The interval in words, `34.1 to 35.7`; empty where there is none."""
    if of.low is None or of.high is None:
        return ""
    return f"{number(of.low * scale, digits)} to {number(of.high * scale, digits)}"


def with_interval(of: Estimate, unit: str = "", digits: int = 3) -> str:
    """`35.0 tokens/s (95 % interval 34.1 to 35.7)`, or a dash with the n it would need."""
    if of.value is None:
        return f"{DASH} (needs n ≥ {of.n_needed})" if of.n_needed else DASH
    text = f"{number(of.value, digits)} {unit}".rstrip()
    return f"{text} (95 % interval {span(of, digits)})" if span(of) else f"{text} (no interval)"
