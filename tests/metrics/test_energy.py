"""Joules by hand, and what leaves them unknown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.metrics.energy import joules
from loadtest.metrics.level_schema import WindowSpan
from loadtest.records.schema import GpuSample


def read(t_s, power_w, gpu=0, anchor=1000.0):
    return GpuSample(t_s=t_s, clock_anchor_unix_s=anchor, clock_speed=1.0, gpu=gpu, power_w=power_w)


def test_two_cards_by_hand():
    cards = [read(0, 100.0), read(1, 300.0), read(2, 300.0), read(0, 50.0, 1), read(1, 50.0, 1), read(2, 50.0, 1)]
    assert joules(cards, WindowSpan(0.0, 2.0)) == 200 + 300 + 50 + 50
    assert joules(cards, WindowSpan(0.5, 1.5)) == 125 + 150 + 25 + 25


def test_the_samples_clock_is_not_the_windows():
    samples = [read(t, 100.0, anchor=1010.0) for t in range(5)]  # 10 s after the anchor of the run
    assert joules(samples, WindowSpan(11.0, 13.0), 1000.0) == 200.0
    assert joules(samples, WindowSpan(1.0, 3.0), 1000.0) is None


@pytest.mark.parametrize(
    "samples",
    [
        [],
        [read(1, 100.0)],
        [read(1, 100.0), read(3, 100.0)],  # begins after the window
        [read(0, 100.0), read(1.5, 100.0)],  # ends before it
        [read(0, 100.0), read(9, 100.0)],  # 9 s apart
        [read(0, 100.0), read(2, 100.0), read(0, None, 1), read(2, None, 1)],  # the second card does not tell
        [read(0, None), read(2, None)],
    ],
)
def test_what_was_not_read_is_not_known(samples):
    assert joules(samples, WindowSpan(0.5, 2.0)) is None


@given(
    powers=st.lists(st.floats(0, 1000), min_size=6, max_size=6),
    cut=st.floats(1.0, 4.0),
    order=st.permutations(range(6)),
)
def test_parts_add_up_and_order_is_irrelevant(powers, cut, order):
    samples = [read(t, power) for t, power in enumerate(powers)]
    whole = joules(samples, WindowSpan(0.5, 4.5))
    parts = joules(samples, WindowSpan(0.5, cut)) + joules(samples, WindowSpan(cut, 4.5))
    assert parts == pytest.approx(whole)
    assert joules([samples[i] for i in order], WindowSpan(0.5, 4.5)) == whole
    assert min(powers) * 4.0 <= whole * (1 + 1e-9) <= max(powers) * 4.0 * (1 + 2e-9)
