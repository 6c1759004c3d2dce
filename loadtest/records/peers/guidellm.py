"""Results of GuideLLM: one object with a benchmark for each number of streams or rate, and each request in it."""

from __future__ import annotations

from typing import Any

import msgspec

from loadtest.records.peers.result import (
    Ending,
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


class _Timings(msgspec.Struct, frozen=True):
    last_token_iteration: float | None = None


class _Info(msgspec.Struct, frozen=True):
    error: str | None = None
    timings: _Timings = _Timings()


class _Request(msgspec.Struct):
    request_start_time: float | None = None
    request_end_time: float | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    time_to_first_token_ms: float | None = None
    time_to_first_output_token_ms: float | None = None
    info: _Info = _Info()


class _Requests(msgspec.Struct):
    successful: list[_Request] = []
    incomplete: list[_Request] = []
    errored: list[_Request] = []


class _Benchmark(msgspec.Struct):
    config: dict[str, Any]
    metrics: dict[str, Any]
    requests: _Requests


class _Metadata(msgspec.Struct):
    guidellm_version: str | None = None


class _Result(msgspec.Struct):
    metadata: _Metadata
    benchmarks: list[_Benchmark]


_STATISTICS = ("mean", "median", "std_dev", "min", "max")


def _read(file: PeerFile) -> PeerResult:
    (one,) = file.of(_Result)
    first = one.benchmarks[0].config if one.benchmarks else {}
    return PeerResult(
        passes=tuple(map(_pass, one.benchmarks)),
        version=one.metadata.guidellm_version,
        model=text_at(first, "backend", "model"),
    )


def _pass(one: _Benchmark) -> PeerPass:
    strategy = at(one.config, "strategy")
    streams = count_at(strategy, "streams")
    requests = [
        *(_request(request, None) for request in one.requests.successful),
        *(_request(request, "cut_off") for request in one.requests.incomplete),
        *(_failed(request) for request in one.requests.errored),
    ]
    kind = text_at(strategy, "type_")
    alone = 1 if kind == "synchronous" else None
    return PeerPass(
        concurrency=streams or alone,
        requests=tuple(requests),
        figures=figures_of({name: _of_successful(each) for name, each in one.metrics.items()}),
        arrivals=_arrivals(kind, strategy) if streams is None and alone is None else None,
    )


def _arrivals(kind: str | None, strategy: Any) -> PeerArrivals:
    rate = at(strategy, "rate")
    return PeerArrivals(kind or "unknown", rate if is_number(rate) else None)


def _of_successful(metric: Any) -> dict[str, Any]:
    found = at(metric, "successful")
    percentiles = at(found, "percentiles")
    told = {name: at(found, name) for name in _STATISTICS} | {name: at(percentiles, name) for name in ("p90", "p99")}
    return {name: value for name, value in told.items() if value is not None}


def _request(one: _Request, ending: Ending | None) -> PeerRequest:
    first_s, answer_s = (_of_ms(one.time_to_first_token_ms), _of_ms(one.time_to_first_output_token_ms))
    return PeerRequest(
        start_s=one.request_start_time,
        first_s=first_s,
        answer_s=answer_s,
        end_s=_since_start(one, one.info.timings.last_token_iteration or one.request_end_time),
        prompt_tokens=one.prompt_tokens,
        output_tokens=one.output_tokens,
        reasoning_tokens=0 if answer_s is not None and answer_s == first_s else None,
        ending=ending,
    )


def _failed(one: _Request) -> PeerRequest:
    said = one.info.error or "no reason told"
    return PeerRequest(start_s=one.request_start_time, end_s=_since_start(one, one.request_end_time), error=said)


def _since_start(one: _Request, time_s: float | None) -> float | None:
    return None if time_s is None or one.request_start_time is None else time_s - one.request_start_time


def _of_ms(value: float | None) -> float | None:
    return None if value is None else value / 1e3


GUIDELLM = Reader(
    tool="GuideLLM",
    written_by="guidellm run --output kind=json,path=FILE",
    keys=frozenset({"metadata", "benchmarks"}),
    read=_read,
    notes=(
        "Of each request the first and the last token are told; those between, which it spreads evenly, are not taken over.",
        "Its time per output token counts the wait for the first one too.",
    ),
)
