"""Cells measured by bursts: the points of each start, the natural answers of each engine, and whose lengths count.

A natural run is one for each engine, configuration and model, whichever of its cells it was on. Lengths are those of all
engines of a model together, unless they differ by prompt: then each engine has its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from loadtest.analysis import effects
from loadtest.decision import composition
from loadtest.decision.bursts import BurstPoints, burst_points, engine_speed
from loadtest.decision.composition import AnswerLengths
from loadtest.metrics.intervals import Floats
from loadtest.metrics.request_arrays import Pass, pass_arrays
from loadtest.records.engine_facts import EngineFacts
from loadtest.records.read import CellRecords, LevelRecords

Recorded = Sequence[tuple[LevelRecords, Pass]]


@dataclass(frozen=True, slots=True, kw_only=True)
class BurstCell:
    """One cell: its bursts, the points of each start by concurrency and repeat, its own natural passes, and those of its
    engine and model on whichever cell they were."""

    facts: EngineFacts
    bursts: Recorded
    points: Mapping[int, Mapping[int, BurstPoints]]
    own: Recorded
    natural: Sequence[Pass] = ()

    @property
    def restarted(self) -> bool:
        """Does each repeat count by itself: a start of the server, or a round of a duel?"""
        return self.facts.base_url is None or self.facts.side is not None

    @property
    def mixes(self) -> bool:
        """Does its engine compute prompts in the steps of streams that decode?"""
        return self.facts.engine.startswith("vllm")

    @property
    def lengths(self) -> AnswerLengths | None:
        """Of its engine's own natural answers; None without."""
        return lengths_of(self.natural)


def recorded(cell: CellRecords, anchor: float) -> tuple[EngineFacts, Recorded, Recorded]:
    """A cell's facts, its bursts and its levels, each pass with its columns."""
    bursts, levels = ([(one, pass_arrays(one, anchor)) for one in some] for some in (cell.bursts, cell.levels))
    return cell.engine, bursts, levels


def burst_cells(cells: Sequence[tuple[EngineFacts, Recorded, Recorded]], users: int | None) -> dict[str, BurstCell]:
    """The cells that have bursts, by id, from each cell's facts, its bursts and its natural passes. `users`: concurrency of
    the natural runs."""
    runs: dict[tuple[object, str | None], list[Pass]] = defaultdict(list)
    for facts, _, own in cells:
        runs[facts.configuration, facts.model] += [one for _, one in own if one.concurrency == users]
    return {
        facts.id: BurstCell(
            facts=facts, bursts=bursts, points=_points(bursts), own=own, natural=runs[facts.configuration, facts.model]
        )
        for facts, bursts, own in cells
        if bursts
    }


def _points(bursts: Recorded) -> dict[int, dict[int, BurstPoints]]:
    found: dict[int, dict[int, BurstPoints]] = defaultdict(dict)
    for _, one in bursts:
        if (points := burst_points(one)) is not None:
            found[one.concurrency][one.repeat] = points
    return found


def lengths_of(passes: Sequence[Pass]) -> AnswerLengths | None:
    """Output tokens of finished answers, by prompt; None without any."""
    by_prompt: dict[str, list[float]] = defaultdict(list)
    prompts: list[float] = []
    for one in passes:
        for i in np.flatnonzero(one.measured & one.ok & (one.completion_tokens > 0)):
            by_prompt[one.records[i].prompt_id].append(float(one.completion_tokens[i]))
            prompts += [float(tokens)] if (tokens := one.records[i].prompt_tokens) is not None else []
    if not by_prompt:
        return None
    return composition.pool_lengths(by_prompt, float(np.mean(prompts)) if prompts else 0.0)


@dataclass(frozen=True, slots=True)
class ModelLengths:
    """Lengths of the engines that serve one model: of all together, and whether theirs differ by prompt."""

    pooled: AnswerLengths | None
    differ: bool

    def of(self, cell: BurstCell) -> AnswerLengths | None:
        """What a cell's times are composed for."""
        return cell.lengths if self.differ else self.pooled


def model_lengths(cells: Sequence[BurstCell]) -> ModelLengths:
    """Of cells of one model."""
    by_engine = {cell.facts.configuration: cell.natural for cell in cells}
    tests = [effects.output_tokens(a, b) for a, b in combinations(by_engine.values(), 2)]
    pooled = lengths_of([one for passes in by_engine.values() for one in passes])
    return ModelLengths(pooled, any(one.p_value <= effects.ALPHA for one in tests))


def log_times(cell: BurstCell, levels: Sequence[int], drawn: AnswerLengths) -> Floats:
    """log of the mean time to the final answer, one figure a start: the mean over the levels, of starts that have all."""
    at = [cell.points.get(level, {}) for level in levels]
    repeats = sorted(set.intersection(*map(set, at))) if at else []
    if not repeats:
        return np.zeros(0)
    figures = [
        composition.log_mean_s(engine_speed([points[repeat] for repeat in repeats], mixes=cell.mixes), drawn)
        for points in at
    ]
    logs = np.asarray(np.mean(figures, axis=0), np.float64)
    return logs if cell.restarted else np.array([float(np.mean(logs))])
