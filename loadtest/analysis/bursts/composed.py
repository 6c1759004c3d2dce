"""Composed figures: of each cell at each level, and of each pair what its question is answered from."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from msgspec import structs

from loadtest.analysis import effects
from loadtest.analysis.bursts.cells import BurstCell, ModelLengths, Recorded, lengths_of, log_times, model_lengths
from loadtest.analysis.bursts.conditions import bend_of, check_conditions
from loadtest.analysis.bursts.objectives import judge_composed, longest_first_token_s
from loadtest.analysis.judgement import ComposedPair
from loadtest.decision import composition
from loadtest.decision.bursts import BurstPoints, engine_speed
from loadtest.decision.composition import AnswerLengths, Composed, EngineSpeed
from loadtest.decision.starts import PairedStarts
from loadtest.metrics import client_health, intervals, reconciliation
from loadtest.metrics.figures import Bounded
from loadtest.metrics.intervals import Floats
from loadtest.metrics.level_schema import ClientHealth, ComposedLevel, ComposedPaces, ComposedTimes, ConditionCheck
from loadtest.metrics.slo import Slo, parse_slo
from loadtest.records.manifest import VIRTUAL_TIME, Manifest

_UNKNOWN = Bounded(None, None)
_Rate = Callable[[EngineSpeed, AnswerLengths], Floats]  # one figure a start


@dataclass(frozen=True, slots=True)
class ComposedCell:
    """What metrics.json says of a cell that was measured by bursts."""

    levels: tuple[ComposedLevel, ...]
    conditions: tuple[ConditionCheck, ...]


def decision_levels(levels: Collection[int]) -> tuple[int, ...]:
    """The concurrencies that a decision is the mean over: the lowest and the highest of a study.

    >>> decision_levels([1, 2, 4, 8])
    (1, 8)
    """
    return tuple(sorted({min(levels), max(levels)})) if levels else ()


def compose_cells(cells: Mapping[str, BurstCell], manifest: Manifest, anchor: float) -> dict[str, ComposedCell]:
    """The composed figures and conditions of every cell of a run, by id."""
    found = {}
    objectives = [parse_slo(text) for text in manifest.slo]
    for cell in cells.values():
        of_model = [one for one in cells.values() if one.facts.model == cell.facts.model]
        siblings = [one for one in of_model if one.facts.configuration == cell.facts.configuration]
        lengths = model_lengths(of_model)
        levels = sorted({one.concurrency for _, one in cell.bursts})
        found[cell.facts.id] = ComposedCell(
            tuple(_level(cell, level, lengths, manifest, anchor, objectives) for level in levels),
            check_conditions(cell, siblings, anchor, exact=manifest.driven == VIRTUAL_TIME),
        )
    return found


def _level(
    cell: BurstCell,
    level: int,
    lengths: ModelLengths,
    manifest: Manifest,
    anchor: float,
    objectives: Sequence[Slo],
) -> ComposedLevel:
    passes = [(records, one) for records, one in cell.bursts if one.concurrency == level]
    starts = list(cell.points.get(level, {}).values())
    drawn = lengths.of(cell)
    speed = engine_speed(starts, mixes=cell.mixes) if starts else None
    bend = bend_of(starts)
    steps_s = [float(np.median(one.step_s)) for one in starts]
    found = ComposedLevel(
        concurrency=level,
        evidence="composed",
        n_starts=len(starts),
        n_requests=sum(int(np.sum(one.measured)) for _, one in passes),
        step_s=_over(None if speed is None else speed.line.a_s),
        step_s_per_context_token=_over(None if speed is None else speed.line.b_s),
        first_token_s=_over(None if speed is None else speed.first_token_s),
        longest_first_token_s=longest_first_token_s([one for _, one in passes], cell.natural, starts),
        bend_share=None if bend is None else bend.share,
        time_to_final_answer_s=None if speed is None or drawn is None else _times(speed, drawn),
        tokens_per_s_per_user=_rate(speed, drawn, _pace),
        paces=None if speed is None or drawn is None else _paces(speed, drawn),
        output_tokens_per_s=_rate(speed, drawn, _total),
        n_answers=0 if drawn is None else len(drawn.tokens),
        lengths_of=None if drawn is None else "this engine" if lengths.differ else "both engines",
        client_health=_health(passes, manifest, anchor, steps_s),
        reconciliation=reconciliation.reconcile(passes, anchor, steps_s[0] if steps_s else None),
        damaged_files=tuple(
            f"{records.path.name}/{one}" for records, _ in passes for one in (*records.damaged, *records.torn)
        ),
        reason=_why_missing(starts, drawn),
    )
    return structs.replace(found, slo=tuple(judge_composed(one, found) for one in objectives))


def _why_missing(starts: Sequence[BurstPoints], drawn: AnswerLengths | None) -> str | None:
    if not starts:
        return "no start whose bursts all ended well"
    return "no natural run of this model yet: the lengths are not known" if drawn is None else None


def _health(passes: Recorded, manifest: Manifest, anchor: float, steps_s: Sequence[float]) -> ClientHealth:
    if manifest.driven == VIRTUAL_TIME:
        return client_health.no_client()
    return client_health.check_client(passes, anchor, steps_s[0] if steps_s else None)


def _over(values: Floats | None) -> Bounded:
    """The mean over starts, with its interval."""
    if values is None:
        return _UNKNOWN
    found = intervals.mean(values)
    return Bounded(found.value, found.ci95)


def _times(speed: EngineSpeed, drawn: AnswerLengths) -> ComposedTimes:
    return ComposedTimes(**_bounded(composition.composed_figures(speed, drawn)))


def _paces(speed: EngineSpeed, drawn: AnswerLengths) -> ComposedPaces:
    return ComposedPaces(**_bounded(composition.composed_paces(speed, drawn)))


def _bounded(found: Mapping[str, Composed]) -> dict[str, Bounded]:
    return {name: Bounded(one.value, one.of_this_kind) for name, one in found.items()}


def _rate(speed: EngineSpeed | None, drawn: AnswerLengths | None, rate: _Rate) -> Bounded:
    """A rate of each start: its geometric mean over starts, with the interval of its logarithm."""
    if speed is None or drawn is None:
        return _UNKNOWN
    found = intervals.mean(np.log(rate(speed, drawn)))
    ends = None if found.ci95 is None else (math.exp(found.ci95[0]), math.exp(found.ci95[1]))
    return Bounded(None if found.value is None else math.exp(found.value), ends)


def _pace(speed: EngineSpeed, drawn: AnswerLengths) -> Floats:
    """Tokens/s of one user after its first token: mean over answers, one figure a start."""
    long = drawn.tokens[drawn.tokens > 1]
    after_first_s = composition.answer_s(speed, long, drawn) - speed.first_token_s[:, None]
    return np.asarray(np.mean((long - 1) / after_first_s, axis=-1), np.float64)


def _total(speed: EngineSpeed, drawn: AnswerLengths) -> Floats:
    """Tokens/s of all users, one figure a start."""
    mean_s = np.exp(composition.log_mean_s(speed, drawn))
    return np.asarray(speed.concurrency * drawn.mean_tokens / mean_s, np.float64)


# Pairs ---------------------------------------------------------------------------------------------------------------


def composed_pair(
    a: BurstCell | None, b: BurstCell | None, levels: Sequence[int], broken: Sequence[str] = ()
) -> ComposedPair | None:
    """What the question of two cells is answered from: log mean times of each start at the lengths of both engines. None
    where neither was measured by bursts. `broken`: conditions that fail, in words."""
    if a is None or b is None:
        return None
    drawn = lengths_of([*a.natural, *b.natural])
    own = (a.lengths, b.lengths)
    common = None if drawn is None else _paired(log_times(a, levels, drawn), log_times(b, levels, drawn))
    raw = None
    if own[0] is not None and own[1] is not None:
        raw = _paired(log_times(a, levels, own[0]), log_times(b, levels, own[1]))
    lengths = effects.output_tokens(a.natural, b.natural)
    return ComposedPair(
        levels=tuple(levels),
        by_start=common,
        raw=raw,
        output_tokens=lengths,
        broken=tuple(broken),
    )


def _paired(a: Floats, b: Floats) -> PairedStarts | None:
    return PairedStarts(a, b) if len(a) and len(b) else None
