"""Sizing a fleet: by hand where the answer is known, and what holds of every answer."""

import math

import numpy as np
import pytest

from loadtest.analysis.fleet import peak as fleet
from loadtest.analysis.fleet.peak import Peak
from loadtest.errors import UsageError
from loadtest.metrics.slo import parse_slo
from loadtest.simulator.fleet.arrivals import Curve, Demand, Population
from tests.support.fleets import FINAL, model, shorten


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    shorten(monkeypatch)


def peak(router="round-robin", per_hour=1_000, objectives=(FINAL,), **changes):
    return Peak(model(**changes), router, Demand(24 * per_hour, curve=Curve(1.0)), objectives)


def test_throughput_bounds_the_size_by_hand():
    """4 streams in steps of 0.5 s, and each request adds 1 s to one: an answer a replica every 100 x 0.5 / 4 + 1 = 13.5 s.
    1,000 an hour, 0.278/s, need 3.75 replicas; with queues 4 or 5."""
    found = peak().size()
    assert 4 <= found.replicas <= 5
    assert found.binds is FINAL
    assert [one.holds for one in found.tried] == sorted(one.holds for one in found.tried)


def test_a_slower_replica_or_a_worse_router_needs_no_fewer():
    assert peak().careful_replicas(5) >= 1.2 * peak().size().replicas
    sizes = [peak(router).size().replicas for router in ("least-loaded", "round-robin", "random")]
    assert sizes == sorted(sizes)


def test_more_arrivals_need_more_replicas_and_larger_fleets_less_each():
    few, many = peak("random", 400).size().replicas, peak("random", 3_200).size().replicas
    assert few < many <= 8 * few


def test_what_no_number_of_replicas_meets():
    found = peak(objectives=(parse_slo("time_to_final_answer_s:p50<40"),)).size()
    assert found.replicas is None
    assert found.binds.text == "time_to_final_answer_s:p50<40"


def test_beyond_the_measured_streams_fewer_may_do():
    """With 4 streams known a replica gives an answer every 13.5 s; with 16 at the same step every 4.1 s. With an SLO that 5
    streams break, no more are wanted."""
    assert peak().is_bound_by_what_is_known()
    assert not peak(known=24, objectives=[parse_slo("tpot_s:p90<0.54")]).is_bound_by_what_is_known()


def test_the_closed_form_starts_near_what_the_simulation_finds():
    for router in ("least-loaded", "random"):
        one = peak(router, 6_000)
        assert one.estimate(one.model.likely) == pytest.approx(one.size().replicas, rel=0.25)


@pytest.mark.parametrize(
    "demand", [Demand(24 * 4_000, curve=Curve(1.0)), Demand(24 * 4_000, 3, 20.0), Population(800, 60.0)]
)
def test_a_fleet_that_is_far_too_small_is_given_up(demand):
    """One replica ends 266 requests an hour."""
    found = Peak(model(), "least-loaded", demand, [parse_slo("ttft_s:p90<5")])._waits(model().likely, 2)
    assert found.figures == (math.inf,)
    assert not found.holds


def test_thinking_users_are_sized_by_their_turns():
    """4 streams at 0.53 s a step and 1 s a prefill: a turn of 100 users is 100 x 0.53 + 3 + 1 = 57 s and 60 s of thought.
    With 4 of them waiting, 4 / 57 x 60 = 4.2 think: 8.2 users a replica, 12 replicas."""
    one = Peak(model(), "least-loaded", Population(100, 60.0), [FINAL])
    assert one.estimate(one.model.likely) <= 12.3
    found = one.size()
    assert found.replicas <= 13
    seen = found.waits().seen
    assert seen.output_tokens_per_s == pytest.approx(100 * seen.requests_per_s)
    assert seen.requests_per_s * (60 + seen.answer_p50_s) == pytest.approx(100, rel=0.1)  # Little's law


def test_a_rate_is_known_where_some_requests_are_never_answered():
    """Of a limit that half of the requests may break, those may have no end: the rate counts them all the same."""
    seen = fleet._Observed()
    seen.add(np.array([1.0, np.nan]), np.array([2.0, np.nan]), np.array([11, 11]), 4.0)
    assert seen.figures().requests_per_s == 0.5
    assert seen.figures().answer_p90_s == math.inf


def test_a_lost_zone_is_worse_than_a_lost_replica():
    one = peak("least-loaded", 1_800)
    count = one.size().replicas
    calm, replica, zone = (one.loss(count, lost).waits.figures[0] for lost in (0, 1, 3))
    assert calm < replica < zone


@pytest.mark.parametrize("text", ["itl_s:p90<1", "answers_per_hour>3", "time_to_first_answer_s:p90<2"])
def test_objectives_that_arrivals_do_not_tell_are_refused(text):
    with pytest.raises(UsageError, match="with arrivals expected one of ttft_s"):
        fleet.check_objectives([parse_slo(text)])
    with pytest.raises(UsageError, match="expected at least one"):
        fleet.check_objectives([])


def test_figures_of_requests_by_hand():
    """Waits of 1, 2 and 3 s and one that never ended; 11 tokens each: 0.1, 0.2, 0.3 s a token."""
    seen = fleet._Observed()
    seen.add(np.array([0.0, 0.0, 0.0, np.nan]), np.array([1.0, 2.0, 3.0, np.nan]), np.array([11, 11, 11, 11]), 60.0)
    for text, value in (
        ("time_to_final_answer_s:p50<9", 2.0),
        ("time_to_final_answer_s:p90<9", math.inf),
        ("ttft_s:max<9", math.inf),
        ("tpot_s:p50<9", 0.2),
        ("tokens_per_s_per_user:min>1", 0.0),
        ("tokens_per_s_per_user:p50>1", 10 / 3),
        ("tokens_per_s_per_user:p10>1", 0.0),
    ):
        slo = parse_slo(text)
        assert seen.figure(slo.metric, slo.statistic) == pytest.approx(value)


def test_a_part_of_a_fleet_waits_as_the_whole(monkeypatch):
    """What 16 of 32 replicas see with half the arrivals is what 32 see: p90 within 5 %."""
    one = peak("round-robin", 7_500)
    found = []
    for sample in (16, 32):
        monkeypatch.setattr(fleet, "SAMPLE", sample)
        found.append(one._waits(one.model.likely, 32).figures[0])
    assert found[0] == pytest.approx(found[1], rel=0.05)
