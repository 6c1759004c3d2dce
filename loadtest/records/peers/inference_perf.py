"""Results of inference-perf: `per_request_lifecycle_metrics.json` (`report.request_lifecycle.per_request`), a list of
requests, and the totals of its stage beside it."""

from __future__ import annotations

import contextlib
import json
from itertools import pairwise
from typing import Any

import msgspec

from loadtest.errors import UsageError
from loadtest.records.peers.result import (
    PeerArrivals,
    PeerFile,
    PeerPass,
    PeerRequest,
    PeerResult,
    Reader,
    at,
    count_at,
    figures_of,
    is_number,
    text_at,
)

END_MARK_TOKENS = 1  # that a server may count beyond the text


class _Usage(msgspec.Struct):
    completion_tokens: int | None = None
    prompt_tokens: int | None = None


class _Response(msgspec.Struct):
    output_tokens: int = 0
    server_usage: _Usage | None = None
    chunk_times: list[float] = []


class _Info(msgspec.Struct):
    input_tokens: int | None = None
    response_metrics: _Response | None = None


class _Error(msgspec.Struct):
    error_type: str = ""
    error_msg: str = ""


class _Request(msgspec.Struct):
    start_time: float
    end_time: float
    info: _Info
    error: _Error | None = None


def _read(file: PeerFile) -> PeerResult:
    requests = [request for found in file.of(list[_Request]) for request in found]
    stage = file.beside("stage_0_lifecycle_metrics.json")
    if file.beside("stage_1_lifecycle_metrics.json"):
        raise UsageError(f"{file.path}: expected requests of one stage, got several, untold which; run each stage by itself")
    concurrency = count_at(stage, "load_summary", "concurrency")
    rate = at(stage, "load_summary", "requested_rate")
    open_loop = concurrency is None and is_number(rate)
    one = PeerPass(
        concurrency=concurrency,
        requests=tuple(map(_request, requests)),
        figures=figures_of(stage),
        arrivals=PeerArrivals("open loop", rate) if open_loop else None,
    )
    return PeerResult(passes=(one,), model=_model(at(file.documents[0], 0, "request")))


def _model(request: Any) -> str | None:
    """The model that the body of a request names."""
    with contextlib.suppress(ValueError, RecursionError):
        return text_at(json.loads(request), "model") if isinstance(request, str) else None
    return None


def _request(one: _Request) -> PeerRequest:
    got = one.info.response_metrics
    if one.error is not None or got is None:
        said = one.error or _Error(error_msg="no response")
        return PeerRequest(start_s=one.start_time, error=f"{said.error_type} {said.error_msg}".strip() or "no reason told")
    usage = got.server_usage or _Usage()
    whole = usage.completion_tokens is not None and usage.completion_tokens <= got.output_tokens + END_MARK_TOKENS
    came = [chunk - one.start_time for chunk in got.chunk_times]
    return PeerRequest(
        start_s=one.start_time,
        first_s=came[0] if came and whole else None,
        answer_s=came[0] if came else None,
        end_s=came[-1] if came else one.end_time - one.start_time,
        gaps_s=tuple(b - a for a, b in pairwise(came)) if came and whole else None,
        prompt_tokens=one.info.input_tokens if usage.prompt_tokens is None else usage.prompt_tokens,
        output_tokens=got.output_tokens if usage.completion_tokens is None else usage.completion_tokens,
        reasoning_tokens=0 if whole else None,
    )


INFERENCE_PERF = Reader(
    tool="inference-perf",
    written_by="inference-perf, report.request_lifecycle.per_request: per_request_lifecycle_metrics.json",
    keys=frozenset({"start_time", "end_time", "info"}),
    read=_read,
    notes=(
        "It reads no thinking: its first token is that of the answer. So where the server counted more tokens than it read, "
        "the time to first token is unknown here.",
        "Output tokens: the server's count, or its tokenizer's where the server gave none.",
    ),
)
