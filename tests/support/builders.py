"""Synthetic records, small and exact: requests, passes, cells and runs in memory, or a run folder on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from loadtest.records.engine_facts import EngineFacts
from loadtest.records.manifest import Manifest
from loadtest.records.read import CellRecords, LevelRecords, Run
from loadtest.records.schema import HealthSample, RequestRecord, ServerSample
from loadtest.records.write import JsonlWriter, write_json, write_manifest

ANCHOR = 1_800_000_000.0


def request(
    sent_s=0.0,
    *,
    ttft_s=0.5,
    gap_s=0.1,
    thinking=6,
    answer=4,
    outcome="ok",
    user=0,
    seq=0,
    **changes,
):
    """One request: the first chunk after `ttft_s`, then one token every `gap_s`; `thinking` then `answer` tokens."""
    n = thinking + answer
    chunks = tuple(sent_s + ttft_s + gap_s * i for i in range(n))
    facts: dict[str, Any] = {
        "run_id": "run", "cell": "vllm_qwq-32b-awq_tp1", "concurrency": 1, "repeat": 1, "phase": "measure", "worker": "w",
        "user": user, "seq": seq, "prompt_id": f"p{user}-{seq}", "scheduled_s": sent_s, "sent_s": sent_s,
        "headers_s": sent_s + ttft_s / 2, "chunk_s": chunks, "chunk_tokens": (1,) * n,
        "first_answer_chunk": thinking if answer else None, "ended_s": chunks[-1] if chunks else sent_s + ttft_s,
        "prompt_tokens": 100, "completion_tokens": n, "reasoning_tokens": thinking, "cached_tokens": None,
        "token_count_source": "server", "finish_reason": "stop", "outcome": outcome, "error": None, "answer": "4",
        "answer_correct": True, "request_sha256": "0" * 64, "clock_anchor_unix_s": ANCHOR,
    }  # fmt: skip
    return RequestRecord(**(facts | changes))


def level(requests, *, cell="vllm_qwq-32b-awq_tp1", concurrency=1, repeat=1):
    """A pass around `requests`, with a healthy client and a server whose totals agree."""
    named = tuple(replace(r, cell=cell, concurrency=concurrency, repeat=repeat) for r in requests)
    start = min((r.scheduled_s for r in named), default=0.0)
    end = max((r.ended_s for r in named), default=1.0)
    server = tuple(
        ServerSample(
            t_s=t, clock_anchor_unix_s=ANCHOR, clock_speed=1.0, running=float(concurrency), waiting=0.0, kv_usage=0.1,
            prompt_tokens_total=50.0 + share * sum(r.prompt_tokens or 0 for r in named),
            generation_tokens_total=7.0 + share * sum(r.completion_tokens or 0 for r in named),
            requests_finished_total=1.0 + share * len(named),
        )
        for t, share in ((start - 0.5, 0), (end + 0.5, 1))
    )  # fmt: skip
    health = tuple(health_sample(start + 0.5 + i) for i in range(max(1, int(end - start))))
    return LevelRecords(cell, concurrency, repeat, Path("run/cells") / cell, named, server, health)


def health_sample(t_s, **changes):
    facts: dict[str, Any] = {
        "t_s": t_s, "clock_anchor_unix_s": ANCHOR, "clock_speed": 1.0, "worker": "w", "loop_lag_mean_s": 0.0001,
        "loop_lag_max_s": 0.001, "cpu_share": 0.2, "rss_bytes": 10**8, "gc_collections": 0, "gc_pause_s": 0.0,
    }  # fmt: skip
    return HealthSample(**(facts | changes))


def closed_loop(
    concurrency,
    n,
    *,
    seed=0,
    gap_s=0.03,
    ttft_s=0.4,
    tokens=60,
    spread=0.4,
    noise=0.05,
    start_s=0.0,
    **changes,
):
    """`n` requests over `concurrency` streams, each stream's next sent 10 ms after its last; lengths lognormal by prompt
    (the same for every `seed`), times noisy by `seed`."""
    lengths = np.maximum(4, np.random.default_rng(1).lognormal(np.log(tokens), spread, n)).astype(int)
    rng = np.random.default_rng(seed)
    free = [start_s] * concurrency
    requests = []
    for i in range(n):
        user = int(np.argmin(free))
        pace = gap_s * float(rng.lognormal(0, noise))
        made = request(
            free[user], ttft_s=ttft_s * float(rng.lognormal(0, noise)), gap_s=pace, thinking=int(lengths[i]) - 3, answer=3,
            user=user, seq=i, prompt_id=f"p{i}", **changes,
        )  # fmt: skip
        free[user] = made.ended_s + 0.01
        requests.append(made)
    return requests


def cell(levels, engine="vllm", model="qwq-32b-awq", tp=1, **facts):
    """A cell on an L20 that went well; `facts` change engine.json."""
    name = f"{engine}_{model}_tp{tp}"
    described: dict[str, Any] = {
        "id": name, "engine": engine, "engine_version": "1.0", "model": model, "tp": tp, "gpu": "l20", "status": "ok",
        "reason": None, "simulated": engine.endswith("-sim"), "clock_speed": 1.0, "fit": None,
    }  # fmt: skip
    return CellRecords(
        name, msgspec.convert(described | facts, EngineFacts), tuple(replace(one, cell=name) for one in levels)
    )


def changed(facts, **changes):
    """Facts with some of them changed."""
    return msgspec.structs.replace(facts, **changes)


def run(cells, **manifest):
    """A complete run in natural mode; `manifest` changes its manifest, and keys of its workload."""
    workload = {"source": "math", "name": "math", "identity": "ab" * 32, "n_prompts": 64} | manifest.pop("workload", {})
    facts = {
        "schema_version": 1, "run_id": "run", "name": "test", "started_unix_s": ANCHOR, "complete": True, "clock_speed": 1.0,
        "incomplete_reason": None, "simulated": any(c.engine.predicts for c in cells), "mode": "natural",
        "scenario": "long_reasoning", "workload": workload,
        "contract": {"temperature": 0.6}, "slo": [], "cells": [_asked(c.engine) for c in cells],
    }  # fmt: skip
    return Run(Path("run"), Manifest.from_table(facts | manifest), tuple(cells))


def _asked(engine):
    keys = ("id", "engine", "model", "tp", "gpu", "name")
    return {key: getattr(engine, key) for key in keys}


def fit(**facts):
    """The fit of a model of 20 GB on a GPU of 48 GB, as engine.json has it."""
    return {
        "fits": True, "reason": "", "context_tokens": 32768, "concurrency": 1, "fits_concurrency": True, "max_streams": 2,
        "memory_bytes_per_card": 48e9, "usable_bytes_per_card": 43.2e9, "weight_bytes_per_card": 19.3e9,
        "overhead_bytes_per_card": 0.9e9, "kv_bytes_per_card": 23e9, "kv_bytes_per_token": 262144.0,
        "kv_capacity_tokens": 87000, "bound_tokens_per_s": 44.7, "bound_without_embedding_tokens_per_s": 46.0, "lines": [],
    } | facts  # fmt: skip


def write(made, folder, files=1):
    """The same run on disk, each pass's requests dealt over `files` files."""
    write_manifest(folder, made.manifest)
    for one in made.cells:
        write_json(folder / "cells" / one.id / "engine.json", one.engine)
        for passed in one.levels:
            home = folder / "cells" / one.id / f"c{passed.concurrency:02d}-r{passed.repeat}"
            for number in range(files):
                _write_lines(home, f"requests-h-{number}", passed.requests[number::files])
            _write_lines(home, "server_metrics", passed.server)
            _write_lines(home, "client_health-w", passed.health)
    return folder


def _write_lines(home, stem, values):
    writer = JsonlWriter(home, stem)
    for value in values:
        writer.write(value)
    writer.close()


def study(
    engines=("sglang", "vllm"),
    levels=(1, 2),
    repeats=1,
    n=12,
    **manifest,
):
    """A whole study: each engine at each level; SGLang's tokens come 10 % sooner."""
    cells = []
    for engine in engines:
        passes = []
        for concurrency in levels:
            for repeat in range(1, repeats + 1):
                gap_s = 0.03 * (0.9 if engine.startswith("sglang") else 1.0)
                seed = sum(map(ord, engine)) + 100 * repeat + concurrency
                made = closed_loop(concurrency, n, seed=seed, gap_s=gap_s, start_s=1000.0 * repeat)
                passes.append(level(made, concurrency=concurrency, repeat=repeat))
        cells.append(cell(passes, engine))
    return run(cells, **manifest)
