"""Results of `vllm bench serve`: one object, or one a line (`--append-result`); with `--save-detailed` each request."""

from __future__ import annotations

import math

import msgspec

from loadtest.records.peers.result import (
    PeerArrivals,
    PeerFile,
    PeerPass,
    PeerRequest,
    PeerResult,
    Reader,
    figures_of,
    known_seconds,
    same_lengths,
    whole,
)


class _Result(msgspec.Struct):
    num_prompts: int
    model_id: str | None = None
    date: str | None = None
    request_rate: float | str | None = None
    burstiness: float = 1.0
    max_concurrency: int | None = None
    max_concurrent_requests: float | None = None
    ramp_up_strategy: str | None = None
    input_lens: list[int] | None = None
    output_lens: list[int] | None = None
    ttfts: list[float] | None = None
    itls: list[list[float]] | None = None
    start_times: list[float] | None = None
    latencies: list[float] | None = None
    errors: list[str] | None = None


_ASKED = frozenset({"num_prompts", "burstiness", "max_concurrency", "request_rate"})


def _read(file: PeerFile) -> PeerResult:
    found = list(file.of(_Result))
    passes = [_pass(file, one, document) for one, document in zip(found, file.documents, strict=True)]
    return PeerResult(passes=tuple(passes), model=found[0].model_id)


def _pass(file: PeerFile, one: _Result, document: dict[str, object]) -> PeerPass:
    arrivals = arrivals_of(one.request_rate, one.burstiness, one.ramp_up_strategy)
    most = one.max_concurrent_requests if arrivals is not None else one.num_prompts
    return PeerPass(
        concurrency=one.max_concurrency or whole(most),
        requests=_requests(file, one),
        figures=figures_of(document, _ASKED),
        arrivals=arrivals,
        date=one.date,
    )


def arrivals_of(rate: float | str | None, burstiness: float = 1.0, ramp: str | None = None) -> PeerArrivals | None:
    """The open loop of a rate; None where requests come as others end (`inf`).

    >>> arrivals_of("inf"), arrivals_of(2.0)
    (None, PeerArrivals(kind='poisson', rate=2.0))
    """
    if ramp is not None:
        return PeerArrivals(f"{ramp} ramp", None)
    if rate is None or not isinstance(rate, int | float):
        return None if rate in (None, "inf") else PeerArrivals(str(rate)[:40], None)
    if not math.isfinite(rate):
        return None
    return PeerArrivals("poisson" if burstiness == 1.0 else f"gamma, burstiness {burstiness:g}", rate)


def _requests(file: PeerFile, one: _Result) -> tuple[PeerRequest, ...]:
    if one.ttfts is None:
        return ()
    lists = {
        "ttfts": one.ttfts,
        "itls": one.itls,
        "input_lens": one.input_lens,
        "output_lens": one.output_lens,
        "start_times": one.start_times,
        "latencies": one.latencies,
        "errors": one.errors,
    }
    return tuple(_request(one, i) for i in range(same_lengths(file.path, lists)))


def _request(one: _Result, i: int) -> PeerRequest:
    error = one.errors[i] if one.errors is not None else ""
    output_tokens = one.output_lens[i] if one.output_lens is not None else None
    failed = bool(error) or (one.ttfts is not None and not one.ttfts[i] and not output_tokens)
    return PeerRequest(
        prompt_id=f"place-{i + 1}",
        start_s=one.start_times[i] if one.start_times is not None else None,
        first_s=known_seconds(one.ttfts[i]) or None if one.ttfts is not None else None,
        end_s=known_seconds(one.latencies[i]) or None if one.latencies is not None else None,
        gaps_s=tuple(one.itls[i]) if one.itls is not None else None,
        prompt_tokens=one.input_lens[i] if one.input_lens is not None else None,
        output_tokens=None if failed else output_tokens,
        error=(error or "no reason told") if failed else None,
    )


VLLM_BENCH = Reader(
    tool="vLLM bench",
    written_by="vllm bench serve --save-result --save-detailed",
    keys=frozenset({"endpoint_type", "num_prompts", "request_throughput"}),
    read=_read,
    notes=(
        "Its time to first token ends at the first chunk, also one without text (the role).",
        "Its gaps are between chunks; how many tokens each carried is not told, so gaps between tokens are unknown.",
        "Output tokens: the server's count, or its tokenizer's where the server gave none.",
    ),
)
