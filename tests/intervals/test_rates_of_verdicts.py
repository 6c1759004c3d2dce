"""How often `compare` speaks in studies whose truth is known: of equal runtimes, and of runtimes 5 % apart."""

from dataclasses import replace

import numpy as np
import pytest

from loadtest.analysis import compare
from loadtest.metrics.catalogue import COMPARED, METRICS
from tests.intervals.loops import Loop

LEVELS = (1, 2, 4)
FASTER_WITH_MORE = {name for name in COMPARED if METRICS[name].better == "more"}


def study(seed, repeats, slower=1.0, equal=True, n=24, levels=LEVELS, **options):
    """Every verdict of two runtimes, the first `slower`, by whole passes at each level."""
    rng, levels_of_both = np.random.default_rng(seed), []
    for level in levels:
        loop = Loop(level, n, **options)

        def passes(one, level=level):
            lengths = [np.random.default_rng((seed, level, repeat)) if equal else None for repeat in range(repeats)]
            return [one.one(rng, repeat, lengths[repeat]) for repeat in range(repeats)]

        levels_of_both.append(compare.PairedLevel(level, passes(replace(loop, slower=slower)), passes(loop)))
    pair = compare.Pair(a="a", b="b", model=None, tp=1, gpu=None, simulated=True, levels=levels_of_both)
    return compare.compare_pairs([pair])


@pytest.mark.parametrize(
    ("repeats", "options"),
    [
        (1, {"equal": True}),
        (1, {"equal": False, "jitter": 0.05}),
        (2, {"equal": False}),
        (3, {"equal": True, "drift": 0.02, "jitter": 0.05}),
        (3, {"equal": False, "drift": 0.02}),
    ],
    ids=str,
)
def test_equal_runtimes_are_told_apart_in_at_most_five_of_a_hundred_studies(repeats, options):
    """15 verdicts a study; not one may speak."""
    quiet = [
        all(row.verdict == "no detectable difference" for row in study(seed, repeats, **options)) for seed in range(300)
    ]
    assert np.mean(quiet) >= 0.95


def test_a_true_five_percent_is_found_at_the_power_that_the_study_states():
    """Studies that say that they find 5 % four times of five do so; what stands beside a verdict is their own statement."""
    found, stated = [], []
    for seed in range(400):
        rows = study(seed, 3, slower=1.05, drift=0.01)
        row = next(r for r in rows if r.metric == "time_to_final_answer_s" and r.concurrency == 2)
        found.append(row.verdict == "slower")
        stated.append(row.smallest_detectable_ratio)
    assert np.median(stated) == pytest.approx(1.05, abs=0.004)
    assert 0.72 <= np.mean(found) <= 0.92  # Holm's later steps are kinder than the strictest, which is stated


def test_no_runtime_is_called_faster_that_is_slower():
    for seed in range(100):
        rows = study(seed, 3, slower=1.05, drift=0.01)
        said = {(row.metric in FASTER_WITH_MORE, row.ratio.value > 1) for row in rows if row.verdict == "slower"}
        assert said <= {(True, False), (False, True)}
        assert all(row.verdict != "faster" for row in rows if row.metric != "ttft_s")
