"""The share of requests within a limit, looked at after each of them: it is rarely wrong, and soon certain."""

import numpy as np
import pytest

from loadtest.decision.running_share import RunningShare, needed_to_decide


def judged(target, requests):
    share = RunningShare(target)
    for one in requests:
        share.add(one)
    return share


@pytest.mark.parametrize("target", [0.1, 0.5, 0.9, 0.99])
def test_a_share_that_is_the_target_is_rarely_told_from_it_however_often_one_looks(target):
    rng = np.random.default_rng(int(1000 * target))
    levels = [judged(target, (rng.random(400) < target).tolist()) for _ in range(600)]
    assert np.mean([one.verdict is not None for one in levels]) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 600)


def test_the_verdict_is_of_the_first_certain_moment_and_stays():
    share = judged(0.9, [False] * 6)
    assert share.verdict is False
    for _ in range(500):
        share.add(True)
    assert share.verdict is False


@pytest.mark.parametrize("target", [0.5, 0.9, 0.95])
def test_requests_that_agree_decide_when_foretold(target):
    n = needed_to_decide(target)
    assert judged(target, [True] * (n - 1)).verdict is None
    assert judged(target, [True] * n).verdict is True


def test_a_share_further_away_is_found_sooner():
    rng = np.random.default_rng(1)

    def took(share):
        one = RunningShare(0.9)
        while one.verdict is None:
            one.add(bool(rng.random() < share))
        return one.n

    near, far = (np.median([took(share) for _ in range(40)]) for share in (0.8, 0.5))
    assert far < near < 150


def test_unknown_requests_count_against_either_answer():
    within = [True] * 60
    assert judged(0.9, within).verdict is True
    assert judged(0.9, [None] * 30 + within).verdict is None
    assert judged(0.9, [None] * 30 + [False] * 5).verdict is None
    share = judged(0.9, [*within, *[None] * 40])
    known = judged(0.9, within)
    assert share.interval[0] < known.interval[0]
    assert share.interval[1] == 1


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_the_interval_holds_at_a_moment_chosen_by_what_was_seen(share):
    """Stopped when the interval is at its narrowest side of the truth, as a reader would who hopes for a verdict."""
    rng = np.random.default_rng(int(100 * share))
    missed = 0
    for _ in range(300):
        one = RunningShare(0.5)
        wrong = False
        for trial in (rng.random(60) < share).tolist():
            one.add(trial)
            low, high = one.interval
            wrong |= not low <= share <= high
        missed += wrong
    assert missed / 300 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


def test_no_request_says_nothing():
    assert RunningShare(0.9).interval == (0.0, 1.0)
