"""Survival estimates for times that were cut off: Kaplan-Meier, its quantiles, the restricted mean."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadtest.metrics.figures import Estimate
from loadtest.metrics.intervals import Floats, Z, n_for_quantile, t_critical


@dataclass(frozen=True, slots=True)
class Survival:
    """A Kaplan-Meier curve: at each time of an event, the share still waiting and its pointwise 95 % band."""

    times: Floats
    share: Floats
    low: Floats
    high: Floats
    n: int
    n_censored: int
    greenwood: Floats  # running sum of d / (r (r - d)); inf once nobody waits


def kaplan_meier(times: Floats, observed: NDArray[np.bool_]) -> Survival:
    """Kaplan-Meier's estimate from times and whether each was observed (else right-censored then).

    `S(t) = prod(1 - d_i / r_i)`; the band is Greenwood's variance on the log(-log S) scale (Kalbfleisch and Prentice,
    1.4.2). At ties events come before censorings. Where S is 0 the band is (0, previous upper).

    >>> kaplan_meier(np.array([1.0, 2.0, 3.0]), np.array([True, False, True])).share.round(3).tolist()
    [0.667, 0.0]
    """
    order = np.lexsort((~observed, times))
    times, observed = times[order], observed[order]
    at, first = np.unique(times, return_index=True)
    deaths = np.add.reduceat(observed.astype(np.int64), first) if len(at) else np.zeros(0, np.int64)
    risk = len(times) - first
    at, deaths, risk = at[deaths > 0], deaths[deaths > 0], risk[deaths > 0]
    waiting: Floats = np.cumprod(1 - deaths / risk, dtype=np.float64)
    waiting[risk == deaths] = 0.0
    with np.errstate(divide="ignore"):
        greenwood: Floats = np.cumsum(deaths / (risk * (risk - deaths)), dtype=np.float64)
    low, high = _log_log_band(waiting, greenwood)
    return Survival(at, waiting, low, high, len(times), int(np.sum(~observed)), greenwood)


def _log_log_band(waiting: Floats, greenwood: Floats) -> tuple[Floats, Floats]:
    low, high = np.zeros(len(waiting)), np.ones(len(waiting))
    inside = (waiting > 0) & (waiting < 1)
    log = np.log(waiting[inside])
    spread = np.exp(Z * np.sqrt(greenwood[inside]) / -log)
    low[inside], high[inside] = np.exp(log * spread), np.exp(log / spread)
    if len(waiting) and waiting[-1] == 0:
        high[-1] = high[-2] if len(waiting) > 1 else 1.0
    return low, high


def censoring_weights(times: Floats, observed: NDArray[np.bool_]) -> Floats:
    """What each sample counts when the censored hand their weight on to the longer ones (Efron 1967): n x its step of the
    Kaplan-Meier curve; 1 each where none is censored. The longest keeps its own, censored or not.

    >>> censoring_weights(np.array([1.0, 2.0, 3.0]), np.array([True, False, True])).tolist()
    [1.0, 0.0, 2.0]
    """
    n = len(times)
    order = np.lexsort((~observed, times))
    seen, at_risk = observed[order], np.arange(n, 0, -1)
    if n:
        seen[-1] = True
    waiting = np.cumprod(np.where(seen, 1 - 1 / at_risk, 1.0))
    weights = np.empty(n)
    weights[order] = np.where(seen, n * np.concatenate(([1.0], waiting[:-1])) / at_risk, 0.0)
    return weights


def survival_quantile(curve: Survival, p: float) -> Estimate:
    """Time by which a share `p` has finished: the first t with `S(t) <= 1 - p`; its interval inverts the pointwise band
    (Brookmeyer and Crowley 1982).

    None where the band never falls to `1 - p`, and where `S` is there known no better than from fewer samples than
    `n_for_quantile(p)`, for then it is chance whether it does; `n_needed` assumes that the same share is censored.
    """
    low, high = (_first_at_most(curve.times, s, 1 - p) for s in (curve.low, curve.high))
    value = survival_time(curve, 1 - p)
    if low is not None and value is not None and high is not None and _effective_n(curve, value) >= n_for_quantile(p):
        return Estimate(value, (low, high), curve.n)
    finished = max(1, curve.n - curve.n_censored) / max(1, curve.n)
    needed = max(curve.n + 1, math.ceil(n_for_quantile(p) / finished))
    return Estimate(None, None, curve.n, needed)


def _effective_n(curve: Survival, t: float) -> float:
    """How many samples without censoring would know `S(t)` as well: `(1 - S) / (S G)`, G Greenwood's sum; 0 where S is."""
    at = int(np.searchsorted(curve.times, t, side="right")) - 1
    if at < 0 or curve.share[at] == 0:
        return 0.0
    return float((1 - curve.share[at]) / (curve.share[at] * curve.greenwood[at]))


def survival_time(curve: Survival, share: float) -> float | None:
    """The first time at which no more than a share still waits; None where the curve does not fall so far."""
    return _first_at_most(curve.times, curve.share, share)


def _first_at_most(times: Floats, values: Floats, limit: float) -> float | None:
    where = np.flatnonzero(values <= limit + 1e-12)
    return float(times[where[0]]) if len(where) else None


def restricted_mean(curve: Survival, horizon: float) -> tuple[float, float]:
    """Mean of min(T, horizon), the area under S up to `horizon`, and its standard error
    `sqrt(m / (m - 1) sum(A_i^2 d_i / (r_i (r_i - d_i))))`, A_i the area from t_i on, m the number of events (Klein and
    Moeschberger, 4.5)."""
    inside = curve.times < horizon
    times, waiting = curve.times[inside], curve.share[inside]
    edges = np.concatenate(([0.0], times, [horizon]))
    areas = np.diff(edges) * np.concatenate(([1.0], waiting))
    after = np.cumsum(areas[::-1])[::-1][1:]
    steps = np.diff(np.concatenate(([0.0], curve.greenwood[inside])))
    terms = np.where(after > 0, after**2, 0.0) * np.where(np.isfinite(steps), steps, 0.0)
    events = curve.n - curve.n_censored
    return float(np.sum(areas)), math.sqrt(float(np.sum(terms)) * events / max(1, events - 1))


def restricted(curve: Survival, horizon: float) -> Estimate:
    """The mean up to a horizon with the t interval of its logarithm, by the number of events; none from a single one."""
    area, error = restricted_mean(curve, horizon)
    events = curve.n - curve.n_censored
    if events < 2 or area == 0:
        return Estimate(area, None, curve.n)
    spread = math.exp(t_critical(events - 1) * error / area)
    return Estimate(area, (area / spread, area * spread), curve.n)
