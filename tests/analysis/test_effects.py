"""One figure a start: which passes make one, at which length, and what stands in for times that were cut off."""

import math
from dataclasses import replace

import numpy as np
import pytest

from loadtest.analysis import effects
from loadtest.metrics import request_arrays
from tests.support import builders


def passed(records, repeat=1, concurrency=1):
    return request_arrays.pass_arrays(builders.level(records, concurrency=concurrency, repeat=repeat), builders.ANCHOR)


def loop(repeat=1, seed=0, concurrency=1, n=12, **options):
    return passed(builders.closed_loop(concurrency, n, seed=seed, **options), repeat, concurrency)


def test_a_repeat_is_a_start_unless_the_server_was_attached_to():
    passes = [loop(repeat, repeat) for repeat in (1, 2, 3)]
    assert [len(one) for one in effects.by_start(passes, restarted=True)] == [1, 1, 1]
    assert [len(one) for one in effects.by_start(passes, restarted=False)] == [3]


def test_a_pass_without_a_measured_request_is_no_start():
    assert len(effects.by_start([loop(1), passed([], 2), loop(3)], restarted=True)) == 2
    assert effects.by_start([passed([])], restarted=False) == []


def test_an_engine_that_thinks_longer_is_no_slower_at_equal_length():
    """Half as many tokens again at the same pace: a raw ratio near 1.5, and at equal length none."""
    longer, shorter = [[loop(tokens=900, noise=0.001)]], [[loop(tokens=600, noise=0.001)]]
    raw, equal = effects.raw(longer, shorter, effects.ANSWER), effects.compared(longer, shorter, effects.ANSWER)
    assert raw.pair.log_ratio == pytest.approx(math.log(1.5), abs=0.02)
    assert equal.method == effects.EQUAL_LENGTH
    assert equal.pair.log_ratio == pytest.approx(0, abs=0.02)


def test_over_levels_a_start_has_one_figure_and_levels_that_some_start_lacks_are_left_out():
    both = [effects.compared([[loop(seed=s)]], [[loop(seed=s + 9)]], effects.ANSWER) for s in (1, 2)]
    lacking = effects.Sides((None,), both[0].b, effects.EQUAL_LENGTH)
    found = effects.over_levels([both[0], lacking, both[1]])
    assert found.a == pytest.approx([np.mean([one.a[0].log for one in both])])
    assert effects.over_levels([lacking]) is None


def test_what_requests_explain_shrinks_with_the_levels():
    one = effects.compared([[loop(seed=1)]], [[loop(seed=2)]], effects.ANSWER)
    assert effects.over_levels([one, one]).within_error == pytest.approx(one.pair.within_error / math.sqrt(2))


@pytest.mark.parametrize("metric", ["ttft_s", "tokens_per_s_per_user", "time_to_first_answer_s", "output_tokens_per_s"])
def test_other_metrics_are_taken_as_they_are_seen(metric):
    found = effects.compared([[loop(seed=1, n=40, gap_s=0.06)]], [[loop(seed=2, n=40)]], metric)
    expected = {"ttft_s": 1.0, "tokens_per_s_per_user": 0.5}.get(metric)
    assert found.whole
    assert all(one.variance > 0 for one in (*found.a, *found.b))
    assert expected is None or math.exp(found.pair.log_ratio) == pytest.approx(expected, rel=0.05)


def in_bursts(record, size=5):
    """The same request, its tokens sent whenever there are `size` of them."""
    ends = [record.chunk_s[min(i // size * size + size, len(record.chunk_s)) - 1] for i in range(len(record.chunk_s))]
    return replace(record, chunk_s=tuple(ends))


def test_no_verdict_rests_on_a_rate_between_arrivals_where_either_side_sends_in_bursts():
    records = builders.closed_loop(1, 20, noise=0.001)
    found = effects.raw([[passed(list(map(in_bursts, records)))]], [[passed(records)]], "tokens_per_s_per_user")
    assert found.method == effects.WHOLE
    assert found.pair.log_ratio == pytest.approx(0, abs=1e-9)


def test_where_some_times_are_cut_off_the_raw_figure_is_a_mean_up_to_a_common_time():
    records = builders.closed_loop(2, 30)
    records[-1] = replace(records[-1], outcome="cut_off")
    found = effects.raw([[passed(records, concurrency=2)]], [[loop(concurrency=2, n=30, seed=2)]], effects.ANSWER)
    assert found.method == effects.CENSORED
    assert found.whole
