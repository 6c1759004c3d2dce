"""Distributions of a level: each metric with its mean, quantiles, intervals, and the n that a missing one would need."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np
from msgspec.structs import asdict
from numpy.typing import NDArray

from loadtest.metrics import intervals, survival
from loadtest.metrics.catalogue import QUANTILES
from loadtest.metrics.figures import (
    CensoredDistribution,
    Distribution,
    Estimate,
    GapDistribution,
    NeededSamples,
    RestrictedMean,
    StatisticIntervals,
)
from loadtest.metrics.intervals import MIN_PASSES, Floats
from loadtest.metrics.request_arrays import Bools, Ints, Small

_Scalar = TypeVar("_Scalar", bound=np.generic)


def plain(values: Floats, groups: Ints) -> Distribution:
    """One exact value per request. `groups`: the pass of each; with three passes or more they are the unit of the mean's
    interval, else the requests are. Quantiles: order statistics with exact binomial bounds, widened by what passes add."""
    parts = [np.sort(one) for one in _by_pass(values, groups)]
    ordered = np.sort(values)
    quantiles = [
        intervals.widened(intervals.quantile(ordered, p), [intervals.sample_quantile(one, p) for one in parts])
        for p in QUANTILES.values()
    ]
    return _distribution(len(values), grouped_mean(values, groups), quantiles, _ends(ordered))


def waiting(times: Floats, observed: Bools, groups: Ints) -> CensoredDistribution:
    """Times, some only known to be longer (`observed` false: right-censored). Without such times: `plain`.

    Quantiles by Kaplan-Meier. The mean is None where the longest time is censored; `restricted_mean` up to `horizon_s`
    stands in for it. `max` is the longest observed; `n` counts both kinds, `n_censored` the censored.
    """
    if bool(np.all(observed)):
        return CensoredDistribution(**asdict(plain(times, groups)), n_censored=0)
    curve = survival.kaplan_meier(times, observed)
    parts = zip(_by_pass(times, groups), _by_pass(observed, groups), strict=True)
    passes = [survival.kaplan_meier(*one) for one in parts]
    quantiles = [
        intervals.widened(survival.survival_quantile(curve, p), [survival.survival_time(one, 1 - p) for one in passes])
        for p in QUANTILES.values()
    ]
    horizon = float(np.max(times))
    restricted = intervals.widened(
        survival.restricted(curve, horizon), [survival.restricted_mean(one, horizon)[0] for one in passes]
    )
    complete = len(curve.share) > 0 and curve.share[-1] == 0
    reason = "the longest time is censored: no mean, see restricted_mean"
    average = restricted if complete else Estimate(None, None, len(times), reason=reason)
    return CensoredDistribution(
        **asdict(_distribution(len(times), average, quantiles, _ends(times[observed]))),
        n_censored=curve.n_censored,
        restricted_mean=None if complete else RestrictedMean(**asdict(restricted), horizon_s=horizon),
    )


def weighted(values: Small, weights: Small, starts: Ints, groups: Ints) -> GapDistribution:
    """Token gaps, request after request: `starts` where each request's begin, `groups` the pass of each request. Requests
    (passes, where there are three or more, for the mean) are the unit of every interval; `n` counts gaps, `n_requests` the
    clusters, and `n_needed` requests."""
    found = intervals.clustered_quantiles(values, weights, starts, [*QUANTILES.values()])
    passes = _gaps_by_pass(values, weights, starts, groups)
    quantiles = [intervals.widened(one, [of_pass[i] for of_pass in passes]) for i, one in enumerate(found)]
    sums, sizes = (intervals.by_cluster(x, starts) for x in (values * weights, weights))
    if len(passes) >= MIN_PASSES:
        sums, sizes = (np.asarray(np.bincount(groups, x), np.float64) for x in (sums, sizes))
    common = _distribution(round(float(np.sum(sizes))), intervals.ratio(sums, sizes), quantiles, _ends(values))
    return GapDistribution(**asdict(common), n_requests=len(starts))


def _by_pass(values: NDArray[_Scalar], groups: Ints) -> list[NDArray[_Scalar]]:
    return [values[groups == one] for one in np.unique(groups)]


def _gaps_by_pass(values: Small, weights: Small, starts: Ints, groups: Ints) -> list[list[float]]:
    """The quantiles of each pass; nothing for fewer passes than count."""
    begins = [int(starts[np.flatnonzero(groups == one)[0]]) for one in np.unique(groups)]
    if len(begins) < MIN_PASSES:
        return []
    slices = [slice(*ends) for ends in pairwise([*begins, len(values)])]
    return [intervals.weighted_quantiles(values[one], weights[one], [*QUANTILES.values()]) for one in slices]


def grouped_mean(values: Floats, groups: Ints) -> Estimate:
    """Mean of one value per request, with passes as clusters where there are at least three of them."""
    if len(np.unique(groups)) < MIN_PASSES:
        return intervals.mean(values)
    sums, sizes = np.bincount(groups, values), np.bincount(groups)
    estimate = intervals.ratio(np.asarray(sums, np.float64), np.asarray(sizes, np.float64))
    return Estimate(estimate.value, estimate.ci95, len(values))


def _ends(values: Floats | Small) -> tuple[float | None, float | None]:
    """The least and the largest value; None without values."""
    return (float(np.min(values)), float(np.max(values))) if len(values) else (None, None)


def _distribution(
    n: int, average: Estimate, quantiles: Sequence[Estimate], ends: tuple[float | None, float | None]
) -> Distribution:
    """`quantiles`: one for each of `QUANTILES`, in their order."""
    p50, p90, p95, p99 = quantiles
    return Distribution(
        n=n,
        mean=average.value,
        p50=p50.value,
        p90=p90.value,
        p95=p95.value,
        p99=p99.value,
        min=ends[0],
        max=ends[1],
        ci95=StatisticIntervals(mean=average.ci95, p50=p50.ci95, p90=p90.ci95, p95=p95.ci95, p99=p99.ci95),
        n_needed=NeededSamples(
            mean=average.n_needed, p50=p50.n_needed, p90=p90.n_needed, p95=p95.n_needed, p99=p99.n_needed
        ),
        reason=average.reason,
    )
