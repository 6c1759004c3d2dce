"""A study carried out in virtual time: every cell simulated, no process started, no socket opened, nobody waits.

Cells, levels, warm-up, order and folder layout are those of `loadtest.study.run`, so that the same analysis and
the same page follow. All of it predicts, and says so.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from loadtest.client import thinking
from loadtest.errors import FitError, UsageError
from loadtest.records import schema, write
from loadtest.records.folder import level_path
from loadtest.records.manifest import VIRTUAL_TIME, Manifest
from loadtest.servers import flags, probe
from loadtest.simulator import options as simulator_options
from loadtest.simulator.core import engine as virtual
from loadtest.simulator.setup import Simulation
from loadtest.study import run
from loadtest.study.plan import asked, launch_spec, refuse_misfit
from loadtest.study.schema import Cell, Engine, Study
from loadtest.study.virtual_level import WORKER, Plan, VirtualLevel, VirtualServer
from loadtest.workload.contract import Contract
from loadtest.workload.script import Script
from loadtest.workload.workload import Workload

Say = Callable[[str], None]
_SCENARIO = "long_reasoning"


@dataclass(slots=True)
class _Journey:
    """What one execution carries along; `elapsed_s` counts the virtual seconds of all passes so far."""

    study: Study
    out: Path
    manifest: Manifest
    workload: Workload
    contract: Contract
    say: Say
    elapsed_s: float = 0.0


def predicted(study: Study) -> Study:
    """The study with every runtime in its simulated form, on a clock of its own.

    A real runtime's own arguments mean nothing to the simulator and are left out. One pass: a simulation repeats exactly,
    so more passes would only narrow intervals to nothing. Raises `UsageError`: a server that
    already runs, no card named, a scenario other than the closed loop.

    >>> study = Study(name="x", workload="math", cells=(Cell(engine="vllm", model="qwq-32b-awq", gpu="h20"),))
    >>> predicted(study).cells[0].id
    'vllm-sim_qwq-32b-awq_tp1'
    """
    if study.scenario != _SCENARIO:
        raise UsageError(f"scenario: expected {_SCENARIO}, the one that predict --study can follow, got {study.scenario}")
    return replace(study, cells=tuple(_predicted_cell(cell) for cell in study.cells), repeats=1)


def _predicted_cell(cell: Cell) -> Cell:
    if cell.base_url is not None:
        raise UsageError(
            f"{cell.id}: base_url: expected none, as predict --study simulates every cell, got {cell.base_url}; remove"
            " it and name engine and gpu"
        )
    if cell.gpu is None:
        raise UsageError(f'{cell.id}: gpu: expected the card to predict for, got none; add gpu = "l20" to the cell')
    args = cell.args if cell.simulated else ()
    engine: Engine = "sglang-sim" if cell.engine.startswith("sglang") else "vllm-sim"
    return replace(cell, engine=engine, clock_speed=None, args=args)


def execute(study: Study, out: Path, *, say: Say) -> tuple[str, ...]:
    """Fast-forward `study` into the folder `out`; returns what kept it from being complete (empty: nothing).

    Raises `UsageError` before anything is written where the study cannot be predicted, `RecordError` where `out` is taken
    or can't be written, `KeyboardInterrupt` after the manifest says so.
    """
    for cell in study.cells:
        if cell.args and not cell.simulated:
            say(f"{cell.id}: the simulator does not know the runtime's own {' '.join(cell.args)}: left out")
    study = predicted(study)
    workload, contract = asked(study)
    made = {cell.id: _simulate(cell, contract) for cell in study.cells}
    manifest = run.open_run(study, workload, contract, out, driven=VIRTUAL_TIME)
    journey = _Journey(study, out, manifest, workload, contract, say)
    levels = ", ".join(map(str, study.levels))
    say(f"{study.name}: {len(study.cells)} cells x levels {levels}, one pass: a simulation repeats exactly")
    interrupted, problems = True, list[str]()
    try:
        for cell in study.cells:
            _run_cell(journey, cell, made[cell.id])
        interrupted = False
    finally:
        run.close_run(manifest, out, problems, interrupted=interrupted)
    say(f"{study.name}: {journey.elapsed_s / 3600:.1f} simulated hours")
    return tuple(problems)


def _simulate(cell: Cell, contract: Contract) -> Simulation | FitError:
    """The simulated runtime of a cell, set up from the command line that would start it; or why it does not fit."""
    argv, _ = flags.launch_command(launch_spec(cell, contract, port=8000))
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options = simulator_options.build_parser().parse_args(argv[argv.index("loadtest.simulator") + 1 :])
    except SystemExit:
        raise UsageError(f"{cell.id}: args: {said.getvalue().strip().splitlines()[-1]}") from None
    if options.fault or options.stream_interval != 1:
        raise UsageError(f"{cell.id}: args: --fault and --stream-interval need a server; remove them, or use `loadtest run`")
    try:
        simulator_options.check_options(options)
        refuse_misfit(cell, contract)
        return simulator_options.build_simulation(options)
    except FitError as error:
        return error


def _run_cell(journey: _Journey, cell: Cell, made: Simulation | FitError) -> None:
    engine = run.EngineFile(journey.out, run.starting(cell))
    engine.learn(fit=run.memory_fit(cell, journey.contract))
    if isinstance(made, FitError):
        engine.learn(status="refused", reason=str(made))
        journey.say(f"{cell.id}: refused: {made}")
    else:
        engine.learn(status="ok", engine_version=made.served.behaviour.version, server_info=_info(cell, made))
        server = VirtualServer(virtual.Engine(made.config, made.step_time_s), made.served)
        contract = replace(journey.contract, mode=cell.mode or journey.contract.mode)
        script = Script(journey.workload, contract, model=made.served.model, engine=cell.engine, seed=journey.study.seed)
        for level in journey.study.levels:
            _run_pass(journey, cell, server, script, level)
    engine.learn(stopped_unix_s=time.time())
    engine.write()


def _info(cell: Cell, made: Simulation) -> dict[str, Any]:
    """What the simulator would say of itself."""
    served = made.served
    info = probe.ServerInfo(
        engine=cell.engine,
        version=served.behaviour.version,
        model=served.model,
        max_model_len=served.context_tokens,
        simulated=True,
        tp=cell.tp,
        gpu=cell.gpu,
    )
    return dict(msgspec.to_builtins(info))


def _run_pass(journey: _Journey, cell: Cell, server: VirtualServer, script: Script, level: int) -> None:
    study = journey.study
    model = server.served.model
    plan = Plan(
        run_id=journey.manifest.run_id,
        cell=cell.id,
        concurrency=level,
        repeat=1,
        requests=study.requests(level) if study.duration_s is None else None,
        duration_s=study.duration_s,
        warmup_requests=study.warmup_requests,
        opened=thinking.prompt_opens(journey.contract, model),
        judges=journey.contract.output_format != "free",
        anchor_unix_s=(journey.manifest.started_unix_s or 0.0) + journey.elapsed_s,
    )
    one = VirtualLevel(plan, script, server)
    folder = level_path(journey.out, cell.id, level, 1)
    n_requests = _write(one, folder)
    took_s = one.now_s - one.start_s
    journey.elapsed_s += took_s
    write.write_json(folder / "pass.json", {"complete": True, "n_requests": n_requests, "simulated_s": took_s})
    journey.say(f"{cell.id}  {level:>2} streams  {n_requests:>4} requests in {took_s:7.1f} simulated s")


def _write(one: VirtualLevel, folder: Path) -> int:
    """Write what the pass yields, as it comes; the number of requests."""
    requests = write.JsonlWriter(folder, f"requests-{WORKER}")
    samples = write.JsonlWriter(folder, "server_metrics")
    n_requests = 0
    try:
        for fact in one.run():
            if isinstance(fact, schema.RequestRecord):
                requests.write(fact)
                n_requests += 1
            else:
                samples.write(fact)
    finally:
        requests.close()
        samples.close()
    return n_requests
