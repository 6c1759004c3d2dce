"""Builds realistic metrics.json, manifest.json and engine.json values for the tests of the page: no run needed.

`full_matrix()` is the demo's matrix with one deployment refused; `damaged()` an interrupted run with failed health,
`hostile()` one whose every text tries to break out of the page.
"""

from __future__ import annotations

import copy
import functools
import math
import random
from dataclasses import dataclass
from typing import Any

from loadtest.report.comparison import Side
from loadtest.report.page import build, build_comparison

Json = dict[str, Any]

DEPLOYMENTS = (
    ("qwq-32b-awq", 1, 44.8, 35.0),
    ("qwq-32b-awq", 2, 89.5, 50.0),
    ("qwq-32b", 2, 26.4, 20.0),
    ("qwq-32b", 1, 13.2, 0.0),
)
HOSTILE = "<script>alert('x')</script>\u202egnp.exe\u200b\x07\"'><img src=x onerror=alert(1)> $\\frac{1}{0}$ {{7*7}}"


@dataclass(frozen=True, slots=True)
class Sample:
    """The three inputs of a page."""

    metrics: Json
    manifest: Json
    engines: dict[str, Json]


def distribution(mean: float, n: int, spread: float = 0.18) -> Json:
    """A plausible distribution object: quantiles that n samples cannot bound are null, with the n they need."""
    values: Json = {"n": n, "mean": mean, "min": mean * (1 - spread), "max": mean * (1 + 2.2 * spread)}
    intervals: Json = {"mean": [mean * (1 - spread / math.sqrt(n)), mean * (1 + spread / math.sqrt(n))]}
    needed: Json = {}
    for name, share, needs in (("p50", 0.97, 6), ("p90", 1.25, 29), ("p95", 1.35, 59), ("p99", 1.5, 299)):
        bounded = n >= needs
        values[name] = mean * share if bounded else None
        intervals[name] = [mean * share * (1 - spread / 3), mean * share * (1 + spread / 3)] if bounded else None
        if not bounded:
            needed[name] = needs
    return values | {"ci95": intervals, "n_needed": needed}


def single(value: float, relative: float = 0.03) -> Json:
    return {"value": value, "ci95": [value * (1 - relative), value * (1 + relative)]}


def _curves(
    rng: random.Random, concurrency: int, final_s: float, ttft_s: float, think_s: float, itl_s: float, n: int
) -> Json:
    survival, alive = [], 1.0
    for index in range(n):
        at = final_s * (0.72 + 0.75 * (index + 1) / n)
        survival.append([at, alive, max(0.0, alive - 0.15), min(1.0, alive + 0.12)])
        alive = max(0.0, alive - 1 / n)
        survival.append([at, alive, max(0.0, alive - 0.15), min(1.0, alive + 0.12)])
    timeline = []
    for user in range(concurrency):
        t = 0.05 * user
        for seq in range(max(2, n // concurrency)):
            length = final_s * rng.uniform(0.8, 1.3)
            first = t + ttft_s * rng.uniform(0.9, 1.4)
            timeline.append(
                {
                    "user": user,
                    "seq": seq,
                    "phase": "warmup" if seq == 0 else "measure",
                    "sent_s": t,
                    "first_s": first,
                    "answer_s": first + think_s,
                    "ended_s": t + length,
                    "outcome": "ok" if rng.random() > 0.04 else "truncated",
                }
            )
            t += length + 0.1
    end = max(row["ended_s"] for row in timeline)
    times = [end * i / 150 for i in range(151)]
    kv = [min(1.0, concurrency * 0.07 * (1 + 0.4 * math.sin(i / 9)) + 0.02 * rng.random()) for i in range(151)]
    edges = [itl_s * 0.4 * 1.12**i for i in range(30)]
    shares = [math.exp(-((math.log(edge / itl_s)) ** 2) / 0.02) for edge in edges[:-1]]
    return {
        "time_to_final_answer_survival": survival[:200],
        "itl_histogram": {"edges_s": edges, "shares": [share / sum(shares) for share in shares]},
        "timeline": timeline[:200],
        "server": {"t_s": times, "running": [concurrency] * 151, "waiting": [int(v > 0.75) for v in kv], "kv_usage": kv},
        "throughput": {"t_s": times, "tokens_per_s": [concurrency / itl_s * rng.uniform(0.95, 1.05) for _ in times]},
    }


def level(engine: str, concurrency: int, speed: float, *, repeats: int = 2) -> Json:
    """One level of a runtime that gives one stream `speed` tokens/s when alone."""
    rng = random.Random(f"{engine}{concurrency}{speed}")
    factor = 1.0 if engine.startswith("sglang") else 0.93
    user = speed * factor / (1 + 0.06 * (concurrency - 1))
    n, thinking, answer = 8 * max(1, concurrency // 2) * repeats, 620, 140
    ttft, think_s, answer_s = 0.35 * (1 + 0.3 * concurrency) / factor, thinking / user, answer / user
    final = ttft + think_s + answer_s
    total, answers = user * concurrency * 0.97, 3600 * concurrency / final
    simulated = engine.endswith("-sim")
    return {
        "concurrency": concurrency,
        "n_requests": n,
        "outcomes": {"ok": n - 2, "truncated": 1, "cut_off": 1},
        "window": {"start_s": 1.0, "end_s": 1.0 + final * 3},
        "passes": [
            {"repeat": r + 1, "n_requests": n // repeats, "output_tokens_per_s": total * (1 + 0.01 * r)}
            for r in range(repeats)
        ],
        "ttft_s": distribution(ttft, n),
        "time_to_first_answer_s": distribution(ttft + think_s, n),
        "time_to_final_answer_s": distribution(final, n),
        "thinking_s": distribution(think_s, n),
        "itl_s": distribution(1 / user, n * 700, 0.3),
        "tpot_s": distribution(1 / user, n, 0.04),
        "tokens_per_s_per_user": distribution(user, n, 0.05),
        "output_tokens_per_s": single(total),
        "answers_per_hour": single(answers, 0.06),
        "goodput_answers_per_hour": single(answers * 0.9, 0.08),
        "reasoning_tokens": distribution(thinking, n),
        "answer_tokens": distribution(answer, n),
        "accuracy": None if simulated else single(0.8, 0.1),
        "client_health": {"status": "pass", "reasons": [], "loop_lag_p99_s": 0.0004, "cpu_share_max": 0.21},
        "reconciliation": {"status": "pass", "reasons": [], "client_tokens": n * 760, "server_tokens": n * 760},
        "troubles": {"no_closing_think": 0, "truncated": 1, "no_answer": 0, "empty_answer": 0, "repetition": 0},
        "curves": _curves(rng, concurrency, final, ttft, think_s, 1 / user, n),
    }


def _cell(engine: str, model: str, tp: int, bound: float, speed: float, levels: tuple[int, ...]) -> Json:
    simulated = engine.endswith("-sim")
    refused = speed == 0
    weight = 65.5e9 if model == "qwq-32b" else 19.3e9
    cell: Json = {
        "id": f"{engine}_{model}_tp{tp}",
        "engine": engine,
        "engine_version": "0.1.0" if simulated else "0.32.0",
        "model": model,
        "tp": tp,
        "gpu": "l20",
        "simulated": simulated,
        "status": "refused" if refused else "ok",
        "reason": "65.5 GB of weights do not fit one card of 48 GB (43.2 GB usable)" if refused else None,
        "fit": {
            "fits": not refused,
            "weight_bytes_per_card": weight / tp,
            "kv_capacity_tokens": 0 if refused else 86_000,
            "max_streams": 0 if refused else 5,
            "bound_tokens_per_s": bound,
            "lines": [f"weights {weight / 1e9:.1f} GB / {tp} card(s)", "usable 0.90 x 48.0 GB = 43.2 GB"],
        },
        "roofline": None if refused else {"bound_tokens_per_s": bound, "reached_share": single(speed / bound, 0.02)},
        "levels": [] if refused else [level(engine, c, speed) for c in levels],
    }
    highest = max(levels)
    cell["maximum_concurrency"] = {
        "by_slo": None if refused else highest,
        "ci95": None if refused else [max(1, highest // 2), None],
        "by_kv_cache": cell["fit"]["max_streams"],
        "binds": None,
        "reason": "no level was measured" if refused else None,
    }
    return cell


def _comparisons(cells: list[Json]) -> list[Json]:
    by = {(c["engine"].split("-")[0], c["model"], c["tp"]): c for c in cells}
    rows: list[Json] = []
    for (family, model, tp), a in by.items():
        b = by.get(("vllm", model, tp))
        if family != "sglang" or b is None:
            continue
        for left, right in zip(a["levels"], b["levels"], strict=False):
            rows.extend(_compare(a, b, left, right, metric) for metric in COMPARED)
    return rows


COMPARED = ("tokens_per_s_per_user", "output_tokens_per_s", "ttft_s", "time_to_final_answer_s")


def _why(left: Json, right: Json) -> Json:
    """All of the difference laid on speed and waiting: equal work."""
    waiting = left["ttft_s"]["mean"] - right["ttft_s"]["mean"]
    whole = left["time_to_final_answer_s"]["mean"] - right["time_to_final_answer_s"]["mean"]
    parts = {"waiting_s": waiting, "seconds_per_token_s": whole - waiting, "tokens_thought_s": 0.0, "tokens_answered_s": 0.0}
    return {"difference_s": whole, **parts, "n_a": left["n_requests"], "n_b": right["n_requests"], "reason": None}


def _compare(a: Json, b: Json, left: Json, right: Json, metric: str) -> Json:
    name = "value" if "value" in left[metric] else "mean"
    ratio = left[metric][name] / right[metric][name]
    wide = 0.09 if metric == "ttft_s" else 0.03
    interval = [ratio * (1 - wide), ratio * (1 + wide)]
    better = ratio > 1 if "tokens_per_s" in metric else ratio < 1
    verdict = "no detectable difference" if interval[0] < 1 < interval[1] else "faster" if better else "slower"
    return {
        "model": a["model"],
        "tp": a["tp"],
        "a": a["id"],
        "b": b["id"],
        "concurrency": left["concurrency"],
        "metric": metric,
        "ratio": {"value": ratio, "ci95": interval},
        "verdict": verdict,
        "smallest_detectable_ratio": 1 + wide,
        "n_a": left["n_requests"],
        "n_b": right["n_requests"],
        "reason": None,
        "why": _why(left, right) if metric == "time_to_final_answer_s" else None,
    }


def findings(simulated: bool) -> list[Json]:
    yes, no = ("predicted", "not_predicted") if simulated else ("reproduced", "contradicted")
    rows = (
        (
            "awq-tp1-speed",
            "QwQ-32B-AWQ on one card",
            "about 35 tokens/s",
            "34.9 tokens/s",
            [34.1, 35.7],
            yes,
            "within 15 % of 35",
        ),
        (
            "awq-tp2-speed",
            "QwQ-32B-AWQ on two cards",
            "about 50 tokens/s",
            "49.8 tokens/s",
            [48.9, 50.7],
            yes,
            "within 15 % of 50",
        ),
        (
            "full-tp1-fit",
            "QwQ-32B (BF16) on one 48 GB card",
            "does not fit in memory",
            "refused",
            None,
            yes,
            "65.5 GB of weights",
        ),
        (
            "awq-max-concurrency",
            "recommended maximum concurrency, AWQ",
            "5 or below",
            "8",
            [4, 8],
            no,
            "p90 of time to final answer",
        ),
        (
            "sglang-ahead",
            "SGLang against vLLM",
            "ahead in most test scenarios",
            None,
            None,
            "not_measured",
            "no AWQ pair at level 16",
        ),
    )
    keys = ("id", "claim", "expected", "measured", "ci95", "verdict", "reason")
    return [dict(zip(keys, row, strict=True)) for row in rows]


def full_matrix(*, simulated: bool = True, levels: tuple[int, ...] = (1, 2, 4, 8), deployments: int = 4) -> Sample:
    """SGLang and vLLM on three deployments, and a fourth that is refused because it does not fit; or on fewer."""
    names = ("sglang-sim", "vllm-sim") if simulated else ("sglang", "vllm")
    cells = [_cell(e, m, tp, bound, speed, levels) for m, tp, bound, speed in DEPLOYMENTS[:deployments] for e in names]
    speed = 20.0 if simulated else 1.0
    metrics: Json = {
        "schema_version": 1,
        "run_id": "20261122-213000",
        "simulated": simulated,
        "complete": True,
        "run": {
            "id": "20261122-213000",
            "name": "qwq-32b on Ada cards",
            "started": "2026-11-22T21:30:00Z",
            "mode": "equal-work",
            "workload": {"name": "math", "identity": "9f2c" * 16},
            "clock_speed": speed,
        },
        "health": {"client": "pass", "reconciliation": "pass", "complete": True, "reasons": []},
        "cells": cells,
        "comparisons": _comparisons(cells),
        "findings": findings(simulated),
    }
    return Sample(metrics, _manifest(metrics, levels), {cell["id"]: _engine(cell, speed) for cell in cells})


def _manifest(metrics: Json, levels: tuple[int, ...]) -> Json:
    return {
        "schema_version": 1,
        "run_id": metrics["run_id"],
        "name": metrics["run"]["name"],
        "started_unix_s": 1_795_383_000.0,
        "complete": True,
        "incomplete_reason": None,
        "simulated": metrics["simulated"],
        "clock_speed": metrics["run"]["clock_speed"],
        "mode": "equal-work",
        "scenario": "long_reasoning",
        "question": "",
        "workload": {"source": "math:n=64,seed=7", "name": "math", "identity": "9f2c" * 16, "n_prompts": 64},
        "contract": {
            "temperature": 0.6,
            "top_p": 0.95,
            "top_k": 40,
            "min_p": 0.0,
            "presence_penalty": 0.0,
            "max_tokens": 32768,
            "seed": 7,
        },
        "slo": ["time_to_final_answer_s:p90<60", "ttft_s:p50<2"],
        "prices": {"gpu_hour": 1.2, "currency": "USD"},
        "environment": {
            "python": "3.11.7",
            "platform": "Linux 6.1 x86_64",
            "cpu": "2 cores",
            "loadtest": "0.1.0",
            "locust": "2.47.1",
        },
        "cells": [{key: cell[key] for key in ("id", "engine", "model", "tp", "gpu")} for cell in metrics["cells"]],
        "levels": list(levels),
        "repeats": 2,
        "interrupted": False,
        "commands": ["loadtest run scenarios/studies/demo.toml --out runs/demo"],
    }


def _engine(cell: Json, speed: float) -> Json:
    module = "loadtest.simulator" if cell["simulated"] else "vllm.entrypoints.openai.api_server"
    return {
        "id": cell["id"],
        "engine": cell["engine"],
        "engine_version": cell["engine_version"],
        "model": cell["model"],
        "tp": cell["tp"],
        "gpu": cell["gpu"],
        "simulated": cell["simulated"],
        "clock_speed": speed,
        "base_url": "http://127.0.0.1:31001",
        "command": ["python", "-m", module, "--model", cell["model"], "--tp", str(cell["tp"]), "--port", "31001"],
        "env": {"TOKENIZERS_PARALLELISM": "false"},
        "status": cell["status"],
        "reason": cell["reason"],
        "started_unix_s": 1_795_383_001.0,
        "ready_unix_s": 1_795_383_003.2,
        "stopped_unix_s": 1_795_383_060.0,
        "exit_code": 0,
        "fit": cell["fit"],
        "server_info": {},
    }


def damaged() -> Sample:
    """A measured run that was interrupted: a cell that died, failed health, levels without data, thin samples."""
    sample = copy.deepcopy(full_matrix(simulated=False))
    metrics, manifest = sample.metrics, sample.manifest
    reasons = [
        "client: the event loop woke up to 0.31 s late at concurrency 8",
        "reconciliation: the server counted 3 % more tokens",
    ]
    metrics["complete"] = False
    metrics["health"] = {"client": "fail", "reconciliation": "fail", "complete": False, "reasons": reasons}
    manifest.update(complete=False, incomplete_reason="interrupted by the user", interrupted=True)
    first, second, third = metrics["cells"][:3]
    second.update(status="died", reason="the server was killed: out of memory", levels=[])
    first["levels"][3]["client_health"] = {"status": "fail", "reasons": reasons[:1]}
    first["levels"] = first["levels"][1:]
    for key in ("ttft_s", "time_to_final_answer_s"):
        third["levels"][0][key] = {
            "n": 0,
            "mean": None,
            "p50": None,
            "p90": None,
            "p95": None,
            "p99": None,
            "min": None,
            "max": None,
            "ci95": {},
            "n_needed": {"p50": 6, "p90": 29},
        }
    third["levels"][1]["output_tokens_per_s"] = {"value": None, "ci95": None}
    third["levels"][2]["curves"] = {}
    third["roofline"] = None
    metrics["comparisons"] = [c for c in metrics["comparisons"] if c["a"] not in (first["id"], second["id"])]
    metrics["comparisons"][0].update(
        ratio={"value": None, "ci95": None}, verdict="too few samples", reason="needs 8 pairs, has 3"
    )
    metrics["comparisons"][1].update(verdict="not comparable", ratio=None, reason="top_k differs: 40 against 20")
    return sample


def hostile() -> Sample:
    """A run folder made by a stranger: every free text is an attack."""
    sample = full_matrix(levels=(1, 2), deployments=3)
    for cell in sample.metrics["cells"]:
        cell.update(model=HOSTILE, engine_version=HOSTILE, gpu=HOSTILE, reason=HOSTILE)
        cell["fit"]["lines"] = [HOSTILE]
    for row in sample.metrics["findings"]:
        row.update(claim=HOSTILE, measured=HOSTILE, reason=HOSTILE, verdict=HOSTILE, expected=HOSTILE)
    for row in sample.metrics["comparisons"]:
        row.update(model=HOSTILE, reason=HOSTILE)
    sample.metrics["run"].update(name=HOSTILE, workload=HOSTILE)
    sample.metrics["health"]["reasons"] = [HOSTILE]
    sample.manifest.update(
        name=HOSTILE, question=HOSTILE, contract={HOSTILE: HOSTILE}, commands=[HOSTILE], environment={HOSTILE: HOSTILE}
    )
    for engine in sample.engines.values():
        engine.update(command=[HOSTILE], env={HOSTILE: HOSTILE}, reason=HOSTILE, engine_version=HOSTILE)
    return sample


def comparison(candidate: float = 0.8) -> tuple[Side, ...]:
    """A baseline, and a candidate whose every stream is `candidate` times as fast; asked for another top_k."""
    old, new = (full_matrix(simulated=False, levels=(1, 4), deployments=3) for _ in range(2))
    for cell, (_, _, _, speed) in zip(new.metrics["cells"], [d for d in DEPLOYMENTS for _ in range(2)], strict=False):
        cell["levels"] = [level(cell["engine"], c, speed * candidate) for c in (1, 4)]
    rows = [
        _compare(a, b, left, right, metric)
        for a, b in zip(new.metrics["cells"], old.metrics["cells"], strict=True)
        for left, right in zip(a["levels"], b["levels"], strict=True)
        for metric in COMPARED
    ]
    judged = {"comparisons": rows, "not_compared": ["vllm_qwq-32b_tp2: only the baseline has 8 users"]}
    apart = {"top_k": (40, 20)}
    return (Side("old", old.metrics, old.manifest, {}, {}), Side("new", new.metrics, new.manifest, judged, apart))


SAMPLES = {"demo": lambda: full_matrix(levels=(1, 8)), "damaged": damaged, "hostile": hostile}


@functools.cache
def page(name: str) -> str:
    """The page of a sample; drawing one takes seconds, and several test files look at the same."""
    if name == "comparison":
        return build_comparison(comparison())
    sample = SAMPLES[name]()
    return build(sample.metrics, sample.manifest, sample.engines)
