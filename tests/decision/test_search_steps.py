"""Double, then bisect: every search ends, at the frontier if levels tell the truth."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.decision.search_steps import frontier, next_level, step


def searched(word_of, start, most):
    """All levels of a search, in order, with their words."""
    tried = {}
    while (level := next_level(tried, start, most)) is not None:
        assert level not in tried
        assert 1 <= level <= most
        tried[level] = word_of(level)
        assert len(tried) < 100
    return tried


@given(truth=st.integers(0, 600), start=st.integers(1, 300), most=st.integers(1, 512))
def test_a_search_finds_the_frontier_within_a_step(truth, start, most):
    found = frontier(searched(lambda level: "within" if level <= truth else "broken", start, most))
    if truth >= most:
        assert found == (most, None)
    else:
        assert found.within <= truth < found.broken
        assert found.broken - found.within <= step(found.within)


@given(truth=st.integers(1, 300), width=st.integers(0, 40), start=st.integers(1, 300), most=st.integers(1, 512))
def test_levels_that_stay_undecided_are_closed_in_from_both_sides(truth, width, start, most):
    def word(level):
        return "within" if level < truth else "undecided" if level <= truth + width else "broken"

    found = frontier(searched(word, start, most))
    assert found.within < truth
    assert found.within + step(found.within) >= min(truth - 1, most)
    if found.broken is not None:
        assert found.broken > truth + width


@given(st.lists(st.sampled_from(["within", "broken", "undecided"]), min_size=600, max_size=600), st.integers(1, 64))
def test_a_search_ends_whatever_levels_say(words, start):
    searched(lambda level: words[level], start, 512)


@pytest.mark.parametrize(
    ("tried", "expected"),
    [
        ({}, 8),
        ({8: "within"}, 16),
        ({8: "undecided"}, 16),
        ({8: "broken"}, 4),
        ({8: "within", 16: "broken"}, 12),
        ({64: "within"}, 100),
        ({64: "within", 100: "within"}, None),
        ({1: "broken"}, None),
    ],
)
def test_each_step(tried, expected):
    assert next_level(tried, 8, 100) == expected


def test_a_level_above_one_that_broke_is_not_believed():
    assert frontier({4: "within", 8: "broken", 16: "within"}) == (4, 8)
