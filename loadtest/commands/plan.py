"""`plan` for requests in flight or answers an hour: replicas, GPUs and cost, and what users see."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from msgspec import structs

from loadtest.analysis import capacity
from loadtest.analysis.capacity import CapacityDemand
from loadtest.analysis.decisions import CapacityOption, CapacityPlan
from loadtest.analysis.fleet.options import NEAR_EQUAL, Candidate
from loadtest.analysis.fleet.steady import SteadyReplica
from loadtest.analysis.objectives import maximum_concurrency
from loadtest.analysis.run import analyze
from loadtest.commands.finish import as_json
from loadtest.commands.planning.source import Measured, Predicted, plan_source
from loadtest.errors import UsageError
from loadtest.metrics.schema import CellFigures
from loadtest.metrics.slo import Slo, parse_slo
from loadtest.records.read import read_run
from loadtest.report.text.plan import capacity_text
from loadtest.study import fast_forward
from loadtest.study.execution import Say

PREDICTED_REQUESTS = 40  # a p90 needs 36
MOST_CONCURRENCY = 512  # of a predicted level
_STEP = 1.2  # from one predicted level to the next
_CLOSE = 0.05  # the highest concurrency within the SLOs is found to within this share


def plan(arguments: argparse.Namespace, say: Say) -> str:
    """Replicas, GPUs, waits and cost of every configuration, cheapest first."""
    if any(getattr(arguments, name) is not None for name in ("arrivals_per_hour", "sessions_per_day", "think_time")):
        from loadtest.commands.planning import fleet

        return fleet.plan_fleet(arguments, say)
    _refuse_arrival_options(arguments)
    objectives = [parse_slo(text) for text in arguments.slo]
    headroom = capacity.HEADROOM if arguments.headroom is None else arguments.headroom
    demand = CapacityDemand(arguments.users, arguments.answers_per_hour, headroom, arguments.gpu_hour_price)
    source = plan_source(arguments, say)
    objectives = objectives or [parse_slo(text) for text in source.slo]
    capacity.require_objectives(objectives)
    price = source.prices.gpu_hour if arguments.gpu_hour_price is None else arguments.gpu_hour_price
    demand = replace(demand, gpu_hour_price=price)
    if isinstance(source, Measured):
        options = _measured(source, objectives, demand)
    else:
        options = _predicted(source, objectives, demand, say)
    found = CapacityPlan(
        source=source.name,
        simulated=source.simulated,
        slo=tuple(one.text for one in objectives),
        users=demand.users,
        answers_per_hour=demand.answers_per_hour,
        headroom=demand.headroom,
        gpu_hour_price=price,
        currency=source.prices.currency if arguments.gpu_hour_price is None else None,
        options=tuple(options),
        doubts=source.doubts,
    )
    return as_json(found) if arguments.json else capacity_text(found)


def _refuse_arrival_options(arguments: argparse.Namespace) -> None:
    for name in ("requests_per_session", "peak_factor", "router", "out"):
        if getattr(arguments, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"{option}: expected with --arrivals-per-hour, --sessions-per-day or --think-time, got none of them"
            )


def _measured(source: Measured, objectives: Sequence[Slo], demand: CapacityDemand) -> list[CapacityOption]:
    """By levels; where bursts stand for these, by the closed form at the speeds that they showed."""
    candidates = source.candidates()
    by_bursts = {one.facts.id for one in candidates if one.facts.composed}
    closed_form = {one.facts.id: one.likely for one in candidates if one.likely is not None}
    levels = [cell for cell in source.cells if cell.id not in by_bursts]
    composed = [_composed(one, objectives, demand) for one in candidates if one.facts.id in by_bursts]
    return capacity.by_model([*capacity.plan(levels, objectives, demand, closed_form), *composed])


def _composed(one: Candidate, objectives: Sequence[Slo], demand: CapacityDemand) -> CapacityOption:
    likely, highest = one.likely, None if one.model is None else one.model.known_streams
    if likely is None or highest is None:
        return structs.replace(capacity.holds_nothing(one.facts, one.reason), composed=True)
    option = capacity.from_composed(one.facts, likely, highest, objectives, demand)
    return capacity.with_careful_end(option, likely, one.careful, objectives, demand)


# By the performance model --------------------------------------------------------------------------------------------


def _predicted(source: Predicted, objectives: Sequence[Slo], demand: CapacityDemand, say: Say) -> list[CapacityOption]:
    """The cells that can win by levels in virtual time, around the concurrency that the closed form says; the others by the
    closed form alone."""
    candidates = source.candidates()
    winners = _winners(candidates, objectives, demand)
    options = []
    for one in candidates:
        likely = one.likely
        if likely is None or one.facts.id not in winners:
            options.append(_estimated(one, objectives, demand))
            continue
        cell = _levels(source, one, likely, objectives, demand, say)
        option = capacity.plan([cell], objectives, demand, {cell.id: likely})[0]
        options.append(capacity.with_careful_end(option, likely, one.careful, objectives, demand))
    return capacity.by_model(options)


def _winners(candidates: Sequence[Candidate], objectives: Sequence[Slo], demand: CapacityDemand) -> set[str]:
    """Of each model the cell with the fewest GPUs by the closed form, and its near equals."""
    gpus: dict[str | None, dict[str, float]] = {}
    for one in candidates:
        replicas = None if one.likely is None else one.likely.replicas(demand, objectives)
        if replicas is not None:
            gpus.setdefault(one.facts.model, {})[one.facts.id] = max(1.0, replicas) * (one.facts.tp or 1)
    return {
        name for of_model in gpus.values() for name, count in of_model.items()
        if count <= NEAR_EQUAL * min(of_model.values())
    }  # fmt: skip


def _estimated(one: Candidate, objectives: Sequence[Slo], demand: CapacityDemand) -> CapacityOption:
    if one.likely is None:
        return capacity.holds_nothing(one.facts, one.reason)
    return capacity.estimate(one.facts, one.likely, objectives, demand)


def _levels(
    source: Predicted, one: Candidate, steady: SteadyReplica, objectives: Sequence[Slo], demand: CapacityDemand, say: Say
) -> CellFigures:
    """Levels of a cell in virtual time: from the closed form's concurrency down until one meets the SLOs, and up until one
    breaks them or holds all users."""
    most = min(demand.most_in_flight or MOST_CONCURRENCY, MOST_CONCURRENCY)
    first = max(1, min(most, steady.most_in_flight(objectives)))
    cell = _simulated(source, one, first, say)
    while (following := _next_level(cell, objectives, most)) is not None:
        more = _simulated(source, one, following, say)
        levels = sorted((*cell.levels, *more.levels), key=lambda level: level.concurrency)
        cell = structs.replace(cell, levels=tuple(levels))
    return cell


def _next_level(cell: CellFigures, objectives: Sequence[Slo], most: int) -> int | None:
    """The concurrency to simulate next; None where the highest that meets the SLOs is known to within `_CLOSE`."""
    found = maximum_concurrency(cell.levels, objectives, cell.fit)
    levels = [level.concurrency for level in cell.levels]
    if found.by_slo == 0:
        return max(1, min(levels[0] - 1, int(levels[0] / _STEP))) if levels[0] > 1 else None
    if found.limit == "not_reached":
        return min(most, max(levels[-1] + 1, round(levels[-1] * _STEP))) if levels[-1] < most else None
    met, broke = found.by_slo or 0, min((one for one in levels if one > (found.by_slo or 0)), default=0)
    return (met + broke) // 2 if met and broke - met > max(1, _CLOSE * met) else None


def _simulated(source: Predicted, one: Candidate, concurrency: int, say: Say) -> CellFigures:
    """One level of a cell in virtual time, in a folder that does not stay."""
    cells = tuple(cell for cell in fast_forward.predicted(source.study).cells if cell.id == one.facts.id)
    study = replace(source.study, cells=cells, levels=(concurrency,), min_requests=PREDICTED_REQUESTS, duration_s=None)
    say(f"{one.facts.id}: simulating {concurrency} users")
    with tempfile.TemporaryDirectory() as folder:
        fast_forward.simulate_study(study, Path(folder) / "run", say=lambda line: None)
        return analyze(read_run(Path(folder) / "run")).cells[0]
