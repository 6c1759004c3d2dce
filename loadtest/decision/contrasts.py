"""An effect averaged over pairs of different cells: what one change does, whatever else is set.

Every cell is in one pair, so the pairs are independent, and so the mean of their logs has the mean of their variances over
their number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from loadtest.decision.starts import Effect, PairedStarts


def mean_effect(pairs: Sequence[PairedStarts], start_sd: float | None = None) -> Effect:
    """log(a / b), the mean over the pairs, each with the same weight; needs one pair at least.

    As of one pair (`starts.effects_of_starts`): the variance is the larger of the cells' own (Welch) and of that pooled over
    them, each with its degrees of freedom; `start_sd`, where it is known, stands in for the pooled one.
    `starts_a`, `starts_b`: the fewest of any cell.

    >>> one = PairedStarts(np.log([1.1, 1.12]), np.log([1.0, 1.01]))
    >>> round(math.exp(mean_effect([one, one]).log_ratio), 3)
    1.104
    """
    sides = [side for one in pairs for side in (one.a, one.b)]
    log_ratio = math.fsum(one.log_ratio for one in pairs) / len(pairs)
    starts_a, starts_b = (min(map(len, some)) for some in (sides[::2], sides[1::2]))
    variances = [(float(np.var(side, ddof=1)), len(side) - 1) for side in sides if len(side) > 1]
    df = math.inf if start_sd is not None else float(sum(n for _, n in variances))
    if not df:
        return Effect(log_ratio, None, 1, starts_a, starts_b, None)
    pooled = math.fsum(v * n for v, n in variances) / df if start_sd is None else start_sd**2
    candidates = [(pooled * math.fsum(1 / len(side) for side in sides), df)]
    if len(variances) == len(sides):
        candidates.append(_own(variances))
    elif start_sd is None:
        return Effect(log_ratio, None, 1, starts_a, starts_b, math.sqrt(pooled))
    else:
        candidates[0] = (candidates[0][0] + math.fsum(one.within_error**2 for one in pairs), df)
    variance, df = max(candidates)
    return Effect(log_ratio, math.sqrt(variance) / len(pairs), df, starts_a, starts_b, math.sqrt(pooled))


def _own(variances: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """The sum of the variances of the cells' means, each from its own starts, with Satterthwaite's degrees of freedom."""
    parts = [(variance / (df + 1), df) for variance, df in variances]
    total = math.fsum(part for part, _ in parts)
    squares = math.fsum(part**2 / df for part, df in parts)
    return total, total**2 / squares if squares else float(sum(df for _, df in parts))
