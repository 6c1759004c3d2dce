"""Cells of a run as the page groups and titles them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from loadtest.analysis.validity import sound_levels, unsound_reasons
from loadtest.metrics.catalogue import Statistic
from loadtest.metrics.figures import Bounded, unknown
from loadtest.metrics.level_schema import ComposedLevel, LevelFigures
from loadtest.metrics.schema import CellFigures, Metrics
from loadtest.records.engine_facts import SearchedKind
from loadtest.report.formatting import RATE, at_load, clean, count, load_text

FAMILIES = {"sglang": "SGLang", "vllm": "vLLM", "other": "Other"}
_MODEL_CHARS = 100
_MODES = {"equal-work": "equal work", "natural": "natural stopping"}


@dataclass(frozen=True, slots=True)
class ShownCell:
    """One cell and the names it is shown by. Every text is safe to show (`clean`).

    `second_mode`: where a study pairs two modes, the second one, of the cells that it adds. `variant`: which configuration
    of its engine it is, where that has several, and `run` its place among those of its deployment. On a page of several
    runs, `run` is the run's number there, `label` its name, and `place` what is compared. `of`: what its levels are.
    """

    figures: CellFigures
    second_mode: str = ""
    variant: str = ""
    run: int | None = None
    label: str = ""
    place: str = ""
    of: SearchedKind = "users"

    @property
    def id(self) -> str:
        return clean(self.figures.id)

    @property
    def levels(self) -> tuple[LevelFigures, ...]:
        return self.figures.levels

    def level(self, concurrency: int) -> LevelFigures | None:
        return self.figures.level(concurrency)

    @property
    def simulated(self) -> bool:
        return self.figures.simulated

    @property
    def gpus(self) -> int:
        """GPUs that serve it, of all kinds; 1 where nobody said."""
        return self.figures.gpu_count or 1

    @property
    def gpus_known(self) -> bool:
        """Is it said how many GPUs serve it? Of an imported run that may be unknown."""
        return self.figures.gpu_count is not None

    @property
    def family(self) -> str:
        """Key of `FAMILIES`: the engine, simulated or not."""
        return self.figures.family if self.figures.family in FAMILIES else "other"

    @property
    def _own(self) -> str:
        side, family = self.figures.side, FAMILIES[self.family]
        return self.label or (family if side is None else f"{side.upper()} ({family})")

    @property
    def short(self) -> str:
        """Name of the engine with its configuration (or of the run), for small places under a title that says what is
        simulated."""
        return self._own if self.label or not self.variant else f"{self._own} {self.variant}"

    @property
    def engine(self) -> str:
        """Name of the engine (or the run); a simulated one says so."""
        return f"{self.short} (simulated)" if self.simulated else self.short

    @property
    def name(self) -> str:
        """Engine, deployment and configuration, the header of a table's row; `-sim` marks a simulated engine."""
        variant = f", {self.variant}" if self.variant and not self.label else ""
        return f"{self._own}{'-sim' if self.simulated else ''} {self.deployment}{variant}"

    @property
    def model(self) -> str:
        """At most 100 characters: it is in every figure and row."""
        name = clean(self.figures.model or "unknown model")
        return title_of_model(name if len(name) <= _MODEL_CHARS else f"{name[: _MODEL_CHARS - 1]}…")

    @property
    def deployment(self) -> str:
        """Model and number of GPUs: what two engines are compared on. No GPU is named where none is known."""
        if self.place:
            return self.place
        mode = f", {self.second_mode}" if self.second_mode else ""
        if not self.figures.gpu and self.gpus == 1:
            return f"{self.model}{mode}"
        return f"{self.model}, {self.gpus} GPU{'' if self.gpus == 1 else 's'}{mode}"

    @property
    def placed(self) -> str:
        """The deployment inside a sentence: `QwQ-32B on 2 GPUs`."""
        return self.deployment.replace(", ", " on ", 1)

    @property
    def status(self) -> str:
        """How it ended, with the reason where that is not well."""
        status = self.figures.status or ("ok" if self.levels else "not measured")
        return f"{status}: {clean(self.figures.reason)}" if self.figures.reason else status

    @property
    def tried(self) -> str:
        """The concurrencies that were tried."""
        levels = {level.concurrency for level in self.levels} | {level.concurrency for level in self.figures.composed}
        return ", ".join(map(self.load, sorted(levels)))

    def load(self, level: int) -> str:
        """A level in a table: its concurrency, or its requests/s."""
        return load_text(level, self.of)

    def at(self, level: int) -> str:
        """A level in a sentence."""
        return at_load(level, self.of)

    def all_at(self, levels: Iterable[int]) -> str:
        """Several levels in a sentence."""
        first, *others = levels
        return ", ".join([self.at(first), *map(self.load, others)])


def cells_of(metrics: Metrics) -> tuple[ShownCell, ...]:
    """Every cell, in the order of `metrics.cells`."""
    kinds = {one.cell: one.of for one in metrics.searches}
    plain = [
        ShownCell(one, second_mode=_second_mode(one, metrics.run.mode), of=kinds.get(one.id, "users"))
        for one in metrics.cells
    ]
    places = Counter(cell.deployment for cell in plain if cell.figures.name is not None)
    seen = Counter[str]()
    return tuple(_configured(cell, seen) if places[cell.deployment] else cell for cell in plain)


def _configured(cell: ShownCell, seen: Counter[str]) -> ShownCell:
    """One of several configurations of a deployment: each has a look of its own. `seen`: how many of each have one."""
    seen[cell.deployment] += 1
    return replace(cell, variant=clean((cell.figures.name or "").replace(",", ", ")), run=seen[cell.deployment] - 1)


def _second_mode(cell: CellFigures, first: str | None) -> str:
    return "" if cell.mode is None or cell.mode == first else _MODES[cell.mode]


def title_of_model(name: str) -> str:
    """How a registry name is usually written; any other name is left as it is.

    >>> title_of_model("qwq-32b-awq"), title_of_model("Qwen/Qwen2.5-7B-Instruct")
    ('QwQ-32B-AWQ', 'Qwen2.5-7B-Instruct')
    """
    name = name.rstrip("/").rsplit("/", 1)[-1]
    return "QwQ-32B" + name[len("qwq-32b") :].upper() if name.lower().startswith("qwq-32b") else name


Groups = Mapping[str, tuple[ShownCell, ...]]


def deployments(cells: Iterable[ShownCell], *, composed: bool = False) -> Groups:
    """Cells with a level, by deployment, in order of appearance. `composed`: also of those composed of bursts."""
    groups: dict[str, tuple[ShownCell, ...]] = {}
    for cell in cells:
        if cell.levels or (composed and cell.figures.composed):
            groups[cell.deployment] = (*groups.get(cell.deployment, ()), cell)
    return groups


def sound_cells(cells: Iterable[ShownCell]) -> tuple[ShownCell, ...]:
    """The cells with the levels that verdicts may rest on, composed ones too; those that have none are left out."""
    found = [_sound(cell) for cell in cells]
    return tuple(cell for cell in found if cell.levels or cell.figures.composed)


def _sound(cell: ShownCell) -> ShownCell:
    composed = tuple(level for level in cell.figures.composed if not unsound_reasons(level))
    levels = sound_levels(cell.levels)
    return replace(cell, figures=msgspec.structs.replace(cell.figures, levels=levels, composed=composed))


def at_level(cell: ShownCell, concurrency: int) -> ShownCell:
    """The cell with this concurrency alone, composed or not."""
    levels = tuple(level for level in cell.levels if level.concurrency == concurrency)
    composed = tuple(level for level in cell.figures.composed if level.concurrency == concurrency)
    return replace(cell, figures=msgspec.structs.replace(cell.figures, levels=levels, composed=composed))


def level_places(levels: Iterable[tuple[ShownCell, LevelFigures]]) -> str:
    """Levels in words: `CELL at concurrency 4, 8; OTHER at concurrency 8`."""
    found: dict[str, tuple[ShownCell, list[int]]] = {}
    for cell, level in levels:
        found.setdefault(cell.id, (cell, []))[1].append(level.concurrency)
    return "; ".join(f"{name} at {cell.all_at(at)}" for name, (cell, at) in found.items())


def flat(groups: Groups) -> tuple[ShownCell, ...]:
    """The cells of all groups, in order."""
    return tuple(cell for group in groups.values() for cell in group)


def by_level(cells: Iterable[ShownCell]) -> list[tuple[ShownCell, LevelFigures]]:
    """Every level of every cell."""
    return [(cell, level) for cell in cells for level in cell.levels]


def top_concurrency(group: Iterable[ShownCell]) -> int:
    """The highest at which every cell of the group has requests; the highest of any where they share none."""
    levels = [{level.concurrency for level in cell.levels if level.n_requests} for cell in group]
    return max(set.intersection(*levels) or set.union(*levels) or {1})


@dataclass(frozen=True, slots=True)
class Point:
    """One concurrency of a cell: as it was measured, and, where a decision composed it of bursts, as that says."""

    concurrency: int
    level: LevelFigures | None
    composed: ComposedLevel | None

    def at(self, metric: str, statistic: Statistic = "value") -> Bounded:
        """A figure: the composed one where there is one; None where neither has it."""
        made = self._composed(metric, statistic)
        if made is not None:
            return made
        return unknown("not measured") if self.level is None else self.level.estimate(metric, statistic)

    def _composed(self, metric: str, statistic: Statistic) -> Bounded | None:
        if self.composed is None or self.composed.time_to_final_answer_s is None:
            return None
        if metric in ("tokens_per_s_per_user", "output_tokens_per_s"):
            found: Bounded = getattr(self.composed, metric)
            return found
        if metric != "time_to_final_answer_s":
            return None
        return getattr(self.composed.time_to_final_answer_s, statistic, None) or unknown("not composed")


def points(cell: ShownCell) -> tuple[Point, ...]:
    """Every concurrency of a cell that has a figure, ascending; nothing composed where a condition of it is broken."""
    levels = {level.concurrency: level for level in cell.levels if level.n_requests}
    composed = {level.concurrency: level for level in cell.figures.usable}
    return tuple(Point(n, levels.get(n), composed.get(n)) for n in sorted(levels.keys() | composed.keys()))


def best_cell(cells: Sequence[ShownCell]) -> ShownCell:
    """The cell with the highest concurrency within the SLOs; among equals, that with the shortest median wait there."""

    def rank(cell: ShownCell) -> tuple[float, float, float]:
        point = headline(cell)
        if point is None:
            return 0, -math.inf, 0.0
        wait, total = point.at("time_to_final_answer_s", "p50").value, point.at("output_tokens_per_s").value
        return cell.figures.maximum_concurrency.by_slo or 0, -math.inf if wait is None else -wait, total or 0.0

    return max(cells, key=rank)


def headline(cell: ShownCell) -> Point | None:
    """The point that stands for a cell: the highest within the SLOs; the lowest where none is; without SLOs the highest."""
    found = points(cell)
    within = cell.figures.maximum_concurrency.by_slo
    if not found or within is None:
        return found[-1] if found else None
    return next((point for point in found if point.concurrency == within), found[0])


def load_title(cells: Iterable[ShownCell]) -> str:
    """What the levels of a run are, as the title of a column or an axis."""
    return "concurrency" if all(cell.of == "users" for cell in cells) else RATE


def concurrencies(cells: Iterable[ShownCell]) -> tuple[int, ...]:
    """Every concurrency that any of the cells was tried at, ascending."""
    return tuple(sorted({level.concurrency for _, level in by_level(cells)}))


def labelled(title: str, cells: Iterable[ShownCell]) -> str:
    """A title that says so where any of the cells is simulated."""
    return f"{title} (simulated)" if any(cell.simulated for cell in cells) else title


def sample_sizes(cell: ShownCell) -> str:
    """Number of requests at each level of a cell, in words."""
    sizes = [count(level.n_requests) for level in cell.levels]
    return f"{sizes[0]} at each level" if len(set(sizes)) == 1 else ", ".join(sizes)


def typical_statistic(cells: Iterable[ShownCell], metric: str) -> Statistic:
    """`p50` where every level that has a mean has a median too, else `mean`: one statistic for all that is compared."""
    found = [(level.estimate(metric, "mean"), level.estimate(metric, "p50")) for _, level in by_level(cells)]
    return "mean" if any(average.known and not middle.known for average, middle in found) else "p50"
