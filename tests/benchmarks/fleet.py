"""A day of 1,000 replicas: `python tests/benchmarks/fleet.py [ROUTER ...] [--replicas N] [--hours H]`.

Prints requests, CPU seconds, wall seconds and peak memory of one process for each router. Fails where 20 million requests
of 24 hours take more than 2 minutes of CPU or 2 GB. Steps take what the performance model says; outputs are log-normal.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time

import numpy as np

from loadtest.perfmodel.gpus import gpu
from loadtest.perfmodel.memory import Deployment
from loadtest.perfmodel.models import model
from loadtest.simulator.fleet import day, speed
from loadtest.simulator.fleet.arrivals import Curve, Demand, RequestMix
from loadtest.simulator.fleet.routers import KINDS
from loadtest.simulator.setup import simulate

OUTPUT_MEDIAN_TOKENS, OUTPUT_SIGMA = 1200, 0.6
REQUESTS_PER_REPLICA = 20_000  # a day; the peak is twice the mean
MOST_CPU_S, MOST_MEGABYTES = 120, 2000


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("routers", nargs="*", default=KINDS)
    parser.add_argument("--replicas", type=int, default=1000)
    parser.add_argument("--hours", type=float, default=24.0)
    given = parser.parse_args()
    for router in given.routers:
        one = multiprocessing.get_context("spawn").Process(target=measure, args=(router, given.replicas, given.hours))
        one.start()
        one.join()
        if one.exitcode:
            return one.exitcode
    return 0


def measure(router, replicas, hours):
    deployment = Deployment(model("qwen2.5-7b-instruct"), gpu("h100"), 1, "vllm-sim")
    made = simulate(deployment)
    table = speed.from_steps(
        made.step_time_s, made.config.behaviour.prefill_budget_tokens, made.config.behaviour.max_running
    )
    rng = np.random.default_rng(0)
    outputs = OUTPUT_MEDIAN_TOKENS * np.exp(OUTPUT_SIGMA * rng.standard_normal(65_536))
    mix = RequestMix(rng.integers(100, 1500, 65_536).astype(np.int32), outputs.astype(np.int32))
    demand = Demand(REQUESTS_PER_REPLICA * replicas, curve=Curve(2.0))
    begin_s = 0.0 if hours == 24 else 12 * 3600
    wall_s, cpu_s = time.monotonic(), time.process_time()
    traffic = demand.traffic(mix, begin_s, begin_s + hours * 3600, seed=1)
    found = day.simulate_fleet(day.Fleet(made.config, table, replicas, router), traffic)
    wall_s, cpu_s = time.monotonic() - wall_s, time.process_time() - cpu_s
    count = found.requests.count
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ttft, final = (np.quantile(column, [0.5, 0.9]).round(2) for column in (found.requests.ttft_s, found.requests.final_s))
    print(
        f"{router:12} {replicas} replicas, {hours:g} h: {count:,} requests, {cpu_s:.0f} s CPU ({cpu_s / count * 1e6:.1f} us"
        f" a request), {wall_s:.0f} s wall, {megabytes:.0f} MB; TTFT p50, p90 {ttft}, final {final} s;"
        f" {found.preemptions:,} preemptions",
        flush=True,
    )
    if cpu_s > MOST_CPU_S or megabytes > MOST_MEGABYTES:
        sys.exit(f"expected at most {MOST_CPU_S} s of CPU and {MOST_MEGABYTES} MB, got {cpu_s:.0f} s and {megabytes:.0f} MB")


if __name__ == "__main__":
    sys.exit(main())
