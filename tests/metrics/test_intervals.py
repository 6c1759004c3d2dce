"""Intervals against worked examples, and their coverage over simulated runs whose truth is known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.metrics import intervals, survival

RUNS = 1000
# 95 % intervals over 1,000 runs: 92 to 98 % is four standard errors either way.
COVERED = (0.92, 0.98)


def coverage(hits):
    return sum(hits) / len(hits)


def test_kaplan_meier_by_hand():
    """Ten patients: 6 6 6 6+ 7 9+ 10 10+ 11+ 13 (Freireich's 6-MP arm, the first ten). S(6) = 7/10; S(7) = 7/10 x 5/6;
    S(10) = that x 3/4; S(13) = 0. Greenwood at 7: 3/(10 7) + 1/(6 5)."""
    times = np.array([6.0, 6, 6, 6, 7, 9, 10, 10, 11, 13])
    observed = np.array([1, 1, 1, 0, 1, 0, 1, 0, 0, 1], bool)
    curve = survival.kaplan_meier(times, observed)
    assert curve.times.tolist() == [6, 7, 10, 13]
    assert curve.share == pytest.approx([0.7, 0.7 * 5 / 6, 0.7 * 5 / 6 * 3 / 4, 0.0])
    assert curve.greenwood[1] == pytest.approx(3 / 70 + 1 / 30)
    spread = math.exp(1.959964 * math.sqrt(3 / 70 + 1 / 30) / -math.log(0.7 * 5 / 6))
    assert curve.low[1] == pytest.approx((0.7 * 5 / 6) ** spread, rel=1e-6)
    assert curve.high[1] == pytest.approx((0.7 * 5 / 6) ** (1 / spread), rel=1e-6)
    assert (curve.n, curve.n_censored) == (10, 4)


def test_kaplan_meier_as_lifelines_has_it():
    """All 21 patients of Freireich's 6-MP arm: survival and log-log band by lifelines 0.30.3, whose median is 23 weeks with
    an interval that has no upper end, so that ours is null."""
    times = np.array([6.0, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35])
    observed = np.isin(np.arange(21), (0, 1, 2, 4, 6, 9, 10, 14, 15))
    curve = survival.kaplan_meier(times, observed)
    assert curve.times.tolist() == [6, 7, 10, 13, 16, 22, 23]
    assert curve.share == pytest.approx([0.857143, 0.806723, 0.752941, 0.690196, 0.627451, 0.537815, 0.448179], abs=1e-6)
    assert curve.low == pytest.approx([0.619718, 0.563147, 0.5032, 0.43161, 0.367511, 0.267779, 0.188052], abs=1e-6)
    assert curve.high == pytest.approx([0.951552, 0.922809, 0.889362, 0.849066, 0.804912, 0.746791, 0.680143], abs=1e-6)
    assert survival.survival_time(curve, 0.5) == 23
    assert survival.survival_quantile(curve, 0.5).value is None


def test_restricted_mean_by_hand():
    """Times 1, 2+, 3: S is 1 on [0, 1), 2/3 on [1, 3); the area up to 3 is 1 + 2 x 2/3. Variance: (4/3)^2 x 1/(3 x 2),
    times 2 / (2 - 1) for two events."""
    curve = survival.kaplan_meier(np.array([1.0, 2, 3]), np.array([True, False, True]))
    area, error = survival.restricted_mean(curve, 3.0)
    assert area == pytest.approx(1 + 4 / 3)
    assert error == pytest.approx(math.sqrt(2 * (4 / 3) ** 2 / 6))


def test_without_censoring_the_survival_quantile_is_the_order_statistic():
    times = np.arange(1.0, 41.0)
    curve = survival.kaplan_meier(times, np.ones(40, bool))
    assert survival.survival_quantile(curve, 0.5).value == 20
    assert intervals.quantile(times, 0.5).value == 20


def test_a_quantile_that_censoring_hides_is_null_with_the_n_it_needs():
    curve = survival.kaplan_meier(np.arange(1.0, 21.0), np.arange(20) < 4)
    found = survival.survival_quantile(curve, 0.5)
    assert found.value is None
    assert found.n_needed >= 30


@pytest.mark.parametrize(("p", "n"), [(0.5, 6), (0.9, 36), (0.95, 72), (0.99, 368)])
def test_a_quantile_needs_exactly_so_many(p, n):
    assert intervals.quantile(np.arange(n - 1.0), p).value is None
    assert intervals.quantile(np.arange(n - 1.0), p).n_needed == n
    assert intervals.quantile(np.arange(float(n)), p).ci95 is not None


def test_ratio_by_hand():
    """Totals 10, 20 over sizes 1, 3: 30/4 = 7.5; residuals 2.5, -2.5; error sqrt(2 x 12.5)/4 = 1.25; t(1) = 12.706.

    The lower end, 7.5 - 15.9, is cut at 0: totals are not negative.
    """
    found = intervals.ratio(np.array([10.0, 20.0]), np.array([1.0, 3.0]))
    assert found.value == 7.5
    assert found.ci95 == pytest.approx((0.0, 7.5 + 12.7062 * 1.25), rel=1e-5)


def test_poisson_by_hand():
    """Five events in one hour: 1.62 to 11.67 (Garwood's table); none: 0 to 3.69."""
    assert intervals.poisson_rate(5, 1.0).ci95 == pytest.approx((1.6235, 11.6683), rel=1e-4)
    assert intervals.poisson_rate(0, 1.0).ci95 == pytest.approx((0.0, 3.6889), rel=1e-4)


def test_a_product_by_hand():
    """4 with a relative error of 0.1 times 2.5 with 0.05, 10 samples each: on the log scale sqrt(0.01 + 0.0025), with
    0.0125^2 / (0.1^4 / 9 + 0.05^4 / 9) = 13.2 degrees of freedom."""
    t = intervals.t_critical(9)
    found = intervals.product(
        intervals.Estimate(4.0, (4 - 0.4 * t, 4 + 0.4 * t), 10),
        intervals.Estimate(2.5, (2.5 - 0.125 * t, 2.5 + 0.125 * t), 10),
    )
    spread = math.exp(intervals.t_critical(0.0125**2 / ((1e-4 + 6.25e-6) / 9)) * math.sqrt(0.0125))
    assert found.value == pytest.approx(10)
    assert found.ci95 == pytest.approx((10 / spread, 10 * spread))


def test_what_passes_add_by_hand():
    """10, from 8 to 12; passes at 7, 10, 13: their error is 3 / sqrt(3), the interval's 2 / 1.96; t(2) = 4.303."""
    found = intervals.widened(intervals.Estimate(10.0, (8.0, 12.0), 30), [7.0, 10.0, 13.0])
    half = math.sqrt(4 + 4.30265**2 * (3 - (2 / 1.959964) ** 2))
    assert found.ci95 == pytest.approx((10 - half, 10 + half), rel=1e-5)
    alike = intervals.Estimate(10.0, (8.0, 12.0), 30)
    assert intervals.widened(alike, [9.9, 10.0, 10.1]) == alike
    assert intervals.widened(alike, [7.0, 13.0, None]) == alike  # two passes show nothing


@given(st.lists(st.tuples(st.floats(0, 1e4), st.booleans()), min_size=1, max_size=40))
def test_weights_of_the_censored_are_handed_on_and_none_is_lost(pairs):
    times, observed = (np.array(x) for x in zip(*pairs, strict=True))
    weights = survival.censoring_weights(times, observed)
    assert np.sum(weights) == pytest.approx(len(pairs))
    assert np.all(weights[np.flatnonzero(~observed & (times < np.max(times)))] == 0)
    if np.all(observed):
        assert weights == pytest.approx(1)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_never_lowers_and_keeps_the_order(p_values):
    adjusted = intervals.holm(p_values)
    assert all(a >= p for a, p in zip(adjusted, p_values, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert np.all(np.diff(np.array(adjusted)[order]) >= 0)


@given(st.lists(st.tuples(st.floats(0.001, 1e4), st.booleans()), min_size=1, max_size=60))
def test_survival_falls_inside_its_band_and_its_quantiles_rise(pairs):
    times, observed = (np.array(x) for x in zip(*pairs, strict=True))
    curve = survival.kaplan_meier(times, observed.astype(bool))
    assert np.all(np.diff(curve.share) <= 1e-12)
    assert np.all((curve.low <= curve.share + 1e-12) & (curve.share <= curve.high + 1e-12))
    known = [q.value for q in (survival.survival_quantile(curve, p) for p in (0.5, 0.9, 0.95)) if q.value is not None]
    assert known == sorted(known)


def test_the_mean_of_skewed_times_is_covered():
    rng = np.random.default_rng(1)
    hits = [
        low <= math.exp(0.08) <= high for low, high in (intervals.mean(rng.lognormal(0, 0.4, 30)).ci95 for _ in range(RUNS))
    ]
    assert COVERED[0] <= coverage(hits) <= COVERED[1]


@pytest.mark.parametrize(("p", "n"), [(0.5, 20), (0.9, 60)])
def test_an_exact_quantile_is_covered_at_least_as_often_as_it_says(p, n):
    rng = np.random.default_rng(2)
    truth = -math.log(1 - p)
    found = [intervals.quantile(np.sort(rng.exponential(1, n)), p).ci95 for _ in range(RUNS)]
    assert 0.94 <= coverage([low <= truth <= high for low, high in found]) <= 0.99


def test_a_censored_median_is_covered():
    rng = np.random.default_rng(3)
    hits = []
    for _ in range(RUNS):
        times, cut = rng.lognormal(0, 0.5, 40), rng.uniform(0.5, 4, 40)
        curve = survival.kaplan_meier(np.minimum(times, cut), times <= cut)
        low, high = survival.survival_quantile(curve, 0.5).ci95
        hits.append(low <= 1.0 <= high)
    assert COVERED[0] <= coverage(hits) <= COVERED[1]


def test_dropping_the_censored_would_miss_the_truth():
    """What the field does: with the cut-off requests left out, the median comes out too short."""
    rng = np.random.default_rng(3)
    times, cut = rng.lognormal(0, 0.5, 4000), rng.uniform(0.5, 2, 4000)
    kept = np.minimum(times, cut)
    assert np.median(kept[times <= cut]) < 0.9
    curve = survival.kaplan_meier(kept, times <= cut)
    assert survival.survival_quantile(curve, 0.5).value == pytest.approx(1.0, abs=0.05)


def test_a_restricted_mean_is_covered():
    rng = np.random.default_rng(4)
    horizon, hits = 1.5, []
    for _ in range(RUNS):
        times, cut = rng.exponential(1, 60), rng.uniform(0.5, 5, 60)
        curve = survival.kaplan_meier(np.minimum(times, cut), times <= cut)
        area, error = survival.restricted_mean(curve, horizon)
        hits.append(abs(area - (1 - math.exp(-horizon))) <= 1.96 * error)
    assert COVERED[0] <= coverage(hits) <= COVERED[1]


def clustered(rng, clusters, each, between):
    """Gaps of `clusters` requests, each with a pace of its own: log-normal between requests and within."""
    pace = np.repeat(rng.normal(0, between, clusters), each)
    values = np.exp(pace + rng.normal(0, 0.2, clusters * each))
    return values.astype(np.float32), np.ones(len(values), np.float32), np.arange(0, clusters * each, each)


@pytest.mark.parametrize("p", [0.5, 0.9])
def test_gap_quantiles_are_covered_although_requests_differ(p):
    rng = np.random.default_rng(5)
    truth = math.exp(math.hypot(0.1, 0.2) * float(intervals.special.ndtri(p)))
    found = [intervals.clustered_quantiles(*clustered(rng, 40, 50, 0.1), [p])[0].ci95 for _ in range(RUNS)]
    hits = [low <= truth <= high for low, high in (one for one in found if one)]
    assert len(hits) > 0.95 * RUNS
    assert COVERED[0] <= coverage(hits) <= 0.99


def test_taking_gaps_for_independent_would_not_be():
    rng = np.random.default_rng(5)
    hits = []
    for _ in range(200):
        low, high = intervals.quantile(np.sort(clustered(rng, 40, 50, 0.1)[0]), 0.5).ci95
        hits.append(low <= 1.0 <= high)
    assert coverage(hits) < 0.8


def test_gaps_of_one_request_bound_no_quantile():
    gaps = np.arange(1.0, 1001, dtype=np.float32)
    found = intervals.clustered_quantiles(gaps, np.ones(1000, np.float32), np.zeros(1, np.int64), [0.5])[0]
    assert found.value is None
    assert found.n_needed > 1


def test_shares_are_covered():
    rng = np.random.default_rng(6)
    found = [intervals.share(int(k), 30).ci95 for k in rng.binomial(30, 0.8, RUNS)]
    assert COVERED[0] <= coverage([low <= 0.8 <= high for low, high in found]) <= COVERED[1]


def test_a_trend_is_seen_and_none_is_not():
    rng = np.random.default_rng(7)
    assert intervals.trend(10 + rng.normal(0, 0.1, 10) + np.arange(10))[1] < 0.001
    flat = [intervals.trend(10 + rng.normal(0, 1, 10))[1] < 0.05 for _ in range(RUNS)]
    assert 0.03 <= coverage(flat) <= 0.07


def test_a_rate_has_no_interval_below_zero():
    found = intervals.mean(np.array([0.0, 0.0, 9.0]))
    assert found.ci95 is not None
    assert found.ci95[0] == 0.0
    assert found.ci95[1] > 9.0
    assert intervals.mean(np.array([-9.0, 0.0, 9.0])).ci95[0] < 0  # a difference may be negative
