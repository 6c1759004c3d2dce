"""Natural answers at equal length: the time of an answer is its tokens times seconds per token, and tokens are luck.

By analysis of covariance on logs: `log time = start + slope * (log tokens - mean log tokens)`, one slope for all starts of
both engines at one level. What remains of a start is its time at the common length. Choosing by length (answers that
were cut off are the long ones) does not move it, for length is what it holds fixed. An engine that thinks longer also
holds longer contexts while others wait: that share of its time stays in (about 1 % for 10 % at 8 users); equal work or
bursts take it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.metrics.intervals import Floats

MIN_ANSWERS = 2  # of a start, so that it has a mean at all


@dataclass(frozen=True, slots=True)
class Answers:
    """Finished answers of one start at one level: seconds and output tokens of each, both positive."""

    time_s: Floats
    tokens: Floats


@dataclass(frozen=True, slots=True)
class Adjusted:
    """log seconds of each start at the common length, None where it has too few answers; and the variance of one such
    figure that answers alone explain."""

    log_s: tuple[float | None, ...]
    within_variance: tuple[float, ...]
    slope: float


def at_common_length(starts: Sequence[Answers]) -> Adjusted:
    """The starts of two engines at one level, adjusted to the length that all their answers have in the mean of logs.

    Where all answers are of one length the slope is 1 and nothing moves but by that length.
    """
    logs = [(np.log(one.time_s), np.log(one.tokens)) for one in starts]
    usable = [pair for pair in logs if len(pair[0]) >= MIN_ANSWERS]
    if not usable:
        return Adjusted((None,) * len(starts), (0.0,) * len(starts), 1.0)
    within_x = np.concatenate([x - np.mean(x) for _, x in usable])
    within_y = np.concatenate([y - np.mean(y) for y, _ in usable])
    spread = float(np.sum(within_x**2))
    slope = float(np.sum(within_x * within_y)) / spread if spread > 1e-9 else 1.0
    centre = float(np.mean(np.concatenate([x for _, x in usable])))
    residual = _residual_variance(within_x, within_y, slope, len(usable))
    moved = [float(np.mean(x)) - centre if len(x) >= MIN_ANSWERS else None for _, x in logs]
    return Adjusted(
        tuple(None if far is None else float(np.mean(y)) - slope * far for (y, _), far in zip(logs, moved, strict=True)),
        tuple(
            0.0 if far is None else residual * (1 / len(y) + (far**2 / spread if spread > 1e-9 else 0.0))
            for (y, _), far in zip(logs, moved, strict=True)
        ),
        slope,
    )


def _residual_variance(within_x: Floats, within_y: Floats, slope: float, starts: int) -> float:
    left = len(within_y) - starts - 1
    return float(np.sum((within_y - slope * within_x) ** 2)) / left if left > 0 else 0.0
