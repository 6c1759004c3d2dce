"""Intervals, quantiles, survival and corrections: pure functions of arrays, each with the source of its formula.

All intervals are two-sided at 95 %. A quantile whose interval n samples cannot bound is None, with the n it would need.
Why each was chosen: docs/numbers.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray
from scipy import special

from loadtest.metrics.figures import Estimate, Interval

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
MIN_PASSES = 3  # passes that make the pass the unit of repetition
MIN_TAIL_CLUSTERS = 6

_TAIL = (1 - CONFIDENCE) / 2
Z = float(special.ndtri(1 - _TAIL))


def n_for_quantile(p: float) -> int:
    """The least n whose order statistics bound quantile `p` on both sides at 95 %: `max(p, 1-p)**n <= 0.025`.

    >>> [n_for_quantile(p) for p in (0.5, 0.9, 0.95, 0.99)]
    [6, 36, 72, 368]
    """
    return math.ceil(math.log(_TAIL) / math.log(max(p, 1 - p)))


@lru_cache(maxsize=4096)
def quantile_ranks(n: int, p: float) -> tuple[int, int] | None:
    """Ranks (1-based) of the order statistics that bound quantile `p` of n samples, or None where none do.

    Exact, free of any distribution: `l` the largest with `P(B < l) <= 0.025`, `u` the least with `P(B >= u) <= 0.025`,
    B binomial(n, p) (Hahn and Meeker, Statistical Intervals, 5.2).

    >>> quantile_ranks(10, 0.5), quantile_ranks(5, 0.5)
    ((2, 9), None)
    """
    if n < n_for_quantile(p):
        return None
    below = special.bdtr(np.arange(n), n, p)  # P(B <= k) for k = 0..n-1
    low = int(np.searchsorted(below, _TAIL, side="right"))
    high = int(np.searchsorted(below, 1 - _TAIL, side="left")) + 1
    return None if low < 1 or high > n else (low, high)


def quantile(ordered: Floats, p: float) -> Estimate:
    """Quantile `p` of ascending samples, as the least x with `F(x) >= p`; None below `n_for_quantile(p)` samples."""
    n = len(ordered)
    ranks = quantile_ranks(n, p)
    if ranks is None:
        return Estimate(None, None, n, n_for_quantile(p))
    return Estimate(sample_quantile(ordered, p), (float(ordered[ranks[0] - 1]), float(ordered[ranks[1] - 1])), n)


def sample_quantile(ordered: Floats, p: float) -> float:
    """The least of the ascending samples with `F(x) >= p`, of however few of them."""
    return float(ordered[_rank(len(ordered), p) - 1])


def _rank(n: int, p: float) -> int:
    return max(1, math.ceil(n * p - 1e-9))


def t_critical(df: float, tail: float = _TAIL) -> float:
    """Student's t exceeded with probability `tail`."""
    return float(-special.stdtrit(df, tail))


def two_sided_p(t: float, df: float) -> float:
    """Probability of a Student t at least as far from 0 as `t`, on either side."""
    return 2 * float(special.stdtr(df, -abs(t)))


def mean(values: Floats) -> Estimate:
    """Arithmetic mean with the t interval of independent samples; no interval for fewer than two.

    >>> mean(np.array([1.0, 2.0, 3.0])).value
    2.0
    """
    return ratio(values, np.ones(len(values)))


def ratio(totals: Floats, sizes: Floats) -> Estimate:
    """`sum(totals) / sum(sizes)` over clusters, with the t interval of the linearised ratio (Cochran, Sampling, 6.3).

    The clusters (requests, passes, batches) are the unit of repetition: n of them, n - 1 degrees of freedom. With sizes
    of 1 it is the plain mean. Clusters of size 0 are left out; None where none is left. Totals that are never negative
    have an interval that is not either.
    """
    totals, sizes = totals[sizes > 0], sizes[sizes > 0]
    n = len(totals)
    if n == 0:
        return Estimate(None, None, 0, 1)
    value = float(math.fsum(totals) / math.fsum(sizes))
    if n == 1:
        return Estimate(value, None, 1, 2, "one sample has no interval")
    residuals = totals - value * sizes
    error = math.sqrt(n / (n - 1) * math.fsum(residuals**2)) / math.fsum(sizes)
    half = t_critical(n - 1) * error
    low = value - half
    if low < 0 <= float(np.min(totals)):
        low = 0.0  # what cannot be negative has no interval below 0; the coverage only grows
    return Estimate(value, (low, value + half), n)


def product(x: Estimate, y: Estimate, factor: float = 1.0) -> Estimate:
    """`factor` x the product of two independent positive estimates, with the t interval of its logarithm (relative errors
    added up, Welch's degrees of freedom); n is y's. No interval where either has none."""
    if not x.value or not y.value:
        return Estimate(None, None, y.n, reason=x.reason or y.reason)
    value = factor * x.value * y.value
    if x.ci95 is None or y.ci95 is None:
        return Estimate(value, None, y.n, reason=x.reason or y.reason)
    errors = [(one.ci95[1] - one.value) / t_critical(one.n - 1) / one.value for one in (x, y) if one.ci95 and one.value]
    error, df = combined_error(errors[0], x.n, errors[1], y.n)
    spread = math.exp(t_critical(df) * error)
    return Estimate(value, (value / spread, value * spread), y.n)


def combined_error(x_error: float, n_x: int, y_error: float, n_y: int) -> tuple[float, float]:
    """Standard error of a sum or difference, and its degrees of freedom (Welch 1947)."""
    total = x_error**2 + y_error**2
    if total == 0:
        return 0.0, float(n_x + n_y - 2)
    return math.sqrt(total), total**2 / (x_error**4 / (n_x - 1) + y_error**4 / (n_y - 1))


def widened(found: Estimate, by_pass: Sequence[float | None]) -> Estimate:
    """An interval that takes requests for independent, widened by what passes differ beyond that; `by_pass`: the same figure
    of each pass (None: it has none).

    Each half-width h becomes `sqrt(h**2 + t**2 max(0, e**2 - e_r**2))`, with e the standard error by passes, t of their
    degrees of freedom, e_r that of the interval: what requests explain keeps its own bounds, what passes add gets their t
    (after Cochran and Cox, Experimental Designs, 4.14). Fewer than three passes show no difference.
    """
    known = [one for one in by_pass if one is not None]
    if found.ci95 is None or found.value is None or len(known) < MIN_PASSES:
        return found
    (low, high), k = found.ci95, len(known)
    added = float(np.var(known, ddof=1)) / k - ((high - low) / (2 * Z)) ** 2
    extra = t_critical(k - 1) ** 2 * max(0.0, added)
    below, above = (math.sqrt((end - found.value) ** 2 + extra) for end in (low, high))
    least = 0.0 if low >= 0 else -math.inf
    return replace(found, ci95=(max(least, found.value - below), found.value + above))


def share(successes: int, n: int) -> Estimate:
    """A proportion with Wilson's score interval; None for n = 0.

    >>> [round(x, 3) for x in share(8, 10).ci95]
    [0.49, 0.943]
    """
    if n == 0:
        return Estimate(None, None, 0, 1)
    p = successes / n
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    low = 0.0 if successes == 0 else centre - half
    return Estimate(p, (low, 1.0 if successes == n else centre + half), n)


def poisson_rate(count: int, exposure: float) -> Estimate:
    """Events per unit of exposure with the exact interval of a Poisson count (Garwood 1936); too wide rather than too
    narrow where events come more evenly than by chance, as answers of a closed loop do."""
    if exposure <= 0:
        return Estimate(None, None, 0, 1)
    low = special.chdtri(2 * count, 1 - _TAIL) / 2 if count else 0.0
    high = special.chdtri(2 * count + 2, _TAIL) / 2
    return Estimate(count / exposure, (float(low) / exposure, float(high) / exposure), count)


def clustered_quantiles(
    values: NDArray[np.float32], weights: NDArray[np.float32], starts: NDArray[np.int64], ps: Sequence[float]
) -> list[Estimate]:
    """Weighted quantiles of values that come in clusters, such as token gaps in requests: cluster after cluster, each
    from its entry in `starts` on.

    Gaps of one request resemble each other, so requests are the unit: the share below the quantile gets its variance
    from clusters, that variance an effective n (at most the total weight), and that n exact binomial bounds, with the
    t correction for few clusters (Woodruff 1952; Korn and Graubard 1998). None where either side of the quantile comes
    from fewer than 6 clusters (by Kish's effective number: then their variance says nothing), or where the bounds reach
    0 or 1; `n_needed` then counts clusters.
    """
    if len(starts) < 2:
        return [Estimate(None, None, len(starts), 2) for _ in ps]
    order = np.argsort(values)
    running = np.cumsum(weights[order], dtype=np.float64)
    ordered = values[order]
    del order
    sizes = by_cluster(weights, starts)
    total = float(running[-1])
    answer = []
    for p in ps:
        point = _weighted(ordered, running, p * total)
        below = by_cluster(np.where(values <= point, weights, np.float32(0)), starts)
        above = by_cluster(np.where(values >= point, weights, np.float32(0)), starts)
        bounds = _share_bounds(below, above, sizes, p)
        if isinstance(bounds, int):
            answer.append(Estimate(None, None, len(starts), bounds))
        else:
            ends = (_weighted(ordered, running, bounds[0] * total), _weighted(ordered, running, bounds[1] * total))
            answer.append(Estimate(point, ends, len(starts)))
    return answer


def weighted_quantiles(values: NDArray[np.float32], weights: NDArray[np.float32], ps: Sequence[float]) -> list[float]:
    """Weighted quantiles alone, without an interval."""
    order = np.argsort(values)
    running = np.cumsum(weights[order], dtype=np.float64)
    return [_weighted(values[order], running, p * float(running[-1])) for p in ps]


def _share_bounds(below: Floats, above: Floats, sizes: Floats, p: float) -> Interval | int:
    """95 % bounds of the share at or below a quantile from clusters; or, where there are none, the clusters it needs."""
    clusters, total = len(sizes), float(np.sum(sizes))
    tail = min(float(np.sum(side)) ** 2 / float(np.sum(side**2)) for side in (below, above))
    if tail < MIN_TAIL_CLUSTERS:
        return math.ceil(clusters * MIN_TAIL_CLUSTERS / tail)
    value = float(np.sum(below)) / total
    error = math.sqrt(clusters / (clusters - 1) * float(np.sum((below - value * sizes) ** 2))) / total
    n = min(total, p * (1 - p) / error**2 if error > 0 else total) * (Z / t_critical(clusters - 1)) ** 2
    low, high = _clopper_pearson(p * n, n)
    if low <= 0 or high >= 1 or n < n_for_quantile(p):
        return math.ceil(clusters * n_for_quantile(p) / max(n, 1e-9))
    return low, high


def by_cluster(values: NDArray[np.float32], starts: NDArray[np.int64]) -> Floats:
    """Sum of each cluster's values."""
    return np.add.reduceat(values, starts, dtype=np.float64) if len(starts) else np.zeros(0)


def _weighted(values: NDArray[np.float32], running: Floats, amount: float) -> float:
    return float(values[min(int(np.searchsorted(running, amount - 1e-9)), len(values) - 1)])


def _clopper_pearson(k: float, n: float) -> Interval:
    low = float(special.betaincinv(k, n - k + 1, _TAIL)) if k > 0 else 0.0
    return low, float(special.betaincinv(k + 1, n - k, 1 - _TAIL)) if k < n else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, running = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = running
    return adjusted


def trend(values: Floats) -> tuple[float, float]:
    """Least-squares change over the whole series as a share of its mean, and the two-sided p-value of no trend.

    (0, 1) for fewer than 4 values or a series that is 0 throughout.
    """
    n = len(values)
    centre = float(np.mean(values)) if n else 0.0
    if n < 4 or centre == 0:
        return 0.0, 1.0
    x = np.arange(n) - (n - 1) / 2
    slope = float(np.sum(x * values) / np.sum(x * x))
    residual = values - centre - slope * x
    error = math.sqrt(float(np.sum(residual**2)) / (n - 2) / float(np.sum(x * x)))
    p = two_sided_p(slope / error, n - 2) if error > 0 else float(slope == 0)
    return slope * n / centre, p
