"""One level of a search: which requests are judged, in which order, and what makes a level certain."""

from dataclasses import replace

import pytest

from loadtest.analysis.level import level_figures
from loadtest.analysis.search.level_test import LevelTest, by_figures, looks, most_requests, outcomes, target_share
from loadtest.metrics.figures import Estimate
from loadtest.metrics.request_arrays import pass_arrays
from loadtest.metrics.slo import parse_slo
from tests.support import builders

FAST, SLOW = 0.2, 5.0  # seconds to the first token
TTFT = parse_slo("ttft_s:p90<2")


def columns(requests, users=1):
    return pass_arrays(builders.level(requests, concurrency=users), builders.ANCHOR)


def waits(seconds, start_s=0.0, user=0):
    """Requests of one user, one after another, with these waits for the first token."""
    made = []
    for seq, ttft_s in enumerate(seconds):
        made.append(builders.request(start_s, ttft_s=ttft_s, user=user, seq=seq, prompt_id=f"p{user}-{seq}"))
        start_s = made[-1].ended_s
    return made


def judged(requests, slos=("ttft_s:p90<2",), users=1):
    test = LevelTest([parse_slo(text) for text in slos], users, lambda: None)
    test.take_all(columns(requests, users))
    return test


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("ttft_s:p90<2", 0.9),
        ("ttft_s:p99<=2", 0.99),
        ("tokens_per_s_per_user:p50>20", 0.5),
        ("tokens_per_s_per_user:p10>20", 0.9),
        ("tokens_per_s_per_user:p90>20", 0.1),
        ("failed_share<1%", 0.99),
        ("ttft_s:mean<2", None),
        ("itl_s:p99<0.1", None),
        ("output_tokens_per_s>500", None),
    ],
)
def test_the_share_of_requests_that_an_slo_asks_for(text, share):
    assert target_share(parse_slo(text)) == (None if share is None else pytest.approx(share))


def test_a_level_is_within_broken_or_undecided():
    assert judged(waits([FAST] * 60)).word == "within"
    assert judged(waits([SLOW] * 10)).word == "broken"
    assert judged(waits([FAST, FAST, FAST, SLOW] * 2)).word == "undecided"


def test_one_broken_slo_breaks_the_level_and_all_must_be_met():
    both = ("ttft_s:p90<2", "tokens_per_s_per_user:p50>8")
    assert judged(waits([FAST] * 60), both).word == "within"
    assert judged(waits([FAST] * 20), both).word == "undecided"
    assert judged(waits([FAST] * 20), ("ttft_s:p90<2", "tokens_per_s_per_user:p50>80")).word == "broken"


def test_nothing_is_certain_before_every_user_could_be_judged():
    assert judged(waits([SLOW] * 10), users=11).word == "undecided"
    assert judged(waits([SLOW] * 11), users=11).word == "broken"


def test_a_failed_request_is_never_within_and_one_that_was_cut_off_may_be_unknown():
    late = replace(
        builders.request(0, seq=0), outcome="cut_off", chunk_s=(), chunk_tokens=(), first_answer_chunk=None, ended_s=9.0
    )
    early = replace(late, ended_s=1.0, seq=1)
    failed = replace(builders.request(0, seq=2), outcome="http_error", chunk_s=(), chunk_tokens=(), first_answer_chunk=None)
    assert outcomes(columns([builders.request(0, seq=3), late, early, failed]), TTFT) == [False, None, False, True]
    share = parse_slo("failed_share<0.5")
    assert outcomes(columns([builders.request(0, seq=0), replace(failed, seq=1)]), share) == [True, False]


def test_a_request_waits_for_those_sent_before_it():
    """Short answers end first: of two users the one in a long answer holds the other's back, so that none is favoured."""
    test = LevelTest([TTFT], 2, lambda: None)
    warm = [replace(one, phase="warmup") for one in waits([FAST], user=1)]
    test.take(columns([*warm, *waits([SLOW] * 12, user=0)], 2))
    assert test.n == 1  # sent before the other user was last heard of
    test.take(columns(waits([SLOW] * 3, start_s=warm[0].ended_s, user=1), 2))
    assert test.n > 5


def test_a_whole_pass_may_follow_another():
    test = LevelTest([TTFT], 1, lambda: None)
    test.take_all(columns(waits([FAST] * 30)))
    assert test.word == "undecided"
    test.take_all(columns(waits([FAST] * 30)))
    assert (test.n, test.word) == (60, "within")


def figures_of(requests):
    level = builders.level(requests)
    return level_figures([(level, pass_arrays(level, builders.ANCHOR))], (), builders.ANCHOR, False, None, "locust")


def test_an_slo_on_a_mean_is_judged_by_figures_at_few_looks():
    asked = []

    def figures():
        asked.append(len(asked))
        return figures_of(waits([FAST + 0.01 * (i % 3) for i in range(64)]))

    def word(slo):
        test = LevelTest([parse_slo(slo)], 1, figures)
        test.take(columns(waits([FAST] * 65)))
        return test.word

    assert [word(f"ttft_s:mean<{limit}") for limit in (2, 0.1, 0.21)] == ["within", "broken", "undecided"]
    assert len(asked) == 1 + 1 + 3  # the last after 16, 32 and 64 requests


def test_later_looks_use_wider_intervals():
    level = figures_of(waits([FAST, 2 * FAST] * 20))
    slo = parse_slo("ttft_s:mean<2")
    plain: Estimate = level.ttft_s.at("mean")
    first, third = (by_figures(slo, level, look).figure for look in (1, 3))
    assert third.low < first.low < plain.low < plain.high < first.high < third.high
    assert [looks(n) for n in (3, 16, 31, 32, 1024)] == [1, 1, 1, 2, 7]


def test_a_level_may_take_what_its_slos_need():
    assert most_requests([TTFT], 4) == 128
    assert most_requests([TTFT], 64) == 512
    assert most_requests([parse_slo("ttft_s:p99<2")], 4) > 900
