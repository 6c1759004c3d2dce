"""Fleets as options: cost by hand, what is simulated and what is estimated, order and reasons."""

import math

import pytest

from loadtest.analysis.fleet import options as fleet_options
from loadtest.analysis.fleet.options import Candidate, CellFacts, Question
from loadtest.errors import UsageError
from loadtest.metrics.slo import parse_slo
from loadtest.simulator.fleet.arrivals import Curve, Demand
from tests.support.fleets import FINAL, model, shorten


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    shorten(monkeypatch)


FACTS = CellFacts("a", "vllm", "m", 2, "l20", False)


def options(*candidates, slo=FINAL, price=2.0, headroom=0.0, per_hour=1_200):
    demand = Demand(24 * per_hour, curve=Curve(1.0))
    return fleet_options.fleet_options(candidates, Question(demand, [slo], ["round-robin"], headroom, price))


def test_cost_by_hand():
    """N replicas of 2 GPUs at 2 each: 96 N a day, for 28,800 answers. The SLO binds at fewer streams than are known."""
    option = options(Candidate(FACTS, model(known=24, careful=1.05)), slo=parse_slo("tpot_s:p90<0.65"))[0]
    count = option.replicas.likely
    assert option.cards.likely == 2 * count
    assert option.cost_per_day.likely == 96 * count
    assert option.cost_per_1000_answers.likely == pytest.approx(96 * count / 28.8)
    assert option.replicas.careful >= count
    assert (option.at_most, option.next_measurement) == (False, None)
    assert [loss.lost for loss in option.losses] == sorted({1, math.ceil(count / 3)})
    assert all(figure.met for figure in option.peak)


def test_a_limit_of_the_measurement_makes_an_upper_bound_and_names_the_next_one():
    option = options(Candidate(FACTS, model(known=4, careful=None)))[0]
    assert option.at_most
    assert option.next_measurement == "measure 8 users next"
    assert option.replicas.careful is None


def test_headroom_is_added_and_no_price_is_no_cost():
    plain, spare = (options(Candidate(FACTS, model()), headroom=h, price=None)[0] for h in (0.0, 0.2))
    assert spare.replicas.likely == math.ceil(plain.replicas.likely / 0.8 - 1e-9)
    assert spare.cost_per_day.likely is None


def test_what_holds_nothing_is_last_and_says_why():
    slow = Candidate(CellFacts("slow", "vllm", "m", 1, "l20", False), model(token_s=10.0))
    unknown = Candidate(CellFacts("none", "vllm", "m", 1, "l20", False), None, "does not fit")
    found = options(unknown, slow, Candidate(FACTS, model()))
    assert [one.cell for one in found] == ["a", "none", "slow"]
    assert found[1].reason == "does not fit"
    assert (
        found[2].reason
        == "no number of replicas meets time_to_final_answer_s:p90<200: a request that is almost alone breaks it"
    )
    assert [bool(one.losses) for one in found] == [True, False, False]


@pytest.mark.parametrize("wrong", [{"headroom": 1.0}, {"headroom": math.nan}, {"gpu_hour_price": -1.0}])
def test_a_question_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(UsageError):
        Question(Demand(10), [FINAL], ["random"], **wrong)


def test_of_several_models_the_best_of_each_is_simulated_and_the_models_keep_their_order():
    def candidate(name, of_model, token_s):
        return Candidate(CellFacts(name, "vllm", of_model, 1, "l20", False), model(token_s=token_s))

    found = options(
        candidate("large-slow", "large", 1.0), candidate("large", "large", 0.7), candidate("small", "small", 0.3)
    )
    assert [(one.cell, one.estimated) for one in found] == [("large", False), ("large-slow", True), ("small", False)]
    assert found[0].replicas.likely < found[1].replicas.likely  # scaled by what the simulation made of the first
    assert [one.seen.by for one in found] == ["simulated peak", "closed form", "simulated peak"]
    assert [bool(one.losses) for one in found] == [True, False, False]
