"""A server's own counters: `/metrics` of either engine read once a second, under one set of names.

Each engine has a table of names; the prefix in the text decides which is used. Series that differ only in labels (engines,
ranks) are added up, shares of the KV cache are averaged. SGLang updates its gauges only while it works: an idle server
repeats the last values.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from loadtest.clock import Clock
from loadtest.records.schema import ReplicaSample, ServerSample
from loadtest.records.write import JsonlWriter
from loadtest.servers import probe, route
from loadtest.servers.exposition import Series, parse_series

INTERVAL_S = 1.0
_SHORTEST_INTERVAL_S = 0.2  # wall; a simulated clock that runs fast is read more often, but not faster than this
_TIMEOUT_S = 5.0

# Our name: their series, and where a series counts several things, the values of one label that are ours.
_Row = tuple[str, str, tuple[str, ...]]
_GAUGES: dict[str, dict[str, str]] = {
    "vllm:": {
        "running": "num_requests_running",
        "waiting": "num_requests_waiting",
        "kv_usage": "kv_cache_usage_perc",
    },
    "sglang:": {
        "running": "num_running_reqs",
        "waiting": "num_queue_reqs",
        "kv_usage": "token_usage",
    },
}
_COUNTERS: dict[str, dict[str, _Row]] = {
    "vllm:": {
        "prompt_tokens_total": ("prompt_tokens_total", "", ()),
        "generation_tokens_total": ("generation_tokens_total", "", ()),
        "prefix_cache_hit_tokens_total": ("prefix_cache_hits_total", "", ()),
        "prefix_cache_query_tokens_total": ("prefix_cache_queries_total", "", ()),
        "preemptions_total": ("num_preemptions_total", "", ()),
        "requests_finished_total": ("request_success_total", "finished_reason", ("stop", "length", "repetition")),
        "requests_aborted_total": ("request_success_total", "finished_reason", ("abort", "error")),
        "ttft_sum_s": ("time_to_first_token_seconds_sum", "", ()),
        "ttft_count": ("time_to_first_token_seconds_count", "", ()),
        "e2e_sum_s": ("e2e_request_latency_seconds_sum", "", ()),
        "e2e_count": ("e2e_request_latency_seconds_count", "", ()),
        "drafts_total": ("spec_decode_num_drafts_total", "", ()),
        "draft_tokens_total": ("spec_decode_num_draft_tokens_total", "", ()),
        "accepted_draft_tokens_total": ("spec_decode_num_accepted_tokens_total", "", ()),
    },
    "sglang:": {
        "prompt_tokens_total": ("prompt_tokens_total", "", ()),
        "generation_tokens_total": ("generation_tokens_total", "", ()),
        "prefix_cache_hit_tokens_total": ("cached_tokens_total", "", ()),
        "prefix_cache_query_tokens_total": ("prompt_tokens_total", "", ()),  # every prompt token is looked up
        "preemptions_total": ("num_retracted_requests_total", "", ()),
        "requests_finished_total": ("num_requests_total", "", ()),
        "requests_aborted_total": ("num_aborted_requests_total", "", ()),
        "ttft_sum_s": ("time_to_first_token_seconds_sum", "", ()),
        "ttft_count": ("time_to_first_token_seconds_count", "", ()),
        "e2e_sum_s": ("e2e_request_latency_seconds_sum", "", ()),
        "e2e_count": ("e2e_request_latency_seconds_count", "", ()),
        "drafts_total": ("spec_verify_calls_total", "", ()),  # of requests that ended, as its tokens are
    },
}
_ROW_TOKENS = "spec_num_draft_tokens"  # SGLang: a row of drafts, with the token before them
_BY_POSITION = "spec_decode_num_accepted_tokens_per_pos_total"
_MOST_POSITIONS = 64

_TTFT_BUCKET = "time_to_first_token_seconds_bucket"  # the same on both
_MOST_BUCKETS = 64
_OURS = {
    prefix: {prefix + name for name in (*_GAUGES[prefix].values(), *(row[0] for row in _COUNTERS[prefix].values()))}
    | {prefix + name for name in (_TTFT_BUCKET, _BY_POSITION, _ROW_TOKENS)}
    for prefix in _GAUGES
}


def normalise(text: str) -> dict[str, Any]:
    """The fields of `ServerSample` that this text tells; empty where it is of neither engine.

    SGLang leaves out a counter until its first event, so a missing counter is 0; a missing gauge is unknown.

    >>> normalise("vllm:num_requests_running 3")
    {'running': 3.0}
    >>> normalise("sglang:token_usage 0.5")["preemptions_total"]
    0.0
    """
    for prefix, names in _OURS.items():
        series = parse_series(text, names)
        if series:
            told = _settle(_gauges(series, prefix) | _counters(series, prefix), series, prefix)
            values: dict[str, Any] = {key: value for key, value in told.items() if math.isfinite(value)}  # sums overflow
            rows = {"ttft_buckets": _ttft_buckets(series, prefix), "accepted_by_position_total": _by_position(series)}
            return values | {key: row for key, row in rows.items() if row}
    return {}


def _by_position(series: Series) -> tuple[float, ...]:
    """Drafts accepted at each position, the first first; empty where it is not told (SGLang does not)."""
    counts: dict[int, float] = {}
    for labels, value in series.get("vllm:" + _BY_POSITION, ()):
        position = labels.get("position", "")
        if position.isdecimal() and len(position) < 3 and int(position) < _MOST_POSITIONS:
            counts[int(position)] = counts.get(int(position), 0.0) + value
    known = tuple(counts.get(n, 0.0) for n in range(max(counts, default=-1) + 1))
    return known if all(map(math.isfinite, known)) else ()


def _ttft_buckets(series: Series, prefix: str) -> tuple[tuple[float, float], ...]:
    """(upper bound in s, requests up to it), ascending, without the last, infinite one; empty where it is not told."""
    counts: dict[float, float] = {}
    for labels, value in series.get(prefix + _TTFT_BUCKET, ()):
        try:
            bound_s = float(labels.get("le", "inf"))
        except ValueError:
            continue
        if math.isfinite(bound_s):
            counts[bound_s] = counts.get(bound_s, 0.0) + value
    finite = (bucket for bucket in sorted(counts.items()) if math.isfinite(bucket[1]))
    return tuple(itertools.islice(finite, _MOST_BUCKETS))


def _settle(values: dict[str, float], series: Series, prefix: str) -> dict[str, float]:
    """SGLang counts an aborted request as finished too; finished means by itself, on both. It does not count drafts that
    were accepted: they are the tokens beside the first of each request and the sure one of each row of drafts."""
    if prefix == "sglang:":
        rows, ended = values.pop("drafts_total"), values["requests_finished_total"]
        if rows:
            values["drafts_total"] = rows
            values["accepted_draft_tokens_total"] = max(0.0, values["generation_tokens_total"] - ended - rows)
            told = [value for _, value in series.get(prefix + _ROW_TOKENS, ()) if value > 1]
            values |= {"draft_tokens_total": rows * (sum(told) / len(told) - 1)} if told else {}
        values["requests_finished_total"] -= values["requests_aborted_total"]
    return values


def _gauges(series: Series, prefix: str) -> dict[str, float]:
    values: dict[str, float] = {}
    for ours, theirs in _GAUGES[prefix].items():
        found = [value for _, value in series.get(prefix + theirs, ())]
        if found:
            values[ours] = sum(found) / len(found) if ours == "kv_usage" else sum(found)
    return values


def _counters(series: Series, prefix: str) -> dict[str, float]:
    values: dict[str, float] = {}
    for ours, (theirs, label, wanted) in _COUNTERS[prefix].items():
        rows = series.get(prefix + theirs)
        if rows is not None:
            values[ours] = sum(value for labels, value in rows if not label or labels.get(label) in wanted)
        elif prefix == "sglang:":
            values[ours] = 0.0
    return values


def scrape(base_url: str, clock: Clock | None = None, client: Any = None) -> ServerSample:
    """Read `/metrics` once. Never raises: a reading that failed says so in `error`, and nothing else in it is known.

    `clock` stamps the sample (default: offset 0 is now); `client` is an `httpx.Client` to reuse.
    """
    clock = clock or Clock.start()
    if client is None:
        with probe.client(base_url, timeout_s=_TIMEOUT_S) as own:
            return scrape(base_url, clock, own)
    import httpx

    empty = ServerSample(t_s=round(clock.now_s(), 6), clock_anchor_unix_s=clock.anchor_unix_s, clock_speed=clock.speed)
    try:
        reply = probe.fetch(client, f"{base_url}/metrics")
    except httpx.HTTPError as error:
        return replace(empty, error=f"/metrics: {type(error).__name__}: {error}")
    if reply.status != 200:
        return replace(empty, error=f"/metrics: HTTP {reply.status}")
    values = normalise(reply.content.decode("utf-8", "replace"))
    if not values:
        return replace(empty, error="/metrics: no series of vLLM or SGLang")
    fields: dict[str, Any] = {"t_s": round(clock.now_s(), 6), **values}
    return replace(empty, **fields)


def scrape_replicas(urls: Sequence[str], clock: Clock, clients: Sequence[Any]) -> ServerSample:
    """Read the `/metrics` of several servers that share the load, one after another, as one server: counters and requests
    added up, shares of the KV cache averaged, and what each told in `replicas`. If one fails, nothing is known."""
    samples = [scrape(url, clock, client) for url, client in zip(urls, clients, strict=True)]
    last = samples[-1]
    empty = ServerSample(t_s=last.t_s, clock_anchor_unix_s=last.clock_anchor_unix_s, clock_speed=last.clock_speed)
    for url, sample in zip(urls, samples, strict=True):
        if sample.error is not None:
            return replace(empty, error=f"{route.place(url)}: {sample.error}")
    sums = {name: _sum(samples, name) for name in _ADDED}
    if sums["kv_usage"] is not None:
        sums["kv_usage"] /= len(samples)
    totals: dict[str, Any] = {**sums, "ttft_buckets": _added_buckets(samples)}
    replicas = tuple(_replica(url, sample) for url, sample in zip(urls, samples, strict=True))
    return replace(empty, **totals, accepted_by_position_total=_added_positions(samples), replicas=replicas)


_ADDED = tuple(one.name for one in fields(ServerSample) if one.name in _GAUGES["vllm:"] or one.name in _COUNTERS["vllm:"])


def _sum(samples: Sequence[ServerSample], name: str) -> float | None:
    told = [value for one in samples if (value := getattr(one, name)) is not None]
    return math.fsum(told) if len(told) == len(samples) else None


def _added_buckets(samples: Sequence[ServerSample]) -> tuple[tuple[float, float], ...] | None:
    """None where the servers have different buckets."""
    told = [dict(one.ttft_buckets or ()) for one in samples]
    if not told[0] or any(one.keys() != told[0].keys() for one in told):
        return None
    return tuple((bound_s, math.fsum(one[bound_s] for one in told)) for bound_s in sorted(told[0]))


def _added_positions(samples: Sequence[ServerSample]) -> tuple[float, ...] | None:
    rows = [one.accepted_by_position_total or () for one in samples]
    return tuple(map(math.fsum, itertools.zip_longest(*rows, fillvalue=0.0))) or None


def _replica(url: str, sample: ServerSample) -> ReplicaSample:
    named = [one.name for one in fields(ReplicaSample) if one.name != "source"]
    return ReplicaSample(source=route.place(url), **{name: getattr(sample, name) for name in named})


def _reader(urls: Sequence[str], clock: Clock, opened: contextlib.ExitStack, *, keyed: bool) -> Callable[[], ServerSample]:
    """What reads the only server, or all of several together; `keyed`: with the key."""
    key = None if keyed else ""
    clients = [opened.enter_context(probe.client(url, api_key=key, timeout_s=_TIMEOUT_S)) for url in urls]
    return lambda: scrape_replicas(urls, clock, clients) if len(urls) > 1 else scrape(urls[0], clock, clients[0])


def scrape_once(urls: Sequence[str], clock: Clock) -> ServerSample:
    """Read the `/metrics` of the servers that requests are sent to, together."""
    with contextlib.ExitStack() as opened:
        return _reader(urls, clock, opened, keyed=True)()


def scrape_forever(
    urls: Sequence[str],
    directory: Path,
    clock: Clock,
    stop: threading.Event,
    interval_s: float = INTERVAL_S,
    begun: threading.Event | None = None,
    keyed: bool = True,
) -> None:
    """Write a sample of the server, or of all these together, to `directory`/server_metrics.jsonl now, every `interval_s` of
    the run, and once more after `stop`. `begun` is set once the first is written. `keyed`: send the key; servers behind a
    router get none, as it was given for the router.

    A server without such metrics (HTTP 4xx, or series of neither engine) is asked only once. Samples are kept
    on a fixed grid: a slow answer delays one sample, not all that follow. Raises `RecordError` where the disk refuses.
    """
    begun = begun or threading.Event()
    wall_s = min(interval_s, max(_SHORTEST_INTERVAL_S, interval_s / clock.speed))
    writer = JsonlWriter(directory, "server_metrics")
    try:
        with contextlib.ExitStack() as opened:
            _keep_scraping(_reader(urls, clock, opened, keyed=keyed), writer, stop, wall_s, begun)
    finally:
        writer.close()


def _keep_scraping(
    read: Callable[[], ServerSample],
    writer: JsonlWriter,
    stop: threading.Event,
    interval_wall_s: float,
    begun: threading.Event,
) -> None:
    due_s = time.monotonic()
    while True:
        stopped = stop.is_set()
        sample = read()
        writer.write(sample)
        begun.set()
        if stopped or _will_never_answer(sample):
            return
        due_s = max(due_s + interval_wall_s, time.monotonic())
        stop.wait(due_s - time.monotonic())


def _will_never_answer(sample: ServerSample) -> bool:
    return sample.error is not None and (sample.error.startswith("/metrics: HTTP 4") or "no series" in sample.error)
