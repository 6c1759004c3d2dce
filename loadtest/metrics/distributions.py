"""Distributions of a level as metrics.json writes them: `n, mean, p50, p90, p95, p99, min, max, ci95, n_needed`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtest.metrics import intervals, survival
from loadtest.metrics.intervals import MIN_PASSES, Estimate, Floats
from loadtest.metrics.request_arrays import Bools, Ints, Small

QUANTILES: Mapping[str, float] = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


def plain(values: Floats, groups: Ints) -> dict[str, Any]:
    """Of one value a request. `groups`: the pass of each; with three passes or more they are the unit of the mean's
    interval, else the requests are. Quantiles: order statistics with exact binomial bounds, widened by what passes add."""
    parts = [np.sort(one) for one in _by_pass(values, groups)]
    ordered = np.sort(values)
    quantiles = {
        name: intervals.widened(intervals.quantile(ordered, p), [intervals.sample_quantile(one, p) for one in parts])
        for name, p in QUANTILES.items()
    }
    ends = (float(ordered[0]), float(ordered[-1])) if len(ordered) else (None, None)
    return _written(len(values), grouped_mean(values, groups), quantiles, ends)


def waiting(times: Floats, observed: Bools, groups: Ints) -> dict[str, Any]:
    """Of times of which some are only known to be longer (`observed` false: right-censored). None censored: `plain`.

    Quantiles by Kaplan-Meier. The mean is null where the longest time is censored; `restricted_mean` up to `horizon_s`
    stands in for it. `max` is the longest observed; `n` counts both kinds, `n_censored` the censored.
    """
    if bool(np.all(observed)):
        return plain(times, groups) | {"n_censored": 0}
    curve = survival.kaplan_meier(times, observed)
    parts = zip(_by_pass(times, groups), _by_pass(observed, groups), strict=True)
    passes = [survival.kaplan_meier(*one) for one in parts]
    quantiles = {
        name: intervals.widened(survival.survival_quantile(curve, p), [survival.survival_time(one, 1 - p) for one in passes])
        for name, p in QUANTILES.items()
    }
    horizon = float(np.max(times))
    restricted = intervals.widened(
        survival.restricted(curve, horizon), [survival.restricted_mean(one, horizon)[0] for one in passes]
    )
    complete = len(curve.share) > 0 and curve.share[-1] == 0
    reason = "the longest time is censored: no mean, see restricted_mean"
    average = restricted if complete else Estimate(None, None, len(times), reason=reason)
    seen = times[observed]
    ends = (float(np.min(seen)), float(np.max(seen))) if len(seen) else (None, None)
    answer = _written(len(times), average, quantiles, ends) | {"n_censored": curve.n_censored}
    if not complete:
        answer["restricted_mean"] = restricted.to_json() | {"horizon_s": horizon}
    return answer


def weighted(values: Small, weights: Small, starts: Ints, groups: Ints) -> dict[str, Any]:
    """Of token gaps, request after request: `starts` where each request's begin, `groups` the pass of each request.
    Requests (passes, where there are three or more, for the mean) are the unit of every interval; `n` counts gaps,
    `n_requests` the clusters, and `n_needed` requests."""
    found = intervals.clustered_quantiles(values, weights, starts, [*QUANTILES.values()])
    passes = _gaps_by_pass(values, weights, starts, groups)
    quantiles = {
        name: intervals.widened(one, [of_pass[i] for of_pass in passes])
        for i, (name, one) in enumerate(zip(QUANTILES, found, strict=True))
    }
    ends = (float(np.min(values)), float(np.max(values))) if len(values) else (None, None)
    sums, sizes = (intervals.by_cluster(x, starts) for x in (values * weights, weights))
    if len(passes) >= MIN_PASSES:
        sums, sizes = (np.asarray(np.bincount(groups, x), np.float64) for x in (sums, sizes))
    answer = _written(round(float(np.sum(sizes))), intervals.ratio(sums, sizes), quantiles, ends)
    return answer | {"n_requests": len(starts)}


def _by_pass(values: NDArray[Any], groups: Ints) -> list[NDArray[Any]]:
    return [values[groups == one] for one in np.unique(groups)]


def _gaps_by_pass(values: Small, weights: Small, starts: Ints, groups: Ints) -> list[list[float]]:
    """The quantiles of each pass; nothing for fewer passes than count."""
    begins = [int(starts[np.flatnonzero(groups == one)[0]]) for one in np.unique(groups)]
    if len(begins) < MIN_PASSES:
        return []
    slices = [slice(*ends) for ends in pairwise([*begins, len(values)])]
    return [intervals.weighted_quantiles(values[one], weights[one], [*QUANTILES.values()]) for one in slices]


def grouped_mean(values: Floats, groups: Ints) -> Estimate:
    """Mean of one value a request, with passes as clusters where there are at least three of them."""
    if len(np.unique(groups)) < MIN_PASSES:
        return intervals.mean(values)
    sums, sizes = np.bincount(groups, values), np.bincount(groups)
    estimate = intervals.ratio(np.asarray(sums, np.float64), np.asarray(sizes, np.float64))
    return Estimate(estimate.value, estimate.ci95, len(values))


def _written(
    n: int, average: Estimate, quantiles: Mapping[str, Estimate], ends: tuple[float | None, float | None]
) -> dict[str, Any]:
    figures = {"mean": average, **quantiles}
    answer: dict[str, Any] = {
        "n": n,
        **{name: figure.value for name, figure in figures.items()},
        "min": ends[0],
        "max": ends[1],
    }
    answer["ci95"] = {name: list(figure.ci95) if figure.ci95 else None for name, figure in figures.items()}
    answer["n_needed"] = {name: figure.n_needed for name, figure in figures.items() if figure.n_needed is not None}
    if average.reason:
        answer["reason"] = average.reason
    return answer
