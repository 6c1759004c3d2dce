"""What `plan` plans from: the cells of a run, or of a study by the performance model, those that were asked for."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

from loadtest import resources
from loadtest.analysis.fleet import replica_model
from loadtest.analysis.fleet.options import Candidate, CellFacts
from loadtest.analysis.run import analyze
from loadtest.errors import FitError, UsageError
from loadtest.metrics.schema import CellFigures
from loadtest.perfmodel import gpus, memory
from loadtest.perfmodel.prediction import predict
from loadtest.records.bundle import unpacked
from loadtest.records.manifest import Prices
from loadtest.records.read import CellRecords, LevelRecords, Run, read_run
from loadtest.servers import preflight
from loadtest.study import estimate, fast_forward
from loadtest.study import parse as studies
from loadtest.study.execution import Say
from loadtest.study.plan import asked
from loadtest.study.schema import Cell, Study
from loadtest.workload.contract import Contract
from loadtest.workload.prompts import Prompt

DEFAULT_STUDY = "scenarios/studies/qwq-32b-ada.toml"


class Configuration(Protocol):
    """What a cell of a run and one of a study have in common."""

    @property
    def engine(self) -> str: ...
    @property
    def model(self) -> str | None: ...
    @property
    def tp(self) -> int | None: ...
    @property
    def gpu(self) -> str | None: ...


Kind = TypeVar("Kind", bound=Configuration)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which configurations the question is about; None: any."""

    model: str | None = None
    engine: str | None = None
    tp: int | None = None
    gpu: str | None = None

    def of(self, cells: Iterable[Kind]) -> list[Kind]:
        """The cells that were asked for. Raises UsageError, with what there is, where there is none."""
        found = list(cells)
        if self.model is not None:
            found = _with_model(found, self.model)
        for name in ("engine", "tp", "gpu"):
            wanted = getattr(self, name)
            if wanted is not None:
                there = dict.fromkeys(_plain(getattr(one, name)) for one in found)
                found = [one for one in found if _plain(getattr(one, name)) == _plain(wanted)]
                if not found:
                    raise UsageError(f"--{name} {wanted}: expected one of {', '.join(there)}, as no other was measured or"
                                     " is in the study")  # fmt: skip
        return found


def _with_model(cells: Sequence[Kind], wanted: str) -> list[Kind]:
    """Cells of that model: by its whole name, else by a part of it."""
    whole = [one for one in cells if _model_name(one.model) == _model_name(wanted)]
    found = whole or [one for one in cells if wanted.lower() in (one.model or "").lower()]
    if not found:
        there = ", ".join(dict.fromkeys(str(one.model) for one in cells))
        raise UsageError(f"--model {wanted}: expected one of {there}, or a part of a name; for a model that was not measured"
                         " name --gpu too, without --from and --study")  # fmt: skip
    return found


def _model_name(name: str | None) -> str:
    shape = preflight.shape(name) if name else None
    return (shape.name if shape is not None else str(name)).lower()


def _plain(value: object) -> str:
    """An engine without `-sim`, a GPU by its registry name."""
    return str(value).removesuffix("-sim").lower()


def plan_source(arguments: argparse.Namespace, say: Say) -> Measured | Predicted:
    """The run of `--from`; else the study of `--study`, the model and GPU that were named, or the published study."""
    if arguments.source is not None and arguments.study is not None:
        raise UsageError("plan: expected one of --from RUN (measurements) and --study (a prediction), got both")
    wanted = Wanted(arguments.model, arguments.engine, arguments.tp, arguments.gpu)
    return Measured(arguments.source, wanted) if arguments.source is not None else Predicted(arguments.study, wanted, say)


class Measured:
    """Candidates of a run: its cells, with the lengths that it saw."""

    def __init__(self, folder: Path, wanted: Wanted) -> None:
        with unpacked(folder) as unpacked_folder:
            self.run: Run = read_run(unpacked_folder)
        if self.run.manifest.open_loop:
            raise UsageError(f"--from {folder}: expected a run at levels of concurrency, got an open loop; measure levels")
        self.metrics = analyze(self.run)
        self.name, self.simulated = f"run {self.metrics.run_id}", self.metrics.simulated
        self.slo, self.prices = self.metrics.run.slo, self.run.manifest.prices
        self.cells = wanted.of(self.metrics.cells)
        self.doubts: tuple[str, ...] = tuple(self.metrics.health.reasons)
        unsettled = (replica_model.unsettled(cell) for cell in self.cells)
        self.doubts_near_saturation = tuple(one for one in unsettled if one is not None)

    def candidates(self) -> list[Candidate]:
        records = {cell.id: cell for cell in self.run.cells}
        return [self._candidate(cell, records[cell.id]) for cell in self.cells]

    def _candidate(self, cell: CellFigures, records: CellRecords) -> Candidate:
        facts = CellFacts(cell.id, cell.engine, cell.model, cell.gpu_count, cell.gpu, cell.simulated, _is_composed(cell))
        limit = self.run.manifest.contract.get("max_tokens")
        try:
            if cell.reason:
                raise UsageError(cell.reason)
            answered = [one for level in self._answered(records) for one in level.requests]
            lengths = replica_model.measured_lengths(answered)
            return Candidate(facts, replica_model.from_cell(cell, lengths, limit if isinstance(limit, int) else 0))
        except UsageError as error:
            return Candidate(facts, None, str(error))

    def _answered(self, records: CellRecords) -> Sequence[LevelRecords]:
        """Passes whose answers tell the lengths: its own; without any, as of bursts alone, those of its model."""
        of_model = [one for one in self.run.cells if one.engine.model == records.engine.model]
        return records.levels or [level for one in of_model for level in one.levels]


def _is_composed(cell: CellFigures) -> bool:
    """Do bursts stand for levels at which no answer was waited for?"""
    return not {one.concurrency for one in cell.usable} <= {one.concurrency for one in cell.levels}


TPS = (1, 2, 4, 8)


class Predicted:
    """Candidates of a study, by the performance model, with the lengths of its workload."""

    def __init__(self, path: Path | None, wanted: Wanted, say: Say) -> None:
        study = studies.load_study(path or resources.path(DEFAULT_STUDY))
        if path is None and wanted.model is not None and wanted.gpu is not None:
            study = replace(study, cells=_named(wanted))
        self.study: Study = replace(study, cells=tuple(wanted.of(study.cells)))
        what = study.name if wanted == Wanted() or path else "the configurations that were asked for"
        say(f"no --from: predicting {what} by the performance model; nothing is measured")
        self.name, self.simulated = "performance model", True
        self.slo: Sequence[str] = self.study.slo
        self.prices = Prices(gpu_hour=self.study.gpu_hour_price, currency=self.study.currency)
        self.doubts: tuple[str, ...] = ()
        self.doubts_near_saturation: tuple[str, ...] = ()

    def candidates(self) -> list[Candidate]:
        study = fast_forward.predicted(self.study)
        workload, contract = asked(study)
        return [_predicted(cell, workload.prompts, contract) for cell in study.cells]


def _named(wanted: Wanted) -> tuple[Cell, ...]:
    """Both engines with the model on the GPU, on 1, 2, 4 and 8 of them."""
    assert wanted.model is not None
    assert wanted.gpu is not None
    gpus.gpu(wanted.gpu)
    tps = TPS if wanted.tp is None else (wanted.tp,)
    return tuple(
        Cell(engine=engine, model=wanted.model, tp=tp, gpu=wanted.gpu) for tp in tps for engine in ("sglang", "vllm")
    )  # fmt: skip


def _predicted(cell: Cell, prompts: Sequence[Prompt], contract: Contract) -> Candidate:
    contract = replace(contract, mode=cell.mode or contract.mode)
    facts = CellFacts(cell.id, cell.engine, cell.model, cell.tp, cell.gpu, simulated=True)
    made = fast_forward.simulate_cell(cell, contract)
    model = preflight.shape(cell.model)
    if isinstance(made, FitError):
        return Candidate(facts, None, str(made))
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
        return Candidate(facts, known)
    except UsageError as error:
        return Candidate(facts, None, str(error))
