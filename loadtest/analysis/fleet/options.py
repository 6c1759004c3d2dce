"""Fleets as a reader compares them: replicas, GPUs and price of each cell behind each router, and what a loss does.

All cells are ranked by the closed form; the best of each model is simulated, and so are its near equals where the question
is about one model. The others are estimated: the closed form, times what the simulation made of it for the best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from loadtest.analysis.decisions import FleetEnds, FleetLoss, FleetOption, FleetSize, PeakFigure, UserFigures
from loadtest.analysis.fleet.peak import Peak, Sizing, Waits
from loadtest.analysis.fleet.replica_model import ReplicaModel
from loadtest.analysis.fleet.steady import SteadyReplica
from loadtest.errors import UsageError
from loadtest.metrics.slo import Slo
from loadtest.simulator.fleet.arrivals import Demand, Population

ZONES = 3
NEAR_EQUAL = 1.1  # times the GPUs of the best by the closed form: such a cell can win


@dataclass(frozen=True, slots=True)
class CellFacts:
    """Which configuration an option is about."""

    id: str
    engine: str
    model: str | None
    tp: int | None
    gpu: str | None
    simulated: bool
    composed: bool = False  # its speeds are of bursts


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A cell with what is known of its replicas and requests, or why nothing is."""

    facts: CellFacts
    model: ReplicaModel | None
    reason: str | None = None

    @property
    def likely(self) -> SteadyReplica | None:
        """A replica in the closed form, by the figures."""
        return None if self.model is None else self.model.likely

    @property
    def careful(self) -> SteadyReplica | None:
        """The same at the careful ends of their intervals; None without one."""
        return None if self.model is None else self.model.careful


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of every candidate."""

    demand: Demand | Population
    objectives: Sequence[Slo]
    routers: Sequence[str]
    headroom: float = 0.0
    gpu_hour_price: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.headroom < 1:
            raise UsageError(f"--headroom: expected a share from 0 to below 1, such as 0.2, got {self.headroom:g}")
        if self.gpu_hour_price is not None and not 0 <= self.gpu_hour_price < math.inf:
            raise UsageError(f"--gpu-hour-price: expected a price from 0 up, got {self.gpu_hour_price:g}")

    def planned(self, replicas: float) -> int:
        """Replicas with the headroom on top.

        >>> Question(Demand(10), (), ("random",), headroom=0.2).planned(4)
        5
        """
        return math.ceil(replicas / (1 - self.headroom) - 1e-9)


@dataclass(frozen=True, slots=True, eq=False)
class Sized:
    """A candidate behind a router: replicas by the closed form at both ends, and by simulation where that was done."""

    candidate: Candidate
    router: str
    estimate: float | None = None
    careful_estimate: float | None = None
    likely: Sizing | None = None
    careful: int | None = None
    losses: tuple[FleetLoss, ...] = ()
    at_most: bool = False

    @property
    def replicas(self) -> float | None:
        """The likely number, before headroom."""
        return self.estimate if self.likely is None else self.likely.replicas

    @property
    def words(self) -> str:
        """Which one it is, for a reader."""
        return f"{self.candidate.facts.id}, {self.router}"

    @property
    def gpus(self) -> float:
        return math.inf if self.replicas is None else self.replicas * (self.candidate.facts.tp or 1)


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One search by simulation."""

    estimated: Sized
    question: Question
    with_losses: bool


Spread = Callable[[Callable[[Task], Sized], Sequence[Task]], Iterable[Sized]]


def fleet_options(
    candidates: Sequence[Candidate],
    question: Question,
    say: Callable[[str], None] = lambda line: None,
    spread: Spread = map,
) -> list[FleetOption]:
    """One option for each candidate and router, model by model, fewest GPUs first; losses for the best of the first model.

    `spread` runs the searches, as `map` does: one after another, or on several cores.
    """
    models = list(dict.fromkeys(one.facts.model for one in candidates))
    tasks, estimated = _split(candidates, question, models)
    for task in tasks:
        say(f"{task.estimated.words}: searching the number of replicas")
    sized = list(spread(simulate, tasks))
    sized += [_scaled(one, sized) for one in estimated]
    sized.sort(key=lambda one: (models.index(one.candidate.facts.model), one.gpus, one.candidate.facts.id))
    return [_option(one, question) for one in sized]


def _split(
    candidates: Sequence[Candidate], question: Question, models: Sequence[str | None]
) -> tuple[list[Task], list[Sized]]:
    """What to simulate, and what the closed form does for."""
    tasks: list[Task] = []
    rest: list[Sized] = []
    for model in models:
        of_model = (one for one in candidates if one.facts.model == model)
        ranked = sorted((_estimated(one, question) for one in of_model), key=lambda one: one.gpus)
        near = NEAR_EQUAL * ranked[0].gpus if len(models) == 1 else 0.0
        for place, one in enumerate(ranked):
            can_win = one.candidate.model is not None and (place == 0 or one.gpus <= near < math.inf)
            behind = [replace(one, router=router) for router in question.routers]
            if can_win:
                tasks += [Task(each, question, with_losses=not place and model == models[0]) for each in behind]
            else:
                rest += behind
    return tasks, rest


def _estimated(candidate: Candidate, question: Question) -> Sized:
    """By the closed form alone, which knows no routers."""
    likely, careful = (
        None if one is None else one.replicas(question.demand, question.objectives)
        for one in (candidate.likely, candidate.careful)
    )
    return Sized(candidate, "", likely, careful)


def simulate(task: Task) -> Sized:
    """Search the replicas of one candidate behind one router."""
    question, model = task.question, task.estimated.candidate.model
    assert model is not None
    peak = Peak(model, task.estimated.router, question.demand, question.objectives)
    found = peak.size()
    count = found.replicas
    return replace(
        task.estimated,
        likely=found,
        careful=None if count is None else peak.careful_replicas(count),
        losses=_losses(peak, question.planned(count), question.objectives) if task.with_losses and count else (),
        at_most=count is not None and peak.is_bound_by_what_is_known(),
    )


def _losses(peak: Peak, replicas: int, objectives: Sequence[Slo]) -> tuple[FleetLoss, ...]:
    if replicas < 2:
        return ()
    found = [peak.loss(replicas, lost) for lost in sorted({1, math.ceil(replicas / ZONES)})]
    return tuple(FleetLoss(lost=loss.lost, peak=_figures(loss.waits, objectives)) for loss in found)


def _scaled(one: Sized, simulated: Sequence[Sized]) -> Sized:
    """The closed form, times what the simulation made of it for the same model and router."""
    alike = [
        (other.likely.replicas, other.estimate)
        for other in simulated
        if other.candidate.facts.model == one.candidate.facts.model and other.router == one.router
        and other.likely is not None and other.likely.replicas and other.estimate
    ]  # fmt: skip
    if not alike or one.estimate is None:
        return one
    factor = max(found / estimate for found, estimate in alike)
    careful = None if one.careful_estimate is None else one.careful_estimate * factor
    return replace(one, estimate=one.estimate * factor, careful_estimate=careful)


def _option(one: Sized, question: Question) -> FleetOption:
    facts, found, tp = one.candidate.facts, one.likely, one.candidate.facts.tp or 1
    careful = one.careful if found is not None else one.careful_estimate
    replicas = _each(FleetEnds(one.replicas, careful), question.planned)
    gpus = _each(replicas, lambda count: count * tp)
    price = question.gpu_hour_price
    a_day = FleetEnds(None, None) if price is None else _each(gpus, lambda count: count * 24 * price)
    seen, per_s = _seen(one, question)
    known = None if one.candidate.model is None else one.candidate.model.known_streams
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
        cost_per_1000_answers=_each(a_day, lambda cost: 1000 * cost / question.demand.requests_per_day(per_s)),
        peak=_figures(found.waits() if found is not None else None, question.objectives),
        seen=seen,
        estimated=found is None and one.estimate is not None,
        losses=one.losses,
        tried=tuple(_tried(found, question.objectives)),
        binds=None if found is None or found.binds is None else found.binds.text,
        known_streams=known,
        at_most=one.at_most,
        next_measurement=f"measure {2 * known} users next" if one.at_most and known is not None else None,
        reason=_why_none(one, question.objectives),
        composed=facts.composed,
    )


def _each(ends: FleetEnds, of: Callable[[float], float]) -> FleetEnds:
    return FleetEnds(*(None if one is None else of(one) for one in (ends.likely, ends.careful)))


def _seen(one: Sized, question: Question) -> tuple[UserFigures | None, float]:
    """What users see at the likely number, and the requests per second of the fleet (0 where nothing is known)."""
    waits = None if one.likely is None else one.likely.waits()
    if waits is not None:
        seen = waits.seen
        told = (seen.ttft_p90_s, seen.answer_p50_s, seen.answer_p90_s, seen.tokens_per_s_per_user, seen.output_tokens_per_s)
        return _user_figures(
            [value if math.isfinite(value) else None for value in told], "simulated peak"
        ), seen.requests_per_s
    steady = one.candidate.likely
    if steady is None or one.replicas is None:
        return None, 0.0
    in_flight = steady.in_flight(question.demand, one.replicas)
    per_s = steady.requests_per_s(in_flight) * one.replicas
    return closed_form_figures(steady, in_flight, one.replicas), per_s


def closed_form_figures(steady: SteadyReplica, in_flight: float, replicas: float) -> UserFigures:
    """What users see of so many replicas with so many requests in flight at each, by the closed form."""
    total = steady.figure("output_tokens_per_s", "value", in_flight)
    told = [
        steady.figure("ttft_s", "p90", in_flight),
        steady.figure("time_to_final_answer_s", "p50", in_flight),
        steady.figure("time_to_final_answer_s", "p90", in_flight),
        steady.figure("tokens_per_s_per_user", "p50", in_flight),
        None if total is None else total * replicas,
    ]
    return _user_figures(told, "closed form")


def _user_figures(told: Sequence[float | None], by: str) -> UserFigures:
    ttft, p50, p90, user, total = told
    return UserFigures(
        ttft_p90_s=ttft,
        answer_p50_s=p50,
        answer_p90_s=p90,
        tokens_per_s_per_user=user,
        output_tokens_per_s=total,
        by="simulated peak" if by == "simulated peak" else "closed form",
    )


def _figures(waits: Waits | None, objectives: Sequence[Slo]) -> tuple[PeakFigure, ...]:
    if waits is None:
        return ()
    pairs = zip(objectives, waits.figures, strict=True)
    return tuple(PeakFigure(slo.text, one if math.isfinite(one) else None, slo.holds(one)) for slo, one in pairs)


def _tried(found: Sizing | None, objectives: Sequence[Slo]) -> list[FleetSize]:
    return [FleetSize(replicas=one.replicas, peak=_figures(one, objectives)) for one in (found.tried if found else ())]


def _why_none(one: Sized, objectives: Sequence[Slo]) -> str | None:
    if one.candidate.model is None:
        return one.candidate.reason
    if one.replicas is not None:
        return None
    binds = one.likely.binds if one.likely is not None else one.candidate.model.likely.breaks_alone(objectives)
    return f"no number of replicas meets {binds.text if binds else 'the SLOs'}: a request that is almost alone breaks it"
