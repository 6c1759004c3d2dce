"""An effect averaged over pairs of cells: by hand, and how often its interval holds."""

import math

import numpy as np
import pytest

from loadtest.decision.contrasts import mean_effect
from loadtest.decision.starts import PairedStarts, effects_of_starts


def pair(a, b):
    return PairedStarts(np.log(a), np.log(b))


def test_one_pair_is_what_starts_say_of_it():
    one = pair([1.1, 1.13, 1.08], [1.0, 1.01, 0.97])
    (alone,) = effects_of_starts([one])
    found = mean_effect([one])
    assert found.log_ratio == pytest.approx(alone.log_ratio)
    assert found.error == pytest.approx(alone.error)
    assert (found.starts_a, found.starts_b) == (3, 3)


def test_the_mean_of_two_pairs_by_hand():
    """Logs 0.2 and 0.1 apart; every cell's two starts are 0.02 apart: a variance of 0.0002 a start, 0.0001 a cell."""
    first, second = (PairedStarts(np.array([x, x + 0.02]), np.array([0.0, 0.02])) for x in (0.2, 0.1))
    found = mean_effect([first, second])
    assert found.log_ratio == pytest.approx(0.15)
    assert found.error == pytest.approx(math.sqrt(4 * 0.0001) / 2)
    assert found.df == pytest.approx(4)
    assert found.start_sd == pytest.approx(math.sqrt(0.0002))


def test_cells_that_vary_more_than_others_keep_their_own_variance():
    calm, wild = pair([1.0, 1.0001], [1.0, 1.0001]), PairedStarts(np.array([0.0, 0.4, 0.1]), np.array([0.1, 0.5, 0.0]))
    assert mean_effect([calm, wild]).error >= math.sqrt(np.var(wild.a, ddof=1) / 3 + np.var(wild.b, ddof=1) / 3) / 2


def test_one_start_each_has_no_interval_unless_starts_are_known():
    one = PairedStarts(np.array([0.1]), np.array([0.0]), within_error=0.03)
    assert mean_effect([one, one]).interval() is None
    known = mean_effect([one, one], start_sd=0.01)
    assert known.error == pytest.approx(math.sqrt(4 * 0.01**2 + 2 * 0.03**2) / 2)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(1500):
        sides = rng.normal(0, 0.01, (2, 2, 3))
        low, high = mean_effect([PairedStarts(a + 0.05, b) for a, b in sides]).interval()
        held += low <= math.exp(0.05) <= high
    assert 0.94 <= held / 1500 <= 0.995
