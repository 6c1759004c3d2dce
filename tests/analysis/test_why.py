"""What a difference of times to the final answer is made of."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.analysis.why import explain_difference
from loadtest.metrics import request_arrays
from tests.support import builders


def passed(seed, **options):
    records = builders.closed_loop(2, 12, seed=seed, **options)
    return request_arrays.pass_arrays(builders.level(records, concurrency=2), builders.ANCHOR)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 50), st.floats(0.5, 2), st.integers(20, 90), st.floats(0.1, 3))
def test_why_adds_up_exactly(seed, ratio, tokens, ttft_s):
    a, b = passed(seed, gap_s=0.03 * ratio, tokens=tokens), passed(seed + 99, ttft_s=ttft_s)
    parts = explain_difference([a], [b])
    means = [np.mean(request_arrays.values_of(side, "time_to_final_answer_s")[0]) for side in (a, b)]
    total = parts.tokens_thought_s + parts.tokens_answered_s + parts.seconds_per_token_s + parts.waiting_s
    assert total == pytest.approx(means[0] - means[1], abs=1e-9)
    assert parts.difference_s == pytest.approx(means[0] - means[1], abs=1e-9)


def test_why_names_the_cause():
    """Same pace, same wait, ten tokens more thought each: all of it is tokens thought, 10 x 0.1 s."""
    more = builders.level([builders.request(10.0 * i, thinking=16, seq=i) for i in range(5)])
    less = builders.level([builders.request(10.0 * i, thinking=6, seq=i) for i in range(5)])
    parts = explain_difference(*([request_arrays.pass_arrays(side, builders.ANCHOR)] for side in (more, less)))
    assert parts.tokens_thought_s == pytest.approx(1.0)
    assert parts.seconds_per_token_s == pytest.approx(0.0, abs=1e-9)
    assert parts.waiting_s == pytest.approx(0.0, abs=1e-9)
