"""How far our times are off those of a server that keeps the time of every send."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from loadtest.errors import LoadtestError
from loadtest.records.instrument import InstrumentError, Sent
from loadtest.records.schema import RequestRecord


def instrument_error(
    requests: Sequence[RequestRecord], sends: Sequence[Sent], concurrency: int, tokens_per_s: float
) -> InstrumentError:
    """Errors of the measured requests, on one machine: one clock for both sides.

    Population: requests that ended well and whose tokens came in as many chunks as were sent. A request is matched with the
    server's by its body, in order. Raises `LoadtestError` if there is none.
    """
    pairs = list(_pairs(requests, sends))
    if not pairs:
        raise LoadtestError("the instrument: no request came whole from our own server; is this machine out of memory?")
    ttft = np.array([_since_sent(r, 0) - (sent.before[0] - sent.arrived) for r, sent in pairs])
    final = np.array([_since_sent(r, -1) - (sent.before[-1] - sent.arrived) for r, sent in pairs])
    gaps = np.concatenate([np.diff(r.chunk_s) - np.diff(sent.before) for r, sent in pairs])
    return InstrumentError(
        concurrency=concurrency,
        tokens_per_s=tokens_per_s,
        n_requests=len(pairs),
        n_lost=len(sends) - len(pairs),
        ttft_mean_s=float(np.mean(np.abs(ttft))),
        ttft_p99_s=_p99(ttft),
        gap_p99_s=_p99(gaps),
        final_answer_mean_s=float(np.mean(np.abs(final))),
        final_answer_p99_s=_p99(final),
    )


def _pairs(requests: Iterable[RequestRecord], sends: Iterable[Sent]) -> Iterable[tuple[RequestRecord, Sent]]:
    waiting: dict[str, list[Sent]] = defaultdict(list)
    for sent in sorted(sends, key=lambda sent: sent.arrived):
        waiting[sent.sha256].append(sent)
    timed = sorted((r for r in requests if r.sent_s is not None), key=lambda r: r.sent_s or 0.0)
    for record in timed:
        if not waiting[record.request_sha256]:
            continue
        sent = waiting[record.request_sha256].pop(0)
        if record.outcome == "ok" and len(sent.before) == len(record.chunk_s):
            yield record, sent


def _since_sent(record: RequestRecord, chunk: int) -> float:
    assert record.sent_s is not None
    return record.chunk_s[chunk] - record.sent_s


def _p99(errors: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    return float(np.quantile(np.abs(errors), 0.99))
