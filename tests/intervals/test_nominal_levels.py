"""The levels of `verdicts`, derived again: studies of equal engines, of which at most 5 % may have a wrong verdict.

Six patterns of start-to-start variation; a level must do for the worst of them.
"""

import numpy as np
import pytest
from scipy import special

from loadtest.decision import starts, verdicts

STUDIES = 20_000


def patterns(k):
    """The standard deviation of starts, pair by pair and engine by engine."""
    ramp = np.linspace(0, 1, k) if k > 1 else np.zeros(1)
    return {
        "alike": np.ones((k, 2)),
        "one engine": np.tile([2.0, 0.3], (k, 1)),
        "one pair": np.array([[3.0, 3.0], *[[1.0, 1.0]] * (k - 1)]),
        "one cell": np.array([[5.0, 1.0], *[[1.0, 1.0]] * (k - 1)]),
        "one engine by pair": np.stack([0.3 + 1.7 * ramp, np.full(k, 0.5)], axis=1),
        "by pair": np.repeat(0.5 + 1.5 * ramp[:, None], 2, axis=1),
    }


def p_values(figures, n):
    """Of every pair after n starts: `starts.effects_of_starts` for all studies at once."""
    seen = figures[..., :n]
    variances = seen.var(axis=-1, ddof=1)
    own, pooled = variances.mean(axis=-1), variances.mean(axis=(-2, -1))[:, None]
    own_df = (n - 1) * variances.sum(axis=-1) ** 2 / (variances**2).sum(axis=-1)
    pooled_df = (n - 1) * variances.sum(axis=(-2, -1)) ** 2 / (variances**2).sum(axis=(-2, -1))
    df = np.where(own > pooled, own_df, pooled_df[:, None])
    means = seen.mean(axis=-1)
    t = np.abs(means[..., 0] - means[..., 1]) / np.sqrt(np.maximum(own, pooled) * 2 / n)
    return 2 * special.stdtr(df, -t)


def smallest(pattern, seed):
    """The least p-value of each study, at every look."""
    figures = np.random.default_rng(seed).normal(size=(STUDIES, *pattern.shape, max(verdicts.LOOKS))) * pattern[..., None]
    return np.array([p_values(figures, n).min(axis=-1) for n in verdicts.LOOKS])


def test_all_studies_at_once_are_judged_as_one_is():
    figures = np.random.default_rng(1).normal(size=(20, 3, 2, 4)) * patterns(3)["by pair"][..., None]
    for study, expected in zip(figures, p_values(figures, 4), strict=True):
        found = starts.effects_of_starts([starts.PairedStarts(a, b) for a, b in study])
        assert [one.p_value for one in found] == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 2, 5, 10])
def test_no_pattern_gives_more_false_verdicts_than_promised(k):
    by_pattern = {name: smallest(pattern, k) for name, pattern in patterns(k).items()}
    error = 3 * np.sqrt(0.05 * 0.95 / STUDIES)
    fixed = max(float(np.mean(p <= verdicts.nominal_level(k))) for looks in by_pattern.values() for p in looks)
    stopped = max(
        float(np.mean(looks.min(axis=0) <= verdicts.nominal_level(k, sequential=True))) for looks in by_pattern.values()
    )
    assert 0.04 <= fixed <= 0.05 + error  # and none is much stricter than it has to be
    assert 0.04 <= stopped <= 0.05 + error
