"""The grammar of SLOs: what is accepted and what it means, and for each mistake what is said of it and what to write."""

import numpy as np
import pytest

from loadtest.errors import UsageError
from loadtest.metrics.slo import parse_slo


@pytest.mark.parametrize(
    ("text", "sign", "limit"),
    [
        ("ttft_s:p90<2", "<", 2.0),
        ("ttft_s:p90<2s", "<", 2.0),
        ("ttft_s:p90<=500ms", "<=", 0.5),
        ("time_to_final_answer_s:p90 < 2min", "<", 120.0),
        ("time_to_final_answer_s:max<1.5h", "<", 5400.0),
        ("tokens_per_s_per_user:p10>15", ">", 15.0),
        ("tokens_per_s_per_user:p1 >= 1.5e1 tokens/s", ">=", 15.0),
        ("failed_share<=1%", "<=", 0.01),
        ("failed_share<.01", "<", 0.01),
    ],
)
def test_signs_and_units(text, sign, limit):
    found = parse_slo(text)
    assert (found.sign, found.limit, found.text) == (sign, pytest.approx(limit), text)
    assert found.below == sign.startswith("<")


def test_the_limit_itself_meets_only_a_sign_with_equality():
    values = np.array([1.0, 2.0, 3.0])
    for sign, expected in (("<", [1, 0, 0]), ("<=", [1, 1, 0])):
        found = parse_slo(f"ttft_s:p90{sign}2")
        assert found.which_hold(values).tolist() == expected == [found.holds(one) for one in values]
    for sign, expected in ((">", [0, 0, 1]), (">=", [0, 1, 1])):
        found = parse_slo(f"tokens_per_s_per_user:p10{sign}2")
        assert found.which_hold(values).tolist() == expected == [found.holds(one) for one in values]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ttft_s:p90", "expected a limit after < or >, such as ttft_s:p90<2, got none"),
        ("ttft:p90<2", "unknown metric 'ttft': expected one of ttft_s, tpot_s, "),
        ("TTFT_S:p90<2", "unknown metric 'TTFT_S': expected one of ttft_s, "),
        ("ttft_s:p92<2", "unknown statistic 'p92' of ttft_s: expected one of p90, p95, p99, p50, mean, min, max"),
        ("ttft_s:p10<2", "unknown statistic 'p10' of ttft_s: expected one of p50, "),
        ("ttft_s:median<2", "unknown statistic 'median' of ttft_s: expected one of mean, "),
        ("ttft_s<2", "expected a statistic of ttft_s, such as ttft_s:p90<2; one of mean, p50, p90, p95, p99, min, max"),
        ("tokens_per_s_per_user>15", "expected a statistic of tokens_per_s_per_user, such as tokens_per_s_per_user:p10>15;"),
        ("failed_share:p50<1", "failed_share is a single figure without statistics: expected failed_share<1"),
        ("tokens_per_s_per_user:p50<15",
         "of tokens_per_s_per_user more is better: expected a lower limit, tokens_per_s_per_user:p50>15"),
        ("ttft_s:p90>=2s", "of ttft_s less is better: expected an upper limit, ttft_s:p90<=2s"),
        ("ttft_s:p90<2parsec", "unknown unit 'parsec' of ttft_s (seconds): expected none, or one of ms, s, min, h"),
        ("accuracy>0.9s", "unknown unit 's' of accuracy (share): expected none, or one of %"),
        ("ttft_s:p90<", "expected a finite number after <, got ''"),
        ("ttft_s:p90<1e999", "expected a finite number after <, got '1e999'"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_what_to_write_instead(text, said):
    with pytest.raises(UsageError) as caught:
        parse_slo(text)
    assert str(caught.value).startswith(f"SLO {text!r}: {said}")
