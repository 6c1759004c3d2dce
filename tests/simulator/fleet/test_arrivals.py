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
    traffic = Demand(50_000, 2.5, 40.0).traffic(ONE, 0, 3600, seed=2)
    assert traffic.requests.count / len(traffic.opening) == pytest.approx(2.5, rel=0.03)
    assert not traffic.follows[traffic.opening].any()
    assert traffic.follows.sum() + len(traffic.opening) == traffic.requests.count
    assert np.isnan(traffic.requests.arrival_s[traffic.follows]).all()
    assert traffic.think_s[traffic.follows].mean() == pytest.approx(40, rel=0.05)
    assert traffic.floor_s >= 10  # a quarter of the mean


def test_single_requests_have_no_follow_up():
    traffic = Demand(50_000).traffic(ONE, 0, 3600, seed=2)
    assert traffic.floor_s == math.inf
    assert traffic.requests.count == len(traffic.opening)


def test_the_peak_rate_by_hand():
    """2 sessions x 3 requests of a million users: 6 million a day, 69.4 a second, 138.9 at twice the mean."""
    demand = Demand(2e6, 3, 60, Curve(2.0))
    assert demand.peak_requests_per_s == pytest.approx(138.89, rel=1e-4)
    assert demand.times(0.5).requests_per_day() == 3e6


def test_users_at_work_are_met_thinking_and_never_run_out():
    """A thought of 30 s lasts at least 7.5 s. A quarter of the users is met in that part, 3.75 s of it left on average; the
    others have 7.5 + 22.5 s left."""
    traffic = Population(4_000, 30.0).traffic(ONE, 100, 1_300, seed=3)
    assert len(traffic.opening) == 4_000
    assert traffic.starts_s.min() >= 100
    assert traffic.starts_s.mean() - 100 == pytest.approx(0.25 * 3.75 + 0.75 * 30, rel=0.05)
    spent = traffic.think_s.reshape(4_000, -1)[:, 1:].sum(axis=1)  # even if every answer came at once
    assert (traffic.starts_s + spent > 1_300).all()


MIX = RequestMix(np.array([50, 50], np.int32), np.array([100, 300], np.int32))


@pytest.mark.parametrize("demand", [Demand(50_000), Demand(50_000, 2.5, 40.0), Population(9_000, 30.0)])
def test_requests_in_flight_at_the_beginning_are_met_anywhere_in_a_long_answer(demand):
    """A running request is three times as likely one of 300 tokens; half of it is left: (100 x 50 + 300 x 150) / 400."""
    traffic = demand.traffic(MIX, 500, 600, seed=4, in_flight=6_000)
    prompt, output = (column[traffic.running] for column in (traffic.requests.prompt_tokens, traffic.requests.output_tokens))
    assert len(traffic.running) == 6_000
    assert (traffic.requests.arrival_s[traffic.running] == 500).all()
    assert ((prompt + output == 350).mean(), output.mean()) == pytest.approx((0.75, 125), rel=0.05)
    assert output.min() >= 1
    assert not np.isin(traffic.running, traffic.opening).any()
    assert np.isnan(traffic.requests.arrival_s[traffic.follows]).all()


def test_sessions_begun_before_have_fewer_requests_left():
    """Of sessions of 4 requests one in flight has 1 to 4 left, itself included; by Little 0.75 x 40 users think."""
    traffic = Demand(86_400 / 4, 4.0, 40.0).traffic(ONE, 0, 10, seed=5, in_flight=4_000)
    lengths = np.diff(np.append(traffic.running, traffic.opening[0]))
    assert np.bincount(lengths)[1:] / 4_000 == pytest.approx(np.full(4, 0.25), rel=0.1)
    assert 30 <= len(traffic.opening) <= 42  # and about 2.5 that begin in 10 s


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
