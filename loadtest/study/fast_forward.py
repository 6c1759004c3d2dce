"""Runs a study in virtual time: every cell is simulated, without a process, a socket or a wait.

Cells, levels, warm-up, order and folder layout are those of `loadtest.study.run`, so that the same analysis and
the same page follow. All of it predicts, and says so.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from loadtest.analysis.run import analyze
from loadtest.client import thinking
from loadtest.errors import FitError, UsageError
from loadtest.records import read, write
from loadtest.records.folder import level_path
from loadtest.records.manifest import VIRTUAL_TIME, Manifest
from loadtest.records.schema import EngineName, RequestRecord
from loadtest.servers import flags, probe
from loadtest.simulator import options as simulator_options
from loadtest.simulator.core import engine as virtual
from loadtest.simulator.core.cache import TOKEN_CHARS
from loadtest.simulator.core.lengths import prompt_key
from loadtest.simulator.setup import Simulation
from loadtest.study import run, stopping
from loadtest.study.bursts.asked import Wanted, first_wanted, rounds_of
from loadtest.study.bursts.virtual import VirtualBursts
from loadtest.study.engine_file import EngineFile, memory_fit, starting
from loadtest.study.execution import Say
from loadtest.study.passes import PASS_FILE, PassFacts
from loadtest.study.plan import asked, launch_spec, refuse_misfit
from loadtest.study.schema import AskedPass, Cell, Study
from loadtest.study.search.arrivals import VirtualArrivals
from loadtest.study.search.asked import PER_HOUR_S
from loadtest.study.search.cell_search import cell_search
from loadtest.study.search.start import start_of
from loadtest.study.search.virtual import VirtualDriver
from loadtest.study.virtual_level import WORKER, Plan, VirtualLevel, VirtualServer
from loadtest.workload import exact
from loadtest.workload.bursts import BurstPlan
from loadtest.workload.contract import Contract
from loadtest.workload.script import Script
from loadtest.workload.workload import Workload

_SCENARIO = "long_reasoning"


@dataclass(slots=True)
class _Prediction:
    """The state of one simulation of a study; `elapsed_s` counts the virtual seconds of all passes so far."""

    study: Study
    out: Path
    manifest: Manifest
    workload: Workload
    contract: Contract
    say: Say
    wanted: Wanted
    repeat: int = 1
    elapsed_s: float = 0.0
    servers: dict[str, VirtualServer] = field(default_factory=dict)


def predicted(study: Study) -> Study:
    """The study with every engine simulated, on a clock of its own.

    The simulator does not know the arguments of a real engine; they are left out. One pass: a simulation repeats exactly,
    so more passes would only narrow intervals to nothing. Raises `UsageError`: a server that
    already runs, no GPU named, a scenario other than the closed loop.

    >>> study = Study(name="x", workload="math", cells=(Cell(engine="vllm", model="qwq-32b-awq", gpu="h20"),))
    >>> predicted(study).cells[0].id
    'vllm-sim_qwq-32b-awq_tp1'
    """
    searches_rates = study.search is not None and study.search.of != "users"
    if study.scenario != _SCENARIO and not searches_rates:
        raise UsageError(f"scenario: expected {_SCENARIO}, the one that predict --study can follow, got {study.scenario}")
    cells = tuple(_predicted_cell(cell) for cell in study.cells)
    _check_modelled(cells)
    return replace(study, cells=cells, repeats=1, until_decided=False)


def _check_modelled(cells: tuple[Cell, ...]) -> None:
    """Raise UsageError where two cells differ only in what the simulator does not know: it would call them equal."""
    seen: dict[str, Cell] = {}
    for cell in cells:
        plain = replace(cell, name=None, factors={})
        if alike := next((one for one, known in seen.items() if known == plain), None):
            raise UsageError(
                f"{cell.id}: not modelled: the simulator does not know in what it differs from {alike}; leave one out with"
                " --only, or vary the simulator's own options"
            )
        seen[cell.id] = plain


def _predicted_cell(cell: Cell) -> Cell:
    if cell.base_url is not None:
        raise UsageError(
            f"{cell.id}: base_url: expected none, as predict --study simulates every cell, got {cell.base_url}; remove"
            " it and name engine and gpu"
        )
    if cell.gpu is None:
        raise UsageError(f'{cell.id}: gpu: expected the GPU to predict for, got none; add gpu = "l20" to the cell')
    args = cell.args if cell.simulated else ()
    engine: EngineName = "sglang-sim" if cell.engine.startswith("sglang") else "vllm-sim"
    return replace(cell, engine=engine, clock_speed=None, args=args, env={}, executable=None)


def simulate_study(study: Study, out: Path, *, say: Say) -> tuple[str, ...]:
    """Simulate `study` into the folder `out`. Returns why the run is incomplete; empty if it is complete.

    Raises `UsageError` before anything is written where the study cannot be predicted, `RecordError` where `out` is taken
    or can't be written, `KeyboardInterrupt` after the manifest says so.
    """
    for cell in study.cells:
        if cell.args and not cell.simulated:
            say(f"{cell.id}: the simulator does not know the engine's arguments {' '.join(cell.args)}; they are left out")
    study = _with_lengths(predicted(study))
    workload, contract = asked(study)
    if any(prompt.turns > 1 for prompt in workload.prompts):
        raise UsageError("workload: expected single requests, as predict --study follows no conversation; take turns=first")
    made = {cell.id: simulate_cell(cell, contract) for cell in study.cells}
    manifest = run.begin_run(study, workload, contract, out, driven=VIRTUAL_TIME)
    prediction = _Prediction(study, out, manifest, workload, contract, say, first_wanted(study, contract))
    say(f"{study.name}: {run.extent_words(study)}, in virtual time")
    interrupted, problems = True, list[str]()
    try:
        _run_cells(prediction, made)
        if study.decides and (broken := _broken_cells(prediction)):
            prediction.wanted, prediction.repeat = Wanted(levels=broken), 2  # beside the natural run of the first
            _run_cells(prediction, made)
        interrupted = False
    finally:
        run.end_run(manifest, out, problems, interrupted=interrupted)
    say(f"{study.name}: {prediction.elapsed_s / 3600:.1f} simulated hours")
    return tuple(problems)


def _with_lengths(study: Study) -> Study:
    """The study with prompts of exact lengths by the simulator's count, where it asks for them."""
    if not exact.is_open(study.workload):
        return study
    made, _ = exact.fit_spec(study.workload, lambda text: len(prompt_key([("user", text)])) // TOKEN_CHARS)
    return replace(study, workload=made)


def _run_cells(prediction: _Prediction, made: dict[str, Simulation | FitError]) -> None:
    for cell in prediction.study.cells:
        if cell.id in prediction.wanted.cells:
            _run_cell(prediction, cell, made[cell.id])


def _broken_cells(prediction: _Prediction) -> frozenset[str]:
    """The cells of pairs whose bursts break a condition: natural passes decide these."""
    broken = [one for one in stopping.questions(prediction.study, analyze(read.read_run(prediction.out))) if one.broken]
    for one in broken:
        prediction.say(f"{one.title}: natural passes instead of bursts, as {'; '.join(one.broken)}")
    return frozenset(name for one in broken for name in one.cells)


def simulate_cell(cell: Cell, contract: Contract) -> Simulation | FitError:
    """The simulated engine of a cell, set up from the command line that would start it; or why it does not fit."""
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


def _run_cell(prediction: _Prediction, cell: Cell, made: Simulation | FitError) -> None:
    engine = EngineFile(prediction.out, starting(cell))
    engine.learn(fit=memory_fit(cell, prediction.contract))
    if isinstance(made, FitError):
        engine.learn(status="refused", reason=str(made))
        prediction.say(f"{cell.id}: refused: {made}")
    else:
        engine.learn(status="ok", engine_version=made.served.behaviour.version, server_info=_info(cell, made))
        if prediction.study.search is not None:
            _search(prediction, cell, _server(prediction, cell, made), engine)
        else:
            for one in prediction.wanted.passes(prediction.study, prediction.contract, cell):
                _run_pass(prediction, cell, _server(prediction, cell, made), one, prediction.repeat)
    engine.learn(stopped_unix_s=time.time())
    engine.write()


def _search(prediction: _Prediction, cell: Cell, server: VirtualServer, engine: EngineFile) -> None:
    def run_pass(asked: AskedPass, repeat: int, is_enough: Callable[[RequestRecord], bool]) -> None:
        _run_pass(prediction, cell, server, asked, repeat, is_enough)

    begun = start_of(prediction.study, cell, prediction.workload, prediction.contract)
    driver = VirtualDriver(prediction.out, cell.id, prediction.study, run_pass)
    cell_search(prediction.study, begun, engine, driver, prediction.say).carry_out()


def _info(cell: Cell, made: Simulation) -> dict[str, Any]:
    """The server information that the simulator would give."""
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


def _server(prediction: _Prediction, cell: Cell, made: Simulation) -> VirtualServer:
    """The engine of a cell, which runs on."""
    if cell.id not in prediction.servers:
        prediction.servers[cell.id] = VirtualServer(virtual.Engine(made.config, made.step_time_s), made.served)
    return prediction.servers[cell.id]


def _run_pass(
    prediction: _Prediction,
    cell: Cell,
    server: VirtualServer,
    asked: AskedPass,
    repeat: int,
    is_enough: Callable[[RequestRecord], bool] | None = None,
) -> None:
    """One pass; it ends early after a record with which it `is_enough`."""
    study = prediction.study
    model, level = server.served.model, asked.concurrency
    plan = Plan(
        run_id=prediction.manifest.run_id,
        cell=cell.id,
        concurrency=level,
        repeat=repeat,
        requests=asked.requests,
        duration_s=None if asked.requests is not None else study.duration_s,
        warmup_requests=asked.warmup_requests,
        opened=thinking.prompt_opens(prediction.contract, model),
        judges=prediction.contract.output_format != "free",
        anchor_unix_s=(prediction.manifest.started_unix_s or 0.0) + prediction.elapsed_s,
    )
    one = _pass(prediction, cell, server, plan, asked)
    folder = level_path(prediction.out, cell.id, level, repeat, asked.kind)
    n_requests = _write(one, folder, is_enough)
    took_s = one.now_s - one.start_s
    prediction.elapsed_s += took_s
    write.write_json(folder / PASS_FILE, PassFacts(complete=True, n_requests=n_requests, simulated_s=took_s))
    if is_enough is not None:  # a search says more of it
        return
    what = "bursts  " if asked.kind == "bursts" else ""
    prediction.say(f"{cell.id} at {level:>2}  {what}{n_requests:>4} requests in {took_s:7.1f} simulated s")


def _pass(prediction: _Prediction, cell: Cell, server: VirtualServer, plan: Plan, asked: AskedPass) -> VirtualLevel:
    """A closed loop over the workload, or bursts."""
    study, model = prediction.study, server.served.model
    contract = replace(prediction.contract, mode=cell.mode or prediction.contract.mode)
    rounds = rounds_of(study, cell, asked, plan.repeat)
    script = Script(prediction.workload, contract, model=model, engine=cell.engine, seed=study.seed, rounds=rounds)
    if asked.most_in_flight is not None:
        return VirtualArrivals(plan, script, server, plan.concurrency / PER_HOUR_S, study.seed)
    if asked.kind == "level":
        return VirtualLevel(plan, script, server)
    bursts = BurstPlan(concurrency=asked.concurrency, contexts_tokens=asked.contexts_tokens, seed=study.seed)
    return VirtualBursts(plan, bursts.bursts(prediction.workload, contract, model=model, engine=cell.engine), script, server)


def _write(one: VirtualLevel, folder: Path, is_enough: Callable[[RequestRecord], bool] | None) -> int:
    """Write what the pass yields, as it comes; the number of requests."""
    requests = write.JsonlWriter(folder, f"requests-{WORKER}")
    samples = write.JsonlWriter(folder, "server_metrics")
    n_requests = 0
    try:
        for fact in one.run():
            if isinstance(fact, RequestRecord):
                requests.write(fact)
                n_requests += 1
                if is_enough is not None and not one.stopped and is_enough(fact):
                    one.stopped = True
            else:
                samples.write(fact)
    finally:
        requests.close()
        samples.close()
    return n_requests
