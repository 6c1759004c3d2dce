"""The daily curve, Poisson arrivals and sessions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.errors import UsageError
from loadtest.simulator.fleet import arrivals
from loadtest.simulator.fleet.arrivals import Curve, Demand, Population, RequestMix

ONE = RequestMix(np.array([100], np.int32), np.array([10], np.int32))


@given(st.floats(1.0, 6.0), st.floats(0.0, 23.9))
@settings(deadline=None)
def test_the_curve_has_its_peak_and_a_mean_of_one(factor, hour):
    curve = Curve(factor, hour)
    day = np.linspace(0, arrivals.DAY_S, 2881)[:-1]
    assert curve.relative(day).mean() == pytest.approx(1, rel=1e-6)
    assert float(curve.relative(hour * 3600)) == pytest.approx(factor, rel=1e-4)
    assert curve.relative(day).max() <= factor * (1 + 1e-4)


def test_arrivals_follow_the_curve():
    times = arrivals.poisson(np.random.default_rng(1), Curve(2.0, 15.0), 200_000, 0, arrivals.DAY_S)
    assert abs(len(times) - 200_000) < 5 * math.sqrt(200_000)
    assert (np.diff(times) >= 0).all()
    assert times[0] >= 0
    assert times[-1] <= arrivals.DAY_S
    at_peak = ((times > 14.5 * 3600) & (times < 15.5 * 3600)).sum()
    assert at_peak == pytest.approx(2 * 200_000 / 24, rel=0.05)
    gaps = np.diff(times[(times > 14.5 * 3600) & (times < 15.5 * 3600)])
    assert gaps.std() / gaps.mean() == pytest.approx(1, rel=0.05)  # as of exponential gaps


def test_sessions_are_laid_out_one_after_another():
    traffic = arrivals.traffic(Demand(50_000, 2.5, 40.0), ONE, 0, 3600, seed=2)
    assert traffic.requests.count / len(traffic.opening) == pytest.approx(2.5, rel=0.03)
    assert not traffic.follows[traffic.opening].any()
    assert traffic.follows.sum() + len(traffic.opening) == traffic.requests.count
    assert np.isnan(traffic.requests.arrival_s[traffic.follows]).all()
    assert traffic.think_s[traffic.follows].mean() == pytest.approx(40, rel=0.05)
    assert traffic.floor_s >= 10  # a quarter of the mean


def test_single_requests_have_no_follow_up():
    traffic = arrivals.traffic(Demand(50_000), ONE, 0, 3600, seed=2)
    assert traffic.floor_s == math.inf
    assert traffic.requests.count == len(traffic.opening)


def test_the_peak_rate_by_hand():
    """2 sessions x 3 requests of a million users: 6 million a day, 69.4 a second, 138.9 at twice the mean."""
    demand = Demand(2e6, 3, 60, Curve(2.0))
    assert demand.peak_requests_per_s == pytest.approx(138.89, rel=1e-4)
    assert demand.times(0.5).requests_per_day() == 3e6


def test_users_at_work_begin_within_a_turn_and_never_run_out():
    traffic = Population(200, 30.0).traffic(ONE, 100, 1_300, seed=3)
    assert len(traffic.opening) == 200
    assert (traffic.starts_s >= 100).all()
    assert (traffic.starts_s <= 130).all()
    spent = traffic.think_s.reshape(200, -1)[:, 1:].sum(axis=1)  # even if every answer came at once
    assert (traffic.starts_s + spent > 1_300).all()


def test_a_population_by_hand():
    """100 users, 60 s of thought, 40 s an answer: one request a second; with 4 waiting and 6 thinking each, 10 replicas."""
    users = Population(100, 60.0)
    assert users.requests_per_day(1.0) == 86_400
    assert users.replicas_at(4, 0.1) == pytest.approx(10)
    assert users.times(0.5).users == 50


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Curve(0.5),
        lambda: Curve(math.nan),
        lambda: Curve(2.0, 24.0),
        lambda: Demand(0),
        lambda: Demand(math.inf),
        lambda: Demand(10, 0.5),
        lambda: Demand(10, 2, 0.0),
        lambda: Population(0, 60.0),
        lambda: Population(10, 0.0),
        lambda: RequestMix(np.zeros(0, np.int32), np.zeros(0, np.int32)),
    ],
)
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(UsageError):
        wrong()
