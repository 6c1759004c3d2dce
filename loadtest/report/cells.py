"""Cells and levels of a run as the page groups and titles them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from loadtest.report.formatting import Json, clean, count, estimate, rows, section, whole

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
        tp=whole(raw.get("tp")) or 1,
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


def sizes(cell: Cell) -> str:
    """Number of requests at each level of a cell, in words."""
    found = [count(level.get("n_requests")) for level in cell.levels]
    return f"{found[0]} at each level" if len(set(found)) == 1 else ", ".join(found)


def typical(of: Iterable[Cell], key: str) -> str:
    """`p50` where every level that has a mean has a median too, else `mean`: one statistic for all that is compared."""
    found = [(estimate(level, key, "mean"), estimate(level, key, "p50")) for cell in of for level in cell.levels]
    return "mean" if any(average.known and not middle.known for average, middle in found) else "p50"
