"""Fleets as a reader compares them: replicas, GPUs and price of each cell behind each router, and what a loss does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loadtest.analysis.decisions import FleetEnds, FleetLoss, FleetOption, FleetSize, PeakFigure
from loadtest.analysis.fleet.peak import Peak, ReplicaModel, Sizing, Waits
from loadtest.errors import UsageError
from loadtest.metrics.slo import Slo
from loadtest.simulator.fleet.arrivals import Demand, RequestMix

ZONES = 3
_FIRMER = 0.98  # more streams that would save less than this share of the replicas are not worth a measurement


@dataclass(frozen=True, slots=True)
class CellFacts:
    """Which configuration an option is about."""

    id: str
    engine: str
    model: str | None
    tp: int | None
    gpu: str | None
    simulated: bool


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A cell with what is known of its replicas and its workload, or why nothing is."""

    facts: CellFacts
    model: ReplicaModel | None
    workload: RequestMix | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of every candidate."""

    demand: Demand
    objectives: Sequence[Slo]
    routers: Sequence[str]
    headroom: float = 0.0
    gpu_hour_price: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.headroom < 1:
            raise UsageError(f"--headroom: expected a share from 0 to below 1, such as 0.2, got {self.headroom:g}")
        if self.gpu_hour_price is not None and not 0 <= self.gpu_hour_price < math.inf:
            raise UsageError(f"--gpu-hour-price: expected a price from 0 up, got {self.gpu_hour_price:g}")


@dataclass(frozen=True, slots=True, eq=False)
class _Sized:
    """A candidate behind a router, with its searches."""

    candidate: Candidate
    router: str
    peak: Peak | None
    likely: Sizing | None = None
    careful: Sizing | None = None
    beyond: Sizing | None = None

    @property
    def gpus(self) -> float:
        found = self.likely.replicas if self.likely is not None else None
        return math.inf if found is None else found * (self.candidate.facts.tp or 1)


def fleet_options(
    candidates: Sequence[Candidate], question: Question, say: Callable[[str], None] = lambda line: None
) -> list[FleetOption]:
    """One option for each candidate and router, fewest GPUs first; losses for every router of the first cell."""
    sized = []
    for candidate in candidates:
        for router in question.routers:
            say(f"{candidate.facts.id}, {router}: searching the number of replicas")
            sized.append(_size(candidate, router, question))
    sized.sort(key=lambda one: (one.gpus, one.candidate.facts.id))
    best = sized[0].candidate if sized and math.isfinite(sized[0].gpus) else None
    return [_option(one, question, with_losses=one.candidate is best) for one in sized]


def _size(candidate: Candidate, router: str, question: Question) -> _Sized:
    if candidate.model is None or candidate.workload is None:
        return _Sized(candidate, router, None)
    peak = Peak(candidate.model, router, question.demand, candidate.workload, question.objectives)
    likely = peak.size()
    careful = peak.size(careful=True) if candidate.model.careful is not None else None
    beyond = peak.size_beyond() if candidate.model.known_streams is not None else None
    return _Sized(candidate, router, peak, likely, careful, beyond)


def _option(one: _Sized, question: Question, *, with_losses: bool) -> FleetOption:
    facts, found, tp = one.candidate.facts, one.likely, one.candidate.facts.tp or 1
    kept = 1 - question.headroom
    replicas = _ends(one, lambda count: math.ceil(count / kept - 1e-9))
    gpus = _each(replicas, lambda count: count * tp)
    price = question.gpu_hour_price
    a_day = FleetEnds(None, None) if price is None else _each(gpus, lambda count: count * 24 * price)
    at_most = _is_upper_bound(one)
    return FleetOption(
        engine=facts.engine,
        model=facts.model,
        tp=facts.tp,
        gpu=facts.gpu,
        simulated=facts.simulated,
        cell=facts.id,
        router=one.router,
        replicas=replicas,
        cards=gpus,
        cost_per_day=a_day,
        cost_per_1000_answers=_each(a_day, lambda cost: 1000 * cost / question.demand.requests_per_day),
        peak=_figures(found.waits() if found is not None else None, question.objectives),
        losses=_losses(one, question.objectives) if with_losses else (),
        tried=tuple(_tried(found, question.objectives)),
        binds=None if found is None or found.binds is None else found.binds.text,
        known_streams=None if one.candidate.model is None else one.candidate.model.known_streams,
        at_most=at_most,
        next_measurement=_next(one) if at_most else None,
        reason=_why_none(one),
    )


def _ends(one: _Sized, of: Callable[[float], float]) -> FleetEnds:
    counts = [None if found is None or found.replicas is None else of(found.replicas) for found in (one.likely, one.careful)]
    return FleetEnds(*counts)


def _each(ends: FleetEnds, of: Callable[[float], float]) -> FleetEnds:
    return FleetEnds(*(None if one is None else of(one) for one in (ends.likely, ends.careful)))


def _figures(waits: Waits | None, objectives: Sequence[Slo]) -> tuple[PeakFigure, ...]:
    if waits is None:
        return ()
    pairs = zip(objectives, waits.figures, strict=True)
    return tuple(PeakFigure(slo.text, one if math.isfinite(one) else None, slo.holds(one)) for slo, one in pairs)


def _tried(found: Sizing | None, objectives: Sequence[Slo]) -> list[FleetSize]:
    return [FleetSize(replicas=one.replicas, peak=_figures(one, objectives)) for one in (found.tried if found else ())]


def _losses(one: _Sized, objectives: Sequence[Slo]) -> tuple[FleetLoss, ...]:
    replicas = one.likely.replicas if one.likely is not None else None
    if one.peak is None or replicas is None or replicas < 2:
        return ()
    found = [one.peak.loss(replicas, lost) for lost in sorted({1, math.ceil(replicas / ZONES)})]
    return tuple(FleetLoss(lost=loss.lost, peak=_figures(loss.waits, objectives)) for loss in found)


def _is_upper_bound(one: _Sized) -> bool:
    """Would fewer replicas do if more streams were known to run as fast?"""
    if one.likely is None or one.beyond is None or one.likely.replicas is None or one.beyond.replicas is None:
        return False
    return one.beyond.replicas < _FIRMER * one.likely.replicas


def _next(one: _Sized) -> str | None:
    known = None if one.candidate.model is None else one.candidate.model.known_streams
    return None if known is None else f"measure {2 * known} users next"


def _why_none(one: _Sized) -> str | None:
    if one.likely is None:
        return one.candidate.reason
    if one.likely.replicas is not None:
        return None
    return f"not even replicas that are almost idle meet {one.likely.binds.text if one.likely.binds else 'the SLOs'}"
