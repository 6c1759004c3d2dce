"""A study carried out: each cell's runtime started, driven at every level, stopped; every fact of it on disk.

Passes are interleaved: pass 1 over all cells, then pass 2 over all cells, so that a drift of the machine falls on both
runtimes alike. A cell that cannot be measured is recorded with its reason, and the study goes on with the next.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from loadtest import (
    acceleration,
    credentials,
    engines,
    hardware,
    launch,
    models,
    passes,
    records,
    roofline,
    thinking,
)
from loadtest.clock import Clock
from loadtest.contract import Contract, from_table, within
from loadtest.errors import EngineError, FitError, RecordError
from loadtest.manifest import begun, ended
from loadtest.study import Cell, Study
from loadtest.workload import Workload
from loadtest.workload import load as load_workload

Say = Callable[[str], None]
_TELL_EVERY_S = 15.0
_YARN_CONTEXT_TOKENS = int(launch.YARN_FACTOR * launch.YARN_ORIGINAL_TOKENS)


@dataclass(slots=True)
class _Journey:
    """What one execution of a study carries along: where it writes, what it has found so far."""

    study: Study
    out: Path
    run_id: str
    say: Say
    force: bool
    started_s: float
    passes_left: int
    problems: list[str] = field(default_factory=list)


def execute(study: Study, out: Path, *, resume: bool = False, force: bool = False, say: Say) -> tuple[str, ...]:
    """Carry out `study` in the folder `out`; returns what kept it from being complete (empty: nothing).

    Raises `UsageError` before anything starts where workload or contract are wrong, `RecordError` where `out` is taken
    or can't be written, `KeyboardInterrupt` after the runtime is stopped and the manifest says so.
    """
    workload, contract = asked(study)
    manifest = _reopen(study, workload, out) if resume and has_run(out) else open_run(study, workload, contract, out)
    n_passes = len(study.cells) * len(study.levels) * study.repeats
    journey = _Journey(study, out, manifest["run_id"], say, force, time.monotonic(), n_passes)
    say(f"{study.name}: {len(study.cells)} cells x levels {', '.join(map(str, study.levels))} x {study.repeats} pass(es)")
    interrupted = True
    try:
        for repeat in range(1, study.repeats + 1):
            for cell in study.cells:
                _run_cell(journey, cell, repeat)
        interrupted = False
    finally:
        close_run(manifest, out, journey.problems, interrupted=interrupted)
    return tuple(journey.problems)


def asked(study: Study) -> tuple[Workload, Contract]:
    """What a study asks and how, the contract with room for the longest prompt in the smallest context of its cells.

    Raises `UsageError` where either is wrong.
    """
    passes.scenario_path(study.scenario)
    workload = load_workload(study.workload)
    return workload, _narrowed(contract_of(study), study, workload)


def contract_of(study: Study) -> Contract:
    """The study's inference contract: its `[contract]` table over the defaults, with the study's mode and seed."""
    return from_table({"mode": study.mode, "seed": study.seed, **(study.contract or {})})


def _narrowed(contract: Contract, study: Study, workload: Workload) -> Contract:
    """The contract with room for the longest prompt in the smallest context of the study, the same for every cell."""
    contexts = [known for cell in study.cells if (known := context_tokens(cell, contract)) is not None]
    return within(contract, workload.prompts, min(contexts)) if contexts else contract


def context_tokens(cell: Cell, contract: Contract) -> int | None:
    """Prompt and output together that a cell serves; null for a server that runs already and does not tell."""
    stated = cell.context_tokens or contract.context_tokens
    if stated is not None or cell.base_url is not None:
        return stated
    return _YARN_CONTEXT_TOKENS if cell.yarn or contract.yarn else models.model(cell.model).native_context_tokens


def has_run(out: Path) -> bool:
    """Does this folder hold a run already?"""
    return (out / "manifest.json").exists()


def open_run(study: Study, workload: Workload, contract: Contract, out: Path, *, driven: str = "locust") -> dict[str, Any]:
    """Write the manifest of a run that begins, driven by Locust or in virtual time. Raises `RecordError`: `out` is taken."""
    if has_run(out):
        raise RecordError(f"{out}: expected a folder without a run, found manifest.json; name another --out or --resume")
    opened = begun(
        run_id=f"{time.strftime('%Y%m%dT%H%M%S')}-{out.name}",
        name=study.name,
        scenario=study.scenario,
        driven=driven,
        simulated=study.simulated,
        clock_speed=max((cell.clock_speed or 1.0) for cell in study.cells),
        seed=study.seed,
        workload=workload,
        contract=contract,
        question=study.question,
        slo=list(study.slo),
        prices={"gpu_hour": study.gpu_hour_price, "currency": study.currency},
        findings=study.findings,
        levels=list(study.levels),
        repeats=study.repeats,
        cells=[{"id": cell.id, **asdict(cell)} for cell in study.cells],
    )
    records.write_json(out / "manifest.json", opened)
    return opened


def close_run(opened: dict[str, Any], out: Path, problems: list[str], *, interrupted: bool) -> None:
    """Write how the run ended into its manifest; an interruption is one problem more."""
    if interrupted:
        problems.append("interrupted")
    opened.update(ended(problems, interrupted=interrupted))
    records.write_json(out / "manifest.json", opened)


def _reopen(study: Study, workload: Workload, out: Path) -> dict[str, Any]:
    manifest = records.read_run(out).manifest
    if manifest.get("driven", "locust") != "locust":
        raise RecordError(f"{out}: --resume: expected a run that Locust drove, got one in {manifest['driven']}; start anew")
    known = manifest.get("workload", {}).get("identity")
    if known != workload.identity:
        raise RecordError(
            f"{out}: --resume: workload: expected the run's own ({known}), got {workload.identity}; start anew"
        )
    return manifest


def _run_cell(journey: _Journey, cell: Cell, repeat: int) -> None:
    levels = [level for level in journey.study.levels if not _finished(journey, cell, level, repeat)]
    journey.passes_left -= len(journey.study.levels) - len(levels)
    if not levels:
        journey.say(f"{cell.id}: pass {repeat} is on disk already")
        return
    facts = facts_of(cell)
    path = journey.out / "cells" / cell.id / "engine.json"
    try:
        with _target(journey, cell, facts) as (target, died):
            records.write_json(path, facts)
            for level in levels:
                _run_pass(journey, cell, target, died, level, repeat)
            if cell.simulated:
                facts["clock_error"] = _clock_error(journey, cell, target)
        facts["status"] = "ok"
    except FitError as error:  # a finding, not a failure of ours
        facts.update(status="refused", reason=str(error))
        journey.say(f"{cell.id}: refused: {error}")
    except EngineError as error:
        facts.update(status="died" if "ready_unix_s" in facts else "failed", reason=str(error))
        journey.say(f"{cell.id}: {error}")
        journey.problems.append(f"{cell.id}: {error}")
    finally:
        facts["stopped_unix_s"] = time.time()
        records.write_json(path, facts)


def facts_of(cell: Cell) -> dict[str, Any]:
    """`engine.json` of a cell that is about to start."""
    return {
        "id": cell.id,
        "engine": cell.engine,
        "engine_version": None,
        "model": cell.model,
        "tp": cell.tp,
        "gpu": cell.gpu,
        "simulated": cell.simulated,
        "clock_speed": cell.clock_speed or 1.0,
        "base_url": cell.base_url,
        "command": None,
        "status": "starting",
        "reason": None,
        "started_unix_s": time.time(),
        "fit": None,
    }


@contextlib.contextmanager
def _target(
    journey: _Journey, cell: Cell, facts: dict[str, Any]
) -> Iterator[tuple[passes.Target, Callable[[], str | None]]]:
    """The server of a cell, running and proven to answer: attached to by its URL, or started and stopped again."""
    if cell.base_url is not None:
        yield _attached(cell.base_url, cell, facts), lambda: None
        return
    _check_fit(journey, cell, facts)
    spec = launch_spec(cell, contract_of(journey.study), port=_free_port())
    facts["command"], facts["env"] = engines.command(spec)
    journey.say(f"{cell.id}: starting")
    with engines.Server(spec, journey.out / "cells" / cell.id / "engine.log") as server:
        server.wait_ready()
        facts["ready_unix_s"] = time.time()
        target = _attached(server.base_url, cell, facts)
        facts["base_url"] = None  # the port is gone when the cell ends
        yield target, server.died
    facts["exit_code"] = server.exit_code


def _attached(base_url: str, cell: Cell, facts: dict[str, Any]) -> passes.Target:
    info = engines.probe(base_url)
    if info.simulated and not cell.simulated:
        raise EngineError(
            f"{base_url}: engine: expected {cell.engine}, got the simulator {info.engine}; say --engine {info.engine}"
        )
    facts["engine_version"] = info.version
    facts["server_info"] = msgspec.to_builtins(info)
    facts["clock_speed"] = info.clock_speed
    served = cell.model if cell.base_url is not None and info.model is None else info.model or cell.model
    return passes.Target(base_url=base_url, served_model=served, clock_speed=info.clock_speed)


def launch_spec(cell: Cell, contract: Contract, port: int) -> engines.LaunchSpec:
    """How a cell's runtime is to be started under a contract."""
    return engines.LaunchSpec(
        engine=cell.engine,
        model=cell.model,
        tp=cell.tp,
        gpu=cell.gpu,
        port=port,
        context_tokens=cell.context_tokens or contract.context_tokens,
        yarn=cell.yarn or contract.yarn,
        memory_fraction=cell.memory_fraction or contract.memory_fraction,
        reasoning_parser=contract.reasoning_parser if _may_think(cell.model) else None,
        prefix_caching=contract.prefix_caching,
        kv_dtype=contract.kv_dtype,
        quantisation_kernel=contract.quantisation_kernel,
        seed=contract.seed,
        clock_speed=cell.clock_speed,
        extra_args=cell.args,
    )


def _may_think(model: str) -> bool:
    """Is it other than an instruct model, which never thinks? vLLM's parsers would take all that one says for thinking."""
    return "instruct" not in model.lower() or thinking.opens_in_prompt(model)


def fit_of(cell: Cell, contract: Contract) -> roofline.Fit | None:
    """Does one stream of the cell's context fit its cards? Null where the cards are not ours or not named."""
    if cell.gpu is None or cell.base_url is not None:
        return None
    model = models.model(cell.model)
    fraction = cell.memory_fraction or contract.memory_fraction
    deployment = roofline.Deployment(model, hardware.gpu(cell.gpu), cell.tp, memory_fraction=fraction)
    context = context_tokens(cell, contract) or model.native_context_tokens
    return roofline.fit(deployment, context_tokens=context, concurrency=1)


def refuse_misfit(cell: Cell, contract: Contract) -> None:
    """Raise `FitError` with the arithmetic where the cell cannot fit its cards."""
    fit = fit_of(cell, contract)
    if fit is not None and not fit.fits:
        raise FitError(f"does not fit: {fit.reason}")


def _check_fit(journey: _Journey, cell: Cell, facts: dict[str, Any]) -> None:
    """Refuse a cell that does not fit its cards; `--force` starts it all the same."""
    contract = contract_of(journey.study)
    facts["fit"] = msgspec.to_builtins(fit_of(cell, contract))
    if not journey.force:
        refuse_misfit(cell, contract)


def _clock_error(journey: _Journey, cell: Cell, target: passes.Target) -> dict[str, Any]:
    """How far the client's times are off what the simulator knows to be true, for all passes over this cell so far."""
    import httpx

    truth = httpx.get(f"{target.base_url}/loadtest/truth", timeout=30.0, trust_env=False).json()
    folders = (journey.out / "cells" / cell.id).glob("c*-r[0-9]*")
    requests = [one for folder in folders if folder.suffix == "" for one in records.read_level(folder).requests]
    return acceleration.clock_error(requests, truth)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _finished(journey: _Journey, cell: Cell, level: int, repeat: int) -> bool:
    """Is this pass on disk and whole? What an earlier, broken attempt left is moved aside, not lost."""
    folder = records.level_path(journey.out, cell.id, level, repeat)
    if not folder.exists():
        return False
    marker = folder / "pass.json"
    if marker.exists() and records.read_json(marker).get("complete") is True:
        return True
    aside = records.set_aside(folder)
    journey.say(f"{cell.id}: what was left of {folder.name} is kept in {aside.name}")
    return False


def _run_pass(
    journey: _Journey, cell: Cell, target: passes.Target, died: Callable[[], str | None], level: int, repeat: int
) -> None:
    folder = records.level_path(journey.out, cell.id, level, repeat)
    argv = passes.command(journey.study, cell, target, level, repeat, journey.out, journey.run_id)
    if cell.base_url is None:  # another's server may serve others too: its cache is left alone
        engines.flush_cache(target.base_url, cell.engine)
    started_s = time.monotonic()
    with _scraping(target, folder):
        end = passes.drive(argv, folder, _environment(cell), died=died, tell=_teller(journey, cell, level))
    records.write_json(folder / "pass.json", {"complete": end.reason is None, "command": argv, **asdict(end)})
    journey.passes_left -= 1
    took_s = time.monotonic() - started_s
    journey.say(f"{cell.id}  {level:>2} streams  {end.n_requests:>4} requests in {took_s:5.1f} s{_remaining(journey)}")
    if end.reason is not None:
        raise EngineError(f"{level} streams, pass {repeat}: {end.reason}")


def _environment(cell: Cell) -> dict[str, str]:
    """What Locust inherits: the key only where the server is not ours, and so may want one."""
    own = cell.base_url is None
    return {name: value for name, value in os.environ.items() if not (own and name in credentials.WITHHELD)}


@contextlib.contextmanager
def _scraping(target: passes.Target, folder: Path) -> Iterator[None]:
    """Read the server's own counters once before, once a second during, and once after what happens inside."""
    stop = threading.Event()
    clock = Clock.start(target.clock_speed)
    thread = threading.Thread(
        target=engines.scrape_forever, args=(target.base_url, folder, clock, stop), name="scrape", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)


def _teller(journey: _Journey, cell: Cell, level: int) -> Callable[[int], None]:
    told_s = time.monotonic()

    def tell(n_requests: int) -> None:
        nonlocal told_s
        if time.monotonic() - told_s >= _TELL_EVERY_S:
            told_s = time.monotonic()
            journey.say(f"{cell.id}  {level:>2} streams  {n_requests:>4} requests so far")

    return tell


def _remaining(journey: _Journey) -> str:
    total = len(journey.study.cells) * len(journey.study.levels) * journey.study.repeats
    done = total - journey.passes_left
    if not journey.passes_left or not done:
        return ""
    left_s = (time.monotonic() - journey.started_s) / done * journey.passes_left
    return f", about {left_s / 60:.0f} min left" if left_s >= 90 else f", about {left_s:.0f} s left"
