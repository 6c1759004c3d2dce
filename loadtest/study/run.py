"""Runs a study: starts the engine of each cell, measures it at every level, stops it, and records every fact on disk.

Repeats are interleaved: repeat 1 of all cells, then repeat 2 of all cells, so that a drift of the machine affects both
engines alike. A cell that cannot be measured is recorded with its reason, and the study goes on with the next.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import msgspec

from loadtest import credentials
from loadtest.analysis.run import analyze
from loadtest.errors import EngineError, FitError, RecordError, UsageError
from loadtest.metrics import clock_error
from loadtest.records import read, write
from loadtest.records.folder import claimed
from loadtest.records.instrument import InstrumentError
from loadtest.records.manifest import Manifest, ManifestCell, Prices, begun, ended
from loadtest.servers import preflight, probe
from loadtest.study import estimate, locust_pass, stopping
from loadtest.study.bursts.asked import burst_pass, check_room, first_wanted
from loadtest.study.cell_server import reaching, serving
from loadtest.study.engine_file import EngineFile, starting
from loadtest.study.execution import NO_TIME, NOBODY, UNLIMITED, Audience, Execution, Say, TimeLimits
from loadtest.study.passes import finished_passes, is_finished, run_pass
from loadtest.study.plan import asked, launch_spec
from loadtest.study.resumption import reopened
from loadtest.study.schema import AskedPass, Cell, Study
from loadtest.study.search.live import search_cell
from loadtest.workload.contract import Contract
from loadtest.workload.script import SALTED
from loadtest.workload.workload import Workload


def execute(
    study: Study,
    out: Path,
    *,
    resume: bool = False,
    force: bool = False,
    budget_s: float | None = None,
    precision: float | None = None,
    instrument: InstrumentError | None = None,
    limits: TimeLimits = UNLIMITED,
    say: Say,
    audience: Audience = NOBODY,
) -> tuple[str, ...]:
    """Run `study` in the folder `out`. Returns why the run is incomplete; empty if it is complete.

    `budget_s`: nothing starts that would take the run beyond so many seconds, but for the first repeat: where not every pair
    has time, those nearest to a verdict. `precision`: repeats until each pair's interval is at most this share wide on a
    side. `instrument`: what it was worth just before. `limits`: what takes longer is stopped, what has no time left skipped.

    Raises `UsageError` before anything starts where workload or contract are wrong, `EngineError` where this machine can
    start no cell at all, `RecordError` where `out` is taken or can't be written, `KeyboardInterrupt` after the engine is
    stopped and the manifest says so.
    """
    workload, contract = asked(study)
    if study.decides:
        check_room(study, contract)
    for cell in study.cells:
        with reaching(cell):
            pass  # are key and headers there?
    resumed = resume and has_run(out)
    blocked = {} if force else _blocked(study, contract)
    if not resumed:
        _check_any_can_start(study, blocked)
    with claimed(out) as check_folder:
        manifest = _gone_on(study, workload, contract, out) if resumed else begin_run(study, workload, contract, out)
        if instrument is not None:
            manifest = msgspec.structs.replace(manifest, instrument=instrument)
            write.write_manifest(out, manifest)
        remaining = estimate.Remaining(study, workload, contract, blocked)
        for cell_id in blocked:
            remaining.never(cell_id)
        execution = Execution(
            study,
            contract,
            out,
            manifest.run_id,
            say,
            force,
            blocked,
            remaining,
            check_folder,
            wanted=first_wanted(study, contract, blocked),
            budget_s=budget_s,
            precision=precision,
            audience=audience,
            limits=limits,
        )
        _announce(study, contract, say)
        _carry_out(execution, manifest)
    return tuple(execution.problems)


def _check_any_can_start(study: Study, blocked: dict[str, str]) -> None:
    if len(blocked) == len(study.cells):
        first, why = next(iter(blocked.items()))
        raise EngineError(f"{first}: {why}; no cell of this study can start here, so none was started; --force tries it")


def _announce(study: Study, contract: Contract, say: Say) -> None:
    """What is measured, and where its sampling is not as recommended."""
    say(f"{study.name}: {extent_words(study)}")
    for warning in contract.warnings:
        say(f"contract: {warning}")


def _gone_on(study: Study, workload: Workload, contract: Contract, out: Path) -> Manifest:
    """Write the manifest of a run that is resumed. Raises `UsageError`: the study asks for something else."""
    manifest = reopened(out, read.read_own_manifest(out / "manifest.json"), _asked_for(study, workload, contract, out))
    write.write_manifest(out, manifest)
    return manifest


def extent_words(study: Study) -> str:
    """What a study measures.

    >>> extent_words(Study(name="x", workload="math", cells=(Cell(engine="vllm", model="m"),), levels=(1, 4), repeats=3))
    '1 cell, concurrency 1, 4, 3 repeats'
    """
    cells, repeats = len(study.cells), study.repeats
    if study.search is not None:
        sought = "concurrency" if study.search.of == "users" else "rate of arrivals"
        return f"{cells} cell{'s' * (cells > 1)}, the largest {sought} within {', '.join(study.slo)}"
    levels = ", ".join(map(str, study.levels))
    most, kind = "at most " if study.until_decided else "", "bursts at " if study.decides else ""
    extent = f"{cells} cell{'s' * (cells > 1)}, {kind}concurrency {levels}"
    return extent + (f", {most}{repeats} repeats" if repeats > 1 else "")


def _carry_out(execution: Execution, manifest: Manifest) -> None:
    """Run every repeat of every cell. However that ends, write it into the manifest."""
    interrupted = True
    try:
        _run_repeats(execution)
        interrupted = False
    except RecordError as error:
        interrupted = False
        execution.note(str(error))
        raise RecordError(f"{error}; what was measured is kept: make room, then --resume --out {execution.out}") from error
    finally:
        execution.check_folder()
        end_run(manifest, execution.out, execution.problems, interrupted=interrupted)


def _run_repeats(execution: Execution) -> None:
    """Every repeat of every cell; with `until_decided` only of cells that some pair still needs."""
    study = execution.study
    repeat, last = 0, study.repeats
    while repeat < last:
        repeat += 1
        if not _measure_wanted(execution, repeat):
            return
        if study.decides or (study.until_decided and repeat < last):
            metrics = analyze(read.read_run(execution.out))
            last = stopping.last_repeat(study, metrics, repeat, last)
            if repeat < last:
                execution.wanted = stopping.look(execution, metrics, repeat)
            if last > study.repeats == repeat:
                execution.say(f"repeats go on to {last}: a verdict by natural passes needs two starts of each engine")
            if not execution.wanted.cells:
                return


def _measure_wanted(execution: Execution, repeat: int) -> bool:
    """One repeat of what is wanted, as far as the budget goes; False where nothing more is to be measured."""
    study, asked = execution.study, execution.wanted.cells
    execution.wanted = stopping.affordable(execution, execution.wanted)
    cells = tuple(cell for cell in study.cells if cell.id in execution.wanted.cells)
    if not cells:
        execution.say(f"stopped before {study.turn} {repeat}: it would not end within the budget")
        return False
    if len(cells) < len(asked):
        execution.say(f"{study.turn} {repeat}: the budget allows {len(cells)} of {len(asked)} cells, nearest to a verdict")
    for cell in in_order(cells, repeat):
        began_s = time.monotonic()
        if _run_cell(execution, cell, repeat):
            execution.spending.cell_ended(cell.id, time.monotonic() - began_s)
        if study.is_duel and execution.problems:  # a round without its other half tells nothing
            return False
    return True


def in_order(cells: tuple[Cell, ...], repeat: int) -> tuple[Cell, ...]:
    """Every second repeat runs the cells in reverse order, so that a machine that slowly changes favours none of them."""
    return cells if repeat % 2 else cells[::-1]


def _blocked(study: Study, contract: Contract) -> dict[str, str]:
    """Why cells cannot start on this machine, by cell id. Cells that can start, or already run, are left out."""
    found = {}
    for cell in study.cells:
        if cell.base_url is None:
            try:
                preflight.check_launch(launch_spec(cell, contract, port=1))
            except EngineError as error:
                found[cell.id] = str(error)
    return found


def has_run(out: Path) -> bool:
    """Whether this folder holds a run already."""
    return (out / "manifest.json").exists()


def begin_run(study: Study, workload: Workload, contract: Contract, out: Path, *, driven: str = "locust") -> Manifest:
    """Write the manifest of a run that begins, driven by Locust or in virtual time. Raises `RecordError`: `out` is taken."""
    if has_run(out):
        raise RecordError(f"{out}: expected a folder without a run, found manifest.json; name another --out or --resume")
    opened = _asked_for(study, workload, contract, out, driven)
    write.write_manifest(out, opened)
    return opened


def _asked_for(study: Study, workload: Workload, contract: Contract, out: Path, driven: str = "locust") -> Manifest:
    """The manifest that a study begins with."""
    return begun(
        run_id=f"{time.strftime('%Y%m%dT%H%M%S')}-{out.name}",
        name=study.name,
        scenario=study.scenario,
        scenario_options=study.scenario_options or None,
        driven=driven,
        simulated=study.simulated,
        clock_speed=max((cell.clock_speed or 1.0) for cell in study.cells),
        seed=study.seed,
        baseline=study.baseline,
        workload=workload.facts,
        contract=asdict(contract),
        question=study.question,
        slo=study.slo,
        matters=study.matters,
        start_sd=study.start_sd,
        prices=Prices(gpu_hour=study.gpu_hour_price, currency=study.currency),
        findings=study.findings,
        levels=study.levels if study.search is None else (),
        duration_s=study.duration_s,
        min_requests=study.min_requests,
        requests_per_stream=study.requests_per_stream,
        warmup_requests=study.warmup_requests,
        cooldown_s=study.cooldown_s,
        workers=study.workers,
        mode=study.mode,
        prompts=study.prompts,
        unsalted=tuple(cell.id for cell in study.cells if study.prompts is not None and cell.engine not in SALTED),
        natural_users=study.natural_users if study.decides else None,
        natural_prompts=study.natural_prompts if study.decides else None,
        repeats=study.repeats,
        until_decided=study.until_decided,
        cells=tuple(ManifestCell.from_table({"id": cell.id, **asdict(cell)}) for cell in study.cells),
    )


def end_run(opened: Manifest, out: Path, problems: list[str], *, interrupted: bool) -> None:
    """Write how the run ended into its manifest; an interruption counts as a problem."""
    if interrupted:
        problems.append("interrupted")
    write.write_manifest(out, ended(opened, problems, finished_passes(out), interrupted=interrupted))


def _run_cell(execution: Execution, cell: Cell, repeat: int) -> bool:
    """One repeat of a cell; False where all of it is on disk already."""
    searched = execution.study.search is not None
    asked = [] if searched else execution.wanted.passes(execution.study, execution.contract, cell)
    left = [one for one in asked if not is_finished(execution, cell, one, repeat)]
    if not left and not searched:
        execution.say(f"{cell.title}: {execution.study.turn} {repeat} is complete on disk already")
    elif execution.limits.is_over():
        _skip(execution, cell, repeat)
    else:
        with reaching(cell):
            _measure(execution, cell, left, repeat)
    execution.remaining.ended(cell, repeat)
    return bool(left) or searched


def _skip(execution: Execution, cell: Cell, repeat: int) -> None:
    """Note that a repeat was not begun; what is known of the cell's earlier starts stays."""
    execution.note(f"{cell.title}: {execution.study.turn} {repeat} was not started: {NO_TIME}")
    engine = EngineFile(execution.out, starting(cell))
    if not engine.exists():
        engine.learn(status="skipped", reason=NO_TIME, started_unix_s=None)
        engine.write()


def _measure(execution: Execution, cell: Cell, asked: list[AskedPass], repeat: int) -> None:
    """These passes of a cell, and in engine.json what became of it."""
    engine = EngineFile(execution.out, starting(cell))
    try:
        with serving(execution, cell, engine) as (target, died):
            engine.write()
            if execution.study.search is not None:
                search_cell(execution, cell, target, _noting(died, engine), engine)
            for one in _within_room(execution, cell, asked, target.room_tokens):
                began_s = time.monotonic()
                run_pass(execution, cell, target, _noting(died, engine), one, repeat)
                execution.spending.pass_ended(cell.id, one, time.monotonic() - began_s)
            if cell.simulated:
                _learn_clock_errors(execution, cell, target, engine)
        engine.learn(status="ok")
    except FitError as error:  # a finding, not a failure of ours
        engine.learn(status="refused", reason=str(error))
        execution.remaining.never(cell.id)
        execution.say(f"{cell.title}: refused: {error}")
    except EngineError as error:
        ended = "skipped" if cell.id in execution.blocked or execution.limits.is_over() else "failed"
        reason = credentials.redacted(str(error))
        reason = f"{NO_TIME}: {reason}" if execution.limits.is_over() and NO_TIME not in reason else reason
        engine.learn(status="died" if engine.facts.status == "died" else ended, reason=reason)
        execution.note(f"{cell.title}: {reason}")
    except RecordError as error:
        engine.learn(status="failed", reason=str(error))
        raise
    except KeyboardInterrupt:
        engine.learn(status="interrupted", reason="interrupted before its last level ended")
        raise
    finally:
        engine.learn(stopped_unix_s=time.time())
        engine.write()


def _within_room(execution: Execution, cell: Cell, asked: list[AskedPass], room_tokens: int | None) -> Iterator[AskedPass]:
    """The passes, with bursts no longer than the server says that it can serve."""
    for one in asked:
        if one.kind == "level":
            yield one
            continue
        try:
            fitted = burst_pass(execution.study, execution.contract, cell, one.concurrency, room_tokens)
            yield replace(fitted, contexts_tokens=fitted.contexts_tokens[: len(one.contexts_tokens)])
        except UsageError as error:
            raise EngineError(str(error)) from None


def _noting(died: Callable[[], str | None], engine: EngineFile) -> Callable[[], str | None]:
    """`died`, which also notes it in engine.json: Locust may be the first to report the end of the pass."""

    def noted() -> str | None:
        reason = died()
        if reason is not None:
            engine.learn(status="died")
        return reason

    return noted


def _learn_clock_errors(execution: Execution, cell: Cell, target: locust_pass.Target, engine: EngineFile) -> None:
    """How far the client's times are off the simulator's own, over all passes of the cell so far, and of each level."""
    folders = (execution.out / "cells" / cell.id).glob("c*-r[0-9]*")
    requests = [one for folder in folders if folder.suffix == "" for one in read.read_level(folder).requests]
    first, *more = target.metrics_urls or target.urls
    key = "" if target.metrics_urls else None  # behind a router, for which the key was given
    truth = probe.truth(first, key)
    for url in more:
        with contextlib.suppress(EngineError):  # it may have died meanwhile, which its requests say
            truth += probe.truth(url, key)
    by_level = {
        level: clock_error.measure_clock_error([one for one in requests if one.concurrency == level], truth)
        for level in sorted({one.concurrency for one in requests})
    }
    engine.learn(clock_error=clock_error.measure_clock_error(requests, truth), clock_error_by_level=by_level)
