"""Downsampled series of one level for the page. Times are seconds since the first request of the pass that is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from loadtest.metrics.intervals import Floats
from loadtest.metrics.level_schema import (
    GapHistogram,
    LevelCurves,
    ServerSeries,
    SurvivalPoint,
    ThroughputSeries,
    TimelineRequest,
    WindowSpan,
)
from loadtest.metrics.request_arrays import Pass, offset
from loadtest.metrics.survival import kaplan_meier
from loadtest.records.read import LevelRecords

POINTS = 200
SERVER_POINTS = 300
BINS = 60


def of_level(
    columns: Sequence[Pass], levels: Sequence[LevelRecords], windows: Sequence[WindowSpan | None], anchor: float
) -> LevelCurves:
    """Survival and gaps over all passes; timeline, server and throughput of the first pass that has requests."""
    chosen = next((i for i, one in enumerate(columns) if len(one.records)), 0)
    first = columns[chosen]
    sent = first.sent_s[np.isfinite(first.sent_s)]
    zero = float(np.min(sent)) if len(sent) else 0.0
    span = windows[chosen]
    return LevelCurves(
        time_to_final_answer_survival=_survival(columns),
        itl_histogram=_gap_histogram(columns),
        timeline=tuple(_timeline(first, zero)),
        server=_server(levels[chosen], anchor, zero),
        throughput=_throughput(first, zero),
        window=None if span is None else WindowSpan(span.start_s - zero, span.end_s - zero),
        repeat=first.repeat,
    )


def _survival(columns: Sequence[Pass]) -> tuple[SurvivalPoint, ...]:
    """The share still waiting for a final answer, by Kaplan-Meier."""
    times, observed = [np.zeros(0)], [np.zeros(0, bool)]
    for one in (one for one in columns if not one.unjudged):
        last = np.where(np.isfinite(one.last_s), one.last_s, one.ended_s) - one.sent_s
        use = one.measured & (one.ok | one.censored) & np.isfinite(last)
        times.append(last[use])
        observed.append(one.ok[use])
    curve = kaplan_meier(np.concatenate(times), np.concatenate(observed))
    if not len(curve.times):
        return ()
    pick = _pick(len(curve.times), POINTS - 1)
    rows = np.column_stack((curve.times, curve.share, curve.low, curve.high))[pick].tolist()
    return (SurvivalPoint(0.0, 1.0, 1.0, 1.0), *(SurvivalPoint(*row) for row in rows))


def _gap_histogram(columns: Sequence[Pass]) -> GapHistogram:
    """Shares of tokens by the gap before them, in bins of equal width on the log scale between 0.1 % and 99.9 %, the end
    bins taking what lies outside."""
    parts = [one.gaps() for one in columns]
    gaps, weights = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    positive = gaps[gaps > 0]
    if len(positive) < 2:
        return GapHistogram(edges_s=(), shares=())
    low, high = (float(x) for x in np.quantile(positive, (0.001, 0.999)))
    edges = np.geomspace(low * 0.999, max(high, low) * 1.001, BINS + 1)
    counts, _ = np.histogram(np.clip(gaps, edges[0], edges[-1]), edges, weights=weights)
    return GapHistogram(edges_s=tuple(edges.tolist()), shares=tuple((counts / np.sum(counts)).tolist()))


def _timeline(columns: Pass, zero: float) -> Iterator[TimelineRequest]:
    """The first 200 requests by the time they were sent; none of another tool, which does not tell its users."""
    if columns.lacks:
        return
    for i in np.lexsort((np.arange(len(columns.records)), columns.sent_s))[:POINTS]:
        record = columns.records[i]
        sent_s, first_s, answer_s = (_known(x[i] - zero) for x in (columns.sent_s, columns.first_s, columns.answer_s))
        yield TimelineRequest(
            user=record.user,
            seq=record.seq,
            phase=record.phase,
            worker=record.worker,
            outcome=record.outcome,
            sent_s=sent_s,
            first_s=first_s,
            answer_s=answer_s,
            ended_s=float(columns.ended_s[i]) - zero,
        )


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _server(level: LevelRecords, anchor: float, zero: float) -> ServerSeries:
    """What the server told of itself, at most 300 readings."""
    readings = [
        (s.t_s + offset(s.clock_anchor_unix_s, s.clock_speed, anchor) - zero, s) for s in level.server if not s.error
    ]
    readings.sort(key=lambda one: one[0])
    kept = [readings[i] for i in _pick(len(readings), SERVER_POINTS)]
    return ServerSeries(
        t_s=tuple(t for t, _ in kept),
        running=tuple(sample.running for _, sample in kept),
        waiting=tuple(sample.waiting for _, sample in kept),
        kv_usage=tuple(sample.kv_usage for _, sample in kept),
    )


def _throughput(columns: Pass, zero: float) -> ThroughputSeries:
    """Tokens/s of the whole pass in at most 200 equal bins, each at its middle; a bin is at least half a second wide."""
    times = columns.token_s - zero
    if not len(times) or columns.lacks & {"start", "chunks"}:
        return ThroughputSeries(t_s=(), tokens_per_s=())
    end = float(np.max(times)) * (1 + 1e-9)
    bins = int(np.clip(end / 0.5, 1, POINTS))
    counts, edges = np.histogram(times, bins, (0.0, max(end, 1e-9)), weights=columns.token_weight)
    middles: Floats = (edges[1:] + edges[:-1]) / 2
    return ThroughputSeries(t_s=tuple(middles.tolist()), tokens_per_s=tuple((counts / np.diff(edges)).tolist()))


def _pick(n: int, most: int) -> list[int]:
    """Indices of at most `most` of n points, the first and the last among them."""
    return sorted({round(i) for i in np.linspace(0, n - 1, min(n, most))}) if n else []
