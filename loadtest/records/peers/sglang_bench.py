"""Results of SGLang's `bench_serving`: one object a line; with `--output-details` each request."""

from __future__ import annotations

from typing import Any

import msgspec

from loadtest.records.peers.result import (
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
from loadtest.records.peers.vllm_bench import arrivals_of


class _ServerInfo(msgspec.Struct):
    """What an SGLang server says of itself, where one was asked."""

    version: str | None = None
    model_path: str | None = None
    tp_size: int | None = None


class _Result(msgspec.Struct):
    completed: int
    request_rate: float | str | None = None
    max_concurrency: int | None = None
    max_concurrent_requests: float | None = None
    server_info: dict[str, Any] | None = None
    input_lens: list[int] | None = None
    output_lens: list[int] | None = None
    ttfts: list[float] | None = None
    itls: list[list[float]] | None = None
    errors: list[str] | None = None


_ASKED = frozenset({"request_rate", "max_concurrency", "sharegpt_output_len", "random_input_len", "random_output_len",
                    "random_range_ratio", "server_info"})  # fmt: skip


def _read(file: PeerFile) -> PeerResult:
    found = list(file.of(_Result))
    passes = [_pass(file, one, document) for one, document in zip(found, file.documents, strict=True)]
    server = _server(found[0].server_info or {})
    return PeerResult(
        passes=tuple(passes),
        model=server.model_path,
        engine="sglang" if server.version is not None else None,
        engine_version=server.version,
        tp=server.tp_size,
    )


def _server(told: dict[str, Any]) -> _ServerInfo:
    try:
        return msgspec.convert(told, _ServerInfo)
    except msgspec.ValidationError:
        return _ServerInfo()  # of another server, which answers in its own words


def _pass(file: PeerFile, one: _Result, document: dict[str, Any]) -> PeerPass:
    arrivals = arrivals_of(one.request_rate)
    most = one.max_concurrent_requests
    return PeerPass(
        concurrency=one.max_concurrency or whole(most),
        requests=_requests(file, one),
        figures=figures_of(document, _ASKED),
        arrivals=arrivals,
    )


def _requests(file: PeerFile, one: _Result) -> tuple[PeerRequest, ...]:
    if one.ttfts is None:
        return ()
    lists = {"ttfts": one.ttfts, "itls": one.itls, "input_lens": one.input_lens, "output_lens": one.output_lens,
             "errors": one.errors}  # fmt: skip
    return tuple(_request(one, i) for i in range(same_lengths(file.path, lists)))


def _request(one: _Result, i: int) -> PeerRequest:
    error = one.errors[i] if one.errors is not None else ""
    first_s = known_seconds(one.ttfts[i]) if one.ttfts is not None else None
    output_tokens = one.output_lens[i] if one.output_lens is not None else None
    failed = bool(error) or not (first_s or output_tokens)
    return PeerRequest(
        prompt_id=f"place-{i + 1}",
        first_s=first_s or None,
        gaps_s=tuple(one.itls[i]) if one.itls is not None else None,
        prompt_tokens=one.input_lens[i] if one.input_lens is not None else None,
        output_tokens=None if failed else output_tokens,
        error=(error or "no reason told") if failed else None,
    )


SGLANG_BENCH = Reader(
    tool="SGLang bench_serving",
    written_by="python -m sglang.bench_serving --output-file FILE --output-details",
    keys=frozenset({"total_output_tokens_retokenized", "backend", "dataset_name"}),
    read=_read,
    notes=(
        "Its gaps are between chunks; how many tokens each carried is not told, so gaps between tokens are unknown.",
        "Output tokens: the server's count; where the server gave none, the length that was asked for.",
        "Prompt tokens: by its tokenizer, of the prompt without the chat template.",
    ),
)
