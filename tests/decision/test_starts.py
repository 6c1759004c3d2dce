import math

import numpy as np
import pytest

from loadtest.decision import starts
from loadtest.decision.starts import PairedStarts
from loadtest.metrics import intervals


def pair(a, b, within=0.0):
    return PairedStarts(np.array(a, float), np.array(b, float), within)


def test_one_pair_is_welch():
    (found,) = starts.effects_of_starts([pair([0.0, 0.1, 0.2], [0.0, 0.3, 0.6])])
    error = math.sqrt(0.01 / 3 + 0.09 / 3)
    assert (found.log_ratio, found.error) == (pytest.approx(-0.2), pytest.approx(error))
    assert found.df == pytest.approx(error**4 / ((0.01 / 3) ** 2 / 2 + (0.09 / 3) ** 2 / 2))
    low, high = found.interval()
    assert math.log(high / low) / 2 == pytest.approx(intervals.t_critical(found.df) * error)


def test_a_quiet_pair_takes_the_variance_of_all_and_a_noisy_one_its_own():
    quiet, noisy = starts.effects_of_starts([pair([0, 0.01], [0, 0.01]), pair([0, 0.2], [0, 0.2])])
    pooled = (2 * 0.01**2 / 2 + 2 * 0.2**2 / 2) / 4
    assert quiet.error == pytest.approx(math.sqrt(pooled))
    assert noisy.error == pytest.approx(math.sqrt(0.2**2 / 2))
    assert quiet.start_sd == noisy.start_sd == pytest.approx(math.sqrt(pooled))


def test_one_start_each_has_a_ratio_and_no_interval():
    (found,) = starts.effects_of_starts([pair([0.1], [0.0])])
    assert (found.log_ratio, found.error, found.interval(), found.p_value) == (0.1, None, None, 1.0)


def test_one_start_each_borrows_nothing_from_other_pairs():
    alone, _ = starts.effects_of_starts([pair([0.1], [0.0]), pair([0.1, 0.11, 0.12], [0.0, 0.01, 0.02])])
    assert alone.error is None


def test_where_start_sd_is_known_one_start_each_has_an_interval_with_its_requests_in_it():
    (found,) = starts.effects_of_starts([pair([0.1], [0.0], within=0.03)], start_sd=0.02)
    assert found.error == pytest.approx(math.sqrt(2 * 0.02**2 + 0.03**2))
    assert math.log(found.interval()[1]) == pytest.approx(0.1 + intervals.Z * found.error)


def test_starts_that_differ_more_than_was_said_are_believed():
    (found,) = starts.effects_of_starts([pair([0, 0.2, 0.4], [0, 0.2, 0.4])], start_sd=0.001)
    assert found.error == pytest.approx(math.sqrt(2 * 0.04 / 3))


def test_starts_without_any_variation_differ_by_what_they_differ():
    same, other = starts.effects_of_starts([pair([0.0, 0.0], [0.0, 0.0]), pair([0.1, 0.1], [0.0, 0.0])])
    assert (same.p_value, other.p_value) == (1.0, 0.0)
    assert other.interval() == (pytest.approx(math.exp(0.1)), pytest.approx(math.exp(0.1)))
