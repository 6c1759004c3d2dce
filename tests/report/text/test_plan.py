"""A plan in words: GPUs, tables by model, the sentence for the slide."""

import pytest
from msgspec import structs

from loadtest.analysis import capacity
from loadtest.analysis.decisions import CapacityPlan, FleetPlan
from loadtest.analysis.fleet.options import Candidate, CellFacts, Question, fleet_options
from loadtest.metrics.slo import parse_slo
from loadtest.report.text.plan import Gpus, capacity_text, fleet_text
from loadtest.simulator.fleet.arrivals import Curve, Demand
from tests.support.fleets import FINAL, model, shorten


@pytest.mark.parametrize(
    ("gpus", "short", "words"),
    [
        (Gpus(2, 3, False, False), "2 (3)", "2 GPUs (3 to be safe)"),
        (Gpus(1, 1, False, False), "1 (1)", "1 GPU (1 to be safe)"),
        (Gpus(10, None, True, False), "at most 10 (no bound)", "at most 10 GPUs"),
        (Gpus(4, 5, False, True), "about 4 (5)", "about 4 GPUs (5 to be safe)"),
        (Gpus(None, None, False, False), "\u2014", "no number of GPUs"),
    ],
)
def test_gpus_in_words(gpus, short, words):
    assert (gpus.short, gpus.words) == (short, words)


def option(name, of_model, slos, users=40, engine="vllm-sim"):
    made = Candidate(CellFacts(name, engine, of_model, 1, "l20", True), model(4))
    return capacity.estimate(made.facts, made.likely, slos, capacity.CapacityDemand(users=users, gpu_hour_price=2.0))


def plan(*options, source="performance model", price=2.0):
    return CapacityPlan(
        source=source, simulated=True, slo=("tpot_s:p90<0.525",), users=40, answers_per_hour=None, headroom=0.2,
        gpu_hour_price=price, currency="USD", options=options, doubts=(),
    )  # fmt: skip


SLOS = [parse_slo("tpot_s:p90<0.525")]


def test_one_model_has_one_table_and_equal_engines_share_the_sentence():
    text = capacity_text(plan(option("a", "m", SLOS), option("b", "m", SLOS, engine="sglang-sim")))
    assert "--model" not in text
    assert text.count("TTFT p90 s") == 1
    assert text.splitlines()[0] == (
        "40 requests in flight need about 17 L20 GPUs with SGLang or vLLM, m: 9 of 10 see the first token in 1.95 s and the"
        " answer in 52.2 s; 34.0 USD an hour (predicted, not measured; within 90th percentile of time per output token <"
        " 0.525 s)."
    )


def test_several_models_are_tables_of_their_own():
    text = capacity_text(plan(option("a", "large", SLOS), option("b", "small", SLOS)))
    assert "2 models: choose one with --model" in text
    assert text.count("TTFT p90 s") == 2
    assert text.index("\nlarge\n") < text.index("\nsmall\n")


def test_what_is_not_given_has_no_column():
    bare = structs.replace(
        option("a", "m", SLOS), cost_per_hour=capacity.Cost(None, None), cost_per_1000_answers=capacity.Cost(None, None)
    )
    text = capacity_text(plan(bare, price=None))
    assert "per 1,000" not in text
    assert "no costs: give the price of a GPU with --gpu-hour-price" in text


def test_nothing_that_holds_is_said():
    hard = [parse_slo("tpot_s:p90<0.1")]
    text = capacity_text(plan(option("a", "m", hard)))
    assert "a: not even a lone request meets tpot_s:p90<0.1" in text
    assert text.splitlines()[0] == (
        "No configuration here is known to serve 40 requests in flight within 90th percentile of time per output token"
        " < 0.525 s: a: not even a lone request meets tpot_s:p90<0.1."
    )


def test_a_fleet_names_its_limit_its_losses_and_the_price_of_a_day(monkeypatch):
    shorten(monkeypatch)
    demand = Demand(24_000, curve=Curve(1.0))
    facts = CellFacts("a", "vllm", "m", 1, "l20", False)
    options = fleet_options([Candidate(facts, model(4))], Question(demand, [FINAL], ["round-robin"], 0.0, 2.0))
    found = FleetPlan(
        source="run x", simulated=False, slo=(FINAL.text,), users=None, requests_per_day=24_000,
        peak_requests_per_hour=1_000, peak_factor=1.0, requests_per_session=1.0, think_time_s=None, headroom=0.0,
        gpu_hour_price=2.0, currency="USD", options=tuple(options), doubts=(),
    )  # fmt: skip
    text = fleet_text(found)
    assert "USD/day" in text
    assert "as no replica is given more than the 4 users that were measured; measure 8 users next" in text
    assert "a, round-robin: one replica lost at the peak, next quarter of an hour: time_to_final_answer_s:p90<200 is" in text
    answer = text.splitlines()[0]
    assert answer.startswith("24,000 requests a day (1,000 in the peak hour) need at most ")
    assert "with vLLM, m, round-robin router: at the peak 9 of 10 see the first token in " in answer
    assert " to be safe); measure 8 users next, as fewer may do (measured speed; within 90th" in answer
