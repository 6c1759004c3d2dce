import tracemalloc

import numpy as np
import pytest

from loadtest.decision import renewal
from loadtest.metrics import request_arrays, steady_window
from tests.support import builders

Q_S, GAP_S = 0.5, 0.02


def serial(users, answers, *, seed=1, idle_s=0.0, tokens=200):
    """A server that prefills one request at a time, halting all others: its requests, made step by step."""
    rng = np.random.default_rng(seed)
    lengths = np.maximum(20, rng.lognormal(np.log(tokens), 0.5, answers)).astype(int)
    clock, made, busy, waiting, begun = 0.0, [], {}, [(0.0, user) for user in range(users)], 0
    while waiting or busy:
        due = sorted(one for one in waiting if one[0] <= clock)
        if due and begun < answers:
            sent, user = due[0]
            waiting.remove(due[0])
            clock += Q_S
            busy[user] = (sent, begun, [clock])
            begun += 1
            continue
        if not busy:
            if begun >= answers:
                break
            clock = min(one[0] for one in waiting)
            continue
        clock += GAP_S
        for user in list(busy):
            sent, index, times = busy[user]
            times.append(clock)
            if len(times) == lengths[index]:
                made.append((sent, user, index, times))
                waiting.append((clock + idle_s, user))
                del busy[user]
    records = [
        builders.request(sent, user=user, seq=index, prompt_id=f"p{index}", chunk_s=tuple(times), ended_s=times[-1],
                         chunk_tokens=(1,) * len(times), first_answer_chunk=1, completion_tokens=len(times))
        for sent, user, index, times in made
    ]  # fmt: skip
    return request_arrays.pass_arrays(builders.level(records, concurrency=users), builders.ANCHOR)


@pytest.mark.parametrize("users", [2, 4, 8])
def test_short_runs_say_what_a_long_one_does(users):
    """Their windows, which begin with the prefills of all, do not at 8 users."""
    long = serial(users, 100 * users)
    true = steady_window.window_tokens_per_s([(long, steady_window.steady(long))]).value
    short = [serial(users, 2 * users, seed=seed) for seed in range(2, 26)]
    found = [renewal.tokens_per_s([one]) for one in short]
    by_renewal = [one for one, method in found if method == "renewal"]
    assert len(by_renewal) >= 20
    assert np.mean([one.value for one in by_renewal]) == pytest.approx(true, rel=0.05)
    assert np.mean([one.ci95[0] < true < one.ci95[1] for one in by_renewal]) >= 0.8
    windows = [steady_window.window_tokens_per_s([(one, steady_window.steady(one))]).value for one in short]
    assert users < 8 or np.mean(windows) < 0.95 * true


def test_a_long_window_is_believed():
    found, method = renewal.tokens_per_s([serial(2, 60)])
    assert method == "steady window"
    assert found == steady_window.window_tokens_per_s([(serial(2, 60), steady_window.steady(serial(2, 60)))])


def test_one_user_alone_has_no_prefills_of_others():
    assert renewal.tokens_per_s([serial(1, 3)])[1] == "steady window"


def test_a_user_whose_warm_up_lasts_counts_as_one_of_the_loop():
    """Seven users take all measured requests while the eighth warms up: it has a token in each of their steps."""
    made = serial(8, 16)
    slow = [r for r in made.records if r.user == 7]
    times = tuple(sorted({t for r in made.records if r.user != 7 for t in r.chunk_s}))
    warm = builders.request(0.0, user=7, chunk_s=times, ended_s=times[-1], chunk_tokens=(1,) * len(times), phase="warmup",
                            first_answer_chunk=1, completion_tokens=len(times))  # fmt: skip
    records = [r for r in made.records if r not in slow] + [warm]
    one = request_arrays.pass_arrays(builders.level(records, concurrency=8), builders.ANCHOR)
    found, method = renewal.tokens_per_s([one])
    assert method == "renewal"
    assert found.value == pytest.approx(renewal.tokens_per_s([made])[0].value, rel=0.15)


def test_users_that_pause_are_no_closed_loop():
    assert renewal.tokens_per_s([serial(4, 8, idle_s=2.0)])[1] == "steady window"


def test_waiting_in_the_queue_of_the_server_is_no_prefill():
    """Every first token comes 20 s late while the others go on."""
    made = serial(4, 8)
    late = builders.level(
        [builders.request(0.0, ttft_s=0.5 + 10.0 * (i // 2), gap_s=0.02, thinking=400, user=i, seq=i) for i in range(4)]
        + [builders.request(30.0, ttft_s=0.5, gap_s=0.02, thinking=400, user=i, seq=9 + i) for i in range(4)],
        concurrency=4,
    )
    assert renewal.tokens_per_s([made])[1] == "renewal"
    assert renewal.tokens_per_s([request_arrays.pass_arrays(late, builders.ANCHOR)])[1] == "steady window"


def test_three_passes_are_the_unit():
    found, method = renewal.tokens_per_s([serial(4, 8, tokens=tokens) for tokens in (180, 200, 220)])
    assert (method, found.n) == ("renewal", 3)


def test_one_user_is_one_answer_after_the_other():
    found = renewal.renewal_tokens_per_s(1, np.array([101.0, 101.0]), np.array([0.5, 0.5]), np.array([0.02, 0.02]))
    assert found.value == pytest.approx(101 / (0.5 + 100 * 0.02))


def test_prefills_of_all_halt_all():
    found = renewal.renewal_tokens_per_s(4, np.array([101.0, 101.0]), np.array([0.5, 0.5]), np.array([0.02, 0.02]))
    assert found.value == pytest.approx(4 * 101 / (4 * 0.5 + 100 * 0.02))


def test_without_prefills_length_is_luck_and_does_not_widen_it():
    lengths = np.array([100.0, 1000.0, 3000.0])
    found = renewal.renewal_tokens_per_s(4, lengths, np.full(3, 0.02), np.full(3, 0.02))
    assert found.ci95[1] / found.ci95[0] < 1.05


def test_what_is_missing_is_said():
    assert renewal.renewal_tokens_per_s(4, np.zeros(0), np.ones(1), np.ones(1)).value is None
    once = renewal.renewal_tokens_per_s(4, np.array([100.0]), np.ones(2), np.ones(2))
    assert (once.ci95, once.reason) == (None, "one answer or one stretch has no interval")


def test_many_users_take_little_memory():
    """A thousand users with five answers each: an overlap of every request with every prefill would take gigabytes."""
    records = [
        builders.request(0.001 * user + 3.0 * turn, ttft_s=0.0005, gap_s=0.25, thinking=8, user=user, seq=turn)
        for user in range(1000)
        for turn in range(4)
    ]
    made = request_arrays.pass_arrays(builders.level(records, concurrency=1000), builders.ANCHOR)
    tracemalloc.start()
    renewal.tokens_per_s([made])
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


@pytest.mark.parametrize(("gap_s", "tokens"), [(0.0, 6), (0.1, 1), (1e-12, 6)])
def test_tokens_that_come_at_once_are_no_cycle(gap_s, tokens):
    made = [builders.request(0.0, gap_s=gap_s, thinking=tokens, answer=0, user=user) for user in (0, 1)]
    found, method = renewal.tokens_per_s([request_arrays.pass_arrays(builders.level(made, concurrency=2), builders.ANCHOR)])
    assert method == "steady window" or np.isfinite(found.value)


def cycle(slope, tokens, noise=0.0):
    """Five stretches of a young run: 20 ms a token, and `slope` more for each token that users have before them."""
    ages = np.array([0.0, 100.0, 200.0, 300.0, 400.0])
    gap_s = 0.02 + slope * ages + noise * np.array([1.0, -1.0, 0.0, -1.0, 1.0])
    return renewal.UserCycle(8, tokens, tokens - 1, np.full(4, 0.25), gap_s, ages, 1.0)


def test_gaps_of_a_young_run_are_moved_to_the_age_of_a_long_one():
    """Answers of 1000 tokens are 500 old in the mean: 20 ms + 500 x 10 us = 25 ms; the run saw 22 ms. Answers of
    500 and 1500 tokens are (500^2 + 1500^2) / 2 / 2000 = 625 old."""
    alike = renewal._at_mean_age(cycle(1e-5, np.full(4, 1000.0)), np.full(4, 1000.0))
    assert alike.gap_s == pytest.approx([0.025] * 5)
    assert alike.error_s == pytest.approx(0)
    mixed = np.array([500.0, 1500.0])
    found = renewal._at_mean_age(cycle(1e-5, mixed), mixed)
    assert found.gap_s == pytest.approx([0.02625] * 5)
    # d = N^2 - 2 x 625 N = -375,000 and 375,000: their standard deviation / (2 x 1000 x sqrt 2) = 187.5 tokens
    assert found.error_s == pytest.approx(1e-5 * 187.5)


def test_a_line_that_is_not_sure_widens_the_interval_and_none_that_falls_moves_a_gap():
    """Residuals of 1, -1, 0, -1, 1 ms: sqrt(4e-6 / 3 / 1e5) = 3.65e-6 s per token, 300 tokens past the mean."""
    tokens = np.full(4, 1000.0)
    assert renewal._at_mean_age(cycle(0.0, tokens, noise=1e-3), tokens).error_s == pytest.approx(3.6515e-6 * 300, rel=1e-4)
    assert renewal._at_mean_age(cycle(-1e-5, tokens), tokens).gap_s == pytest.approx(0.02 - 1e-5 * np.arange(0, 500, 100))
    sure = renewal.renewal_tokens_per_s(8, tokens, np.full(4, 0.25), np.full(10, 0.02))
    unsure = renewal.renewal_tokens_per_s(8, tokens, np.full(4, 0.25), np.full(10, 0.02), gap_error_s=0.001)
    assert sure.value == unsure.value
    assert unsure.ci95[1] - unsure.ci95[0] > sure.ci95[1] - sure.ci95[0]
