"""The unit of repetition is the start of a server: what one start differs from the next in, all its levels share.

A figure enters as its logarithm, once a start (the mean over levels). So passes of one start are never taken for
repetitions, and what changes from start to start (placement, clocks, what was compiled) is in every interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.metrics import intervals
from loadtest.metrics.intervals import Floats


@dataclass(frozen=True, slots=True)
class PairedStarts:
    """Two engines, a and b: the log of one figure of each start. `within_error`: the standard error of log(a / b) that
    requests alone explain; it matters only where starts cannot show theirs."""

    a: Floats
    b: Floats
    within_error: float = 0.0

    @property
    def log_ratio(self) -> float:
        return float(np.mean(self.a) - np.mean(self.b))

    @property
    def fewest(self) -> int:
        return min(len(self.a), len(self.b))


@dataclass(frozen=True, slots=True)
class Effect:
    """log(a / b) with its standard error and degrees of freedom; `start_sd` is how much the starts of this study differ,
    as a share. `error` None: one start each, and nothing says how much starts differ."""

    log_ratio: float
    error: float | None
    df: float
    starts_a: int
    starts_b: int
    start_sd: float | None

    @property
    def p_value(self) -> float:
        """Two-sided p-value of "no difference"; 1 where the error is unknown."""
        return self.p_beyond(0.0)

    def p_beyond(self, log_ratio: float) -> float:
        """Two-sided p-value of "the ratio is this one"."""
        if self.error is None:
            return 1.0
        away = self.log_ratio - log_ratio
        if not self.error > 1e-12:  # of no more than rounding
            return 1.0 if abs(away) < 1e-9 else 0.0
        return intervals.two_sided_p(away / self.error, self.df)

    def interval(self, level: float = 0.05) -> tuple[float, float] | None:
        """The interval of a / b that is wrong with probability `level`; None where the error is unknown."""
        if self.error is None:
            return None
        half = min(intervals.t_critical(self.df, level / 2) * self.error, 300.0)
        return math.exp(max(self.log_ratio - half, -300.0)), math.exp(min(self.log_ratio + half, 300.0))


@dataclass(frozen=True, slots=True)
class _Variance:
    """A variance of log figures with the degrees of freedom behind it (Satterthwaite's, where several make it up)."""

    value: float
    df: float


def effects_of_starts(pairs: Sequence[PairedStarts], start_sd: float | None = None) -> list[Effect]:
    """log(a / b) of every pair, in the order given.

    A pair's variance is the larger of its own (Welch) and that pooled over the starts of all pairs; its degrees of freedom
    are of the one that was taken, by Satterthwaite. `start_sd`: how much starts differ, where it is known from elsewhere:
    then it stands in for the pooled one, with the normal distribution, and one start each has an interval too.
    """
    shared = _pooled(pairs) if start_sd is None else _Variance(start_sd**2, math.inf)
    return [_effect(pair, shared) for pair in pairs]


def _effect(pair: PairedStarts, shared: _Variance | None) -> Effect:
    n_a, n_b = len(pair.a), len(pair.b)
    sd = None if shared is None else math.sqrt(shared.value)
    known = shared is not None and math.isinf(shared.df)
    if shared is None or not (known or pair.fewest > 1):
        return Effect(pair.log_ratio, None, 1, n_a, n_b, sd)
    candidates = [_Variance(shared.value * (1 / n_a + 1 / n_b), shared.df)]
    if pair.fewest > 1:
        candidates.append(_own(pair))
    taken = max(candidates, key=lambda one: one.value)
    once = pair.within_error**2 if known and pair.fewest == 1 else 0.0
    return Effect(pair.log_ratio, math.sqrt(taken.value + once), taken.df, n_a, n_b, sd)


def _own(pair: PairedStarts) -> _Variance:
    """The variance of one pair's difference (Welch 1947)."""
    errors = [float(np.std(side, ddof=1)) / math.sqrt(len(side)) for side in (pair.a, pair.b)]
    error, df = intervals.combined_error(errors[0], len(pair.a), errors[1], len(pair.b))
    return _Variance(error**2, df)


def _pooled(pairs: Sequence[PairedStarts]) -> _Variance | None:
    """The variance of one start, over all sides that have two or more; None where none has."""
    sides = [(len(side) - 1, float(np.var(side, ddof=1))) for pair in pairs for side in (pair.a, pair.b) if len(side) > 1]
    if not sides:
        return None
    total = math.fsum(df * variance for df, variance in sides)
    squares = math.fsum(df * variance**2 for df, variance in sides)
    df = math.fsum(df for df, _ in sides)
    return _Variance(total / df, total**2 / squares if squares else df)
