"""The conditions of composed times, on runs that keep them and runs made to break them."""

from dataclasses import replace

import numpy as np
import pytest

from loadtest.decision import conditions
from loadtest.decision.step_line import StepLine
from loadtest.metrics.request_arrays import pass_arrays
from tests.support import builders

LINE = StepLine(np.array(0.02), np.array(1e-6))


def columns(requests, concurrency):
    return pass_arrays(builders.level(requests, concurrency=concurrency), builders.ANCHOR)


def loop(concurrency, lengths, prompt_tokens=50, slower=1.0):
    """A closed loop stepped token by token on the line; every request takes the next length when a stream is free."""
    left, now, seq, live, done = list(lengths), 0.0, 0, [], []
    while left or live:
        while left and len(live) < concurrency:
            live.append({"tokens": left.pop(0), "times": [], "sent": now, "seq": seq, "user": seq % concurrency})
            seq += 1
        held = sum(prompt_tokens + len(one["times"]) for one in live)
        now += slower * (0.02 + 1e-6 * held)
        for one in live:
            one["times"].append(now)
        done += [one for one in live if len(one["times"]) == one["tokens"]]
        live = [one for one in live if len(one["times"]) < one["tokens"]]
    made = builders.request()
    return [
        replace(
            made, chunk_s=tuple(one["times"]), chunk_tokens=(1,) * one["tokens"], sent_s=one["sent"],
            scheduled_s=one["sent"], ended_s=one["times"][-1], completion_tokens=one["tokens"], first_answer_chunk=0,
            prompt_tokens=prompt_tokens, seq=one["seq"], user=one["user"], prompt_id=f"p{one['seq']}",
        )
        for one in done
    ]  # fmt: skip


LENGTHS = np.random.default_rng(1).lognormal(5, 0.5, 40).astype(int).tolist()


@pytest.mark.parametrize(("slower", "share"), [(1.0, 0.0), (1.05, 0.05), (0.96, -0.04)])
def test_a_natural_run_is_held_against_the_line_token_by_token(slower, share):
    found = conditions.own_times(columns(loop(4, LENGTHS, slower=slower), 4), LINE, 0.0)
    share_of = conditions.own_share([found])
    assert share_of.value == pytest.approx(share, abs=1e-3)
    assert share_of.low <= share_of.value <= share_of.high
    assert share_of.high - share_of.low < 0.01


def test_a_disturbance_of_a_tenth_of_the_time_widens_the_interval():
    found = conditions.own_times(columns(loop(4, LENGTHS), 4), LINE, 0.0)
    disturbed = replace(found, took_s=found.took_s * np.array([1.6] + 9 * [1.0]))
    share_of = conditions.own_share([disturbed])
    assert share_of.value > conditions.MAX_OWN_TIMES
    assert share_of.low < 0 < share_of.high
    twice = conditions.own_share([disturbed, found])
    assert twice.high - twice.low < share_of.high - share_of.low


def test_a_run_that_is_never_full_or_hardly_tells_nothing():
    assert conditions.own_times(columns(loop(2, LENGTHS), 4), LINE, 0.0) is None
    assert conditions.own_times(columns(loop(4, [20] * 8), 4), LINE, 0.0) is None


def test_prefills_of_others_are_time_too():
    waits = [replace(one, chunk_s=tuple(t + 0.0 for t in one.chunk_s)) for one in loop(4, LENGTHS)]
    without, beside = (conditions.own_share([conditions.own_times(columns(waits, 4), LINE, s)]) for s in (0.0, 0.05))
    assert beside.value < without.value


def test_lengths_that_are_luck_do_not_depend_on_load():
    rejected = 0
    for seed in range(100):
        lengths = np.maximum(2, np.random.default_rng(seed).lognormal(4, 0.6, 48)).astype(int).tolist()
        found = conditions.lengths_by_load([columns(loop(8, lengths), 8)])
        rejected += found.p_value < 0.05
    assert rejected <= 11  # of 100 at 5 %, plus three standard errors


def test_answers_that_end_sooner_in_a_crowd_are_noticed():
    """Two runs of the same prompts: of those among eight half the tokens, of those among two all."""
    lengths = np.maximum(20, np.random.default_rng(3).lognormal(5, 0.4, 64)).astype(int)
    crowd, few = loop(8, (lengths // 2).tolist()), loop(2, lengths.tolist())
    found = conditions.lengths_by_load([columns(crowd, 8), columns(few, 2)])
    assert found.p_value < conditions.LOAD_P
    assert found.log_hazard > 0


def test_one_load_tells_nothing():
    assert conditions.lengths_by_load([columns(loop(1, LENGTHS[:5]), 1)]) is None


def test_answers_to_the_same_prompts_are_no_further_evidence():
    """The same answers in three rounds say no more than in one; answers to other prompts would."""
    lengths = np.maximum(2, np.random.default_rng(4).lognormal(3.5, 0.6, 40)).astype(int).tolist()
    once = loop(8, lengths)
    others = [[replace(one, prompt_id=f"{one.prompt_id}-{n}") for one in once] for n in range(3)]
    one, same, more = (
        conditions.lengths_by_load([columns(part, 8) for part in parts]) for parts in ([once], [once] * 3, others)
    )
    assert same.log_hazard == pytest.approx(one.log_hazard, rel=0.05)
    assert same.p_value == pytest.approx(one.p_value, rel=0.1)
    assert more.p_value < one.p_value


def test_one_prompt_tells_nothing_of_lengths():
    one = [replace(request, prompt_id="p") for request in loop(4, LENGTHS)]
    assert conditions.lengths_by_load([columns(one, 4)]) is None
