"""How many replicas and GPUs hold so many users, or so many answers per hour, under SLOs; and what an answer then costs.

From the levels of a run, measured or simulated alike. Every figure comes with what it would be at the careful and at the
hopeful end of the intervals; the careful end also counts the requests that a random router sends to the busiest replicas.
What no level tells comes from the closed form of a replica. Rules and formulas: docs/deciding.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from msgspec import structs
from scipy import special

from loadtest.analysis.decisions import CapacityOption, Cost, UserFigures
from loadtest.analysis.fleet.options import CellFacts, closed_form_figures
from loadtest.analysis.fleet.steady import SteadyReplica
from loadtest.analysis.objectives import maximum_concurrency
from loadtest.analysis.validity import sound_levels
from loadtest.errors import UsageError
from loadtest.metrics import slo
from loadtest.metrics.catalogue import Statistic
from loadtest.metrics.figures import Bounded, Estimate, OpenInterval
from loadtest.metrics.level_schema import LevelFigures
from loadtest.metrics.schema import CellFigures, MaximumConcurrency

HEADROOM = 0.2
BUSIEST = 0.95  # of the replicas have no more requests than this quantile of a random router's


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

    @property
    def most_in_flight(self) -> int | None:
        """Requests that one replica need not exceed: with so many it holds all users, headroom and all."""
        return None if self.users is None else math.ceil(self.users / (1 - self.headroom) - 1e-9)

    def replicas_at(self, in_flight: float, requests_per_s: float) -> float:
        """Replicas, without headroom, if each has so many requests in flight and ends so many a second."""
        if self.users is not None:
            return self.users / in_flight
        return (self.answers_per_hour or 0.0) / 3600 / requests_per_s


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
    in_flight: float = 0.0  # requests at each replica


def provision(demand: CapacityDemand, one: Replica, *, at_random: bool = False) -> Provision:
    """Replicas = ceil(demand / (what one holds x (1 - headroom))); delivered is what was asked for, not what could be.

    `at_random`: and so many that 95 % of the replicas have no more than `streams` requests, where each request goes to any
    replica with equal chances.

    >>> provision(CapacityDemand(users=40), Replica(streams=8, answers=160.0, tokens=80_000.0)).replicas
    7
    >>> provision(CapacityDemand(users=40), Replica(streams=8, answers=160.0, tokens=80_000.0), at_random=True).replicas
    9
    """
    held, asked = (one.streams, demand.users) if demand.users is not None else (one.answers, demand.answers_per_hour)
    assert asked is not None
    load = asked / held
    replicas = math.ceil(load / (1 - demand.headroom) - 1e-9)
    if at_random:
        replicas = _balanced(math.ceil(load * one.streams), one.streams, replicas)
    return Provision(replicas, load * one.answers, load * one.tokens, load * one.streams / replicas)


def _balanced(in_flight: int, streams: int, least: int) -> int:
    """The fewest replicas, at least `least`, so that a share `BUSIEST` of them gets at most `streams` requests each."""

    def suffice(replicas: int) -> bool:
        return streams >= in_flight or bool(special.bdtr(streams, in_flight, 1 / replicas) >= BUSIEST)

    low, high = least - 1, least
    while not suffice(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffice(middle) else (middle, high)
    return high


def plan(
    cells: Sequence[CellFigures],
    objectives: Sequence[slo.Slo],
    demand: CapacityDemand,
    closed_form: Mapping[str, SteadyReplica] | None = None,
) -> list[CapacityOption]:
    """One option for each cell: model by model, the cheapest first (fewest GPUs where no price is given), those that hold
    nothing last.

    Every figure is that of the highest level that meets every SLO. Its careful end is the worst, by the low ends of the
    rates, of that level and those below it down to the highest that meets every SLO for certain; its hopeful end is the
    best, by the high ends, up to the highest level that is not certainly broken. An end that nothing bounds is None.
    `closed_form`: the replica of each cell, by id, for figures that its levels do not tell. Raises UsageError without an
    objective.
    """
    require_objectives(objectives)
    known = closed_form or {}
    return by_model([_option(cell, objectives, demand, known.get(cell.id)) for cell in cells])


def require_objectives(objectives: Sequence[slo.Slo]) -> None:
    """Raises UsageError without one."""
    if not objectives:
        raise UsageError("--slo: expected at least one, such as time_to_final_answer_s:p90<120; got none, nor has the run")


def by_model(options: Sequence[CapacityOption]) -> list[CapacityOption]:
    """Models in the order of their first option; of each the cheapest first."""
    models = list(dict.fromkeys(one.model for one in options))
    return sorted(options, key=lambda one: (models.index(one.model), *_rank(one)))


def _rank(option: CapacityOption) -> tuple[bool, float, bool, float, str]:
    gpus, cost = option.cards.value, option.cost_per_1000_answers.value
    return gpus is None, gpus or 0.0, option.estimated, cost or 0.0, option.cell


def _option(
    cell: CellFigures, objectives: Sequence[slo.Slo], demand: CapacityDemand, steady: SteadyReplica | None
) -> CapacityOption:
    def composed(one: slo.Slo, concurrency: int) -> float | None:
        return None if steady is None else steady.figure(one.metric, one.statistic, concurrency)

    cell = structs.replace(cell, levels=sound_levels(cell.levels))
    found = maximum_concurrency(cell.levels, objectives, cell.fit, composed)
    cases = _cases(cell, found, demand)
    level = None if found.by_slo is None else cell.level(found.by_slo)
    at_most = found.limit == "not_reached" and cases.typical is not None and cases.typical.replicas > 1
    facts = CellFacts(cell.id, cell.engine, cell.model, cell.gpu_count, cell.gpu, cell.simulated)
    return structs.replace(
        _bare(facts, cases, demand.gpu_hour_price),
        streams_per_replica=Bounded(found.by_slo, found.ci95),
        limit=found.limit,
        binds=found.binds,
        streams_by_kv_cache=found.by_kv_workload,
        joules_per_answer=Estimate(None, None, 0) if level is None else level.joules_per_answer,
        seen=None if cases.typical is None else _seen(cell, cases.typical, steady),
        at_most=at_most,
        next_measurement=f"measure {2 * (found.tried or 1)} users next" if at_most else None,
        reason=cell.reason or found.reason or _why_none(found, cases.typical),
    )


def _seen(cell: CellFigures, held: Provision, steady: SteadyReplica | None) -> UserFigures:
    """What users see at the requests in flight that each replica gets: between levels; else by the closed form."""
    asked: tuple[tuple[str, Statistic], ...] = (
        ("ttft_s", "p90"), ("time_to_final_answer_s", "p50"), ("time_to_final_answer_s", "p90"),
        ("tokens_per_s_per_user", "p50"), ("output_tokens_per_s", "value"),
    )  # fmt: skip
    told = [between_levels(cell.levels, *one, held.in_flight) for one in asked]
    full = [
        steady.figure(*one, held.in_flight) if value is None and steady is not None else value
        for one, value in zip(asked, told, strict=True)
    ]
    ttft, p50, p90, user, total = full
    return UserFigures(
        ttft_p90_s=ttft,
        answer_p50_s=p50,
        answer_p90_s=p90,
        tokens_per_s_per_user=user,
        output_tokens_per_s=None if total is None else total * held.replicas,
        by="levels" if full == told else "levels and closed form" if any(told) else "closed form",
    )


def between_levels(levels: Sequence[LevelFigures], metric: str, statistic: Statistic, in_flight: float) -> float | None:
    """A figure at a concurrency between two levels, on the straight line between theirs; None below and above all that tell
    it."""
    told = [(level.concurrency, level.estimate(metric, statistic).value) for level in levels]
    known = [(concurrency, value) for concurrency, value in told if value is not None]
    if not known or not known[0][0] <= in_flight <= known[-1][0]:
        return None
    users, values = zip(*known, strict=True)
    return float(np.interp(in_flight, users, values))


def estimate(
    cell: CellFacts, steady: SteadyReplica, objectives: Sequence[slo.Slo], demand: CapacityDemand
) -> CapacityOption:
    """An option by the closed form alone, for a cell that cannot win: no interval, no limit by a level."""
    most = steady.most_in_flight(objectives)
    most = min(most, demand.most_in_flight or most)
    if not most:
        broken = next((one.text for one in objectives if not steady.meets([one], 1)), "the SLOs")
        return holds_nothing(cell, f"not even a lone request meets {broken}")
    hourly = 3600 * steady.requests_per_s(most)
    held = provision(demand, Replica(most, hourly, hourly * steady.workload.mean_output_tokens))
    return structs.replace(
        _bare(cell, _Cases(held, (), ()), demand.gpu_hour_price),
        streams_per_replica=Bounded(most, None),
        streams_by_kv_cache=Bounded(float(steady.seats), None),
        seen=closed_form_figures(steady, held.in_flight, held.replicas),
        estimated=True,
    )


def from_composed(
    cell: CellFacts, steady: SteadyReplica, highest: int, objectives: Sequence[slo.Slo], demand: CapacityDemand
) -> CapacityOption:
    """An option of a cell that bursts were measured of: by the closed form at their speeds, up to the highest concurrency
    that was measured, `highest`."""
    most = steady.most_in_flight(objectives)
    if not most:
        return structs.replace(estimate(cell, steady, objectives, demand), composed=True)
    streams = min(most, highest)
    hourly = 3600 * steady.requests_per_s(streams)
    held = provision(demand, Replica(streams, hourly, hourly * steady.workload.mean_output_tokens))
    at_most = most > highest and held.replicas > 1
    binds = None if most > highest else next((one.text for one in objectives if not steady.meets([one], most + 1)), None)
    return structs.replace(
        _bare(cell, _Cases(held, (), ()), demand.gpu_hour_price),
        streams_per_replica=Bounded(streams, None),
        limit="not_reached" if most > highest else "slo",
        binds=binds,
        seen=structs.replace(closed_form_figures(steady, held.in_flight, held.replicas), by="composed"),
        at_most=at_most,
        next_measurement=f"measure {2 * highest} users next" if at_most else None,
        composed=True,
    )


def with_careful_end(
    option: CapacityOption,
    likely: SteadyReplica,
    careful: SteadyReplica | None,
    objectives: Sequence[slo.Slo],
    demand: CapacityDemand,
) -> CapacityOption:
    """An option with careful replicas and GPUs: from the streams of the levels, times what the closed form makes of them at
    the careful end. As it is where even a lone request then breaks an objective."""
    streams, fewest = option.streams_per_replica.value, option.replicas.value
    known = likely.most_in_flight(objectives)
    most = 0 if careful is None else min(careful.most_in_flight(objectives), known)
    if careful is None or not streams or not fewest or not most:
        return option
    held = max(1, int(min(streams, most) if option.limit == "not_reached" else streams * most / known))
    hourly = 3600 * careful.requests_per_s(held)
    one = Replica(held, hourly, hourly * careful.workload.mean_output_tokens)
    replicas = max(fewest, provision(demand, one, at_random=True).replicas)
    tp, price = option.tp or 1, demand.gpu_hour_price
    cost = option.cost_per_hour
    return structs.replace(
        option,
        replicas=Bounded(fewest, (option.replicas.low, replicas)),
        cards=Bounded(fewest * tp, (option.cards.low, replicas * tp)),
        cost_per_hour=cost if price is None else Cost(cost.value, (cost.low, price * replicas * tp)),
    )


def holds_nothing(cell: CellFacts, reason: str | None) -> CapacityOption:
    """An option that holds nothing, and why."""
    return structs.replace(_bare(cell, _Cases(None, (), ()), None), reason=reason)


def _bare(cell: CellFacts, cases: _Cases, price: float | None) -> CapacityOption:
    """An option with replicas, GPUs and costs alone."""
    tp = cell.tp or 1
    return CapacityOption(
        engine=cell.engine,
        model=cell.model,
        tp=cell.tp,
        gpu=cell.gpu,
        simulated=cell.simulated,
        cell=cell.id,
        streams_per_replica=Bounded(None, None),
        limit=None,
        binds=None,
        streams_by_kv_cache=Bounded(None, None),
        replicas=_figure(cases, lambda one: one.replicas),
        cards=_figure(cases, lambda one: one.replicas * tp),
        cost_per_hour=_cost(cases, price, lambda one: one.replicas * tp),
        cost_per_1000_answers=_cost(cases, price, lambda one: 1000 * one.replicas * tp / one.answers),
        cost_per_million_output_tokens=_cost(cases, price, lambda one: 1e6 * one.replicas * tp / one.tokens),
        joules_per_answer=Estimate(None, None, 0),
        seen=None,
        estimated=False,
        at_most=False,
        next_measurement=None,
        reason=None,
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
    known = [provision(demand, one, at_random=end == 0) for one in found if one is not None]
    return known if len(known) == len(found) else ()


def _replica(level: LevelFigures, demand: CapacityDemand, end: int | None) -> Replica | None:
    """What a replica holds at a level. Where answers are demanded, the tokens follow from the mean tokens of an answer: its
    two rates have errors of very different size, so their ends say nothing of its length."""
    answers, tokens = (_rate(one, end) for one in (level.answers_per_hour, level.output_tokens_per_s))
    if demand.users is None and answers and level.answers_per_hour.value and level.output_tokens_per_s.value:
        tokens = level.output_tokens_per_s.value * answers / level.answers_per_hour.value
    if demand.users is not None and end is not None and not (answers and tokens):
        return Replica(level.concurrency, math.nan, math.nan)  # users need no rate; costs do
    return Replica(level.concurrency, answers, 3600 * tokens) if answers and tokens else None


def _rate(found: Estimate, end: int | None) -> float | None:
    if end is None:
        return found.value
    return None if found.ci95 is None else found.ci95[end]


def _figure(cases: _Cases, of: Callable[[Provision], float]) -> Bounded:
    """A figure of the provision, from the hopeful to the careful end."""
    return Bounded(None if cases.typical is None else of(cases.typical), _ends(cases, of))


def _ends(cases: _Cases, of: Callable[[Provision], float]) -> OpenInterval | None:
    low, high = _end(min, [of(one) for one in cases.hopeful]), _end(max, [of(one) for one in cases.careful])
    return None if low is None and high is None else (low, high)


def _end(which: Callable[[Sequence[float]], float], figures: Sequence[float]) -> float | None:
    """The lowest or the highest; None without estimates, or if one comes from a rate without an interval."""
    return None if not figures or any(map(math.isnan, figures)) else which(figures)


def _cost(cases: _Cases, price: float | None, gpus: Callable[[Provision], float]) -> Cost:
    if price is None:
        return Cost(None, None, "no price of a GPU hour was given")
    found = _figure(cases, lambda one: price * gpus(one))
    return Cost(found.value, found.ci95)


def _why_none(found: MaximumConcurrency, typical: Provision | None) -> str | None:
    if found.by_slo == 0:
        return f"not even the lowest level meets {found.binds}"
    return "no answer arrived inside the steady window" if typical is None else None
