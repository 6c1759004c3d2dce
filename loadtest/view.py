"""What plots and the page read out of `metrics.json`: figures with intervals, names of cells, and how both are written.

Nothing is computed here that `metrics.json` does not hold; a null stays a null and carries the n that it needs.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]

DASH = "—"
FAMILIES = {"sglang": "SGLang", "vllm": "vLLM", "other": "Other"}
# Title, unit and the statistic that stands for a distribution, for every metric that is drawn or named.
METRICS = {
    "output_tokens_per_s": ("Output tokens/s, all users together", "tokens/s", "value"),
    "tokens_per_s_per_user": ("Tokens/s per user", "tokens/s", "p50"),
    "ttft_s": ("Time to first token", "seconds", "p50"),
    "time_to_first_answer_s": ("Time to first answer text", "seconds", "p50"),
    "time_to_final_answer_s": ("Time to final answer", "seconds", "p50"),
    "thinking_s": ("Thinking time", "seconds", "p50"),
    "tpot_s": ("Time per output token", "seconds", "p50"),
    "itl_s": ("Gap between tokens", "seconds", "p50"),
    "reasoning_tokens": ("Tokens thought", "tokens", "mean"),
    "answer_tokens": ("Tokens answered", "tokens", "mean"),
    "answers_per_hour": ("Answers per hour", "answers/h", "value"),
    "goodput_answers_per_hour": ("Answers per hour within the SLOs", "answers/h", "value"),
    "accuracy": ("Share of right answers", "", "value"),
}


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


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of `metrics.json`. `levels` are sorted by concurrency; texts are safe to show (`clean`).

    On a page of several runs, `run` is the run's number there, `label` its name, and `place` what is compared.
    """

    id: str
    engine: str
    family: str
    version: str
    model: str
    tp: int
    gpu: str
    simulated: bool
    status: str
    reason: str
    roofline: Json
    fit: Json
    maximum: Json
    levels: tuple[Json, ...]
    second_mode: str = ""  # where a study pairs both, of the cells that its second mode adds
    run: int | None = None
    label: str = ""
    place: str = ""

    @property
    def runtime(self) -> str:
        """Name of the runtime (or the run); a simulated one says so."""
        return f"{self.short} (simulated)" if self.simulated else self.short

    @property
    def short(self) -> str:
        """Name of the runtime alone, for small places under a title that says what is simulated."""
        return self.label or FAMILIES.get(self.family, self.family)

    @property
    def name(self) -> str:
        """Runtime and deployment, the header of a table's row; `-sim` marks a simulated runtime."""
        return f"{self.short}{'-sim' if self.simulated else ''} {self.deployment}"

    @property
    def deployment(self) -> str:
        """Model and number of cards: what two runtimes are compared on. No card is named where none is known."""
        if self.place:
            return self.place
        mode = f", {self.second_mode}" if self.second_mode else ""
        if not self.gpu and self.tp == 1:
            return f"{self.model}{mode}"
        return f"{self.model}, {self.tp} card{'' if self.tp == 1 else 's'}{mode}"

    def level(self, concurrency: int) -> Json | None:
        return next((level for level in self.levels if level.get("concurrency") == concurrency), None)


def cells(metrics: Json) -> tuple[Cell, ...]:
    """Every cell, in the order of `metrics.json`."""
    return tuple(_cell(raw) for raw in rows(metrics, "cells"))


_MODES = {"_equal-work": "equal work", "_natural": "natural stopping"}  # by the end of a cell's id


def _cell(raw: Json) -> Cell:
    engine = clean(raw.get("engine") or "other")
    family = engine.removesuffix("-sim")
    levels = sorted(rows(raw, "levels"), key=lambda level: int(level.get("concurrency") or 0))
    return Cell(
        id=clean(raw.get("id") or "?"),
        engine=engine,
        family=family if family in FAMILIES else "other",
        version=clean(raw.get("engine_version") or ""),
        model=title_of_model(clean(raw.get("model") or "?")),
        tp=_whole(raw.get("tp")) or 1,
        gpu=clean(raw.get("gpu") or ""),
        simulated=bool(raw.get("simulated")) or engine.endswith("-sim"),
        status=clean(raw.get("status") or ("ok" if levels else "not measured")),
        reason=clean(raw.get("reason") or ""),
        roofline=section(raw, "roofline"),
        fit=section(raw, "fit"),
        maximum=section(raw, "maximum_concurrency"),
        levels=tuple(levels),
        second_mode=next((words for end, words in _MODES.items() if str(raw.get("id")).endswith(end)), ""),
    )


def title_of_model(name: str) -> str:
    """How a registry name is usually written; any other name is left as it is.

    >>> title_of_model("qwq-32b-awq"), title_of_model("Qwen/Qwen2.5-7B-Instruct")
    ('QwQ-32B-AWQ', 'Qwen2.5-7B-Instruct')
    """
    name = name.rstrip("/").rsplit("/", 1)[-1]
    return "QwQ-32B" + name[len("qwq-32b") :].upper() if name.lower().startswith("qwq-32b") else name


def deployments(of: tuple[Cell, ...]) -> dict[str, tuple[Cell, ...]]:
    """Cells with at least one level, by deployment, in order of appearance."""
    groups: dict[str, tuple[Cell, ...]] = {}
    for cell in of:
        if cell.levels:
            groups[cell.deployment] = (*groups.get(cell.deployment, ()), cell)
    return groups


def flat(groups: Mapping[str, tuple[Cell, ...]]) -> tuple[Cell, ...]:
    """The cells of all groups, in order."""
    return tuple(cell for group in groups.values() for cell in group)


def top_level(group: Iterable[Cell]) -> int:
    """The highest level at which every cell of the group has requests; the highest of any where they share none."""
    levels = [{int(level["concurrency"]) for level in cell.levels if level.get("n_requests") != 0} for cell in group]
    return max(set.intersection(*levels) or set.union(*levels) or {1})


def concurrencies(of: Iterable[Cell]) -> list[int]:
    """Every level that any of the cells was tried at, ascending."""
    return sorted({int(level["concurrency"]) for cell in of for level in cell.levels})


def title(text: str, of: Iterable[Cell]) -> str:
    """A title that says so where any of the cells is simulated."""
    return f"{text} (simulated)" if any(cell.simulated for cell in of) else text


def users(of: int) -> str:
    """
    >>> users(1), users(8)
    ('1 user', '8 users')
    """
    return f"{of} user{'' if of == 1 else 's'}"


def sizes(cell: Cell) -> str:
    """Number of requests at each level of a cell, in words."""
    found = [count(level.get("n_requests")) for level in cell.levels]
    return f"{found[0]} at each level" if len(set(found)) == 1 else ", ".join(found)


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
    return Estimate(finite(found.get(which)), finite(low), finite(high), _whole(found.get("n")), _whole(needed))


def typical(of: Iterable[Cell], key: str) -> str:
    """`p50` where every level that has a mean has a median too, else `mean`: one statistic for all that is compared."""
    found = [(estimate(level, key, "mean"), estimate(level, key, "p50")) for cell in of for level in cell.levels]
    return "mean" if any(average.known and not middle.known for average, middle in found) else "p50"


def mean(of: Json | None, key: str) -> Estimate:
    """The mean; where censored requests leave none, the mean up to the longest time seen (`restricted_mean`)."""
    found = estimate(of, key, "mean")
    return found if found.known else estimate(section(of, key), "restricted_mean")


def finite(value: Any) -> float | None:
    """The value as a number, or None where it is none (also for NaN and infinity)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _whole(value: Any) -> int | None:
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
