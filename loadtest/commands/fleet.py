"""`plan` for requests that arrive through the day: replicas, GPUs and price of a fleet, by simulation."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from loadtest import resources
from loadtest.analysis.decisions import FleetPlan
from loadtest.analysis.fleet import options as fleet_options
from loadtest.analysis.fleet import replica_model
from loadtest.analysis.fleet.options import Candidate, CellFacts, Question
from loadtest.analysis.fleet.peak import check_objectives
from loadtest.analysis.run import analyze
from loadtest.commands.finish import as_json
from loadtest.errors import FitError, UsageError
from loadtest.metrics.schema import CellFigures
from loadtest.metrics.slo import parse_slo
from loadtest.perfmodel import gpus, memory
from loadtest.perfmodel.prediction import predict
from loadtest.records.manifest import Prices
from loadtest.records.read import CellRecords, Run, read_run
from loadtest.report.fleet_text import fleet_text
from loadtest.report.page import write_figure
from loadtest.report.plots.fleet import fleet_figure
from loadtest.servers import preflight
from loadtest.simulator.fleet.arrivals import Curve, Demand
from loadtest.simulator.fleet.routers import KINDS
from loadtest.study import estimate, fast_forward
from loadtest.study import parse as studies
from loadtest.study.execution import Say
from loadtest.study.plan import asked
from loadtest.study.schema import Cell
from loadtest.workload.contract import Contract
from loadtest.workload.prompts import Prompt

PEAK_FACTOR = 2.0
THINK_TIME_S = 60.0


def plan_fleet(arguments: argparse.Namespace, say: Say) -> str:
    """The fewest replicas of every configuration behind each router; the chart where `--out` names one."""
    demand, chart = _demand(arguments), _chart_path(arguments.out)
    source = _Predicted(arguments.study, say) if arguments.source is None else _Measured(arguments.source)
    objectives = [parse_slo(text) for text in arguments.slo] or [parse_slo(text) for text in source.slo]
    check_objectives(objectives)
    price = source.prices.gpu_hour if arguments.gpu_hour_price is None else arguments.gpu_hour_price
    routers = KINDS if arguments.router == "all" else (arguments.router or "least-loaded",)
    question = Question(demand, objectives, routers, arguments.headroom or 0.0, price)
    found = FleetPlan(
        source=source.name,
        simulated=source.simulated,
        slo=tuple(slo.text for slo in objectives),
        requests_per_day=demand.requests_per_day,
        peak_requests_per_hour=3600 * demand.peak_requests_per_s,
        peak_factor=demand.curve.peak_factor,
        requests_per_session=demand.requests_per_session,
        think_time_s=demand.think_s if demand.requests_per_session > 1 else None,
        headroom=question.headroom,
        gpu_hour_price=price,
        currency=source.prices.currency if arguments.gpu_hour_price is None else None,
        options=tuple(fleet_options.fleet_options(source.candidates(), question, say)),
        doubts=source.doubts,
    )
    if chart is not None:
        write_figure(fleet_figure(found), chart)
        say(f"wrote {chart}")
    return as_json(found) if arguments.json else fleet_text(found)


def _chart_path(path: Path | None) -> Path | None:
    if path is not None and path.suffix not in (".png", ".svg"):
        raise UsageError(f"--out {path}: expected a name that ends in .png or .svg")
    return path


def _demand(arguments: argparse.Namespace) -> Demand:
    if arguments.answers_per_hour is not None:
        raise UsageError("plan: expected --arrivals-per-hour or --sessions-per-day without --answers-per-hour, got both")
    by_users = arguments.sessions_per_day is not None
    if by_users == (arguments.arrivals_per_hour is not None) or by_users != (arguments.users is not None):
        raise UsageError("plan: expected --users U --sessions-per-day S, or --arrivals-per-hour N alone")
    each = 1.0 if arguments.requests_per_session is None else arguments.requests_per_session
    think_s = THINK_TIME_S if arguments.think_time is None else arguments.think_time
    if arguments.think_time is not None and each == 1:
        raise UsageError("--think-time: expected with --requests-per-session above 1, got single requests")
    curve = Curve(PEAK_FACTOR if arguments.peak_factor is None else arguments.peak_factor)
    sessions = arguments.users * arguments.sessions_per_day if by_users else 24 * arguments.arrivals_per_hour / each
    return Demand(sessions, each, think_s, curve)


class _Measured:
    """Candidates of a run: its cells, with the lengths that it saw."""

    def __init__(self, folder: Path) -> None:
        self._run: Run = read_run(folder)
        self._metrics = analyze(self._run)
        self.name, self.simulated = f"run {self._metrics.run_id}", self._metrics.simulated
        self.slo, self.prices = self._metrics.run.slo, self._run.manifest.prices
        unsettled = [one for cell in self._metrics.cells if (one := replica_model.unsettled(cell)) is not None]
        self.doubts = (*self._metrics.health.reasons, *unsettled)

    def candidates(self) -> list[Candidate]:
        records = {cell.id: cell for cell in self._run.cells}
        return [self._candidate(cell, records[cell.id]) for cell in self._metrics.cells]

    def _candidate(self, cell: CellFigures, records: CellRecords) -> Candidate:
        facts = CellFacts(cell.id, cell.engine, cell.model, cell.tp, cell.gpu, cell.simulated)
        limit = self._run.manifest.contract.get("max_tokens")
        try:
            if cell.reason:
                raise UsageError(cell.reason)
            mix = replica_model.measured_mix([one for level in records.levels for one in level.requests])
            return Candidate(facts, replica_model.from_cell(cell, mix, limit if isinstance(limit, int) else 0), mix)
        except UsageError as error:
            return Candidate(facts, None, None, str(error))


class _Predicted:
    """Candidates of a study, by the performance model, with the lengths of its workload."""

    def __init__(self, path: Path | None, say: Say) -> None:
        self._study = studies.load_study(path or resources.path("scenarios/studies/qwq-32b-ada.toml"))
        say(f"no --from: predicting {self._study.name} by the performance model; nothing is measured")
        self.name, self.simulated = "performance model", True
        self.slo: Sequence[str] = self._study.slo
        self.prices = Prices(gpu_hour=self._study.gpu_hour_price, currency=self._study.currency)
        self.doubts: tuple[str, ...] = ()

    def candidates(self) -> list[Candidate]:
        study = fast_forward.predicted(self._study)
        workload, contract = asked(study)
        return [_predicted(cell, workload.prompts, contract) for cell in study.cells]


def _predicted(cell: Cell, prompts: Sequence[Prompt], contract: Contract) -> Candidate:
    contract = replace(contract, mode=cell.mode or contract.mode)
    facts = CellFacts(cell.id, cell.engine, cell.model, cell.tp, cell.gpu, simulated=True)
    made = fast_forward.simulate_cell(cell, contract)
    model = preflight.shape(cell.model)
    if isinstance(made, FitError):
        return Candidate(facts, None, None, str(made))
    assert model is not None
    assert cell.gpu is not None
    mix = replica_model.request_mix(estimate.request_tokens(cell, prompts, contract))
    deployment = memory.Deployment(model, gpus.gpu(cell.gpu), cell.tp, cell.engine)
    prompt, output = (max(2, round(mean)) for mean in (mix.mean_prompt_tokens, mix.mean_output_tokens))
    token_s = predict(deployment, prompt_tokens=prompt, output_tokens=output).tpot_s
    assert token_s is not None
    try:
        too_short = token_s.high / token_s.value - 1
        known = replica_model.from_model(made.config, made.step_time_s, too_short, mix, contract.max_tokens)
        return Candidate(facts, known, mix)
    except UsageError as error:
        return Candidate(facts, None, None, str(error))
