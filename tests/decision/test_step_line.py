import numpy as np
import pytest

from loadtest.decision import step_line

CONTEXTS = np.array([1000.0, 1000.0, 4000.0, 4000.0, 9000.0, 9000.0])


def test_a_line_without_noise_is_found():
    line = step_line.fit_step_line(CONTEXTS, 0.03 + 2e-7 * CONTEXTS)
    assert float(line.a_s) == pytest.approx(0.03)
    assert float(line.b_s) == pytest.approx(2e-7)
    assert float(line.step_s(np.array(5000.0))) == pytest.approx(0.031)


def test_many_lines_are_fitted_at_once_as_each_alone():
    rng = np.random.default_rng(1)
    step_s = 0.03 * rng.lognormal(0, 0.02, (4, 2, 6))
    both = step_line.fit_step_line(CONTEXTS, step_s)
    alone = step_line.fit_step_line(CONTEXTS, step_s[2, 1])
    assert (both.a_s[2, 1], both.b_s[2, 1]) == (pytest.approx(float(alone.a_s)), pytest.approx(float(alone.b_s)))


def test_a_slow_burst_weighs_less_for_its_error_is_a_share():
    step_s = 0.03 + 2e-6 * CONTEXTS
    slower = step_s * np.array([1, 1, 1, 1, 1.1, 1])
    faster = step_s * np.array([1, 1, 1, 1, 1 / 1.1, 1])
    up, down = (float(step_line.fit_step_line(CONTEXTS, one).step_s(np.array(9000.0))) for one in (slower, faster))
    assert up - 0.048 < 0.048 - down


@pytest.mark.parametrize(("curve", "bent"), [(0.0, False), (4e-10, True)])
def test_a_bend_that_all_starts_share_is_one_and_jitter_is_none(curve, bent):
    rng = np.random.default_rng(2)
    step_s = (0.03 + 2e-7 * CONTEXTS + curve * CONTEXTS**2) * rng.lognormal(0, 0.005, (6, 6))
    assert step_line.bend(CONTEXTS, step_s).bent is bent


def test_one_start_shows_no_bend():
    assert not step_line.bend(CONTEXTS, (0.03 + 1e-9 * CONTEXTS**2)[None]).bent
