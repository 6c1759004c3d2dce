"""Do client and server agree: the client's totals and times to first token against the server's own counters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from msgspec.structs import replace

from loadtest.metrics import intervals
from loadtest.metrics.client_health import Passes, sample_time
from loadtest.metrics.figures import Bounded
from loadtest.metrics.level_schema import (
    DraftFigures,
    PassReconciliation,
    Reconciliation,
    ReplicaFigures,
    ServerCounters,
    TtftAgreement,
)
from loadtest.metrics.request_arrays import Pass
from loadtest.metrics.token_counts import tokens_per_chunk
from loadtest.records.read import LevelRecords
from loadtest.records.schema import FINISHED, ReplicaSample, ServerSample

_Reading = ServerSample | ReplicaSample

TOKENS_TOLERANCE = 0.001  # of the total, and at least one token a request

TTFT_SLACK_S = 0.1  # wall: network, HTTP and the loop's lateness on both sides of a mean TTFT

TTFT_TOLERANCE = 0.05  # of the server's mean

ABORT_SLACK_S = 2.0  # a server may decode for so long after its client has left (engines' notes)


def reconcile(passes: Passes, anchor: float, tpot_s: float | None) -> Reconciliation:
    """Client against server: tokens and requests of whole passes, warm-up included, first to last reading of `/metrics`.

    Exact up to one token a request or 0.1 %. A request that was cut off or broke makes a range: a server may not have
    counted it yet, or decode on for 2 s after its client has left. Not checked where the readings do not bracket every
    request. What a server generated before the first reading, its own warm-up, is outside.
    """
    found = [_reconcile_pass(level, columns, anchor, tpot_s or 0.02) for level, columns in passes]
    states = {one.status for one in found}
    return Reconciliation(
        status="fail" if "fail" in states else "not_checked" if "not_checked" in states or not found else "pass",
        reasons=tuple(f"repeat {one.repeat}: {one.reason}" for one in found if one.reason),
        client_output_tokens=_sum(one.client_output_tokens for one in found),
        server_output_tokens=_sum(one.server_output_tokens for one in found),
        passes=tuple(found),
    )


def _sum(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if not known or None in known else float(sum(v for v in known if v is not None))


def count_server(passes: Passes, anchor: float) -> ServerCounters:
    """What the server's own counters say of whole passes, warm-up included; None where it does not tell.

    `n_preemptions` (vLLM; retractions of SGLang): requests put back when the KV cache was full; their work is repeated.
    `speculation`: what became of drafts. `prefix_cache_hit_share`: prompt tokens found in the prefix cache / prompt tokens.
    These from the first reading of `/metrics` to the last, over all passes. `peak_kv_usage_share` (of the KV cache),
    `peak_waiting_at_once`: in any of them.
    """
    readings = [_readings(level, anchor) for level, _ in passes]
    ends = [(one[0], one[-1]) for one in readings if len(one) > 1]

    def growth(field: str) -> float | None:
        return _sum(_difference(first, last, field) for first, last in ends) if ends else None

    def highest(field: str) -> float | None:
        return max((v for one in readings for s in one if (v := getattr(s, field)) is not None), default=None)

    hits, prompts = growth("prefix_cache_hit_tokens_total"), growth("prefix_cache_query_tokens_total")
    return ServerCounters(
        n_preemptions=growth("preemptions_total"),
        prefix_cache_hit_share=hits / prompts if hits is not None and prompts else None,
        peak_kv_usage_share=highest("kv_usage"),
        peak_waiting_at_once=highest("waiting"),
        replicas=_replicas(readings),
        speculation=_speculation(ends, [columns for _, columns in passes]),
    )


def _replicas(readings: Sequence[Sequence[ServerSample]]) -> tuple[ReplicaFigures, ...]:
    """Each replica that every pass read, with its share of what all did."""
    whole = [one for one in readings if len(one) > 1]
    sources = list(dict.fromkeys(replica.source for one in whole for replica in one[0].replicas))
    found = [_replica(whole, source) for source in sources]
    requests, tokens = (math.fsum(getattr(one, name) or 0.0 for one in found) for name in ("n_requests", "output_tokens"))
    return tuple(
        replace(
            one,
            request_share=one.n_requests / requests if one.n_requests is not None and requests else None,
            output_token_share=one.output_tokens / tokens if one.output_tokens is not None and tokens else None,
        )
        for one in found
    )


def _replica(readings: Sequence[Sequence[ServerSample]], source: str) -> ReplicaFigures:
    told = [[one for sample in pass_ for one in sample.replicas if one.source == source] for pass_ in readings]
    ends = [(one[0], one[-1]) for one in told if len(one) > 1]

    def growth(name: str) -> float | None:
        return _sum(_difference(first, last, name) for first, last in ends) if ends else None

    def highest(name: str) -> float | None:
        return max((v for one in told for s in one if (v := getattr(s, name)) is not None), default=None)

    hits, prompts = growth("prefix_cache_hit_tokens_total"), growth("prefix_cache_query_tokens_total")
    return ReplicaFigures(
        source=source,
        n_requests=growth("requests_finished_total"),
        request_share=None,
        output_tokens=growth("generation_tokens_total"),
        output_token_share=None,
        prefix_cache_hit_share=hits / prompts if hits is not None and prompts else None,
        peak_kv_usage_share=highest("kv_usage"),
        peak_waiting_at_once=highest("waiting"),
    )


Ends = Sequence[tuple[ServerSample, ServerSample]]  # the first and the last reading of each pass


def _speculation(ends: Ends, columns: Sequence[Pass]) -> DraftFigures | None:
    rows = _growths(ends, "drafts_total")
    n_drafts = math.fsum(rows)
    if not n_drafts:
        return None
    accepted, proposed = _growths(ends, "accepted_draft_tokens_total"), _growths(ends, "draft_tokens_total")
    length = _ratio(accepted, rows)
    thinking, answer = tokens_per_chunk(columns)
    return DraftFigures(
        n_drafts=n_drafts,
        accepted_share=_ratio(accepted, proposed),
        accepted_length=Bounded(
            None if length.value is None else 1 + length.value,
            None if length.ci95 is None else (1 + (length.low or 0.0), 1 + (length.high or 0.0)),
        ),
        accepted_share_by_position=tuple(count / n_drafts for count in _by_position(ends)),
        thinking_tokens_per_chunk=thinking,
        answer_tokens_per_chunk=answer,
    )


def _growths(ends: Ends, field: str) -> list[float]:
    """Growth of a counter in each pass; 0 where it is not told."""
    return [_difference(first, last, field) or 0.0 for first, last in ends]


def _ratio(parts: Sequence[float], wholes: Sequence[float]) -> Bounded:
    """Of all passes together, with an interval over passes."""
    whole = math.fsum(wholes)
    if not whole:
        return Bounded(None, None)
    each = [part / of for part, of in zip(parts, wholes, strict=True) if of]
    return Bounded(math.fsum(parts) / whole, intervals.mean(np.array(each)).ci95)


def _by_position(ends: Ends) -> list[float]:
    grown: list[float] = []
    for first, last in ends:
        before = first.accepted_by_position_total or ()
        for n, count in enumerate(last.accepted_by_position_total or ()):
            grown += [0.0] * (n + 1 - len(grown))
            grown[n] += count - (before[n] if n < len(before) else 0.0)
    return grown


def _readings(level: LevelRecords, anchor: float) -> list[ServerSample]:
    """Those of a pass that succeeded, ascending in time."""
    return [s for s in sorted(level.server, key=lambda s: sample_time(s, anchor)) if s.error is None]


def _reconcile_pass(level: LevelRecords, columns: Pass, anchor: float, tpot_s: float) -> PassReconciliation:
    readings = _readings(level, anchor)
    ranges = _client_ranges(columns, tpot_s)
    first, last = (readings[0], readings[-1]) if len(readings) > 1 else (None, None)
    server = {name: _difference(first, last, field) for name, field in _TOTALS.items()}
    unchecked = PassReconciliation(
        repeat=level.repeat,
        status="not_checked",
        reason=_unbracketed(first, last, columns, anchor),
        ttft=None,
        client_requests=ranges["requests"][0],
        server_requests=server["requests"],
        client_prompt_tokens=ranges["prompt_tokens"][0],
        server_prompt_tokens=server["prompt_tokens"],
        client_output_tokens=ranges["output_tokens"][0],
        server_output_tokens=server["output_tokens"],
    )
    if unchecked.reason:
        return unchecked
    wrong = [_disagreement(name, ranges[name], server[name], len(columns.records)) for name in ranges]
    ttft = _ttft(first, last, columns, tpot_s)
    wrong.append(ttft.reason if ttft.status == "fail" else None)
    checked = any(value is not None for value in server.values())
    reason = "; ".join(text for text in wrong if text) or (None if checked else "the server reports no totals")
    status: Literal["pass", "fail", "not_checked"] = "not_checked" if not checked else "fail" if any(wrong) else "pass"
    return replace(unchecked, status=status, reason=reason, ttft=ttft)


_TOTALS = {
    "prompt_tokens": "prompt_tokens_total",
    "output_tokens": "generation_tokens_total",
    "requests": "requests_finished_total",
}


def _client_ranges(columns: Pass, tpot_s: float) -> dict[str, tuple[float, float]]:
    """Least and most that the server may have counted: finished requests alone; all, with what an abort may add."""
    ranges: dict[str, tuple[float, float]] = {"requests": (0, 0), "prompt_tokens": (0, 0), "output_tokens": (0, 0)}
    slack = ABORT_SLACK_S / max(tpot_s, 1e-6)
    for record, arrived in zip(columns.records, columns.tokens, strict=True):
        output = float(record.completion_tokens or arrived)
        prompt = record.prompt_tokens
        done = record.outcome in FINISHED
        started = record.sent_s is not None and record.outcome not in ("http_error", "connection_error")
        least = {"requests": 1.0, "prompt_tokens": float(prompt or 0), "output_tokens": output} if done else {}
        unknown = float("inf") if prompt is None else float(prompt)
        most = {"requests": 1.0, "prompt_tokens": unknown, "output_tokens": output + slack} if started else {}
        most = least or most
        for name, (low, high) in ranges.items():
            ranges[name] = (low + least.get(name, 0.0), high + most.get(name, 0.0))
    return ranges


def _difference(first: _Reading | None, last: _Reading | None, field: str) -> float | None:
    """Growth of a counter. One that is absent at first and there later began at 0 (SGLang's, before the first event)."""
    start, end = getattr(first, field, None), getattr(last, field, None)
    return None if end is None else float(end - (start or 0))


def _ttft(first: ServerSample | None, last: ServerSample | None, columns: Pass, tpot_s: float) -> TtftAgreement:
    """Times to the first token: the client's mean and median against the server's own histogram.

    Both count the server's queue. The client's begins with the send and ends with text on its
    side, so it is larger, by the network, HTTP, and a token or two that carry no text: up to 0.1 s of wall time, two token
    gaps and 5 % pass, and 5 % the other way. The median must lie in the server's bucket, as much wider. Not checked where
    both did not see the same number of first tokens.
    """
    waits = np.sort((columns.first_s - columns.sent_s)[np.isfinite(columns.first_s) & np.isfinite(columns.sent_s)])
    count, total_s = _difference(first, last, "ttft_count"), _difference(first, last, "ttft_sum_s")
    n = len(waits)
    if count is None or total_s is None or count != n or not n:
        reason = f"first tokens: client {n}, server {'none' if count is None else f'{count:.0f}'}: not the same requests"
        return TtftAgreement(status="not_checked", reason=reason, n_client=n, n_server=count)
    server_s, client_s = total_s / n, float(np.mean(waits))
    speed = columns.records[0].clock_speed
    low_s, high_s = TTFT_TOLERANCE * server_s, TTFT_TOLERANCE * server_s + TTFT_SLACK_S * speed + 2 * tpot_s
    middle, bucket = float(waits[(n - 1) // 2]), _median_bucket(first, last, n)
    found = TtftAgreement(
        status="pass", reason=None, n_client=n, n_server=count, client_mean_s=client_s, server_mean_s=server_s,
        difference_s=client_s - server_s, tolerance_s=high_s, client_p50_s=middle, server_p50_s=bucket,
    )  # fmt: skip
    if not -low_s <= client_s - server_s <= high_s:
        more = client_s > server_s
        cause = "the network, a proxy or a queue before the server" if more else "the server measures something else"
        said = f"mean TTFT: client {client_s:.4g} s, server {server_s:.4g} s, beyond the tolerance of"
        return replace(found, status="fail", reason=f"{said} {high_s if more else low_s:.3g} s: {cause}")
    if bucket is not None and not bucket[0] - low_s <= middle <= (bucket[1] or np.inf) + high_s:
        ends = f"{bucket[0]:g} to {'more' if bucket[1] is None else f'{bucket[1]:g}'} s"
        return replace(found, status="fail", reason=f"median TTFT: client {middle:.4g} s, server {ends}")
    return found


def _median_bucket(first: ServerSample | None, last: ServerSample | None, n: int) -> tuple[float, float | None] | None:
    """The bucket of the server's histogram that holds the lower median of `n` new values; its end is None for the last."""
    ends = getattr(last, "ttft_buckets", None)
    if not ends:
        return None
    before = dict(getattr(first, "ttft_buckets", None) or ())
    low_s = 0.0
    for bound_s, value in ends:
        if value - before.get(bound_s, 0.0) >= (n + 1) // 2:
            return low_s, bound_s
        low_s = bound_s
    return low_s, None


def _unbracketed(first: ServerSample | None, last: ServerSample | None, columns: Pass, anchor: float) -> str | None:
    if first is None or last is None:
        return "fewer than two readings of the server's /metrics"
    sent = columns.sent_s[np.isfinite(columns.sent_s)]
    if not len(sent):
        return "no request was sent"
    if sample_time(first, anchor) > float(np.min(sent)):
        return "the first reading of /metrics came after the first request"
    if sample_time(last, anchor) < float(np.max(columns.ended_s)):
        return "the last reading of /metrics came before the last request ended"
    return None


def _disagreement(name: str, span: tuple[float, float], server: float | None, requests: int) -> str | None:
    if server is None:
        return None
    tolerance = 0.0 if name == "requests" else max(float(requests), TOKENS_TOLERANCE * server)
    if span[0] - tolerance <= server <= span[1] + tolerance:
        return None
    expected = f"{span[0]:.0f}" if span[0] == span[1] else f"{span[0]:.0f} to {span[1]:.0f}"
    cause = (
        "records are missing, or other clients used the server"
        if server > span[1]
        else "the server counted less than arrived"
    )
    return f"{name.replace('_', ' ')}: client {expected}, server {server:.0f}: {cause}"
