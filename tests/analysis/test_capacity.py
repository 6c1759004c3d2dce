"""Replicas, cards and cost by hand; properties of every plan; which limit binds."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import structs

from loadtest.analysis import capacity, objectives, run
from loadtest.analysis.fleet.options import CellFacts
from loadtest.errors import UsageError
from loadtest.metrics import slo
from loadtest.metrics.figures import Estimate
from tests.support import builders, fleets

SLO = [slo.parse_slo("ttft_s:p50<2")]


MEASURED = run.analyze(builders.run([builders.cell([builders.level([builders.request()])], fit=builders.fit())])).cells[0]
FIT = structs.replace(MEASURED.fit, kv_capacity_tokens=60_000, max_streams=2)


def figure(value, low, high):
    return Estimate(value, (low, high), 100)


def level(concurrency, ttft, answers, tokens, context=4000.0):
    """A level with (p50, low, high) of the wait, answers per hour and tokens/s with their ends."""
    (measured,) = MEASURED.levels
    wait = measured.ttft_s
    return structs.replace(
        measured,
        concurrency=concurrency,
        ttft_s=structs.replace(wait, p50=ttft[0], ci95=structs.replace(wait.ci95, p50=ttft[1:])),
        failed_share=figure(0.0, 0.0, 0.01),
        answers_per_hour=figure(*answers),
        output_tokens_per_s=figure(*tokens),
        joules_per_answer=figure(5000.0, 4900.0, 5100.0),
        context_tokens=figure(context, context * 0.9, context * 1.1),
    )


def cell(levels, name="a", tp=2, **changes):
    return structs.replace(MEASURED, id=name, tp=tp, levels=tuple(levels), fit=FIT, **changes)


def ends(found):
    return found.value, found.ci95


FOUR = level(4, (1.0, 0.8, 1.2), (100.0, 80.0, 125.0), (50.0, 40.0, 60.0))
EIGHT = level(8, (1.8, 1.5, 2.2), (160.0, 128.0, 200.0), (80.0, 70.0, 90.0))
SIXTEEN = level(16, (5.0, 4.0, 6.0), (170.0, 150.0, 190.0), (85.0, 80.0, 90.0))


def test_users_by_hand():
    """8 streams by the figures, 4 for certain, 16 certainly broken. 40 users, a fifth kept free: 40 / 6.4 = 7 replicas; for
    certain 40 / 3.2 = 13, and 20 if requests go to replicas at random: of Binomial(40, 1/20) 95 % is at most 4. Delivered:
    40/8 x 160 = 800 answers an hour; 14 cards at 2 each: 35 a thousand. At the careful end 10 x 80 = 800 answers by 40
    cards, 100; at the hopeful end 5 x 200 by 14 cards, 28. Tokens: 5 x 80 x 3600."""
    demand = capacity.CapacityDemand(users=40, gpu_hour_price=2.0)
    (option,) = capacity.plan([cell([FOUR, EIGHT, SIXTEEN])], SLO, demand)
    assert ends(option.streams_per_replica) == (8, (4, 8))
    assert ends(option.replicas) == (7, (7, 20))
    assert ends(option.cards) == (14, (14, 40))
    assert ends(option.cost_per_hour) == (28.0, (28.0, 80.0))
    assert option.cost_per_1000_answers.value == pytest.approx(35.0)
    assert option.cost_per_1000_answers.ci95 == pytest.approx([28.0, 100.0])
    assert option.cost_per_million_output_tokens.value == pytest.approx(28e6 / (5 * 80 * 3600))
    assert option.joules_per_answer.value == 5000.0
    assert option.binds == "ttft_s:p50<2"


def test_answers_an_hour_by_hand():
    """1,000 an hour at 160 each, a fifth kept free: 1000 / 128 = 8 replicas; careful 1000 / (80 x 0.8) = 16, and 25 for 50
    requests in flight spread at random, 4 each at most; hopeful 1000 / 160 = 7. What is delivered is what was asked for:
    16 cards x 2 / 1,000 answers."""
    option = capacity.plan(
        [cell([FOUR, EIGHT, SIXTEEN])], SLO, capacity.CapacityDemand(answers_per_hour=1000, gpu_hour_price=2.0)
    )[0]
    assert ends(option.replicas) == (8, (7, 25))
    assert option.cost_per_1000_answers.value == pytest.approx(32.0)


@pytest.mark.parametrize(
    ("levels", "kv_capacity_tokens", "limit"),
    [
        ([FOUR, EIGHT], 60_000, "not_reached"),
        ([FOUR, EIGHT, SIXTEEN], 60_000, "kv_cache"),  # 60,000 / 4,000 = 15 streams, and 16 broke it
        ([FOUR, EIGHT, SIXTEEN], 80_000, "slo"),
        ([FOUR, EIGHT, SIXTEEN], 0, "slo"),  # the weights alone do not fit
    ],
)
def test_which_limit_binds(levels, kv_capacity_tokens, limit):
    fit = structs.replace(FIT, kv_capacity_tokens=kv_capacity_tokens)
    found = objectives.maximum_concurrency(levels, SLO, fit)
    assert found.limit == limit
    assert found.tried == levels[-1].concurrency


def test_streams_of_the_workload_in_the_kv_cache():
    found = objectives.maximum_concurrency([FOUR], SLO, FIT)
    assert found.by_kv_workload.value == 15.0
    assert found.by_kv_workload.ci95 == pytest.approx([60_000 / 4400, 60_000 / 3600])
    assert found.by_kv_cache == 2


def test_the_cheapest_is_first_and_what_holds_nothing_last():
    cells = [
        cell([], "refused", reason="does not fit"),
        cell([level(4, (5.0, 4.0, 6.0), (9.0, 8.0, 10.0), (5.0, 4.0, 6.0))], "slow"),
        cell([FOUR, EIGHT], "two", tp=2),
        cell([FOUR, EIGHT], "one", tp=1),
    ]
    found = capacity.plan(cells, SLO, capacity.CapacityDemand(users=40))
    assert [one.cell for one in found] == ["one", "two", "refused", "slow"]
    assert [one.reason for one in found[2:]] == ["does not fit", "not even the lowest level meets ttft_s:p50<2"]
    assert ends(found[0].replicas) == (7, (None, 20))  # nothing broke: fewer might do
    assert found[0].cost_per_hour.value is None


@given(st.integers(1, 10_000), st.integers(1, 64), st.floats(0, 0.9))
def test_a_fleet_holds_what_was_asked_and_keeps_its_headroom(users, streams, headroom):
    found = capacity.provision(
        capacity.CapacityDemand(users=users, headroom=headroom), capacity.Replica(streams, 100.0, 1e5)
    )
    assert found.replicas * streams * (1 - headroom) >= users * (1 - 1e-6)
    assert (found.replicas - 1) * streams * (1 - headroom) < users
    assert found.answers == pytest.approx(users / streams * 100.0)


@st.composite
def levels_and_ends(draw):
    """Levels 1, 2, 4, 8, all measured well: rates that grow with the concurrency, each with an interval of its own width."""
    rates = st.floats(1.0, 2.0)
    made, answers, tokens = [], 20.0, 8.0
    for concurrency in (1, 2, 4, 8):
        answers, tokens = answers * draw(rates), tokens * draw(rates)
        spreads = [draw(st.floats(1.0, 1.5)) for _ in range(2)]
        ends = [(rate, rate / spread, rate * spread) for rate, spread in zip((answers, tokens), spreads, strict=True)]
        ttft_s = draw(st.sampled_from([(1.0, 0.8, 1.2), (1.9, 1.7, 2.5), (2.1, 1.8, 2.5), (3.0, 2.5, 4.0)]))
        made.append(level(concurrency, ttft_s, *ends))
    return made


EQUAL = [
    level(concurrency, ttft_s, (100.0, 100.0, 100.0), (50.0, 50.0, 50.0))
    for concurrency, ttft_s in ((4, (1.0, 0.8, 1.2)), (8, (1.9, 1.7, 2.5)))
]  # by the figures 2 replicas of 8 hold 9 users, with a fifth kept free; for certain 3 of 4 do, which wastes less


@example(EQUAL, 9, True, 0.2)
@given(levels_and_ends(), st.integers(1, 100), st.booleans(), st.sampled_from([0.0, 0.2, 0.5]))
def test_every_interval_holds_its_figure(levels, demanded, of_users, headroom):
    asked = {"users": demanded} if of_users else {"answers_per_hour": demanded * 17.0}
    demand = capacity.CapacityDemand(**asked, headroom=headroom, gpu_hour_price=2.0)
    (option,) = capacity.plan([cell(levels)], SLO, demand)
    for name in ("replicas", "cards", "cost_per_hour", "cost_per_1000_answers", "cost_per_million_output_tokens"):
        found = getattr(option, name)
        if found.value is not None and found.ci95 is not None:
            low, high = found.ci95
            assert low is None or low <= found.value * (1 + 1e-12)
            assert high is None or found.value <= high * (1 + 1e-12)


def test_a_token_costs_no_less_where_fewer_answers_arrive():
    """600 answers/h, 100 [80, 125] each: 8 replicas [6, 15]; an answer has 1,800 tokens whatever its rate: the fleet makes
    1.08 million tokens/h, by 16 GPUs at 2. By the low ends alone, 149,760 / 80, an answer would have 1,872 tokens."""
    demand = capacity.CapacityDemand(answers_per_hour=600, gpu_hour_price=2.0)
    measured = level(4, (1.0, 0.8, 1.2), (100.0, 80.0, 125.0), (50.0, 41.6, 60.0))
    broken = level(8, (9.0, 8.0, 9.5), (100.0, 80.0, 125.0), (50.0, 41.6, 60.0))
    cost = capacity.plan([cell([measured, broken])], SLO, demand)[0].cost_per_million_output_tokens
    assert cost.value == pytest.approx(2 * 16 / 1.08)
    assert cost.ci95 == pytest.approx((2 * 12 / 1.08, 2 * 30 / 1.08))


@pytest.mark.parametrize(
    "wrong", [{}, {"users": 4, "answers_per_hour": 4.0}, {"users": 0}, {"users": 4, "headroom": 1.0},
              {"users": 4, "gpu_hour_price": math.nan}]
)  # fmt: skip
def test_a_demand_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(UsageError):
        capacity.CapacityDemand(**wrong)


def test_a_plan_from_records():
    cells = run.analyze(builders.study(engines=("vllm", "sglang-sim"), levels=(1, 2), n=12)).cells
    found = capacity.plan(cells, SLO, capacity.CapacityDemand(users=3, gpu_hour_price=1.0))
    assert {one.streams_per_replica.value for one in found} == {2}
    assert {one.simulated for one in found} == {True, False}
    with pytest.raises(UsageError, match="--slo"):
        capacity.plan(cells, [], capacity.CapacityDemand(users=3))


def test_an_open_loop_has_no_maximum_concurrency():
    found = objectives.maximum_concurrency([FOUR], SLO, FIT, held=False)
    assert (found.by_slo, found.limit, found.reason) == (None, None, "requests came by the clock: no concurrency was held")
    assert found.by_kv_cache == FIT.max_streams


def test_what_users_see_lies_between_the_levels():
    """7 replicas of 40 users: 5.7 each, between the levels of 4 and 8: tokens/s in all 7 x (50 + 0.429 x 30)."""
    (option,) = capacity.plan([cell([FOUR, EIGHT, SIXTEEN])], SLO, capacity.CapacityDemand(users=40))
    assert option.seen.output_tokens_per_s == pytest.approx(7 * (50 + (40 / 7 - 4) / 4 * 30))
    assert option.seen.by == "levels"
    assert not option.at_most


def test_no_level_broke_so_the_answer_is_an_upper_bound():
    (option,) = capacity.plan([cell([FOUR, EIGHT])], SLO, capacity.CapacityDemand(users=40))
    assert (option.at_most, option.next_measurement) == (True, "measure 16 users next")


def test_the_closed_form_stands_in_for_a_quantile_of_few_requests():
    """No p90 of one request at a level: judged by the closed form, without an interval, so without a careful figure."""
    steady = fleets.model(24).likely
    bare = structs.replace(FOUR, ttft_s=MEASURED.levels[0].ttft_s)
    slos, demand = [slo.parse_slo("ttft_s:p90<2")], capacity.CapacityDemand(users=8)
    assert capacity.plan([cell([bare])], slos, demand)[0].replicas.value is None
    (option,) = capacity.plan([cell([bare], "a")], slos, demand, {"a": steady})
    assert ends(option.replicas)[0] == 3  # 8 / (4 x 0.8)
    assert ends(option.replicas)[1] is None
    assert option.seen.ttft_p90_s == steady.figure("ttft_s", "p90", 8 / 3)
    assert option.seen.by == "closed form"


def test_a_cell_that_cannot_win_is_estimated():
    steady = fleets.model(4).likely
    facts = CellFacts("b", "vllm", "m", 2, "l20", False)
    option = capacity.estimate(facts, steady, [slo.parse_slo("tpot_s:p90<0.525")], capacity.CapacityDemand(users=40))
    assert option.estimated
    assert option.streams_per_replica.value == 3  # 0.5 s and 0.01 s for each other stream; 0.53 s with four
    assert (option.replicas.value, option.cards.value) == (17, 34)
    assert capacity.estimate(facts, steady, [slo.parse_slo("tpot_s:p90<0.4")], capacity.CapacityDemand(users=40)).reason == (
        "not even a lone request meets tpot_s:p90<0.4"
    )


def test_models_keep_their_order():
    small, large = cell([FOUR], "small", tp=1, model="7b"), cell([FOUR], "large", tp=4, model="32b")
    found = capacity.plan([large, small], SLO, capacity.CapacityDemand(users=4))
    assert [one.cell for one in found] == ["large", "small"]


def test_users_need_no_interval_of_a_rate():
    """Rates of one short pass have none: 20 replicas are careful all the same, but no cost is."""
    bare = structs.replace(FOUR, answers_per_hour=Estimate(100.0, None, 1), output_tokens_per_s=Estimate(50.0, None, 1))
    (option,) = capacity.plan([cell([bare, SIXTEEN])], SLO, capacity.CapacityDemand(users=40, gpu_hour_price=2.0))
    assert ends(option.replicas) == (13, (13, 20))
    assert option.cost_per_hour.high == 80.0
    assert option.cost_per_1000_answers.high is None


def test_the_error_of_the_model_makes_the_careful_number():
    """8 streams at 0.57 s a token; 30 % slower the closed form finds fewer within the SLO, so more replicas are safe."""
    made = fleets.model(24, careful=1.2)
    steady, slow = made.likely, made.careful
    slos, demand = [slo.parse_slo("tpot_s:p90<0.7")], capacity.CapacityDemand(users=40, gpu_hour_price=2.0)
    (option,) = capacity.plan([cell([FOUR, EIGHT, SIXTEEN])], SLO, demand)
    found = capacity.with_careful_end(option, steady, slow, slos, demand)
    held = int(8 * slow.most_in_flight(slos) / steady.most_in_flight(slos))
    assert 1 <= held < 8
    expected = capacity.provision(demand, capacity.Replica(held, 1.0, 1.0), at_random=True).replicas
    assert ends(found.replicas) == (7, (7, expected))
    assert found.cost_per_hour.high == 2 * 2.0 * expected
    assert capacity.with_careful_end(option, steady, None, slos, demand) == option
