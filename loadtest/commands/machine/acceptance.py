"""`accept`: on a machine with GPUs, everything that had only been tested without one, in about twenty minutes."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from loadtest.commands.finish import analyze_run, as_json, new_folder, write_page
from loadtest.commands.machine import acceptance_studies as studies
from loadtest.errors import GateError, LoadtestError, UsageError
from loadtest.perfmodel import gpus, prediction
from loadtest.records import bundle
from loadtest.records.read import LevelRecords, Run, read_run
from loadtest.records.write import write_json
from loadtest.servers import preflight, smi
from loadtest.study import estimate, plan
from loadtest.study.run import execute

if TYPE_CHECKING:
    from loadtest.metrics.schema import Metrics
    from loadtest.perfmodel.prediction import Prediction
    from loadtest.study.execution import Teller
    from loadtest.study.schema import Study

_ENGINES = ("sglang", "vllm")


def accept(arguments: argparse.Namespace, say: Teller) -> str:
    """The table of what holds; GateError where a row fails. Leaves both runs, their bundles and `acceptance.json`."""
    from loadtest.analysis.acceptance import checks
    from loadtest.report.text.acceptance import acceptance_text

    asked, out = _asked(arguments, say), arguments.out or new_folder("acceptance")
    with smi.power_readings() as readings:
        measured = _measure(studies.measured(asked), out / "measured", False, say)
    extremes = _measure(studies.extremes(asked), out / "extremes", True, say)
    found = checks(measured, extremes, _predicted(asked, measured[0]), readings)
    write_json(out / "acceptance.json", found)
    packed = []
    for run, _ in (measured, extremes):
        target = out / f"{run.path.name}{bundle.SUFFIX}"
        bundle.pack(run.path, target, redact=True)
        packed.append(str(target))
    said = as_json(found) if arguments.json else acceptance_text(found, simulated=measured[1].simulated, files=packed)
    failed = [row for row in found if row.result == "fail"]
    if failed:
        raise GateError(f"{len(failed)} of {len(found)} checks failed: {failed[0].check} of {failed[0].of}", said)
    return said


def _asked(arguments: argparse.Namespace, say: Teller) -> studies.Asked:
    engines = tuple(dict.fromkeys(arguments.engine or _ENGINES))
    real = [one for one in engines if not one.endswith("-sim")]
    gpu = arguments.gpu or preflight.gpu_here()
    if gpu is None:
        say("the GPU is not known: name it with --gpu, else no speed is predicted and no misfit tried")
    else:
        gpus.gpu(gpu)
    count = preflight.gpu_count() if real else 2
    if real and gpu is not None and not count:
        raise UsageError("expected a GPU on this machine, found none; to rehearse: --engine vllm-sim --engine sglang-sim")
    return studies.Asked(engines, arguments.model, gpu, (1, 2) if count >= 2 else (1,))


def _measure(study: Study, out: Path, force: bool, say: Teller) -> tuple[Run, Metrics]:
    """A study carried out whole; what could not be measured is in the records, and so a row of the table."""
    try:
        execute(study, out, force=force, say=say, audience=say.audience)
    except LoadtestError as error:
        if not (out / "manifest.json").exists():
            raise
        say(str(error))
    metrics = analyze_run(out)
    write_page(out, metrics, out / "report.html")
    return read_run(out), metrics


def _predicted(asked: studies.Asked, run: Run) -> dict[str, Prediction]:
    """What the performance model expects of each cell alone, at the lengths that were measured."""
    study = studies.measured(asked)
    _, contract = plan.asked(study)
    found: dict[str, Prediction] = {}
    for cell in study.cells:
        with contextlib.suppress(LoadtestError):
            deployment = estimate.deployment_of(cell, contract)
            requests = [one for level in _levels(run, cell.id) for one in level.requests if one.completion_tokens]
            if deployment is not None and requests:
                found[cell.id] = prediction.predict(
                    deployment,
                    prompt_tokens=round(sum(one.prompt_tokens or 1 for one in requests) / len(requests)),
                    output_tokens=round(sum(one.completion_tokens or 1 for one in requests) / len(requests)),
                )
    return found


def _levels(run: Run, cell: str) -> list[LevelRecords]:
    return [level for one in run.cells if one.id == cell for level in one.levels if level.concurrency == 1]
