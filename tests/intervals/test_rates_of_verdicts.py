"""How often `judgement` speaks in studies whose truth is known, from the columns of whole passes."""

from dataclasses import replace

import numpy as np
import pytest

from loadtest.analysis import judgement
from loadtest.metrics.catalogue import METRICS
from tests.intervals.loops import Loop

LEVELS = (1, 2, 4)
FASTER_OR_SLOWER = ("faster", "slower")


def study(seed, repeats, slower=1.0, equal=True, n=24, levels=LEVELS, start_sd=0.01, **options):
    """Every verdict on two engines, the first `slower`; a start's own pace is shared by its levels."""
    rng = np.random.default_rng(seed)
    paces = np.exp(start_sd * rng.normal(size=(2, repeats)))
    pairs = []
    for level in levels:
        loop = Loop(level, n, **options)

        def passes(one, own, level=level):
            lengths = [np.random.default_rng((seed, level, repeat)) if equal else None for repeat in range(repeats)]
            made = [replace(one, slower=one.slower * pace) for pace in own]
            return [loop.one(rng, repeat, lengths[repeat]) for repeat, loop in enumerate(made)]

        pairs.append(judgement.PairedLevel(level, passes(replace(loop, slower=slower), paces[0]), passes(loop, paces[1])))
    return judgement.judge_pairs([judgement.Pair(a="a", b="b", levels=pairs)])


def spoke(found):
    return any(one.verdict in FASTER_OR_SLOWER for one in (*found.decisions, *found.comparisons))


@pytest.mark.parametrize(
    ("repeats", "options"),
    [
        (1, {"equal": True}),
        (2, {"equal": False, "jitter": 0.05}),
        (3, {"equal": True, "drift": 0.02, "jitter": 0.05}),
        (3, {"equal": False, "start_sd": 0.003}),
        (3, {"equal": False, "start_sd": 0.02}),
    ],
    ids=str,
)
def test_equal_engines_are_told_apart_in_at_most_five_of_a_hundred_studies(repeats, options):
    """16 verdicts a study; not one may speak."""
    studies = 200
    quiet = [not spoke(study(seed, repeats, **options)) for seed in range(studies)]
    assert np.mean(quiet) >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / studies)


def test_ten_percent_are_named_by_the_decision_although_lengths_are_luck():
    found = [study(seed, 3, slower=1.1, equal=False).decisions[0].verdict for seed in range(200)]
    assert np.mean([verdict == "slower" for verdict in found]) >= 0.95


def test_the_ratio_at_equal_length_is_covered():
    found = [study(seed, 3, slower=1.05, equal=False).decisions[0].ratio for seed in range(300)]
    assert np.mean([one.value for one in found]) == pytest.approx(1.05, abs=0.002)
    assert 0.93 <= np.mean([one.low <= 1.05 <= one.high for one in found]) <= 0.99  # of a level of 3.9 %, not 5


def test_no_engine_is_called_faster_that_is_slower():
    for seed in range(60):
        for one in study(seed, 3, slower=1.1).comparisons:
            assert one.verdict != "faster"
            if one.verdict == "slower":
                assert (one.ratio.value < 1) == (METRICS[one.metric].better == "more")
