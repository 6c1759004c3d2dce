"""How values are written: numbers, shares, intervals, and text that came from elsewhere."""

from __future__ import annotations

import math
import unicodedata
from datetime import UTC, datetime

from loadtest.metrics.figures import Bounded, Estimate
from loadtest.records.engine_facts import SearchedKind
from loadtest.records.instrument import InstrumentError

DASH = "—"


RATE = "requests/s"


def load_text(level: int, of: SearchedKind = "users") -> str:
    """
    >>> load_text(1200), load_text(900, "requests/h")
    ('1,200', '0.25')
    """
    return count(level) if of == "users" else f"{level / 3600:.4g}"


def at_load(level: int, of: SearchedKind = "users") -> str:
    """
    >>> at_load(8), at_load(900, "requests/h")
    ('concurrency 8', '0.25 requests/s')
    """
    return f"concurrency {level}" if of == "users" else f"{load_text(level, of)} {RATE}"


def place_of(level: int, of: SearchedKind) -> str:
    """A level on a line of progress.

    >>> place_of(8, "users"), place_of(900, "requests/h")
    (' 8', '0.25 requests/s')
    """
    return f"{level:>2}" if of == "users" else at_load(level, of)


def listed(names: list[str]) -> str:
    """
    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def sentence(text: str) -> str:
    """With a capital at its head, but for a name that has none.

    >>> sentence("no verdict"), sentence("vLLM is faster")
    ('No verdict', 'vLLM is faster')
    """
    return text if text.startswith("vLLM") else f"{text[:1].upper()}{text[1:]}"


def clean(text: str) -> str:
    """Text with every invisible or direction-changing character written out, so that what is read is what is there.

    >>> clean("a" + chr(0x202E) + "b" + chr(0))
    'a\\\\u202eb\\\\u0000'
    """
    return text if text.isascii() and text.isprintable() else "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return character
    return f"\\u{ord(character):04x}"


def number(value: float | None, digits: int = 3) -> str:
    """A number with `digits` significant digits and thousands separated; None is a dash, and so is what is no number.

    >>> number(0.01234), number(1234567.0), number(34.96), number(0.9999), number(None), number(0), number(float("inf"))
    ('0.0123', '1,230,000', '35.0', '1.00', '—', '0', '—')
    """
    if value is None or not math.isfinite(value):
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


def count(value: float | None) -> str:
    """A whole number with thousands separated; None is a dash."""
    return DASH if value is None else f"{value:,.0f}"


def span(of: Bounded, digits: int = 3) -> str:
    """The interval in words, `34.1 to 35.7`; empty where there is none or an end is open."""
    if of.low is None or of.high is None:
        return ""
    return f"{number(of.low, digits)} to {number(of.high, digits)}"


def needs(of: Bounded) -> str:
    """The number of samples that a missing figure needs; empty where that is not known.

    >>> needs(Estimate(None, None, 5, n_needed=36))
    'needs n ≥ 36'
    """
    return f"needs n ≥ {of.n_needed}" if isinstance(of, Estimate) and of.n and of.n_needed else ""


def value_or_need(of: Bounded) -> str:
    """A figure; without it, the n that it needs, or a dash.

    >>> value_or_need(Estimate(None, None, 5, n_needed=36))
    'n ≥ 36'
    """
    return number(of.value) if of.known else needs(of).removeprefix("needs ") or DASH


def value_and_span(of: Bounded) -> tuple[str, str]:
    """Two columns of a table: the figure and its interval, or a dash and the n that it needs."""
    if of.value is None:
        return DASH, needs(of) or "no data"
    return number(of.value), span(of) or DASH


def with_interval(of: Bounded, unit: str = "", digits: int = 3) -> str:
    """`35.0 tokens/s (95 % CI 34.1 to 35.7)`, or a dash with the n that it needs."""
    if of.value is None:
        return f"{DASH} ({needs(of)})" if needs(of) else DASH
    text = f"{number(of.value, digits)} {unit}".rstrip()
    return f"{text} (95 % CI {span(of, digits)})" if span(of) else f"{text} (no confidence interval)"


def spoken(seconds: float) -> str:
    """A time for a reader.

    >>> spoken(50), spoken(600), spoken(3 * 3600)
    ('50 s', '10 min', '3.0 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def when(unix_s: float | None) -> str:
    """A time in words, UTC; empty where it is not known.

    >>> when(0.5), when(None)
    ('1 January 1970, 00:00 UTC', '')
    """
    if unix_s is None or not 0 < unix_s < 4e9:
        return ""
    return datetime.fromtimestamp(unix_s, tz=UTC).strftime("%-d %B %Y, %H:%M UTC")


def instrument_words(found: InstrumentError) -> str:
    """What the instrument is worth, in words.

    >>> instrument_words(InstrumentError(concurrency=8, tokens_per_s=50, n_requests=104, n_lost=0, ttft_mean_s=5e-5,
    ...     ttft_p99_s=1.2e-4, gap_p99_s=1.4e-5, final_answer_mean_s=5e-5, final_answer_p99_s=1e-4))
    'times to the first token within 0.12 ms (p99), gaps 0.014 ms, times to the final answer 0.1 ms, at concurrency 8'
    """
    ttft, gap, final = (f"{1e3 * value:.2g} ms" for value in (found.ttft_p99_s, found.gap_p99_s, found.final_answer_p99_s))
    lost = f"; {found.n_lost} of {found.n_lost + found.n_requests} requests lost" if found.n_lost else ""
    where = f"at concurrency {found.concurrency}"
    return f"times to the first token within {ttft} (p99), gaps {gap}, times to the final answer {final}, {where}{lost}"
