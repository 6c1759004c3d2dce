import numpy as np
import pytest

from loadtest.decision import composition
from loadtest.decision.composition import EngineSpeed
from loadtest.decision.step_line import StepLine

EQUAL = composition.pool_lengths({"p1": [101.0, 101.0], "p2": [101.0, 101.0]}, 50.0)


def speed(users, a_s, b_s=0.0, first_s=0.5):
    a = np.atleast_1d(np.asarray(a_s, float))
    return EngineSpeed(users, StepLine(a, np.full(len(a), b_s)), np.full(len(a), first_s))


def test_alone_an_answer_is_its_first_token_and_its_steps():
    times = composition.answer_s(speed(1, 0.02), EQUAL.tokens, EQUAL)
    assert times == pytest.approx(np.full((1, 4), 0.5 + 100 * 0.02))


def test_among_others_each_halts_all_once_an_answer():
    times = composition.answer_s(speed(4, 0.02), EQUAL.tokens, EQUAL)
    assert times == pytest.approx(np.full((1, 4), 0.5 + 100 * 0.02 + 0.5 * 3))


def test_a_step_reads_the_contexts_of_all():
    found = composition.answer_s(speed(3, 0.02, 1e-6), EQUAL.tokens, EQUAL)[0, 0]
    context = 2 * (50 + 101 / 2) + 50 + 101 / 2
    assert found == pytest.approx(0.5 + 100 * (0.02 + 1e-6 * context) + 0.5 * 2)


def test_a_longer_answer_is_met_more_often():
    mixed = composition.pool_lengths({"p1": [100.0], "p2": [300.0]}, 0.0)
    assert composition.others_tokens(2, mixed) == pytest.approx((100**2 + 300**2) / 2 / (2 * 200))


def test_twice_as_slow_is_one_log_2_at_any_lengths():
    drawn = composition.pool_lengths({f"p{i}": [100.0 + 40 * i] for i in range(20)}, 30.0)
    slow, fast = (composition.log_mean_s(speed(8, a, b, q), drawn) for a, b, q in ((0.04, 2e-6, 1), (0.02, 1e-6, 0.5)))
    assert float(slow[0] - fast[0]) == pytest.approx(np.log(2))


def test_lengths_are_in_order_of_prompts_whatever_came_first():
    found = composition.pool_lengths({"b": [3.0], "a": [2.0, 1.0], "c": []}, 0.0)
    assert found.tokens.tolist() == [1, 2, 3]
    assert found.prompt_of.tolist() == [0, 0, 1]


def test_without_a_second_start_or_a_second_answer_no_interval_is_made_up():
    drawn = composition.pool_lengths({f"p{i:02}": [100.0 + i] for i in range(40)}, 0.0)
    assert composition.composed_figures(speed(1, 0.02), drawn)["mean"].of_this_kind is None
    found = composition.composed_figures(speed(1, [0.02, 0.0201, 0.0199]), drawn)["mean"]
    assert found.of_this_kind is not None
    assert found.these_prompts is None


def test_the_same_prompts_again_are_more_certain_than_others_of_their_kind():
    rng = np.random.default_rng(1)
    answers = {f"p{i:02}": (np.exp(rng.normal(6, 0.6)) * rng.lognormal(0, 0.1, 4)).tolist() for i in range(64)}
    found = composition.composed_figures(speed(1, [0.02, 0.0201, 0.0199]), composition.pool_lengths(answers, 0.0))
    for name in ("mean", "p50", "p90"):
        kind, these = found[name].of_this_kind, found[name].these_prompts
        assert kind[0] < these[0] < found[name].value < these[1] < kind[1], name


def test_an_engine_that_mixes_prompts_with_decoding_delays_others_by_less():
    halts, mixes = speed(4, 0.02), EngineSpeed(4, StepLine(np.array([0.02]), np.zeros(1)), np.array([0.5]), mixes=True)
    found = composition.answer_s(halts, EQUAL.tokens, EQUAL) - composition.answer_s(mixes, EQUAL.tokens, EQUAL)
    assert found == pytest.approx(np.full((1, 4), 3 * 0.02))


def test_what_others_hold_is_uncertain_too_and_widens_paces_where_a_step_reads_it():
    """Few long answers decide how much context the others hold; alone, and where context costs nothing, that is nothing."""
    rng = np.random.default_rng(2)
    drawn = composition.pool_lengths({f"p{i:02}": [float(np.exp(rng.normal(6, 0.6)))] for i in range(40)}, 50.0)
    starts = [0.02, 0.0201, 0.0199]

    def width(users, b_s):
        low, high = composition.composed_paces(speed(users, starts, b_s, first_s=0.0), drawn)["p50"].of_this_kind
        return high / low - 1

    assert width(8, 1e-6) > 2 * width(8, 0.0)
    assert width(8, 0.0) == pytest.approx(width(1, 0.0))


def test_a_mean_counts_what_an_answer_adds_to_the_contexts_of_others():
    """The shares of the answers have the mean of their times, but for the first tokens of the others."""
    drawn = composition.pool_lengths({f"p{i:02}": [100.0 + 300 * (i % 3)] for i in range(30)}, 50.0)
    one = speed(8, 0.02, 1e-5, first_s=0.0)
    shares = composition._shares_of_mean_s(one, drawn)
    assert np.mean(shares) == pytest.approx(np.mean(composition.answer_s(one, drawn.tokens, drawn)), rel=0.005)
    assert np.std(shares) > 1.1 * np.std(composition.answer_s(one, drawn.tokens, drawn))
