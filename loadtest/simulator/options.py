"""The command line of the simulator, and the simulation that it describes."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from loadtest.errors import UsageError
from loadtest.perfmodel import gpus, machine_fit, memory, models
from loadtest.perfmodel.constants import Machine
from loadtest.perfmodel.interconnect import TOPOLOGIES
from loadtest.simulator.core import faults
from loadtest.simulator.core.behaviour import BEHAVIOURS
from loadtest.simulator.setup import Simulation, simulate


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtest.simulator", description=__doc__)
    add = parser.add_argument
    add("--engine", required=True, choices=sorted(BEHAVIOURS), help="which engine to behave like")
    add("--model", required=True, help="registry name, hub name or directory with config.json")
    add("--gpu", default="l20", help="registry name or TOML file")
    add("--tp", type=int, default=1, help="GPUs in tensor parallel")
    add("--port", type=int, default=8000, help="on 127.0.0.1; 0 asks for a free one")
    add("--uds", type=Path, metavar="FILE", help="on a Unix socket instead, as vllm serve --uds")
    add("--clock-speed", type=float, default=1.0, help="simulated seconds in one second")
    add("--seed", type=int, default=0, help="lengths are drawn by a hash of prompt and seed")
    add("--served-model-name", help="name in requests (default: as --model)")
    add(
        "--context-length",
        "--max-model-len",
        type=int,
        help="tokens (default: the native context, 8192 more if it reasons)",
    )
    add("--memory-fraction", type=float, default=memory.DEFAULT_MEMORY_FRACTION, help="share of each GPU's memory")
    add("--kv-tokens", type=int, help="KV cache in tokens (default: what the GPUs leave)")
    add("--max-running", type=int, help="requests in a batch (default: the engine's)")
    add("--max-queued", type=int, help="requests that may wait (default: no limit)")
    add("--prefill-budget", type=int, help="tokens of prefill in a step (default: the engine's)")
    add("--no-prefix-cache", action="store_true", help="compute every prompt anew")
    add("--reasoning-parser", default="qwen3", help="none leaves the thinking inline")
    add("--stream-interval", type=int, default=1, help="tokens in a chunk")
    add("--length-scale", type=float, default=1.0, help="factor on the drawn thinking and answer lengths")
    add("--invalid-share", type=float, default=0.0, help="of calls of tools and of JSON by a schema: it never closes")
    add("--interconnect", choices=TOPOLOGIES, help="how the GPUs reach each other (default: as the GPU's data sheet says)")
    add("--calibration", type=Path, metavar="FILE", help="what loadtest calibrate wrote of a machine")
    add("--speculation", metavar="A,T,S", help="tokens accepted a step, tokens drafted, drafting passes; such as 3.2,16,4")
    add(
        "--expert-parallel",
        nargs="?",
        const="all-reduce",
        choices=("all-reduce", "all-to-all"),
        help="each GPU holds whole experts (default: slices of all)",
    )
    add("--step-time", type=float, help="a fixed time for every step (s) instead of the performance model")
    add("--fault", action="append", default=[], help=f"{', '.join(faults.KINDS)}; KIND:N; repeatable")
    add("--fault-every", type=int, default=1, help="only every Kth request meets the fault")
    return parser


def check_options(options: argparse.Namespace) -> None:
    for name in ("clock_speed", "length_scale", "step_time"):
        value = getattr(options, name)
        if value is not None and not 0 < value < 1e6:
            raise UsageError(f"--{name.replace('_', '-')}: expected a number above 0 and below 1e6, got {value}")
    if not 0 <= options.invalid_share <= 1:
        raise UsageError(f"--invalid-share: expected a share from 0 to 1, got {options.invalid_share}")
    for name in ("kv_tokens", "max_running", "prefill_budget", "context_length", "stream_interval", "fault_every"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')}: expected 1 or more, got {value}")


def build_simulation(options: argparse.Namespace) -> Simulation:
    deployment = memory.Deployment(
        model=models.model(options.model),
        gpu=gpus.gpu(options.gpu),
        tp=options.tp,
        engine=options.engine,
        memory_fraction=options.memory_fraction,
        interconnect=options.interconnect,
        expert_parallel=bool(options.expert_parallel),
        all_to_all=options.expert_parallel == "all-to-all",
        speculation=memory.read_speculation(options.speculation) if options.speculation else None,
        machine=Machine() if options.calibration is None else machine_fit.read_machine(options.calibration),
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
        invalid_share=options.invalid_share,
    )
    return made if options.step_time is None else replace(made, step_time_s=lambda work: float(options.step_time))
