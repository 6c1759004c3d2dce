"""Verdicts on whole studies whose truth is known: of each pair, and behind it of its levels and metrics."""

import numpy as np
import pytest

from loadtest.analysis import judgement
from loadtest.analysis.judgement import Pair, PairedLevel
from loadtest.metrics import request_arrays
from tests.support import builders

LEVELS = (1, 2, 4)


def passes(concurrency, paces, seed, n=12, **options):
    """One pass a start, each with a pace of its own."""
    made = []
    for repeat, pace in enumerate(paces, 1):
        records = builders.closed_loop(concurrency, n, seed=1000 * seed + repeat, gap_s=0.03 * pace, **options)
        made.append(
            request_arrays.pass_arrays(builders.level(records, concurrency=concurrency, repeat=repeat), builders.ANCHOR)
        )
    return made


def pair(seed, ratio=1.0, starts=3, start_sd=0.01, name="", **options):
    """A pair whose starts have a pace of their own, shared by all levels; a `ratio` as slow."""
    rng = np.random.default_rng(seed)
    a, b = (np.exp(start_sd * rng.normal(size=starts)) * slow for slow in (ratio, 1.0))
    levels = [PairedLevel(c, passes(c, a, seed + c, **options), passes(c, b, seed + c + 500, **options)) for c in LEVELS]
    return Pair(a=f"a{name}", b=f"b{name}", levels=levels)


def by_metric(rows, metric):
    return [row for row in rows if row.metric == metric]


def test_equal_engines_are_never_told_apart_in_more_than_five_of_a_hundred_studies():
    """Starts that differ by 1 %, shared by three levels: pooling over the levels would call one in five different."""
    wrong = 0
    for seed in range(60):
        found = judgement.judge_pairs([pair(7000 * seed, n=6, tokens=12, spread=0.2)])
        wrong += any(one.verdict in ("faster", "slower") for one in (*found.decisions, *found.comparisons))
    assert wrong <= 7  # 3 expected; 8 or more with a probability of 1 %


@pytest.mark.parametrize(("ratio", "verdict"), [(1.15, "slower"), (0.87, "faster")])
def test_a_real_difference_is_named_by_the_pair_and_then_by_its_levels(ratio, verdict):
    found = judgement.judge_pairs([pair(1, ratio)])
    (decision,) = found.decisions
    assert (decision.verdict, decision.metric, decision.concurrency) == (verdict, "time_to_final_answer_s", LEVELS)
    assert decision.ratio.ci95[0] < decision.ratio.value < decision.ratio.ci95[1]
    assert decision.start_sd == pytest.approx(0.01, abs=0.01)
    assert "3 starts each; starts vary by" in decision.reason
    assert {row.verdict for row in by_metric(found.comparisons, "tokens_per_s_per_user")} == {verdict}
    assert {row.verdict for row in by_metric(found.comparisons, "ttft_s")} <= {"equal", "undecided"}
    for row in by_metric(found.comparisons, "time_to_final_answer_s"):
        assert row.p_value_holm <= 0.05
        assert row.method == "at equal length"


def test_an_engine_that_thinks_longer_is_named_beside_its_verdict():
    """Half as many tokens again at the same pace: equal, and more."""
    levels = [
        PairedLevel(
            c, passes(c, (1, 1.002, 0.998), c, tokens=900, noise=0.01), passes(c, (1, 1.003, 1), c, tokens=600, noise=0.01)
        )
        for c in LEVELS
    ]
    (found,) = judgement.judge_pairs([Pair(a="a", b="b", levels=levels)]).decisions
    assert found.verdict == "equal"
    assert found.raw_ratio.value == pytest.approx(1.5, rel=0.03)
    assert (found.output_tokens.verdict, found.output_tokens.ratio.value) == ("more", pytest.approx(1.5, rel=0.01))


def test_pairs_share_what_their_starts_vary_by():
    pairs = [pair(seed, name=str(seed)) for seed in range(4)]
    together = judgement.judge_pairs(pairs).decisions
    assert len({one.start_sd for one in together}) == 1
    alone = [judgement.judge_pairs([one]).decisions[0].start_sd for one in pairs]
    assert min(alone) < together[0].start_sd < max(alone)


def test_what_differs_a_lot_is_said_although_the_pair_is_equal():
    """Answers are long and the wait for the first token short: twice the wait is nothing to the whole."""
    wait = {"tokens": 900, "spread": 0.1, "noise": 0.005}
    levels = [
        PairedLevel(
            c, passes(c, (1, 1.002, 0.998), c, ttft_s=0.4, **wait), passes(c, (1, 1.003, 1), c + 50, ttft_s=0.1, **wait)
        )
        for c in LEVELS
    ]
    found = judgement.judge_pairs([Pair(a="a", b="b", levels=levels)])
    assert found.decisions[0].verdict == "equal"
    assert {row.verdict for row in by_metric(found.comparisons, "ttft_s")} == {"slower"}


def test_starts_that_vary_too_much_leave_it_undecided_and_say_how_many_more_would_decide():
    (found,) = judgement.judge_pairs([pair(3, 1.05, start_sd=0.04)]).decisions
    assert found.verdict == "undecided"
    assert found.n_more_starts > 1
    assert f"about {found.n_more_starts} more starts of each would decide" in found.reason


def test_no_finished_answer_leaves_the_pace_to_decide():
    def unfinished(seed, gap_s):
        records = builders.closed_loop(1, 12, seed=seed, gap_s=gap_s, outcome="truncated", noise=0.01)
        return request_arrays.pass_arrays(builders.level(records, repeat=seed), builders.ANCHOR)

    levels = [PairedLevel(1, [unfinished(s, 0.04) for s in (1, 2, 3)], [unfinished(s, 0.03) for s in (1, 2, 3)])]
    (found,) = judgement.judge_pairs([Pair(a="a", b="b", levels=levels)]).decisions
    assert (found.metric, found.verdict) == ("tokens_per_s_per_user", "slower")
    assert found.ratio.value == pytest.approx(0.75, rel=0.02)


def test_too_few_and_not_comparable_give_no_ratio():
    few = judgement.judge_pairs([pair(1, n=1)])
    assert {one.verdict for one in (*few.decisions, *by_metric(few.comparisons, "ttft_s"))} == {"too few samples"}
    good = pair(1)
    other = judgement.judge_pairs([Pair(a="a", b="b", levels=good.levels, different=("mode",))])
    for one in (*other.decisions, *other.comparisons):
        assert (one.verdict, one.reason, one.ratio.value) == ("not comparable", "different mode", None)


def test_without_pairs_there_is_nothing_to_say():
    assert judgement.judge_pairs([]) == ([], [], ())
