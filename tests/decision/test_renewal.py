import numpy as np
import pytest

from loadtest.decision import renewal


def test_one_user_is_one_answer_after_the_other():
    found = renewal.renewal_tokens_per_s(1, np.array([101.0, 101.0]), np.array([0.5, 0.5]), np.array([0.02, 0.02]))
    assert found.value == pytest.approx(101 / (0.5 + 100 * 0.02))


def test_prefills_of_all_halt_all():
    found = renewal.renewal_tokens_per_s(4, np.array([101.0, 101.0]), np.array([0.5, 0.5]), np.array([0.02, 0.02]))
    assert found.value == pytest.approx(4 * 101 / (4 * 0.5 + 100 * 0.02))


def test_without_prefills_length_is_luck_and_does_not_widen_it():
    lengths = np.array([100.0, 1000.0, 3000.0])
    found = renewal.renewal_tokens_per_s(4, lengths, np.full(3, 0.02), np.full(3, 0.02))
    assert found.ci95[1] / found.ci95[0] < 1.05


def test_what_is_missing_is_said():
    assert renewal.renewal_tokens_per_s(4, np.zeros(0), np.ones(1), np.ones(1)).value is None
    once = renewal.renewal_tokens_per_s(4, np.array([100.0]), np.ones(2), np.ones(2))
    assert (once.ci95, once.reason) == (None, "one answer or one stretch has no interval")


def test_the_rate_of_a_whole_run():
    assert renewal.whole_run_rate(1000.0, 20.0) == 50.0
    assert renewal.whole_run_rate(1000.0, 0.0) is None
