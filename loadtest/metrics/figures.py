"""Figures as metrics.json writes them: a value with its 95 % confidence interval, or a whole distribution.

A key that is "left out" is not in the JSON where it has nothing to say; every other key is always there.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from loadtest.metrics.catalogue import DISTRIBUTION_STATISTICS, Statistic
from loadtest.records.schema import about

Interval = tuple[float, float]
OpenInterval = tuple[float | None, float | None]  # None: nothing bounds that end


class Bounded(msgspec.Struct, frozen=True):
    """A figure that is derived from others: its value and 95 % confidence interval."""

    value: Annotated[float | None, about("The figure; None where it cannot be given.")]
    ci95: Annotated[OpenInterval | None, about("Its 95 % interval, low and high; None where there is none.")]

    @property
    def known(self) -> bool:
        return self.value is not None

    @property
    def low(self) -> float | None:
        return None if self.ci95 is None else self.ci95[0]

    @property
    def high(self) -> float | None:
        return None if self.ci95 is None else self.ci95[1]


class Estimate(Bounded, frozen=True, omit_defaults=True):
    """A figure estimated from samples: its value, 95 % confidence interval and n."""

    ci95: Annotated[Interval | None, about("Its 95 % interval, low and high; None where there is none.")]
    n: Annotated[int, about("Samples behind it: requests, or the passes or parts of a window that its interval is over.")]
    n_needed: Annotated[int | None, about("Least n that gives what is missing. Left out where nothing is.")] = None
    reason: Annotated[str | None, about("Why the value or its interval is missing. Left out where neither is.")] = None

    def at(self, statistic: Statistic) -> Estimate:
        """Itself, as its only statistic is `value`."""
        if statistic != "value":
            raise ValueError(f"expected value, the only statistic of a single figure, got {statistic}")
        return self

    def inverse(self) -> Estimate:
        """1 / itself, with the ends of the interval inverted; unknown where it, or its low end, is 0.

        >>> Estimate(0.05, (0.04, 0.1), 40).inverse()
        Estimate(value=20.0, ci95=(10.0, 25.0), n=40, n_needed=None, reason=None)
        """
        value = 1 / self.value if self.value else None
        ends = (1 / self.ci95[1], 1 / self.ci95[0]) if value is not None and self.ci95 is not None and self.ci95[0] else None
        return msgspec.structs.replace(self, value=value, ci95=ends)


def unknown(reason: str) -> Estimate:
    """No figure, and why."""
    return Estimate(None, None, 0, reason=reason)


class RestrictedMean(Estimate, frozen=True, omit_defaults=True, kw_only=True):
    """Mean of min(time, horizon), by the area under Kaplan-Meier's curve: what stands in for a mean that is unknown."""

    horizon_s: Annotated[float, about("The longest time seen, censored or not (in the metric's unit).")]


class StatisticIntervals(msgspec.Struct, frozen=True, kw_only=True):
    """95 % confidence intervals of a distribution's statistics; None where n requests cannot bound one."""

    mean: Interval | None
    p50: Interval | None
    p90: Interval | None
    p95: Interval | None
    p99: Interval | None


class NeededSamples(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The n that each missing statistic would need; left out for those that are there."""

    mean: int | None = None
    p50: int | None = None
    p90: int | None = None
    p95: int | None = None
    p99: int | None = None


class Distribution(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One metric over the measured requests of a level. A quantile is None where its interval cannot be bounded."""

    n: Annotated[int, about("Requests that have the metric, censored ones included (token gaps: gaps).")]
    mean: Annotated[float | None, about("None where there is no request, or the longest time is censored.")]
    p50: Annotated[float | None, about("Median; None below 6 requests. The least x with F(x) >= 0.5.")]
    p90: Annotated[float | None, about("90th percentile; None below 36 requests.")]
    p95: Annotated[float | None, about("95th percentile; None below 72 requests.")]
    p99: Annotated[float | None, about("99th percentile; None below 368 requests.")]
    min: Annotated[float | None, about("Least observed value; None where none was.")]
    max: Annotated[float | None, about("Largest observed value; None where none was.")]
    ci95: Annotated[StatisticIntervals, about("95 % confidence intervals of the mean and the quantiles.")]
    n_needed: Annotated[NeededSamples, about("Requests that the missing mean or quantiles would need.")]
    reason: Annotated[str | None, about("Why there is no mean, or no interval of it. Left out otherwise.")] = None

    def at(self, statistic: Statistic) -> Estimate:
        """One statistic as a figure; `min` and `max` have no interval."""
        if statistic not in DISTRIBUTION_STATISTICS:
            raise ValueError(f"expected one of {', '.join(DISTRIBUTION_STATISTICS)} of a distribution, got {statistic}")
        ends: Interval | None = getattr(self.ci95, statistic, None)
        needed: int | None = getattr(self.n_needed, statistic, None)
        return Estimate(getattr(self, statistic), ends, self.n, needed, self.reason if statistic == "mean" else None)

    def average(self) -> Estimate:
        """The mean, or what stands in for it."""
        return self.at("mean")


class CensoredDistribution(Distribution, frozen=True, kw_only=True, omit_defaults=True):
    """A metric with right-censored values: some requests stopped before their value was known.

    With censored requests, quantiles are Kaplan-Meier's and their intervals invert its pointwise band (Brookmeyer and
    Crowley); without any, they are order statistics with exact binomial intervals (Hahn and Meeker).
    """

    n_censored: Annotated[
        int, about("Of n, the requests that were cut off, truncated, timed out or stalled before the end.")
    ]
    restricted_mean: Annotated[
        RestrictedMean | None, about("Mean up to `horizon_s`. Left out unless the longest time is censored.")
    ] = None

    def average(self) -> Estimate:
        """The mean; the restricted mean where the longest time is censored."""
        return self.at("mean") if self.mean is not None or self.restricted_mean is None else self.restricted_mean


class GapDistribution(Distribution, frozen=True, kw_only=True, omit_defaults=True):
    """Gaps between tokens, weighted by token. Requests are the unit of every interval: gaps of one request are alike."""

    n_requests: Annotated[int, about("Requests with at least one gap; `n_needed` counts these.")]


NOTHING_TIMED = CensoredDistribution(
    n=0, mean=None, p50=None, p90=None, p95=None, p99=None, min=None, max=None,
    ci95=StatisticIntervals(mean=None, p50=None, p90=None, p95=None, p99=None), n_needed=NeededSamples(), n_censored=0,
)  # fmt: skip
