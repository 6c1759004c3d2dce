"""What an answer costs in joules: the power of the GPUs, integrated over the steady window."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, pairwise

from loadtest.metrics.level_schema import WindowSpan
from loadtest.metrics.request_arrays import offset
from loadtest.records.schema import GpuSample

LONGEST_GAP_S = 5.0  # between two readings of a GPU; over more its power is not known


def joules(samples: Sequence[GpuSample], window: WindowSpan, anchor: float | None = None) -> float | None:
    """Energy (J) of all GPUs in the window: the sum over the GPUs of the integral of `power_w`, by trapezoids.

    `samples` in any order; `window` in seconds since `anchor` (Unix s; None: both are on the samples' own clock). Readings
    without a power are left out. None where no GPU was read, or where one was not read before the window, every 5 s
    throughout, and after it. Idle GPUs count: they too were paid for.

    >>> at = lambda t, w: GpuSample(t_s=t, clock_anchor_unix_s=0.0, clock_speed=1.0, gpu=0, power_w=w)
    >>> joules([at(0, 100.0), at(2, 200.0), at(4, 200.0)], WindowSpan(1.0, 3.0))
    375.0
    """
    readings = sorted((s.gpu, _time_s(s, anchor), s.power_w) for s in samples if s.power_w is not None)
    silent = {s.gpu for s in samples} - {gpu for gpu, _, _ in readings}
    by_gpu = [[(t_s, power_w) for _, t_s, power_w in group] for _, group in groupby(readings, key=lambda one: one[0])]
    if not by_gpu or silent:
        return None
    parts = [_integral(one, window.start_s, window.end_s) for one in by_gpu]
    known = [one for one in parts if one is not None]
    return sum(known) if len(known) == len(parts) else None


def _time_s(sample: GpuSample, anchor: float | None) -> float:
    if anchor is None:
        return sample.t_s
    return sample.t_s + offset(sample.clock_anchor_unix_s, sample.clock_speed, anchor)


def _integral(readings: Sequence[tuple[float, float]], start_s: float, end_s: float) -> float | None:
    """Of one GPU's (time, power), ascending in time; None where they do not cover start to end."""
    if not readings or readings[0][0] > start_s or readings[-1][0] < end_s:
        return None
    total = 0.0
    for (t0, p0), (t1, p1) in pairwise(readings):
        a, b = max(t0, start_s), min(t1, end_s)
        if a >= b:
            continue
        if t1 - t0 > LONGEST_GAP_S:
            return None
        slope = (p1 - p0) / (t1 - t0)
        total += (b - a) * (p0 + slope * ((a + b) / 2 - t0))
    return total
