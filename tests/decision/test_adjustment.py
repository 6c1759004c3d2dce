import math

import numpy as np
import pytest

from loadtest.decision.adjustment import Answers, at_common_length


def start(rng, n, pace_s, median=1000.0, noise=0.0):
    tokens = median * rng.lognormal(0, 0.5, n)
    return Answers(pace_s * tokens * rng.lognormal(0, noise, n) if noise else pace_s * tokens, tokens)


def test_lengths_drop_out_and_pace_is_left():
    rng = np.random.default_rng(1)
    a, b = at_common_length([start(rng, 10, 0.022, 1500), start(rng, 12, 0.020, 900)]).log_s
    assert a - b == pytest.approx(math.log(1.1))


def test_what_is_left_does_not_depend_on_which_answers_were_cut_off():
    rng = np.random.default_rng(2)
    whole, other = start(rng, 200, 0.02, noise=0.01), start(rng, 200, 0.02, noise=0.01)
    short = whole.tokens < np.median(whole.tokens)
    a, b = at_common_length([Answers(whole.time_s[short], whole.tokens[short]), other]).log_s
    assert a - b == pytest.approx(0, abs=0.005)


def test_equal_work_moves_nothing():
    rng, tokens = np.random.default_rng(3), np.array([100.0, 200.0, 400.0])
    times = [tokens * 0.02 * rng.lognormal(0, 0.01, 3) for _ in range(2)]
    found = at_common_length([Answers(one, tokens) for one in times])
    assert found.log_s == pytest.approx([float(np.mean(np.log(one))) for one in times])


def test_one_length_for_all_is_no_line():
    found = at_common_length([Answers(np.array([2.0, 2.2]), np.array([100.0, 100.0]))] * 2)
    assert found.slope == 1.0
    assert found.log_s[0] == pytest.approx(float(np.mean(np.log([2.0, 2.2]))))


def test_a_start_of_one_answer_has_no_figure():
    rng = np.random.default_rng(4)
    found = at_common_length([start(rng, 1, 0.02), start(rng, 9, 0.02)])
    assert found.log_s[0] is None
    assert found.log_s[1] is not None
    assert at_common_length([start(rng, 1, 0.02)]).log_s == (None,)


def test_the_variance_is_that_of_the_answers():
    rng, seen = np.random.default_rng(5), []
    for _ in range(400):
        found = at_common_length([start(rng, 12, 0.02, noise=0.05), start(rng, 12, 0.02, noise=0.05)])
        seen.append((found.log_s[0] - found.log_s[1], sum(found.within_variance)))
    differences, variances = zip(*seen, strict=True)
    assert np.var(differences) == pytest.approx(np.mean(variances), rel=0.25)
