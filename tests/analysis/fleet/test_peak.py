"""Sizing a fleet: by hand where the answer is known, and what holds of every answer."""

import math

import numpy as np
import pytest

from loadtest.analysis.fleet import options as fleet_options
from loadtest.analysis.fleet import peak as fleet
from loadtest.analysis.fleet import replica_model
from loadtest.analysis.fleet.options import Candidate, CellFacts, Question
from loadtest.analysis.fleet.peak import Peak, ReplicaModel
from loadtest.errors import UsageError
from loadtest.metrics.slo import parse_slo
from loadtest.simulator.core.behaviour import behaviour
from loadtest.simulator.core.engine import EngineConfig
from loadtest.simulator.fleet import arrivals, speed
from loadtest.simulator.fleet.arrivals import Curve, Demand
from loadtest.simulator.fleet.speed import MeasuredLevel

MIX = replica_model.request_mix([(100, 100)])  # 100 tokens each way
FINAL = parse_slo("time_to_final_answer_s:p90<200")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Fewer requests: sizes in whole replicas of small fleets need no more."""
    monkeypatch.setattr(fleet, "ENOUGH_REQUESTS", 400)
    monkeypatch.setattr(fleet, "MOST_DAYS", 1)
    monkeypatch.setattr(fleet, "SAMPLE", 8)


def model(known=4, token_s=0.5, careful=1.3):
    """Steps of 0.5 s and a little more with each of up to `known` streams, a prefill of 1 s: an answer takes 51 s alone."""
    levels = [MeasuredLevel(1, token_s), MeasuredLevel(known, token_s + (known - 1) * 0.01)]
    likely = speed.from_levels(levels, prefill_s=1.0, prompt_tokens=100, output_tokens=100, most_prompt_tokens=2048)
    config = EngineConfig(behaviour=behaviour("vllm-sim"), kv_tokens=100_000, max_running=known)
    return ReplicaModel(config, likely, None if careful is None else likely.times(careful), known)


def peak(router="round-robin", per_hour=1_000, objectives=(FINAL,), **changes):
    return Peak(model(**changes), router, Demand(24 * per_hour, curve=Curve(1.0)), MIX, objectives)


def test_throughput_bounds_the_size_by_hand():
    """4 streams in steps of 0.5 s, and each request adds 1 s to one: an answer a replica every 100 x 0.5 / 4 + 1 = 13.5 s.
    1,000 an hour, 0.278/s, need 3.75 replicas; with queues 4 or 5."""
    found = peak().size()
    assert 4 <= found.replicas <= 5
    assert found.binds is FINAL
    assert [one.holds for one in found.tried] == sorted(one.holds for one in found.tried)


def test_a_slower_replica_or_a_worse_router_needs_no_fewer():
    assert peak().size(careful=True).replicas >= 1.2 * peak().size().replicas
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
    """With 4 streams known a replica gives an answer every 13.5 s; with 16 at the same step every 4.1 s."""
    assert peak().size_beyond().replicas < 0.7 * peak().size().replicas
    assert peak(known=64).size_beyond().replicas == pytest.approx(peak(known=64).size().replicas, abs=1)


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
    seen = fleet._Seen()
    seen.add(np.array([0.0, 0.0, 0.0, np.nan]), np.array([1.0, 2.0, 3.0, np.nan]), np.array([11, 11, 11, 11]))
    for text, value in (
        ("time_to_final_answer_s:p50<9", 2.0),
        ("time_to_final_answer_s:p90<9", math.inf),
        ("ttft_s:max<9", math.inf),
        ("tpot_s:p50<9", 0.2),
        ("tokens_per_s_per_user:min>1", 0.0),
        ("tokens_per_s_per_user:p50>1", 10 / 3),
        ("tokens_per_s_per_user:p10>1", 0.0),
    ):
        assert seen.figure(parse_slo(text)) == pytest.approx(value)


# Options -------------------------------------------------------------------------------------------------------------


FACTS = CellFacts("a", "vllm", "m", 2, "l20", False)


def options(*candidates, slo=FINAL, price=2.0, headroom=0.0, per_hour=1_200):
    demand = Demand(24 * per_hour, curve=Curve(1.0))
    return fleet_options.fleet_options(candidates, Question(demand, [slo], ["round-robin"], headroom, price))


def test_cost_by_hand():
    """N replicas of 2 GPUs at 2 each: 96 N a day, for 28,800 answers. The SLO binds at fewer streams than are known."""
    option = options(Candidate(FACTS, model(known=24, careful=1.05), MIX), slo=parse_slo("tpot_s:p90<0.65"))[0]
    count = option.replicas.likely
    assert option.cards.likely == 2 * count
    assert option.cost_per_day.likely == 96 * count
    assert option.cost_per_1000_answers.likely == pytest.approx(96 * count / 28.8)
    assert option.replicas.careful >= count
    assert (option.at_most, option.next_measurement) == (False, None)
    assert [loss.lost for loss in option.losses] == sorted({1, math.ceil(count / 3)})
    assert all(figure.met for figure in option.peak)


def test_a_limit_of_the_measurement_makes_an_upper_bound_and_names_the_next_one():
    option = options(Candidate(FACTS, model(known=4, careful=None), MIX))[0]
    assert option.at_most
    assert option.next_measurement == "measure 8 users next"
    assert option.replicas.careful is None


def test_headroom_is_added_and_no_price_is_no_cost():
    plain, spare = (options(Candidate(FACTS, model(), MIX), headroom=h, price=None)[0] for h in (0.0, 0.2))
    assert spare.replicas.likely == math.ceil(plain.replicas.likely / 0.8 - 1e-9)
    assert spare.cost_per_day.likely is None


def test_what_holds_nothing_is_last_and_says_why():
    slow = Candidate(CellFacts("slow", "vllm", "m", 1, "l20", False), model(token_s=10.0), MIX)
    unknown = Candidate(CellFacts("none", "vllm", "m", 1, "l20", False), None, None, "does not fit")
    found = options(unknown, slow, Candidate(FACTS, model(), MIX))
    assert [one.cell for one in found] == ["a", "none", "slow"]
    assert found[1].reason == "does not fit"
    assert found[2].reason == "not even replicas that are almost idle meet time_to_final_answer_s:p90<200"
    assert [bool(one.losses) for one in found] == [True, False, False]


@pytest.mark.parametrize("wrong", [{"headroom": 1.0}, {"headroom": math.nan}, {"gpu_hour_price": -1.0}])
def test_a_question_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(UsageError):
        Question(Demand(10), [FINAL], ["random"], **wrong)


def test_a_part_of_a_fleet_waits_as_the_whole(monkeypatch):
    """What 16 of 32 replicas see with half the arrivals is what 32 see: p90 within 5 %."""
    one = peak("round-robin", 7_500)
    found = []
    for sample in (16, 32):
        monkeypatch.setattr(fleet, "SAMPLE", sample)
        found.append(one._simulate(one.model.likely, 32, 0, arrivals.HOUR_S).figures[0])
    assert found[0] == pytest.approx(found[1], rel=0.05)
