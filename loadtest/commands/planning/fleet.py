"""`plan` for requests that arrive through the day, or come from users who think: a fleet, by simulation."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path

from loadtest.analysis.decisions import FleetOption, FleetPlan
from loadtest.analysis.fleet.options import Candidate, Question, Sized, Task, fleet_options
from loadtest.analysis.fleet.peak import check_objectives
from loadtest.commands.finish import as_json
from loadtest.commands.planning.source import plan_source
from loadtest.errors import UsageError
from loadtest.metrics.slo import parse_slo
from loadtest.report.page import write_figure
from loadtest.report.plots.fleet import fleet_figure
from loadtest.report.text.plan import fleet_text
from loadtest.simulator.fleet.arrivals import Curve, Demand, Population
from loadtest.simulator.fleet.routers import KINDS
from loadtest.study.execution import Say

PEAK_FACTOR = 2.0
THINK_TIME_S = 60.0


def plan_fleet(arguments: argparse.Namespace, say: Say) -> str:
    """The fewest replicas of every configuration behind each router; the chart where `--out` names one."""
    demand, chart = _demand(arguments), _chart_path(arguments.out)
    source = plan_source(arguments, say)
    objectives = [parse_slo(text) for text in arguments.slo] or [parse_slo(text) for text in source.slo]
    check_objectives(objectives)
    price = source.prices.gpu_hour if arguments.gpu_hour_price is None else arguments.gpu_hour_price
    routers = KINDS if arguments.router == "all" else (arguments.router or "least-loaded",)
    question = Question(demand, objectives, routers, arguments.headroom or 0.0, price)
    candidates = source.candidates()
    options = fleet_options(candidates, question, say, _on_all_cores(say))
    asked_per_s = _asked_per_s(demand, candidates, options)
    thinks = isinstance(demand, Population) or demand.requests_per_session > 1
    found = FleetPlan(
        source=source.name,
        simulated=source.simulated,
        slo=tuple(slo.text for slo in objectives),
        users=demand.users if isinstance(demand, Population) else None,
        requests_per_day=demand.requests_per_day(asked_per_s),
        peak_requests_per_hour=3600 * asked_per_s,
        peak_factor=1.0 if isinstance(demand, Population) else demand.curve.peak_factor,
        requests_per_session=1.0 if isinstance(demand, Population) else demand.requests_per_session,
        think_time_s=demand.think_s if thinks else None,
        headroom=question.headroom,
        gpu_hour_price=price,
        currency=source.prices.currency if arguments.gpu_hour_price is None else None,
        options=tuple(options),
        doubts=(*source.doubts, *source.doubts_near_saturation),
    )
    if chart is not None:
        write_figure(fleet_figure(found), chart)
        say(f"wrote {chart}")
    return as_json(found) if arguments.json else fleet_text(found)


def _on_all_cores(say: Say) -> Callable[[Callable[[Task], Sized], Sequence[Task]], Iterator[Sized]]:
    """Searches side by side where there are several cores, and what is said when each has ended."""

    def run(search: Callable[[Task], Sized], tasks: Sequence[Task]) -> Iterator[Sized]:
        workers = min(len(tasks), len(os.sched_getaffinity(0)))
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) if workers > 1 else nullcontext() as pool:
            searched = map(search, tasks) if pool is None else pool.map(search, tasks)
            for task, found in zip(tasks, searched, strict=True):
                count = "no number holds" if found.replicas is None else f"{found.replicas:,.0f} replicas"
                say(f"{task.estimated.words}: {count}")
                yield found

    return run


def _asked_per_s(demand: Demand | Population, candidates: Sequence[Candidate], options: Sequence[FleetOption]) -> float:
    """Requests per second at the peak; of users at work: as the first option that holds saw them."""
    if isinstance(demand, Demand):
        return demand.peak_requests_per_s
    replicas = {one.facts.id: one.likely for one in candidates}
    for one in options:
        replica, seen = replicas[one.cell], one.seen
        if replica is not None and seen is not None and seen.output_tokens_per_s is not None:
            return seen.output_tokens_per_s / replica.workload.mean_output_tokens
    return 0.0


def _chart_path(path: Path | None) -> Path | None:
    if path is not None and path.suffix not in (".png", ".svg"):
        raise UsageError(f"--out {path}: expected a name that ends in .png or .svg")
    return path


def _demand(arguments: argparse.Namespace) -> Demand | Population:
    if arguments.answers_per_hour is not None:
        raise UsageError("plan: expected users, sessions or arrivals without --answers-per-hour, got both")
    if arguments.sessions_per_day is None and arguments.arrivals_per_hour is None:
        return _at_work(arguments)
    by_users = arguments.sessions_per_day is not None
    if by_users == (arguments.arrivals_per_hour is not None) or by_users != (arguments.users is not None):
        raise UsageError("plan: expected --users U --sessions-per-day S, or --arrivals-per-hour N alone")
    named = "sessions_per_day" if by_users else "arrivals_per_hour"
    if not 1e-3 <= (given := getattr(arguments, named)) <= 1e9:
        raise UsageError(f"--{named.replace('_', '-')}: expected from 0.001 to 1e9, got {given:g}")
    each = 1.0 if arguments.requests_per_session is None else arguments.requests_per_session
    think_s = THINK_TIME_S if arguments.think_time is None else arguments.think_time
    if arguments.think_time is not None and each == 1:
        raise UsageError("--think-time: expected with --requests-per-session above 1, got single requests")
    curve = Curve(PEAK_FACTOR if arguments.peak_factor is None else arguments.peak_factor)
    sessions = arguments.users * arguments.sessions_per_day if by_users else 24 * arguments.arrivals_per_hour / each
    return Demand(sessions, each, think_s, curve)


def _at_work(arguments: argparse.Namespace) -> Population:
    """Users who are all at work at once, each of whom thinks between an answer and the next request."""
    if arguments.users is None:
        raise UsageError("--think-time: expected with --users U, who are at work at once; got no users")
    if arguments.requests_per_session is not None:
        raise UsageError(
            "--requests-per-session: expected with --sessions-per-day or --arrivals-per-hour, got --users at work at once;"
            " who leaves is followed by another, so the length of a session changes nothing"
        )
    factor = 1.0 if arguments.peak_factor is None else arguments.peak_factor
    return Population(arguments.users * Curve(factor).peak_factor, arguments.think_time)
