"""How much starts vary, taken from an earlier run: one start each is judged no more boldly for it."""

import math

import numpy as np
import pytest

from loadtest.decision.start_variation import careful_sd
from loadtest.decision.starts import PairedStarts, effects_of_starts
from loadtest.decision.verdicts import nominal_level


@pytest.mark.parametrize("df", [2, 4, 20])
def test_one_start_each_is_told_apart_in_at_most_five_of_a_hundred(df):
    rng, studies = np.random.default_rng(df), 4000
    seen = 0.01 * np.sqrt(rng.chisquare(df, studies) / df)
    figures = rng.normal(0, 0.01, (studies, 2, 1))
    told = 0
    for sd, (a, b) in zip(seen, figures, strict=True):
        (effect,) = effects_of_starts([PairedStarts(a, b)], careful_sd(float(sd), df))
        low, high = effect.interval(nominal_level(1))
        told += not low <= 1 <= high
    assert told / studies <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies)
