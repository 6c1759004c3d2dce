"""`accept`: on a machine with GPUs, everything that had only been tested without one, in about twenty minutes."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec

from loadtest import __version__
from loadtest.analysis.acceptance import TOO_LARGE, AcceptanceReport, AcceptanceRow, GpusHere, Stage, checks
from loadtest.commands.finish import analyze_run, as_json, new_folder, write_page
from loadtest.commands.machine import acceptance_studies as studies
from loadtest.errors import EngineError, GateError, Interrupted, LoadtestError, UsageError
from loadtest.perfmodel import gpus, prediction
from loadtest.records import bundle, write
from loadtest.records.pseudonyms import Pseudonyms
from loadtest.records.read import LevelRecords, Run, read_run
from loadtest.records.schema import EngineName
from loadtest.report.formatting import spoken
from loadtest.servers import flags, preflight, smi
from loadtest.study import estimate, plan
from loadtest.study.execution import NO_TIME, Audience, TimeLimits
from loadtest.study.run import execute

if TYPE_CHECKING:
    from loadtest.perfmodel.prediction import Prediction
    from loadtest.records.schema import GpuSample
    from loadtest.study.execution import Teller
    from loadtest.study.schema import Study

_START_SHARE = 0.2  # of all the time, 4 of 20 min: a small model, with what is compiled at an engine's first start
_PASS_SHARE = 0.15
_ENDING_S = 45.0  # to stop an engine, to analyse and to pack
_ENGINES: tuple[EngineName, ...] = ("sglang", "vllm")
_TITLES = {
    "measured": "one GPU, two starts of each engine",
    "extremes": "speculative decoding, and a model that is too large",
    "parallel": "two GPUs, one start of each engine",
}


@dataclass(slots=True)
class _Acceptance:
    """One acceptance under way: what is asked, where it is written, when its parts must end, and what is not run."""

    asked: studies.Asked
    here: GpusHere
    out: Path
    limits: TimeLimits
    teller: Teller
    missing: list[tuple[str, str, str]] = field(default_factory=list)  # title, of what, why

    def __call__(self, line: str) -> None:
        left_s = max(0, int(self.limits.until_s - time.monotonic()))
        self.teller(f"({left_s // 60:02d}:{left_s % 60:02d} left) {line}")

    @property
    def audience(self) -> Audience:
        return self.teller.audience

    def lacks(self, title: str, of: str, why: str) -> None:
        """Note what is not run, for the table."""
        self.missing.append((title, of, why))
        self(f"{title}, {of}: not run: {why}")


def accept(arguments: argparse.Namespace, say: Teller) -> str:
    """The table of what holds; GateError where a row fails. Leaves the runs, their bundles, `acceptance.json` and `.md`."""
    if not arguments.minutes > 1:
        raise UsageError(f"--minutes: expected more than 1, got {arguments.minutes:g}")
    asked, here = _asked(arguments, say)
    out = arguments.out or new_folder("acceptance")
    if arguments.dry_run:
        return "\n".join(_plan(asked, out, arguments.minutes))
    _announce(asked, here, say)
    one = _Acceptance(asked, here, out, _limits(arguments.minutes), say)
    interrupted = False
    with smi.smi_readings() as readings:
        try:
            _carry_out(one)
        except KeyboardInterrupt:
            if not (out / "measured" / "manifest.json").exists():
                raise
            interrupted = True
            one("interrupted: writing what is known")
    return _conclude(one, readings, json=arguments.json, interrupted=interrupted)


def _limits(minutes: float) -> TimeLimits:
    all_s = 60 * minutes
    return TimeLimits(start_s=_START_SHARE * all_s, pass_s=_PASS_SHARE * all_s, until_s=time.monotonic() + all_s - _ENDING_S)


def _asked(arguments: argparse.Namespace, say: Teller) -> tuple[studies.Asked, GpusHere]:
    engines = cast("tuple[EngineName, ...]", tuple(dict.fromkeys(arguments.engine or _ENGINES)))
    real = any(not one.endswith("-sim") for one in engines)
    here = GpusHere(preflight.gpu_names(), preflight.gpus_by_nvml(), preflight.gpu_here()) if real else GpusHere()
    gpu = arguments.gpu or here.known
    if gpu is None:
        say("the GPU is not known: name it with --gpu, else no speed is predicted and no misfit tried")
    else:
        gpus.gpu(gpu)
    count = preflight.gpu_count() if real else 2
    if not count and not arguments.dry_run:
        raise UsageError("expected a GPU on this machine, found none; to rehearse: --engine vllm-sim --engine sglang-sim")
    return studies.Asked(engines, arguments.model, gpu, (1,) if count == 1 else (1, 2)), here


def _announce(asked: studies.Asked, here: GpusHere, say: Teller) -> None:
    """What will not work is said before time is spent. Raises EngineError: the model is not here and cannot be fetched."""
    for engine in asked.engines:
        if not engine.endswith("-sim"):
            with contextlib.suppress(EngineError):
                preflight.check_installed(engine)
                continue
            say(f"{engine} is not found: its rows will be `not run`; Ctrl-C now to install it")
    if here.names and not here.by_nvml:
        say("no power: NVML is not read; Ctrl-C now, and: python -m pip install nvidia-ml-py")
    if here.names or here.by_nvml:
        preflight.check_reachable(asked.model)


# Stages --------------------------------------------------------------------------------------------------------------


def _carry_out(one: _Acceptance) -> None:
    """Stage after stage, what is needed for the others first. An engine that did not start is not tried again."""
    asked = one.asked
    _stage(one, "measured", studies.measured(asked))
    ready = _ready(asked, one.out / "measured")
    for engine in (engine for engine in asked.engines if engine not in ready):
        one.lacks("everything else", engine, "it did not start on one GPU")
    if not ready:
        return
    extremes = studies.extremes(asked, ready, one.out / "too-large")
    tried = {cell.engine for cell in extremes.cells if cell.name == TOO_LARGE}
    for engine in (engine for engine in ready if engine not in tried):
        one.lacks("out of memory", engine, "the GPU is not known, or the model's config.json not here")
    _stage(one, "extremes", extremes)
    if asked.sizes[-1] == 1:
        one.lacks(_TITLES["parallel"], "both engines", "this machine has one GPU")
    else:
        _stage(one, "parallel", studies.parallel(asked, ready))


def _stage(one: _Acceptance, name: str, study: Study) -> None:
    """A study carried out; what could not be measured is in its records, and so a row of the table."""
    number, out = [*_TITLES].index(name) + 1, one.out / name
    if one.limits.is_over():
        one.lacks(_TITLES[name], "both engines", NO_TIME)
        return
    one(f"stage {number} of {len(_TITLES)}: {_TITLES[name]}")
    try:
        execute(study, out, force=name == "extremes", limits=one.limits, say=one, audience=one.audience)
    except LoadtestError as error:
        if (out / "manifest.json").exists():
            one(str(error))
        elif name == "measured":
            raise
        else:
            one.lacks(_TITLES[name], "both engines", str(error))


def _ready(asked: studies.Asked, run: Path) -> tuple[EngineName, ...]:
    """The engines that got as far as a level."""
    found = {cell.engine.engine for cell in read_run(run).cells if cell.levels}
    return tuple(engine for engine in asked.engines if engine in found)


# The end -------------------------------------------------------------------------------------------------------------


def _conclude(one: _Acceptance, readings: Sequence[GpuSample], *, json: bool, interrupted: bool) -> str:
    from loadtest.report.text.acceptance import acceptance_markdown, acceptance_text

    stages = list(_stages(one, interrupted))
    stages += [Stage(title, of=of, reason=why) for title, of, why in one.missing]
    runs = [stage.run for stage in stages if stage.run is not None]
    predicted = {name: found for run in runs for name, found in _predicted(one, run).items()}
    rows = _without_names(one.out, checks(stages, one.here, predicted, readings))
    report = AcceptanceReport(loadtest=__version__, gpus=one.here.names, rows=rows, nvidia_smi=tuple(readings))
    simulated = any(run.manifest.simulated for run in runs)
    for folder in (one.out, one.out / "measured"):
        write.write_json(folder / "acceptance.json", report)
    write.write_file(one.out / "acceptance.md", acceptance_markdown(report, simulated=simulated).encode())
    files = [str(one.out / "acceptance.md"), *_packed(one.out, runs)]
    said = as_json(rows) if json else acceptance_text(rows, simulated=simulated, files=files)
    failed = [row for row in rows if row.result == "fail"]
    if interrupted:
        raise Interrupted(f"interrupted; what was found is in {one.out}", said)
    if failed:
        raise GateError(f"{len(failed)} of {len(rows)} checks failed: {failed[0].check} of {failed[0].of}", said)
    return said


def _stages(one: _Acceptance, interrupted: bool) -> Iterator[Stage]:
    """The stages with records, each with figures and a page, and those that an interruption left out."""
    for name, title in _TITLES.items():
        folder = one.out / name
        if (folder / "manifest.json").exists():
            metrics = analyze_run(folder)
            write_page(folder, metrics, folder / "report.html")
            yield Stage(title, run=read_run(folder), metrics=metrics)
        elif interrupted and title not in {missing for missing, _, _ in one.missing}:
            yield Stage(title, reason="interrupted")


def _without_names(out: Path, rows: Sequence[AcceptanceRow]) -> tuple[AcceptanceRow, ...]:
    """The rows without names of machines and people, as the bundles are."""
    names = Pseudonyms(path.name for path in out.rglob("*.jsonl"))
    return tuple(msgspec.structs.replace(row, got=names.in_text(row.got)) for row in rows)


def _packed(out: Path, runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        target = out / f"{run.path.name}{bundle.SUFFIX}"
        bundle.pack(run.path, target, redact=True)
        yield str(target)


def _predicted(one: _Acceptance, run: Run) -> dict[str, Prediction]:
    """What the performance model expects of each cell alone, at the lengths that were measured."""
    found: dict[str, Prediction] = {}
    for study in (studies.measured(one.asked), studies.parallel(one.asked, one.asked.engines)):
        _, contract = plan.asked(study)
        for cell in study.cells:
            with contextlib.suppress(LoadtestError):
                deployment = estimate.deployment_of(cell, contract)
                requests = [r for level in _levels(run, cell.id) for r in level.requests if r.completion_tokens]
                if deployment is not None and requests:
                    found[cell.id] = prediction.predict(
                        deployment,
                        prompt_tokens=round(sum(r.prompt_tokens or 1 for r in requests) / len(requests)),
                        output_tokens=round(sum(r.completion_tokens or 1 for r in requests) / len(requests)),
                    )
    return found


def _levels(run: Run, cell: str) -> list[LevelRecords]:
    return [level for one in run.cells if one.id == cell for level in one.levels if level.concurrency == 1]


# The plan ------------------------------------------------------------------------------------------------------------


def _plan(asked: studies.Asked, out: Path, minutes: float) -> Iterator[str]:
    """Each command that would be run, and about how long it takes."""
    limits = _limits(minutes)
    said = f"a start may take {limits.start_s:.0f} s, a level {limits.pass_s:.0f} s, all of it {minutes:g} min"
    yield f"{asked.model} on {asked.gpu or 'a GPU that is not known'}; {said}; nothing is started"
    with tempfile.TemporaryDirectory(prefix="loadtest-accept-") as place:
        planned = {
            "measured": studies.measured(asked),
            "extremes": studies.extremes(asked, asked.engines, Path(place)),
            "parallel": studies.parallel(asked, asked.engines) if len(asked.sizes) > 1 else None,
        }
        for name, study in planned.items():
            yield ""
            if study is None:
                yield f"{_TITLES[name]}: not run, this machine has one GPU"
            else:
                yield from (line.replace(place, str(out / "too-large")) for line in _stage_plan(_TITLES[name], study))
                if name == "extremes" and len(study.cells) == len(asked.engines):
                    yield "  too-large: planned once the GPU is known and the model's config.json is here"


def _stage_plan(title: str, study: Study) -> Iterator[str]:
    workload, contract = plan.asked(study)
    known = [estimate.of_cell(study, cell, workload, contract).all_s(study.repeats) for cell in study.cells]
    yield f"{title}: concurrency {', '.join(map(str, study.levels))}, about {spoken(sum(filter(None, known)))}"
    for cell in study.cells:
        fit = plan.fit_of(cell, contract)
        argv, variables = flags.launch_command(plan.launch_spec(cell, contract, port=8000))
        yield f"  {cell.id}{'' if fit is None or fit.fits else f': must fail: {fit.reason}'}"
        yield f"    {shlex.join([*(f'{name}={value}' for name, value in variables.items()), *argv])}"
