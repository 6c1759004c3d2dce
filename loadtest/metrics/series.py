"""Downsampled series of one level for the page. Times are seconds since the first request of the pass that is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from loadtest.metrics.intervals import Floats
from loadtest.metrics.request_arrays import Pass, offset
from loadtest.metrics.steady_window import Window
from loadtest.metrics.survival import kaplan_meier
from loadtest.records.read import LevelRecords

POINTS = 200
SERVER_POINTS = 300
BINS = 60


def of_level(
    columns: Sequence[Pass], levels: Sequence[LevelRecords], windows: Sequence[Window | None], anchor: float
) -> dict[str, Any]:
    """Survival and gaps over all passes; timeline, server and throughput of the first pass that has requests."""
    chosen = next((i for i, one in enumerate(columns) if len(one.records)), 0)
    first = columns[chosen]
    sent = first.sent_s[np.isfinite(first.sent_s)]
    zero = float(np.min(sent)) if len(sent) else 0.0
    span = windows[chosen]
    return {
        "time_to_final_answer_survival": survival(columns),
        "itl_histogram": histogram(columns),
        "timeline": timeline(first, zero),
        "server": server(levels[chosen], anchor, zero),
        "throughput": throughput(first, zero),
        "window": None if span is None else {"start_s": span.start_s - zero, "end_s": span.end_s - zero},
        "repeat": first.repeat,
    }


def survival(columns: Sequence[Pass]) -> list[list[float]]:
    """`[[t_s, share still waiting, low, high], ...]`, at most 200 points, by Kaplan-Meier."""
    times, observed = [], []
    for one in columns:
        last = np.where(np.isfinite(one.last_s), one.last_s, one.ended_s) - one.sent_s
        use = one.measured & (one.ok | one.censored) & np.isfinite(last)
        times.append(last[use])
        observed.append(one.ok[use])
    curve = kaplan_meier(np.concatenate(times), np.concatenate(observed))
    if not len(curve.times):
        return []
    pick = _pick(len(curve.times), POINTS - 1)
    rows = np.column_stack((curve.times, curve.share, curve.low, curve.high))[pick].tolist()
    return [[0.0, 1.0, 1.0, 1.0], *rows]


def histogram(columns: Sequence[Pass]) -> dict[str, list[float]]:
    """Shares of tokens by the gap before them, in bins of equal width on the log scale between 0.1 % and 99.9 %, the end
    bins taking what lies outside."""
    parts = [one.gaps() for one in columns]
    gaps, weights = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    positive = gaps[gaps > 0]
    if len(positive) < 2:
        return {"edges_s": [], "shares": []}
    low, high = (float(x) for x in np.quantile(positive, (0.001, 0.999)))
    edges = np.geomspace(low * 0.999, max(high, low) * 1.001, BINS + 1)
    counts, _ = np.histogram(np.clip(gaps, edges[0], edges[-1]), edges, weights=weights)
    return {"edges_s": edges.tolist(), "shares": (counts / np.sum(counts)).tolist()}


def timeline(columns: Pass, zero: float) -> list[dict[str, Any]]:
    """The first 200 requests by the time they were sent."""
    rows = []
    for i in np.lexsort((np.arange(len(columns.records)), columns.sent_s))[:POINTS]:
        record = columns.records[i]
        row = {
            "user": record.user,
            "seq": record.seq,
            "phase": record.phase,
            "worker": record.worker,
            "outcome": record.outcome,
        }
        for name in ("sent_s", "first_s", "answer_s", "ended_s"):
            value = float(getattr(columns, name)[i]) - zero
            row[name] = value if np.isfinite(value) else None
        rows.append(row)
    return rows


def server(level: LevelRecords, anchor: float, zero: float) -> dict[str, list[Any]]:
    """What the server told of itself, at most 300 readings."""
    readings = [
        (s.t_s + offset(s.clock_anchor_unix_s, s.clock_speed, anchor) - zero, s) for s in level.server if not s.error
    ]
    readings.sort(key=lambda one: one[0])
    kept = [readings[i] for i in _pick(len(readings), SERVER_POINTS)]
    answer: dict[str, list[Any]] = {"t_s": [t for t, _ in kept]}
    for name in ("running", "waiting", "kv_usage"):
        answer[name] = [getattr(sample, name) for _, sample in kept]
    return answer


def throughput(columns: Pass, zero: float) -> dict[str, list[float]]:
    """Tokens/s of the whole pass in at most 200 equal bins, each at its middle; a bin is at least half a second wide."""
    times = columns.token_s - zero
    if not len(times):
        return {"t_s": [], "tokens_per_s": []}
    end = float(np.max(times)) * (1 + 1e-9)
    bins = int(np.clip(end / 0.5, 1, POINTS))
    counts, edges = np.histogram(times, bins, (0.0, max(end, 1e-9)), weights=columns.token_weight)
    middles: Floats = (edges[1:] + edges[:-1]) / 2
    return {"t_s": middles.tolist(), "tokens_per_s": (counts / np.diff(edges)).tolist()}


def _pick(n: int, most: int) -> list[int]:
    """Indices of at most `most` of n points, the first and the last among them."""
    return sorted({round(i) for i in np.linspace(0, n - 1, min(n, most))}) if n else []
