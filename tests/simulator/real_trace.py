"""The simulated vLLM against a real one: 300 recorded requests of vLLM 0.19 on one RTX 4090, replayed in virtual time.

The trace (LLMServingSim, github.com/casys-kaist/LLMServingSim, bench/examples/RTX4090) says of each request when it came,
how long it queued, when its first token came and how long it decoded. Nothing was fitted to it; the size of the KV cache is
that of the run.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from loadtest.perfmodel import gpus, models
from loadtest.perfmodel.memory import Deployment
from loadtest.simulator.core.cache import TOKEN_CHARS
from loadtest.simulator.core.engine import Engine
from loadtest.simulator.core.sequence import Request
from loadtest.simulator.setup import simulate

TRACE = Path(__file__).parents[3] / "shared" / "data" / "batched" / "trace_llmservingsim_rtx4090_requests.csv"
KV_TOKENS = 44_500  # tokens of all running requests over the share of the cache in use, as the run's statistics say


@dataclass(frozen=True, slots=True)
class Served:
    """What one request saw (seconds)."""

    queue_s: float
    ttft_s: float
    tpot_s: float


def recorded(path=TRACE):
    """The rows of the trace, by arrival."""
    with path.open(encoding="utf-8") as lines:
        rows = [{key: float(value) for key, value in row.items() if key != "request_id"} for row in csv.DictReader(lines)]
    return sorted(rows, key=lambda row: row["arrival_s"])


def real(rows):
    return [Served(row["queue_s"], row["ttft_s"], row["tpot_ms"] / 1e3) for row in rows]


def replayed(rows):
    """The same requests at the same times through the simulated engine."""
    deployment = Deployment(models.model("llama-3.1-8b"), gpus.gpu("rtx-4090"), 1, "vllm-sim")
    made = simulate(deployment, kv_tokens=KV_TOKENS, context_tokens=8192)
    engine = Engine(made.config, made.step_time_s)
    sequences = {}
    for number, row in enumerate(rows):
        engine.advance(row["arrival_s"])
        prompt = f"{number:<{TOKEN_CHARS}}" * int(row["input_tokens"])
        engine.submit(Request(id=str(number), prompt=prompt, output_tokens=int(row["output_tokens"])), row["arrival_s"])
        sequences[str(number)] = engine.sequences[str(number)]
    engine.advance(float("inf"))
    return [
        Served(
            one.scheduled_s - one.arrival_s,
            one.first_token_s - one.arrival_s,
            (one.last_token_s - one.first_token_s) / (one.request.output_tokens - 1),
        )
        for one in sequences.values()
    ]
