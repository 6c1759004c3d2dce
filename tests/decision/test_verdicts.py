import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.decision import verdicts
from loadtest.decision.starts import Effect


def effect(log_ratio, error, df=20.0, n=3):
    return Effect(log_ratio, error, df, n, n, 0.01)


@pytest.mark.parametrize(
    ("log_ratio", "error", "more_is_faster", "word"),
    [
        (0.10, 0.01, False, "slower"),
        (-0.10, 0.01, False, "faster"),
        (0.10, 0.01, True, "faster"),
        (0.01, 0.01, False, "equal"),
        (0.03, 0.02, False, "undecided"),
        (0.10, None, False, "one start each"),
    ],
)
def test_a_verdict_is_read_off_the_interval(log_ratio, error, more_is_faster, word):
    found = verdicts.verdict_on(effect(log_ratio, error), 0.05, more_is_faster=more_is_faster)
    assert found.word == word
    assert found.decided == (word in ("faster", "slower", "equal"))


def test_a_difference_that_does_not_matter_is_equal_and_still_a_difference():
    small = verdicts.verdict_on(effect(-0.02, 0.001), 0.05)
    assert (small.word, small.differs) == ("equal", True)
    assert not verdicts.verdict_on(effect(0.01, 0.01), 0.05).differs


def test_matters_bounds_what_is_equal():
    small = effect(0.01, 0.01)
    assert [verdicts.verdict_on(small, 0.05, matters).word for matters in (0.02, 0.05)] == ["undecided", "equal"]


def test_undecided_says_how_many_more_starts_would_decide():
    found = verdicts.verdict_on(effect(0.03, 0.02), 0.05)
    wider = effect(0.03, 0.02 / math.sqrt((3 + found.more_starts) / 3), 20 * (3 + found.more_starts) / 3)
    assert verdicts.verdict_on(wider, 0.05).decided
    fewer = effect(0.03, 0.02 / math.sqrt((2 + found.more_starts) / 3), 20 * (2 + found.more_starts) / 3)
    assert not verdicts.verdict_on(fewer, 0.05).decided


def test_a_ratio_on_the_very_edge_is_too_close_for_any_number_of_starts():
    found = verdicts.verdict_on(effect(math.log(1.05), 0.9), 0.05)
    assert (found.word, found.more_starts, found.too_close) == ("undecided", None, True)


def test_one_start_each_wants_one_more():
    assert verdicts.verdict_on(effect(0.1, None, n=1), 0.05).more_starts == 1


@given(st.integers(1, 60))
def test_more_pairs_and_more_looks_ask_for_more(pairs):
    fixed, sequential = (verdicts.nominal_level(pairs, sequential=looks) for looks in (False, True))
    assert 0 < sequential < fixed < 0.05
    assert verdicts.nominal_level(pairs + 1) <= fixed


def test_what_can_be_detected_is_found_four_times_of_five():
    ratio = verdicts.detectable_ratio(effect(0.0, 0.01, df=1e9), 0.05)
    assert math.log(ratio) == pytest.approx(0.01 * (1.960 + 0.8416), rel=1e-3)
    assert verdicts.detectable_ratio(effect(0.0, None), 0.05) is None
