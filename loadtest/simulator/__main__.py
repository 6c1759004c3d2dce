"""`python -m loadtest.simulator`: one simulated engine in the foreground, until SIGTERM or SIGINT."""

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

from loadtest.client.priority import Precedence
from loadtest.errors import EngineError, FitError, LoadtestError
from loadtest.simulator.core import faults
from loadtest.simulator.core.chat import Served
from loadtest.simulator.core.engine import Engine
from loadtest.simulator.http import routes, server, stream
from loadtest.simulator.http.event_loop import new_event_loop, tighten_timers
from loadtest.simulator.options import build_parser, build_simulation, check_options
from loadtest.simulator.setup import out_of_memory

API_KEY_VARIABLE = "LOADTEST_SIMULATOR_API_KEY"

log = logging.getLogger("loadtest.simulator")


def main(argv: list[str] | None = None) -> int:
    """Run until stopped; the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    options = build_parser().parse_args(argv)
    try:
        return _run(options)
    except LoadtestError as error:
        log.error("%s", error)
        return error.exit_code


def _run(options: argparse.Namespace) -> int:
    given = [faults.parse(text) for text in options.fault]
    check_options(options)
    made = build_simulation(options)
    if any(fault.kind == "oom" for fault in given):
        raise FitError(out_of_memory(options.engine, "asked for by --fault oom"))
    time.sleep(sum(fault.at for fault in given if fault.kind == "slow-start"))
    _allow_many_files()
    engine = Engine(made.config, made.step_time_s)
    identity = stream.Identity(tp=options.tp, gpu=options.gpu, model=options.model, clock_speed=options.clock_speed)
    during = tuple(fault for fault in given if fault.kind not in faults.AT_START)
    tighten_timers()
    loop = new_event_loop()
    try:
        loop.run_until_complete(_serve(options, engine, made.served, identity, during))
    finally:
        loop.close()
    return 0


def _allow_many_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(
    options: argparse.Namespace, engine: Engine, served: Served, identity: stream.Identity, during: tuple[faults.Fault, ...]
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
            "ready: simulated %s of %s, tp %d on %s, %s, clock x%g, KV cache of %d tokens",
            *(options.engine, options.model, options.tp, options.gpu, _where(options, port)),
            *(options.clock_speed, engine.cache.capacity_tokens),
        )

    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    punctual = asyncio.create_task(_stay_punctual())
    try:
        await routes.serve(simulator, options.port, ready, stop, options.uds)
    except OSError as error:
        where, other = _where(options, options.port), "--port" if options.uds is None else "--uds"
        raise EngineError(f"{where}: cannot listen: {error.strerror}; choose another {other}") from error
    finally:
        punctual.cancel()


def _where(options: argparse.Namespace, port: int) -> str:
    return f"http://{routes.HOST}:{port}" if options.uds is None else f"unix://{options.uds.absolute()}"


async def _stay_punctual() -> None:
    """Take precedence, so that what is due is sent when it is due on a busy machine; give it up if that takes too much of a
    core (`Precedence.hold_to`)."""
    precedence = Precedence()
    precedence.take()
    wall_s, cpu_s = time.monotonic(), time.process_time()
    while True:
        await asyncio.sleep(1.0)
        now_s, used_s = time.monotonic(), time.process_time()
        precedence.hold_to((used_s - cpu_s) / (now_s - wall_s))
        wall_s, cpu_s = now_s, used_s


if __name__ == "__main__":
    sys.exit(main())
