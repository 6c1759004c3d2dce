"""How many replicas and GPUs hold so many users, or so many answers per hour, under SLOs; and what an answer then costs.

From the levels of a run, measured or simulated alike. Every figure comes with what it would be at the careful and at the
hopeful end of the intervals. Rules and formulas: docs/capacity.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from loadtest.analysis.decisions import CapacityOption, Cost
from loadtest.analysis.objectives import maximum_concurrency
from loadtest.analysis.validity import sound_levels
from loadtest.errors import UsageError
from loadtest.metrics import slo
from loadtest.metrics.figures import Bounded, Estimate, OpenInterval
from loadtest.metrics.level_schema import LevelFigures
from loadtest.metrics.schema import CellFigures, MaximumConcurrency

HEADROOM = 0.2


@dataclass(frozen=True, slots=True)
class CapacityDemand:
    """What has to be held: `users` requests in flight at any time, or else `answers_per_hour` finished ones.

    `headroom` is the share of each replica that is kept free, `gpu_hour_price` the price of one GPU for an hour.
    """

    users: int | None = None
    answers_per_hour: float | None = None
    headroom: float = HEADROOM
    gpu_hour_price: float | None = None

    def __post_init__(self) -> None:
        if (self.users is None) == (self.answers_per_hour is None):
            raise UsageError("plan: expected one of --users U and --answers-per-hour N, got both or neither")
        if not (self.users or self.answers_per_hour or 0) > 0:
            raise UsageError("plan: expected a number of users or answers above 0")
        if not 0 <= self.headroom < 1:
            raise UsageError(f"--headroom: expected a share from 0 to below 1, such as 0.2, got {self.headroom:g}")
        if self.gpu_hour_price is not None and not 0 <= self.gpu_hour_price < math.inf:
            raise UsageError(f"--gpu-hour-price: expected a price from 0 up, got {self.gpu_hour_price:g}")


@dataclass(frozen=True, slots=True)
class Replica:
    """What one replica is taken to hold: requests in flight, and answers and output tokens per hour with that many."""

    streams: int
    answers: float
    tokens: float


@dataclass(frozen=True, slots=True)
class Provision:
    """How many replicas hold a demand, and the answers and tokens per hour that they then deliver."""

    replicas: int
    answers: float
    tokens: float


def provision(demand: CapacityDemand, one: Replica) -> Provision:
    """Replicas = ceil(demand / (what one holds x (1 - headroom))); delivered is what was asked for, not what could be.

    >>> provision(CapacityDemand(users=40), Replica(streams=8, answers=160.0, tokens=80_000.0))
    Provision(replicas=7, answers=800.0, tokens=400000.0)
    """
    held, asked = (one.streams, demand.users) if demand.users is not None else (one.answers, demand.answers_per_hour)
    assert asked is not None
    load = asked / held
    replicas = math.ceil(load / (1 - demand.headroom) - 1e-9)
    return Provision(replicas, load * one.answers, load * one.tokens)


def plan(cells: Sequence[CellFigures], objectives: Sequence[slo.Slo], demand: CapacityDemand) -> list[CapacityOption]:
    """One option for each cell, cheapest first (fewest GPUs where no price is given), those that hold nothing last.

    Every figure is that of the highest level that meets every SLO. Its careful end is the worst, by the low ends of the
    rates, of that level and those below it down to the highest that meets every SLO for certain; its hopeful end is the
    best, by the high ends, up to the highest level that is not certainly broken. An end that nothing bounds is None. Raises
    UsageError without an objective.
    """
    if not objectives:
        raise UsageError("--slo: expected at least one, such as time_to_final_answer_s:p90<120; got none, nor has the run")
    options = [_option(cell, objectives, demand) for cell in cells]
    return sorted(options, key=_rank)


def _rank(option: CapacityOption) -> tuple[bool, float, float, str]:
    gpus, cost = option.cards.value, option.cost_per_1000_answers.value
    return gpus is None, gpus or 0.0, cost or 0.0, option.cell


def _option(cell: CellFigures, objectives: Sequence[slo.Slo], demand: CapacityDemand) -> CapacityOption:
    cell = replace(cell, levels=sound_levels(cell.levels))
    found = maximum_concurrency(cell.levels, objectives, cell.fit)
    cases = _cases(cell, found, demand)
    level = None if found.by_slo is None else cell.level(found.by_slo)
    tp, price = cell.tp or 1, demand.gpu_hour_price
    return CapacityOption(
        engine=cell.engine,
        model=cell.model,
        tp=cell.tp,
        gpu=cell.gpu,
        simulated=cell.simulated,
        cell=cell.id,
        streams_per_replica=Bounded(found.by_slo, found.ci95),
        limit=found.limit,
        binds=found.binds,
        streams_by_kv_cache=found.by_kv_workload,
        replicas=_figure(cases, lambda one: one.replicas),
        cards=_figure(cases, lambda one: one.replicas * tp),
        cost_per_hour=_cost(cases, price, lambda one: one.replicas * tp),
        cost_per_1000_answers=_cost(cases, price, lambda one: 1000 * one.replicas * tp / one.answers),
        cost_per_million_output_tokens=_cost(cases, price, lambda one: 1e6 * one.replicas * tp / one.tokens),
        joules_per_answer=Estimate(None, None, 0) if level is None else level.joules_per_answer,
        reason=cell.reason or found.reason or _why_none(found, cases.typical),
    )


@dataclass(frozen=True, slots=True)
class _Cases:
    """The provision by the figures, and those from it to each end of the intervals; none where nothing bounds that end."""

    typical: Provision | None
    hopeful: Sequence[Provision]
    careful: Sequence[Provision]


def _cases(cell: CellFigures, found: MaximumConcurrency, demand: CapacityDemand) -> _Cases:
    low, high = found.ci95 or (None, None)
    typical = _provisions(cell, found.by_slo, found.by_slo, demand, None)
    return _Cases(
        typical=typical[0] if typical else None,
        hopeful=_provisions(cell, found.by_slo, high, demand, 1),
        careful=_provisions(cell, low, found.by_slo, demand, 0),
    )


def _provisions(
    cell: CellFigures, lowest: int | None, highest: int | None, demand: CapacityDemand, end: int | None
) -> Sequence[Provision]:
    """A provision for each level from `lowest` to `highest`, by its figures (`end` None) or one end of their intervals. None
    at all where such a level, or the rates of one, are missing."""
    if lowest is None or highest is None or cell.level(lowest) is None:
        return ()
    found = [_replica(level, demand, end) for level in cell.levels if lowest <= level.concurrency <= highest]
    known = [provision(demand, one) for one in found if one is not None]
    return known if len(known) == len(found) else ()


def _replica(level: LevelFigures, demand: CapacityDemand, end: int | None) -> Replica | None:
    """What a replica holds at a level. Where answers are demanded, the tokens follow from the mean tokens of an answer: its
    two rates have errors of very different size, so their ends say nothing of its length."""
    answers, tokens = (_rate(one, end) for one in (level.answers_per_hour, level.output_tokens_per_s))
    if demand.users is None and answers and level.answers_per_hour.value and level.output_tokens_per_s.value:
        tokens = level.output_tokens_per_s.value * answers / level.answers_per_hour.value
    return Replica(level.concurrency, answers, 3600 * tokens) if answers and tokens else None


def _rate(found: Estimate, end: int | None) -> float | None:
    if end is None:
        return found.value
    return None if found.ci95 is None else found.ci95[end]


def _figure(cases: _Cases, of: Callable[[Provision], float]) -> Bounded:
    """A figure of the provision, from the hopeful to the careful end."""
    return Bounded(None if cases.typical is None else of(cases.typical), _ends(cases, of))


def _ends(cases: _Cases, of: Callable[[Provision], float]) -> OpenInterval | None:
    low = min((of(one) for one in cases.hopeful), default=None)
    high = max((of(one) for one in cases.careful), default=None)
    return None if low is None and high is None else (low, high)


def _cost(cases: _Cases, price: float | None, gpus: Callable[[Provision], float]) -> Cost:
    if price is None:
        return Cost(None, None, "no price of a GPU hour was given")
    found = _figure(cases, lambda one: price * gpus(one))
    return Cost(found.value, found.ci95)


def _why_none(found: MaximumConcurrency, typical: Provision | None) -> str | None:
    if found.by_slo == 0:
        return f"not even the lowest level meets {found.binds}"
    return "no answer arrived inside the steady window" if typical is None else None
