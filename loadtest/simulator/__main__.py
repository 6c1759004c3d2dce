"""`python -m loadtest.simulator`: one simulated runtime in the foreground, until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import resource
import signal
import sys
import time
from dataclasses import replace

from loadtest import hardware, models, roofline
from loadtest.errors import EngineError, FitError, LoadtestError, UsageError
from loadtest.simulator import face, faults, server
from loadtest.simulator.chat import Served
from loadtest.simulator.engine import Engine
from loadtest.simulator.precise import new_event_loop, tighten_timers
from loadtest.simulator.runtimes import RUNTIMES
from loadtest.simulator.simulation import Simulation, out_of_memory, simulate

API_KEY_VARIABLE = "LOADTEST_SIMULATOR_API_KEY"

log = logging.getLogger("loadtest.simulator")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtest.simulator", description=__doc__)
    add = parser.add_argument
    add("--engine", required=True, choices=sorted(RUNTIMES), help="which runtime to behave like")
    add("--model", required=True, help="registry name, hub name or directory with config.json")
    add("--gpu", default="l20", help="registry name or TOML file")
    add("--tp", type=int, default=1, help="cards in tensor parallel")
    add("--port", type=int, default=8000, help="on 127.0.0.1; 0 asks for a free one")
    add("--clock-speed", type=float, default=1.0, help="simulated seconds in one second")
    add("--seed", type=int, default=0, help="lengths are drawn by a hash of prompt and seed")
    add("--served-model-name", help="name in requests (default: as --model)")
    add(
        "--context-length",
        "--max-model-len",
        type=int,
        help="tokens (default: the native context, 8192 more if it reasons)",
    )
    add("--memory-fraction", type=float, default=roofline.DEFAULT_MEMORY_FRACTION, help="share of each card's memory")
    add("--kv-tokens", type=int, help="KV cache in tokens (default: what the cards leave)")
    add("--max-running", type=int, help="requests in a batch (default: the runtime's)")
    add("--max-queued", type=int, help="requests that may wait (default: no limit)")
    add("--prefill-budget", type=int, help="tokens of prefill in a step (default: the runtime's)")
    add("--no-prefix-cache", action="store_true", help="compute every prompt anew")
    add("--reasoning-parser", default="qwen3", help="none leaves the thinking inline")
    add("--stream-interval", type=int, default=1, help="tokens in a chunk")
    add("--length-scale", type=float, default=1.0, help="factor on the drawn thinking and answer lengths")
    add("--step-time", type=float, help="a fixed time for every step (s) instead of the performance model")
    add("--fault", action="append", default=[], help=f"{', '.join(faults.KINDS)}; KIND:N; repeatable")
    add("--fault-every", type=int, default=1, help="only every Kth request meets the fault")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run until stopped; the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    options = _parser().parse_args(argv)
    try:
        return _run(options)
    except LoadtestError as error:
        log.error("%s", error)
        return error.exit_code


def _run(options: argparse.Namespace) -> int:
    given = [faults.parse(text) for text in options.fault]
    _check(options)
    made = _simulation(options)
    if any(fault.kind == "oom" for fault in given):
        raise FitError(out_of_memory(options.engine, "asked for by --fault oom"))
    time.sleep(sum(fault.at for fault in given if fault.kind == "slow-start"))
    _allow_many_files()
    engine = Engine(made.config, made.step_time_s)
    identity = server.Identity(tp=options.tp, gpu=options.gpu, model=options.model, clock_speed=options.clock_speed)
    during = tuple(fault for fault in given if fault.kind not in faults.AT_START)
    tighten_timers()
    loop = new_event_loop()
    try:
        loop.run_until_complete(_serve(options, engine, made.served, identity, during))
    finally:
        loop.close()
    return 0


def _check(options: argparse.Namespace) -> None:
    for name in ("clock_speed", "length_scale", "step_time"):
        value = getattr(options, name)
        if value is not None and not 0 < value < 1e6:
            raise UsageError(f"--{name.replace('_', '-')}: expected a number above 0 and below 1e6, got {value}")
    for name in ("kv_tokens", "max_running", "prefill_budget", "context_length", "stream_interval", "fault_every"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')}: expected 1 or more, got {value}")


def _simulation(options: argparse.Namespace) -> Simulation:
    deployment = roofline.Deployment(
        model=models.model(options.model),
        gpu=hardware.gpu(options.gpu),
        tp=options.tp,
        engine=options.engine,
        memory_fraction=options.memory_fraction,
    )
    made = simulate(
        deployment,
        served_name=options.served_model_name or options.model,
        context_tokens=options.context_length,
        kv_tokens=options.kv_tokens,
        max_running=options.max_running,
        max_queued=options.max_queued,
        prefill_budget_tokens=options.prefill_budget,
        prefix_cache=not options.no_prefix_cache,
        reasoning_parser=options.reasoning_parser,
        seed=options.seed,
        length_scale=options.length_scale,
    )
    return made if options.step_time is None else replace(made, step_time_s=lambda work: float(options.step_time))


def _allow_many_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(
    options: argparse.Namespace, engine: Engine, served: Served, identity: server.Identity, during: tuple[faults.Fault, ...]
) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    simulator = server.Simulator(
        engine,
        served,
        identity,
        faults=during,
        fault_every=options.fault_every,
        stream_interval=options.stream_interval,
        api_key=os.environ.get(API_KEY_VARIABLE) or None,
    )

    def ready(port: int) -> None:
        log.info(
            "ready: simulated %s of %s, tp %d on %s, http://%s:%d, clock x%g, KV cache of %d tokens",
            *(options.engine, options.model, options.tp, options.gpu, face.HOST, port),
            *(options.clock_speed, engine.cache.capacity_tokens),
        )

    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    try:
        await face.serve(simulator, options.port, ready, stop)
    except OSError as error:
        raise EngineError(f"{face.HOST}:{options.port}: cannot listen: {error.strerror}; choose another --port") from error


if __name__ == "__main__":
    sys.exit(main())
