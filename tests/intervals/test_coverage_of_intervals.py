"""Every 95 % interval of metrics.json over 1,000 simulated runs whose truth is known; `make test-statistics`.

92 to 98 % is four standard errors of 1,000 runs around 95. Where an interval is known to be off it stands here with what
it does cover, and in docs/metrics.md.
"""

import math
from functools import cache

import numpy as np
import pytest

from loadtest.analysis import level
from loadtest.metrics import distributions, steady_window, survival
from loadtest.metrics.catalogue import METRICS, QUANTILES
from loadtest.metrics.intervals import special, weighted_quantiles
from loadtest.metrics.request_arrays import values_of
from tests.intervals.loops import TOKENS, Loop

RUNS = 1000
COVERED = (0.92, 0.98)
WHOLE = Loop(8, 40)
SHORT = Loop(8, 24)
CUT = Loop(8, duration_s=200, ramp=True)
DRIFTING = Loop(4, 24, drift=0.01)
SHAKEN = Loop(8, 40, jitter=0.1)
NAMES = ("ttft_s", "time_to_first_answer_s", "time_to_final_answer_s", "thinking_s", "tpot_s", "tokens_per_s_per_user",
         "itl_s", "reasoning_tokens", "answer_tokens")  # fmt: skip
SLO_S = 55.0


@cache
def rates(loop, passes):
    """The rates of every run."""
    rng, found = np.random.default_rng(1), []
    for _ in range(RUNS):
        made = [loop.one(rng, repeat) for repeat in range(passes)]
        spans = [(one, steady_window.steady(one)) for one in made]
        good = [one.ok & (one.last_s - one.sent_s < SLO_S) for one in made]
        found.append({
            "output_tokens_per_s": steady_window.window_tokens_per_s(spans),
            "answers_per_hour": steady_window.per_hour(spans, [one.ok for one in made]),
            "goodput_answers_per_hour": steady_window.per_hour(spans, good),
        })  # fmt: skip
    return found


@cache
def described(loop, passes):
    """The distributions of every run."""
    rng = np.random.default_rng(1)
    return [distributions_of([loop.one(rng, repeat) for repeat in range(passes)]) for _ in range(RUNS)]


def distributions_of(columns):
    makers = {"censored": level.censored_distribution, "plain": level.exact_distribution}
    found = {name: makers[METRICS[name].shape](columns, name) for name in NAMES if name != "itl_s"}
    return found | {"itl_s": level.gap_distribution([one.gaps() for one in columns])}


@cache
def population(loop):
    """So many requests of a loop, one after the other, that their own figures are the truth."""
    spread = math.hypot(loop.noise, loop.drift)
    return Loop(1, 60_000, cv=loop.cv, ttft_s=loop.ttft_s, noise=spread).one(np.random.default_rng(2))


def truth(loop, name, statistic):
    if name == "itl_s":
        gaps, weights, _ = population(loop).gaps()
        if statistic == "mean":
            return float(np.average(gaps, weights=weights))
        return weighted_quantiles(gaps, weights, [QUANTILES[statistic]])[0]
    values = values_of(population(loop), name)[0]
    if statistic == "mean":
        return float(np.mean(values))
    return float(np.quantile(values, QUANTILES[statistic]))


def coverage(intervals, true):
    known = [ends for ends in intervals if ends is not None]
    assert len(known) > 0.5 * len(intervals)
    return float(np.mean([low <= true <= high for low, high in known]))


RATES = [
    (WHOLE, 1), (SHORT, 1), (CUT, 1), (SHAKEN, 1), (Loop(1, 12), 1), (Loop(8, 24, cv=0.1), 1), (Loop(8, 24, cv=1.0), 1),
    (SHORT, 3), (CUT, 3), (DRIFTING, 3), (Loop(8, 24, cv=1.0, drift=0.01), 3), (Loop(8, 24, drift=0.03, jitter=0.05), 5),
]  # fmt: skip


@pytest.mark.parametrize(("loop", "passes"), RATES)
def test_rates_are_covered(loop, passes):
    per_hour = 3600 * loop.concurrency / loop.mean_s
    share = float(np.mean(values_of(population(loop), "time_to_final_answer_s")[0] < SLO_S))
    true = {"output_tokens_per_s": per_hour / 3600 * TOKENS, "answers_per_hour": per_hour,
            "goodput_answers_per_hour": per_hour * share}  # fmt: skip
    for name, rate in true.items():
        found = [one[name] for one in rates(loop, passes)]
        small = 3 * loop.cv**2 / (loop.requests or 40)  # what a ratio of few requests is off by
        assert np.mean([one.value for one in found]) == pytest.approx(rate, rel=0.01 + small), name
        too_wide = 1.0 if name == "output_tokens_per_s" and passes < 3 else COVERED[1]
        assert COVERED[0] <= coverage([one.ci95 for one in found], rate) <= too_wide, name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("loop", "passes"), [(WHOLE, 1), (Loop(4, 24), 3)])
def test_means_and_quantiles_are_covered(loop, passes, name):
    for statistic in ("mean", "p50", "p90"):
        if (name, statistic) == ("itl_s", "p90") and passes == 1:
            continue  # needs more requests
        intervals = [found[name].at(statistic).ci95 for found in described(loop, passes)]
        assert COVERED[0] <= coverage(intervals, truth(loop, name, statistic)) <= 0.99, statistic


@pytest.mark.parametrize("name", ["time_to_final_answer_s", "thinking_s", "time_to_first_answer_s", "tpot_s"])
def test_with_requests_cut_off_medians_are_covered(name):
    for passes in (1, 3):
        intervals = [found[name].ci95.p50 for found in described(CUT, passes)]
        assert COVERED[0] <= coverage(intervals, truth(CUT, name, "p50")) <= 0.985


@pytest.mark.parametrize("name", ["ttft_s", "time_to_final_answer_s", "tpot_s", "tokens_per_s_per_user", "itl_s"])
def test_what_differs_from_pass_to_pass_is_in_the_interval(name):
    """Passes that differ by half of what requests do, three of them: means by t over passes, quantiles nearly so."""
    for statistic, least in (("mean", COVERED[0]), ("p50", 0.90), ("p90", 0.85)):
        intervals = [found[name].at(statistic).ci95 for found in described(DRIFTING, 3)]
        assert least <= coverage(intervals, truth(DRIFTING, name, statistic)) <= 0.99, statistic


def test_the_99th_percentile_is_covered():
    loop, rng, hits = Loop(8, 400), np.random.default_rng(3), []
    for _ in range(RUNS):
        times, _ = values_of(loop.one(rng), "time_to_final_answer_s")
        hits.append(distributions.plain(times, np.zeros(len(times), np.int64)).ci95.p99)
    assert COVERED[0] <= coverage(hits, truth(loop, "time_to_final_answer_s", "p99")) <= COVERED[1]


@pytest.mark.parametrize(
    ("p", "horizon_s"), [(0.5, None), (0.9, None), (None, 90.0)], ids=["median", "p90", "restricted mean"]
)
def test_kaplan_meier_is_covered(p, horizon_s):
    """Log-normal times, about a quarter of 120 cut off at random."""
    rng, spread, found = np.random.default_rng(4), 0.5, []
    true = 50 * math.exp(spread * float(special.ndtri(p))) if p else None
    for _ in range(RUNS):
        times, cut = 50 * rng.lognormal(0, spread, 120), rng.uniform(20, 250, 120)
        curve = survival.kaplan_meier(np.minimum(times, cut), times <= cut)
        estimate = survival.survival_quantile(curve, p) if p else survival.restricted(curve, horizon_s)
        found.append(estimate.ci95)
    if true is None:
        true = float(np.mean(np.minimum(50 * rng.lognormal(0, spread, 10**6), horizon_s)))
    assert COVERED[0] <= coverage(found, true) <= COVERED[1]
