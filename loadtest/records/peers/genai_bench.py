"""Results of genai-bench: an object for each scenario and concurrency, with each request but not when it began; beside it
`experiment_metadata.json`."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from loadtest.records.peers.result import (
    PeerArrivals,
    PeerFile,
    PeerPass,
    PeerRequest,
    PeerResult,
    Reader,
    figures_of,
    text_at,
    whole,
)
from loadtest.records.schema import EngineName

_ENGINES: dict[str, EngineName] = {"vllm": "vllm", "sglang": "sglang"}
_ASKED = frozenset({"num_concurrency", "batch_size"})


class _Request(msgspec.Struct):
    ttft: float | None = None
    e2e_latency: float | None = None
    num_input_tokens: int | None = None
    num_output_tokens: int | None = None
    num_reasoning_tokens: int | None = None
    error_code: int | None = None
    error_message: str | None = None


class _Totals(msgspec.Struct):
    num_concurrency: float | None = None
    iteration_type: str | None = None
    arrival_requests_per_second: float | None = None


class _Result(msgspec.Struct, rename={"time_unit": "_time_unit"}):
    aggregated_metrics: _Totals
    individual_request_metrics: list[_Request]
    time_unit: Literal["s", "ms"] = "s"


def _read(file: PeerFile) -> PeerResult:
    passes = [_pass(one, document) for one, document in zip(file.of(_Result), file.documents, strict=True)]
    experiment = file.beside("experiment_metadata.json")
    return PeerResult(
        passes=tuple(passes),
        version=text_at(experiment, "benchmark_version"),
        model=text_at(experiment, "api_model_name"),
        engine=_ENGINES.get((text_at(experiment, "server_engine") or "").lower()),
        engine_version=text_at(experiment, "server_version"),
    )


def _pass(one: _Result, document: dict[str, Any]) -> PeerPass:
    asked = one.aggregated_metrics
    rate = asked.arrival_requests_per_second
    closed = rate is None and asked.iteration_type in (None, "num_concurrency")
    return PeerPass(
        concurrency=whole(asked.num_concurrency) if closed else None,
        requests=tuple(
            _request(request, 1e-3 if one.time_unit == "ms" else 1.0) for request in one.individual_request_metrics
        ),
        figures=figures_of(document["aggregated_metrics"], _ASKED),
        arrivals=None if rate is None else PeerArrivals("open loop", rate),
    )


def _request(one: _Request, unit_s: float) -> PeerRequest:
    if one.error_code is not None:
        return PeerRequest(prompt_tokens=one.num_input_tokens, error=f"{one.error_code} {one.error_message or ''}".strip())
    return PeerRequest(
        first_s=None if one.ttft is None else one.ttft * unit_s,
        end_s=None if one.e2e_latency is None else one.e2e_latency * unit_s,
        prompt_tokens=one.num_input_tokens,
        output_tokens=one.num_output_tokens,
        reasoning_tokens=one.num_reasoning_tokens or None,
    )


GENAI_BENCH = Reader(
    tool="genai-bench",
    written_by="genai-bench benchmark: SCENARIO_text-to-text_num_concurrency_N_time_Ts.json",
    keys=frozenset({"aggregated_metrics", "individual_request_metrics"}),
    read=_read,
    notes=(
        "Requests that still ran when it ended are in none of its files.",
        "Tokens/s per user: (tokens - 1) / (end - first token), as no token between the two is told.",
    ),
)
