"""How values are written."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from loadtest.metrics.figures import Bounded, Estimate, unknown
from loadtest.report.formatting import clean, number, span, value_and_span, with_interval


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=1e-6, max_value=1e12))
def test_number_keeps_three_digits(value):
    shown = float(number(value).replace(",", ""))
    assert math.isclose(shown, value, rel_tol=0.0051) or abs(shown - value) <= 5.6e-7


@given(st.text())
def test_clean_text_shows_every_invisible_character(text):
    shown = clean(text)
    assert clean(shown) == shown
    assert not any(character in shown for character in "\u202e\u200b\u2066\x00\x1b")


def test_a_missing_figure_says_what_it_needs_and_a_bare_one_that_it_has_no_interval():
    assert value_and_span(Estimate(None, None, 12, n_needed=36)) == ("—", "needs n ≥ 36")
    assert value_and_span(unknown("no request")) == ("—", "no data")
    assert value_and_span(Estimate(2.0, None, 1)) == ("2.00", "—")
    assert with_interval(Estimate(35.0, (34.1, 35.7), 9), "tokens/s") == "35.0 tokens/s (95 % CI 34.1 to 35.7)"
    assert with_interval(Estimate(35.0, None, 9)) == "35.0 (no confidence interval)"


def test_an_open_interval_has_no_span():
    assert span(Bounded(3.0, (None, 4.0))) == ""
