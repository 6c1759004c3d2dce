"""Seconds of one decode step as a line of the contexts it reads: `step_s = a + b K`, K the sum of all contexts (tokens).

A step reads the weights once for all requests (a), and every context's KV cache (b K). Two or three contexts at one
concurrency so say what a step takes at any context, and no long answer has to be waited for. Every function takes
leading axes: one line a start, a level, a simulated study.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from loadtest.metrics import intervals
from loadtest.metrics.figures import Interval
from loadtest.metrics.intervals import Floats

MAX_BEND = 0.01  # of a step: a line that misses by more than this is no line


@dataclass(frozen=True, slots=True)
class StepLine:
    """`a_s` and `b_s`: seconds of a step, and seconds each further token of context adds; one entry a line."""

    a_s: Floats
    b_s: Floats

    def step_s(self, context_tokens: Floats) -> Floats:
        """Seconds of a step that reads so many tokens of context, over all streams."""
        return self.a_s + self.b_s * context_tokens


def fit_step_line(context_tokens: Floats, step_s: Floats) -> StepLine:
    """The line through bursts of one concurrency, by relative least squares: the last axis holds the bursts.

    Errors of a step are a share of it, so each burst weighs `1 / step_s**2`. At least two different contexts.

    >>> line = fit_step_line(np.array([1000.0, 2000.0, 3000.0]), np.array([0.021, 0.022, 0.023]))
    >>> round(float(line.a_s), 6), round(float(line.b_s), 9)
    (0.02, 1e-06)
    """
    context_tokens, step_s = np.broadcast_arrays(context_tokens, step_s)
    weight = 1 / step_s**2
    total = np.sum(weight, axis=-1)
    centre = np.sum(weight * context_tokens, axis=-1) / total
    mean_s = np.sum(weight * step_s, axis=-1) / total
    apart = context_tokens - centre[..., None]
    b_s = np.sum(weight * apart * step_s, axis=-1) / np.sum(weight * apart**2, axis=-1)
    return StepLine(mean_s - b_s * centre, b_s)


@dataclass(frozen=True, slots=True)
class Bend:
    """How far the middle contexts lie from the line, as a share of the step: over starts, with its 95 % interval."""

    share: float
    ci95: Interval | None

    @property
    def bent(self) -> bool:
        """Is the whole interval beyond `MAX_BEND`? One start alone shows no bend."""
        return self.ci95 is not None and (self.ci95[0] > MAX_BEND or self.ci95[1] < -MAX_BEND)


def bend(context_tokens: Floats, step_s: Floats) -> Bend:
    """What bursts between the least and the largest context differ from the line through all; one row a start.

    Jitter moves each burst; only what all starts share is a bend, so the starts are the unit.
    """
    line = fit_step_line(context_tokens, step_s)
    expected_s = line.a_s[..., None] + line.b_s[..., None] * context_tokens
    inner = (context_tokens > np.min(context_tokens)) & (context_tokens < np.max(context_tokens))
    share = step_s / expected_s - 1
    by_start = np.array([np.mean(row[use]) for row, use in zip(share, np.broadcast_to(inner, share.shape), strict=True)])
    found = intervals.mean(by_start)
    return Bend(found.value if found.value is not None else math.nan, found.ci95)
