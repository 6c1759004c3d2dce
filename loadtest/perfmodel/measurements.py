"""Published measurements as rows: what was measured, how, and the time per token or the speed that came out.

Two kinds of CSV. Single streams: `model, quantization, gpu, gpu_count, engine, prompt_tokens, output_tokens,
output_tokens_per_s`, the last being the output tokens of one lone request over its whole time. Batches: `source, engine,
engine_version, model, precision, gpu, tp, input_tokens, output_tokens, concurrency, output_tokens_per_s_total,
ttft_ms_mean_or_p50, tpot_ms, note`, where `note` says how it was measured.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from loadtest.errors import UsageError
from loadtest.perfmodel import gpus, models
from loadtest.perfmodel.held_back import is_held_back
from loadtest.perfmodel.memory import Deployment, Speculation

Way = Literal["lone", "at-once", "closed-loop", "static-batch", "step"]
"""How requests were sent. lone: one request, measured whole. at-once: all together, time per token without prefill.
closed-loop: the next when one ends. static-batch: one batch, measured whole. step: single seconds without prefill."""

_SINGLE = ("model", "quantization", "gpu", "gpu_count", "engine", "prompt_tokens", "output_tokens", "output_tokens_per_s")
_BATCHED = (
    "source", "engine", "engine_version", "model", "precision", "gpu", "tp", "input_tokens", "output_tokens", "concurrency",
    "output_tokens_per_s_total", "ttft_ms_mean_or_p50", "tpot_ms", "note",
)  # fmt: skip
# What sources call a GPU, in lower case, longest first where one name begins another. Argonne's A100 have 40 GB (their KV
# cache overflows where that of 80 GB would not); those of dennislee22 are behind PCIe.
_GPUS = (
    ("a100-80gb-pcie", "a100-80gb-pcie"), ("a100-80gb", "a100-80gb"), ("nvidia a100 gpu", "a100-40gb"),
    ("nvidia h100 gpu", "h100"), ("h100 sxm", "h100"), ("nvidia gh200 gpu", "gh200"), ("h20-96gb", "h20"),
    ("rtx 4090", "rtx-4090"),
)  # fmt: skip
_MODELS = {  # by shape
    "qwen2-7b": "qwen2.5-7b-instruct",
    "qwen2-7b-instruct": "qwen2.5-7b-instruct",
    "qwen2-72b": "qwen2.5-72b-instruct",
    "qwen2.5-32b": "qwen2.5-32b-instruct",
}
_RTX_4090_KV_TOKENS = 44_500  # of LLMServingSim's run: tokens held by its requests over the cache's use
_MOST_STREAMS = 100  # beyond that the sources queue, or recompute at a full cache


@dataclass(frozen=True, slots=True)
class Measurement:
    """One published measurement.

    `measured_s`: seconds of the whole request or batch (`lone`, `static-batch`), else seconds per token. `family` names the
    model without its quantisation; `source` is short. `context_tokens` is the mean context of a stream (`step` only),
    `wait_s` the mean time to the first token (`at-once` only). `total_tokens_per_s` of all streams, 0 where not told or
    is the time itself; `requests` of the loop that it is of (0: not told). `held_back`: the fit never sees it.
    """

    deployment: Deployment
    family: str
    source: str
    way: Way
    streams: float
    prompt_tokens: float
    output_tokens: float
    measured_s: float
    held_back: bool = False
    context_tokens: float = 0.0
    wait_s: float = 0.0
    total_tokens_per_s: float = 0.0
    requests: int = 0
    where: str = ""

    @property
    def title(self) -> str:
        """`Qwen3-8B-AWQ on 1 x NVIDIA H20, 1 stream, 6,144 tokens`."""
        tokens = f"{self.prompt_tokens:,.0f} + {self.output_tokens:,.0f} tokens"
        engine = " ".join(filter(None, (self.deployment.engine, self.deployment.engine_version)))
        engine += " with drafts" if self.deployment.speculation else ""
        return f"{self.deployment.title}, {engine}, {self.streams:g} streams, {tokens}"


def read_measurements(path: Path) -> list[Measurement]:
    """The measurements of one CSV file that the model covers; rows that it does not are left out (`_excluded`).

    Raises UsageError with file and line: no file, a wrong column or value.
    """
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}; expected a CSV of measured speeds") from None
    columns = rows[0].keys() if rows else set()
    if not set(_SINGLE) - columns:
        return [_single(row, f"{path}:{number}") for number, row in enumerate(rows, start=2)]
    if not set(_BATCHED) - columns:
        found = (_batched(row, number, f"{path}:{number}") for number, row in enumerate(rows, start=2))
        return _lower_envelope([one for one in found if one is not None])
    raise UsageError(f"{path}: expected rows with the columns {', '.join(_SINGLE)}; or {', '.join(_BATCHED)}")


def _single(row: Mapping[str, str], where: str) -> Measurement:
    suffix = "" if row["quantization"] == "bf16" else f"-{row['quantization']}"
    try:
        engine, _, version = row["engine"].partition(" ")
        deployment = _deployment(row["model"] + suffix, row["gpu"], row["gpu_count"], engine, version.partition("/")[0])
        prompt, output, speed = int(row["prompt_tokens"]), int(row["output_tokens"]), float(row["output_tokens_per_s"])
    except (ValueError, UsageError) as error:
        raise UsageError(f"{where}: {error}") from None
    if prompt < 1 or output < 1 or not 0 < speed < float("inf"):
        raise UsageError(f"{where}: expected positive tokens and speed, got {prompt}, {output}, {speed}")
    return Measurement(deployment, row["model"], row["engine"], "lone", 1, prompt, output, output / speed, where=where)


def _deployment(model: str, gpu: str, tp: str, engine: str, version: str, told: str = "") -> Deployment:
    name = model.rpartition("/")[2]
    known = next((name for text, name in _GPUS if gpu.lower().startswith(text)), gpu)
    interconnect = "pcie-host" if "no GPU P2P" in told else None
    engine = engine.lower() if engine.lower() in ("vllm", "sglang") else "other"
    shape = models.model(_MODELS.get(name.lower(), name))
    return Deployment(shape, gpus.gpu(known), int(tp), engine, engine_version=version, interconnect=interconnect)


def _batched(row: Mapping[str, str], line: int, where: str) -> Measurement | None:
    note, source = row["note"], row["source"]
    way = _way(note)
    if _excluded(row, way):
        return None
    suffix = "-fp8" if row["precision"] == "fp8" else ""
    version = row["engine_version"] or "0.5"  # Argonne's paper is of 2024: V0
    try:
        gpu = "a100-80gb-pcie" if "dennislee22" in source else row["gpu"]
        deployment = _deployment(row["model"] + suffix, gpu, row["tp"], row["engine"], version, row["gpu"])
        streams, requests = float(row["concurrency"]), int(row.get("n_requests") or 0)
        prompt, output = float(row["input_tokens"] or 0), float(row["output_tokens"] or 0)
        measured = _seconds(row, way)
        if "SPECULATIVE" in note:
            deployment = replace(deployment, speculation=_speculation(note, measured))
    except (ValueError, UsageError) as error:
        raise UsageError(f"{where}: {error}") from None
    held_back = is_held_back(
        source=source, line=line, model=row["model"], gpu=row["gpu"], tp=int(row["tp"]), concurrency=streams, note=note
    )
    short = source.removeprefix("github.com/").split("/")[0]
    use = re.search(r"KV cache ([\d.]+) %", note)
    context = float(use[1]) / 100 * _RTX_4090_KV_TOKENS / streams if way == "step" and use else 0.0
    wait = float(row["ttft_ms_mean_or_p50"] or 0) / 1e3 if way == "at-once" and streams > 1 else 0.0
    total = float(row["output_tokens_per_s_total"] or 0) if way in ("closed-loop", "at-once") else 0.0
    found = Measurement(
        deployment, row["model"], short, way, streams, prompt, output, measured, held_back, context, wait, total, requests,
        where,
    )  # fmt: skip
    return None if _overflows(found, note) else found


def _speculation(note: str, tpot_s: float) -> Speculation:
    """What an SGLang command says of drafts; accepted tokens are the mean gap between its chunks over the time per token.

    Its number of draft tokens counts the token before them too.
    """
    used = note.rpartition("# --speculative")[2] or note
    steps, tokens = (re.search(rf"--speculative-num-{key} (\d+)", used) for key in ("steps", "draft-tokens"))
    gap_ms = re.search(r"mean ITL ([\d.]+)", note)
    if steps is None or tokens is None or gap_ms is None:
        raise UsageError(
            "speculation: expected --speculative-num-steps, --speculative-num-draft-tokens and mean ITL in note"
        )
    return Speculation(float(gap_ms[1]) / 1e3 / tpot_s, int(tokens[1]) - 1, int(steps[1]))


def _way(note: str) -> Way:
    if note.startswith("OFFLINE"):
        return "static-batch"
    if "all prompts sent at once" in note:
        return "at-once"
    return "step" if "one second of" in note else "closed-loop"


def _excluded(row: Mapping[str, str], way: Way) -> bool:
    """Rows that the model does not cover: GPUs in two nodes, other engines, drafts of unknown size, more than 100
    streams."""
    elsewhere = "two nodes" in row["gpu"] or row["engine"].lower() not in ("vllm", "sglang")
    used = row["note"].rpartition("# --speculative")[2] or row["note"]
    untold = "SPECULATIVE" in row["note"] and "num-steps" not in used
    return elsewhere or untold or float(row["concurrency"]) > _MOST_STREAMS


def _seconds(row: Mapping[str, str], way: Way) -> float:
    """What was measured: a static batch's whole time, else the time per token."""
    if way == "static-batch":
        whole = re.search(r"latency ([\d.]+) s", row["note"])
        return float(whole[1]) if whole else float(row["concurrency"]) * float(row["output_tokens"]) / float(
            row["output_tokens_per_s_total"]
        )  # fmt: skip
    return float(row["tpot_ms"]) / 1e3


def _overflows(one: Measurement, note: str) -> bool:
    """Do the streams need more KV cache than there is? Then requests wait, or are computed again."""
    if one.way == "step":
        return False
    told = re.search(r"KV cache memory[^:]*: ([\d.]+) GiB", note)
    deployment = one.deployment
    usable = deployment.gpu.memory_bytes * 0.851 - deployment.model.weight_bytes / deployment.tp - 1.5e9
    room = float(told[1]) * 2**30 if told else usable
    return one.streams * (one.prompt_tokens + one.output_tokens) * deployment.kv_bytes_per_token_per_gpu > room


def _lower_envelope(rows: list[Measurement]) -> list[Measurement]:
    """Of single seconds, those that no second with as many streams undercuts by 8 %: the others hold recomputation."""

    def undercut(one: Measurement) -> bool:
        return any(
            other.way == "step" and other.held_back == one.held_back
            and other.streams >= one.streams and other.measured_s < one.measured_s / 1.08
            for other in rows
        )  # fmt: skip

    return [one for one in rows if one.way != "step" or not undercut(one)]
