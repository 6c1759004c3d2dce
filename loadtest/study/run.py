"""A study carried out: each cell's runtime started, driven at every level, stopped; every fact of it on disk.

Passes are interleaved: pass 1 over all cells, then pass 2 over all cells, so that a drift of the machine falls on both
runtimes alike. A cell that cannot be measured is recorded with its reason, and the study goes on with the next.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgspec

from loadtest import credentials
from loadtest.errors import EngineError, FitError, RecordError
from loadtest.metrics import clock_error
from loadtest.records import read, write
from loadtest.records.engine_facts import ClockError, EngineFacts, MemoryFit
from loadtest.records.folder import claimed, level_path, set_aside
from loadtest.records.manifest import Manifest, Prices, asked_cell, begun, ended
from loadtest.servers import chat_template, flags, preflight, probe
from loadtest.servers.server import Server
from loadtest.study import estimate, locust_pass, sampling
from loadtest.study.contract_check import check_contract
from loadtest.study.plan import asked, fit_of, launch_spec, refuse_misfit
from loadtest.study.schema import Cell, Study
from loadtest.workload.contract import Contract, differences, from_table
from loadtest.workload.workload import Workload

Say = Callable[[str], None]
_TELL_EVERY_S = 15.0


@dataclass(slots=True)
class _Journey:
    """What one execution of a study carries along: where it writes, why a cell cannot start, what it has found so far."""

    study: Study
    contract: Contract
    out: Path
    run_id: str
    say: Say
    force: bool
    blocked: dict[str, str]
    remaining: estimate.Remaining
    problems: list[str] = field(default_factory=list)

    def note(self, problem: str) -> None:
        """Keep what makes the run incomplete, once."""
        self.say(problem)
        if problem not in self.problems:
            self.problems.append(problem)


def execute(study: Study, out: Path, *, resume: bool = False, force: bool = False, say: Say) -> tuple[str, ...]:
    """Carry out `study` in the folder `out`; returns what kept it from being complete (empty: nothing).

    Raises `UsageError` before anything starts where workload or contract are wrong, `EngineError` where this machine can
    start no cell at all, `RecordError` where `out` is taken or can't be written, `KeyboardInterrupt` after the runtime is
    stopped and the manifest says so.
    """
    workload, contract = asked(study)
    for cell in study.cells:
        with credentials.named(cell.api_key_env):
            pass  # is the key there?
    resumed = resume and has_run(out)
    blocked = {} if force else _blocked(study, contract)
    if len(blocked) == len(study.cells) and not resumed:
        first, why = next(iter(blocked.items()))
        raise EngineError(f"{first}: {why}; no cell of this study can be started here, and nothing was (--force tries it)")
    with claimed(out):
        manifest = _reopen(study, workload, contract, out) if resumed else open_run(study, workload, contract, out)
        remaining = estimate.Remaining(study, workload, contract)
        for cell_id in blocked:
            remaining.never(cell_id)
        journey = _Journey(study, contract, out, manifest.run_id, say, force, blocked, remaining)
        levels = ", ".join(map(str, study.levels))
        say(f"{study.name}: {len(study.cells)} cells x levels {levels} x {study.repeats} pass(es)")
        _travel(journey, manifest)
    return tuple(journey.problems)


def _travel(journey: _Journey, manifest: Manifest) -> None:
    """Every pass over every cell, and at the end, whatever it is, what the manifest says of it."""
    interrupted = True
    try:
        for repeat in range(1, journey.study.repeats + 1):
            for cell in in_order(journey.study.cells, repeat):
                _run_cell(journey, cell, repeat)
        interrupted = False
    except RecordError as error:
        interrupted = False
        journey.note(str(error))
        raise RecordError(f"{error}; what was measured is kept: make room, then --resume --out {journey.out}") from error
    finally:
        close_run(manifest, journey.out, journey.problems, interrupted=interrupted)


def in_order(cells: tuple[Cell, ...], repeat: int) -> tuple[Cell, ...]:
    """Every second repeat runs the cells in reverse order, so that a machine that slowly changes favours none of them."""
    return cells if repeat % 2 else cells[::-1]


def _blocked(study: Study, contract: Contract) -> dict[str, str]:
    """Why a cell cannot be started on this machine, by its id; cells that can be, or need not be, are left out."""
    found = {}
    for cell in study.cells:
        if cell.base_url is None:
            try:
                preflight.check_launch(launch_spec(cell, contract, port=1))
            except EngineError as error:
                found[cell.id] = str(error)
    return found


def has_run(out: Path) -> bool:
    """Does this folder hold a run already?"""
    return (out / "manifest.json").exists()


def open_run(study: Study, workload: Workload, contract: Contract, out: Path, *, driven: str = "locust") -> Manifest:
    """Write the manifest of a run that begins, driven by Locust or in virtual time. Raises `RecordError`: `out` is taken."""
    if has_run(out):
        raise RecordError(f"{out}: expected a folder without a run, found manifest.json; name another --out or --resume")
    opened = begun(
        run_id=f"{time.strftime('%Y%m%dT%H%M%S')}-{out.name}",
        name=study.name,
        scenario=study.scenario,
        scenario_options=study.scenario_options or None,
        driven=driven,
        simulated=study.simulated,
        clock_speed=max((cell.clock_speed or 1.0) for cell in study.cells),
        seed=study.seed,
        workload=workload.facts,
        contract=asdict(contract),
        question=study.question,
        slo=study.slo,
        matters=study.matters,
        start_sd=study.start_sd,
        prices=Prices(gpu_hour=study.gpu_hour_price, currency=study.currency),
        findings=study.findings,
        levels=study.levels,
        duration_s=study.duration_s,
        repeats=study.repeats,
        cells=tuple(asked_cell({"id": cell.id, **asdict(cell)}) for cell in study.cells),
    )
    write.write_manifest(out, opened)
    return opened


def close_run(opened: Manifest, out: Path, problems: list[str], *, interrupted: bool) -> None:
    """Write how the run ended into its manifest; an interruption is one problem more."""
    if interrupted:
        problems.append("interrupted")
    write.write_manifest(out, ended(opened, problems, interrupted=interrupted))


def _reopen(study: Study, workload: Workload, contract: Contract, out: Path) -> Manifest:
    manifest = read.read_run(out).manifest
    if manifest.driven != "locust":
        raise RecordError(f"{out}: --resume: expected a run that Locust drove, got one in {manifest.driven}; start anew")
    known = manifest.workload and manifest.workload.identity
    if known != workload.identity:
        raise RecordError(
            f"{out}: --resume: workload: expected the run's own ({known}), got {workload.identity}; start anew"
        )
    begun_with = from_table(manifest.contract)
    for key, (expected, got) in differences(begun_with, contract).items():
        raise RecordError(f"{out}: --resume: contract: {key}: expected the run's own {expected}, got {got}; start anew")
    return manifest


def _run_cell(journey: _Journey, cell: Cell, repeat: int) -> None:
    levels = [level for level in journey.study.levels if not _finished(journey, cell, level, repeat)]
    if not levels:
        journey.say(f"{cell.id}: pass {repeat} is on disk already")
    else:
        with credentials.named(cell.api_key_env):
            _measure(journey, cell, levels, repeat)
    journey.remaining.ended(cell, repeat)


def _measure(journey: _Journey, cell: Cell, levels: list[int], repeat: int) -> None:
    """One pass over each of `levels` of a cell, and in engine.json what became of it."""
    engine = EngineFile(journey.out, starting(cell))
    try:
        with _target(journey, cell, engine) as (target, died):
            engine.write()
            for level in levels:
                _run_pass(journey, cell, target, _noting(died, engine), level, repeat)
            if cell.simulated:
                engine.learn(clock_error=_clock_error(journey, cell, target))
        engine.learn(status="ok")
    except FitError as error:  # a finding, not a failure of ours
        engine.learn(status="refused", reason=str(error))
        journey.remaining.never(cell.id)
        journey.say(f"{cell.id}: refused: {error}")
    except EngineError as error:
        ended = "skipped" if cell.id in journey.blocked else "failed"
        reason = credentials.redacted(str(error))
        engine.learn(status="died" if engine.facts.status == "died" else ended, reason=reason)
        journey.note(f"{cell.id}: {reason}")
    except RecordError as error:
        engine.learn(status="failed", reason=str(error))
        raise
    except KeyboardInterrupt:
        engine.learn(status="interrupted", reason="interrupted before its last level ended")
        raise
    finally:
        engine.learn(stopped_unix_s=time.time())
        engine.write()


def _noting(died: Callable[[], str | None], engine: EngineFile) -> Callable[[], str | None]:
    """`died`, which also notes a death in engine.json: what ends a pass may be Locust's end as well."""

    def noted() -> str | None:
        reason = died()
        if reason is not None:
            engine.learn(status="died")
        return reason

    return noted


class EngineFile:
    """`engine.json` of one cell while its facts come in."""

    def __init__(self, run: Path, facts: EngineFacts) -> None:
        self.facts = facts
        self._path = run / "cells" / facts.id / "engine.json"

    def learn(self, **facts: object) -> None:
        self.facts = msgspec.structs.replace(self.facts, **facts)

    def write(self) -> None:
        write.write_json(self._path, self.facts)


def starting(cell: Cell) -> EngineFacts:
    """What is known of the engine of a cell that is about to start."""
    return EngineFacts(
        id=cell.id,
        engine=cell.engine,
        model=cell.model,
        tp=cell.tp,
        gpu=cell.gpu,
        mode=cell.mode,
        simulated=cell.simulated,
        clock_speed=cell.clock_speed or 1.0,
        base_url=cell.base_url,
        status="starting",
        started_unix_s=time.time(),
    )


def memory_fit(cell: Cell, contract: Contract) -> MemoryFit | None:
    """The arithmetic of a cell's memory, for engine.json; None where the GPU is not known."""
    found = fit_of(cell, contract)
    return None if found is None else msgspec.convert(found, MemoryFit, from_attributes=True)


@contextlib.contextmanager
def _target(
    journey: _Journey, cell: Cell, engine: EngineFile
) -> Iterator[tuple[locust_pass.Target, Callable[[], str | None]]]:
    """The server of a cell, running and proven to answer: attached to by its URL, or started and stopped again."""
    if cell.base_url is not None:
        yield _attached(journey, cell.base_url, cell, engine), lambda: None
        return
    _check_fit(journey, cell, engine)
    if cell.id in journey.blocked:
        raise EngineError(journey.blocked[cell.id])
    spec = launch_spec(cell, journey.contract, port=preflight.free_port())
    argv, variables = flags.launch_command(spec)
    engine.learn(command=tuple(argv), env=variables)
    journey.say(f"{cell.id}: starting")
    log = journey.out / "cells" / cell.id / "engine.log"
    with Server(spec, log, _key_variables(journey.study)) as server:
        server.wait_ready()
        engine.learn(ready_unix_s=time.time())
        yield _attached(journey, server.base_url, cell, engine), server.died
    engine.learn(exit_code=server.exit_code)


def _key_variables(study: Study) -> set[str]:
    """The variables in which a study's cells have their keys: for nobody but Locust, under its own name."""
    return {cell.api_key_env for cell in study.cells if cell.api_key_env is not None}


def _attached(journey: _Journey, base_url: str, cell: Cell, engine: EngineFile) -> locust_pass.Target:
    info = probe.probe(base_url, model=cell.model)
    if info.engine not in ("other", cell.engine) and (info.simulated or cell.engine != "other"):
        kind = "the simulator " if info.simulated else ""
        raise EngineError(f"{base_url}: engine: expected {cell.engine}, got {kind}{info.engine}; say --engine {info.engine}")
    engine.learn(engine_version=info.version, server_info=msgspec.to_builtins(info), clock_speed=info.clock_speed)
    served = _served(base_url, cell, info)
    told = chat_template.thinking_prelude(base_url, served) if info.engine in ("sglang", "vllm") else None
    contract = check_contract(cell, journey.contract, engine.facts.command or (), info, told)
    engine.learn(contract=contract)
    tell = journey.note if cell.base_url is None else journey.say  # another's server is as it is
    for violation in contract.violations:
        tell(f"{cell.id}: not as the contract has it: {violation}")
    return locust_pass.Target(base_url=base_url, served_model=served, clock_speed=info.clock_speed)


def _served(base_url: str, cell: Cell, info: probe.ServerInfo) -> str:
    """What the server calls the cell's model: the same, or whatever it calls the only one that it has."""
    if cell.model in info.models or not info.models:
        return cell.model
    if len(info.models) > 1:
        known = ", ".join(info.models[:8])
        raise EngineError(f"{base_url}: model: expected one of {known}, got {cell.model}; name it as the server does")
    return info.models[0]


def _check_fit(journey: _Journey, cell: Cell, engine: EngineFile) -> None:
    """Refuse a cell that does not fit its cards; `--force` starts it all the same."""
    engine.learn(fit=memory_fit(cell, journey.contract))
    if not journey.force:
        refuse_misfit(cell, journey.contract)


def _clock_error(journey: _Journey, cell: Cell, target: locust_pass.Target) -> ClockError:
    """How far the client's times are off what the simulator knows to be true, for all passes over this cell so far."""
    folders = (journey.out / "cells" / cell.id).glob("c*-r[0-9]*")
    requests = [one for folder in folders if folder.suffix == "" for one in read.read_level(folder).requests]
    return clock_error.measure_clock_error(requests, probe.truth(target.base_url))


def _finished(journey: _Journey, cell: Cell, level: int, repeat: int) -> bool:
    """Is this pass on disk and whole? What an earlier, broken attempt left is moved aside, not lost."""
    folder = level_path(journey.out, cell.id, level, repeat)
    if not folder.exists():
        return False
    marker = folder / "pass.json"
    if marker.exists() and read.read_json(marker).get("complete") is True:
        return True
    aside = set_aside(folder)
    journey.say(f"{cell.id}: what was left of {folder.name} is kept in {aside.name}")
    return False


def _run_pass(
    journey: _Journey, cell: Cell, target: locust_pass.Target, died: Callable[[], str | None], level: int, repeat: int
) -> None:
    folder = level_path(journey.out, cell.id, level, repeat)
    argv = locust_pass.command(journey.study, cell, target, level, repeat, journey.out, journey.run_id)
    locust_pass.cool_down(journey.study.cooldown_s, died)
    if cell.base_url is None:  # another's server may serve others too: its cache is left alone
        probe.flush_cache(target.base_url, cell.engine)
    before = sampling.Moment.now()
    with sampling.sampling(target, folder, cards=_is_here(target)) as unwritable:
        end = locust_pass.drive(
            argv,
            folder,
            _environment(journey.study, cell),
            died=lambda: unwritable() or died(),
            tell=_teller(journey, cell, level),
        )
    after = sampling.Moment.now()
    clocks = sampling.ClockChanges.between(before, after)
    reason = end.reason or clocks.suspended
    facts = {"complete": reason is None, "command": argv, **asdict(end), "reason": reason, "clocks": asdict(clocks)}
    write.write_json(folder / "pass.json", facts | {"cooldown_s": journey.study.cooldown_s})
    left = journey.remaining.after(cell, level)
    took_s = after.monotonic_s - before.monotonic_s
    journey.say(f"{cell.id}  {level:>2} streams  {end.n_requests:>4} requests in {took_s:5.1f} s{left}")
    if clocks.set_by is not None:
        journey.say(f"{cell.id}  {level:>2} streams  {clocks.set_by}")
    if end.reason is not None:
        raise EngineError(f"{level} streams, pass {repeat}: {end.reason}")
    if clocks.suspended is not None:  # --resume measures this pass again; the next may be sound
        journey.note(f"{cell.id}: {level} streams, pass {repeat}: {clocks.suspended}")


def _is_here(target: locust_pass.Target) -> bool:
    return probe.is_loopback(target.base_url)


def _environment(study: Study, cell: Cell) -> dict[str, str]:
    """What Locust inherits: the key only where the server is not ours, and so may want one, and no other's."""
    withheld = _key_variables(study) | (set(credentials.WITHHELD) if cell.base_url is None else set())
    withheld -= {credentials.KEY_VARIABLES[0]} if cell.base_url is not None else set()
    return {name: value for name, value in os.environ.items() if name not in withheld}


def _teller(journey: _Journey, cell: Cell, level: int) -> Callable[[int], None]:
    began_s = told_s = time.monotonic()

    def tell(n_requests: int) -> None:
        nonlocal told_s
        if time.monotonic() - told_s >= _TELL_EVERY_S:
            told_s = time.monotonic()
            how_far = estimate.how_far(journey.study, level, n_requests, told_s - began_s)
            journey.say(f"{cell.id}  {level:>2} streams  {how_far}")

    return tell
