"""The closed form of a replica: by hand, and against the simulator."""

import math
from dataclasses import replace

import numpy as np
import pytest

from loadtest.analysis.fleet.steady import SteadyReplica
from loadtest.metrics.slo import parse_slo
from loadtest.simulator.core.behaviour import behaviour
from loadtest.simulator.core.engine import EngineConfig
from loadtest.simulator.fleet import day, speed
from loadtest.simulator.fleet.arrivals import Curve, Demand, Population, RequestMix
from tests.support.fleets import FINAL, MIX, model


def replica(known=4, workload=MIX):
    return replace(model(known).likely, workload=workload)


def test_one_request_by_hand():
    """0.5 s a step, 1 s a prompt of 100 tokens (less the step beside it): 1 + 99 x 0.5 s."""
    lone = replica()
    assert lone.token_s(1) == pytest.approx(0.5)
    assert lone.first_token_s(1) == pytest.approx(1.0, rel=0.01)
    assert lone.figure("time_to_final_answer_s", "p90", 1) == pytest.approx(50.5, rel=0.01)
    assert lone.figure("tokens_per_s_per_user", "p50", 1) == pytest.approx(2.0)
    assert lone.figure("tokens_per_s_per_user", "p10", 1) == pytest.approx(2.0)
    assert lone.figure("itl_s", "p50", 1) is None


def test_a_lone_prompt_has_its_step_to_itself():
    """Each step reads the weights for 1 s: so does the one that computes a lone prompt; beside others that is theirs."""
    made = speed.from_steps(lambda work: 1.0 + work.prefill_tokens / 100 + work.decode_streams / 100, 256, 8)
    config = EngineConfig(behaviour=behaviour("vllm-sim"), kv_tokens=100_000)
    one = SteadyReplica(made, config, MIX)
    assert one.prompt_s(1) == pytest.approx(2.0)
    assert one.prompt_s(4) == pytest.approx(1.0)


def test_four_streams_by_hand():
    """Levels said 0.53 s a token with 4 users, the prompts of the 3 others among them: 3 x 1 s / 100."""
    assert replica().token_s(4) == pytest.approx(0.53, rel=0.01)
    assert replica().figure("output_tokens_per_s", "value", 4) == pytest.approx(4 * 100 / (100 * 0.53 + 1), rel=0.02)


def test_more_than_the_seats_wait_in_a_queue():
    assert replica().first_token_s(8) - replica().first_token_s(4) == pytest.approx(100 * 0.53 + 1, rel=0.02)
    assert replica().requests_per_s(8) == replica().requests_per_s(4)


def test_the_cache_limits_the_seats_by_contexts_at_a_random_moment():
    """Outputs of 100 and 300: a random moment sees 50,000 / 200 / 2 = 125 tokens of them, and 100 of the prompt."""
    mix = RequestMix(np.array([100, 100], np.int32), np.array([100, 300], np.int32))
    config = EngineConfig(behaviour=behaviour("vllm-sim"), kv_tokens=675)
    one = replace(replica(24, mix), config=config)
    assert one.context_tokens == pytest.approx(225)
    assert one.seats == 3


def test_objectives_bound_the_requests_in_flight():
    one = replica(known=24)
    most = one.most_in_flight([parse_slo("tpot_s:p90<0.605")])
    assert one.token_s(most) < 0.605 <= one.token_s(most + 1)
    assert one.most_in_flight([parse_slo("tpot_s:p90<0.4")]) == 0
    assert one.replicas(Demand(1000), [parse_slo("tpot_s:p90<0.4")]) is None


@pytest.mark.parametrize("demand", [Demand(24_000, curve=Curve(1.0)), Population(100, 60.0)])
def test_replicas_and_requests_in_flight_are_inverse(demand):
    one = replica()
    least = one.replicas(demand, [parse_slo("ttft_s:p90<5")])
    assert one.in_flight(demand, 2 * least) < one.in_flight(demand, 1.2 * least) <= one.seats
    found = one.in_flight(demand, 2 * least)
    assert demand.replicas_at(found, one.requests_per_s(found)) == pytest.approx(2 * least, rel=0.35)


def test_a_lightly_loaded_fleet_waits_as_the_closed_form_says():
    """Two thirds loaded, outputs of one length: p50 and p90 of the final answer within 5 % of a simulated fleet."""
    one = replica(24)
    demand = Demand(86_400 * 8 * one.requests_per_s(12), curve=Curve(1.0))
    traffic = demand.traffic(MIX, 0, 4_000, seed=1)
    found = day.simulate_fleet(day.Fleet(one.config, one.speed, 8, "least-loaded"), traffic).requests
    later = found.final_s[found.arrival_s > 1_000]
    in_flight = one.in_flight(demand, 8)
    for quantile, statistic in ((0.5, "p50"), (0.9, "p90")):
        expected = one.figure("time_to_final_answer_s", statistic, in_flight)
        assert np.quantile(later, quantile) == pytest.approx(expected, rel=0.05)


def test_mean_and_longest_answer_by_hand():
    """100 tokens: the first after a prompt of 1 s, 99 more at 0.5 s alone; beside 3 others at 0.53 s."""
    assert replica().answer_s(1, "mean") == pytest.approx(50.5, rel=0.01)
    assert replica().longest_answer_s() == pytest.approx(replica().first_token_s(4) + 53, rel=0.01)
    assert replica().breaks_alone([FINAL, parse_slo("tpot_s:p90<0.4")]).text == "tpot_s:p90<0.4"
    assert replica().breaks_alone([FINAL]) is None


def test_requests_in_flight_settle_the_slower_the_less_another_one_adds():
    """A lone one in 50 s; four in steps of 0.53 s and a prompt end 4 / 54 s, three 3 / 53 s: 1 / (0.074 - 0.0566) = 57 s."""
    assert replica().settling_s(1) == pytest.approx(51, rel=0.02)
    expected = 1 / (4 / (100 * 0.53 + 1) - replica().requests_per_s(3))
    assert replica().settling_s(4) == pytest.approx(expected, rel=0.02)
    assert replica().settling_s(5) == math.inf
