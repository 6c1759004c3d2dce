"""Verdicts on studies whose truth is known: equal runtimes, a known difference, unequal work, censoring."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.analysis import comparability, compare, effects
from loadtest.errors import UsageError
from loadtest.metrics import intervals, request_arrays
from tests.support import builders

LEVELS = (1, 2, 4)


def passes(concurrency, repeats, seed, n=12, **options):
    made = []
    for repeat in range(1, repeats + 1):
        records = builders.closed_loop(concurrency, n, seed=seed * 1000 + repeat, **options)
        made.append(
            request_arrays.pass_arrays(builders.level(records, concurrency=concurrency, repeat=repeat), builders.ANCHOR)
        )
    return made


def verdicts(repeats, seed, ratio=1.0, **options):
    levels = [
        compare.PairedLevel(
            c,
            passes(c, repeats, 7 * seed + c, gap_s=0.03 * ratio, **options),
            passes(c, repeats, 7 * seed + c + 10**6, **options),
        )
        for c in LEVELS
    ]
    return compare.compare_pairs([pair(levels)])


def pair(levels, different=()):
    return compare.Pair(a="a", b="b", model=None, tp=1, gpu=None, simulated=False, levels=levels, different=different)


@pytest.mark.parametrize(("repeats", "studies"), [(1, 200), (3, 100)])
def test_an_a_a_study_says_no_detectable_difference(repeats, studies):
    """Studies of equal runtimes at three levels: no verdict of any metric may speak."""
    quiet = 0
    for seed in range(1000, 1000 + studies):
        rows = verdicts(repeats, seed, n=8, tokens=12, spread=0.2)
        quiet += all(row.verdict == "no detectable difference" for row in rows)
    assert quiet >= 0.95 * studies


def simulated_study(rng, ratio, n, noise, levels=4):
    found = [
        effects._paired(math.log(ratio) + rng.normal(0, noise, n) - rng.normal(0, noise, n), "paired") for _ in range(levels)
    ]
    return found, intervals.holm([one.p_value for one in found])


def test_over_many_a_a_studies_the_rate_of_false_alarms_is_the_one_stated():
    rng = np.random.default_rng(1)
    alarms = [min(simulated_study(rng, 1.0, 20, 0.1)[1]) <= 0.05 for _ in range(2000)]
    assert 0.03 <= np.mean(alarms) <= 0.065


def test_a_true_five_percent_is_found_at_the_power_it_states():
    """The noise is chosen so that the smallest detectable ratio is about 1.05: it must be found in about 80 % of studies,
    at each level, by the strictest step of Holm's correction."""
    rng = np.random.default_rng(2)
    n, noise = 30, 0.055
    found, smallest = [], []
    for _ in range(1000):
        tested, adjusted = simulated_study(rng, 1.05, n, noise)
        smallest.append(tested[0].smallest_detectable_ratio(4))
        found.append(tested[0].p_value <= 0.05 / 4)
        assert adjusted[0] <= 4 * tested[0].p_value
    assert np.mean(smallest) == pytest.approx(1.05, abs=0.004)
    assert 0.75 <= np.mean(found) <= 0.87


def test_the_interval_of_a_ratio_covers_the_truth():
    rng = np.random.default_rng(3)
    hits = []
    for _ in range(1000):
        effect = effects._welch(rng.normal(0.05, 0.3, 12), rng.normal(0, 0.1, 20), "requests")
        low, high = effect.interval()
        hits.append(low <= math.exp(0.05) <= high)
    assert 0.92 <= np.mean(hits) <= 0.98


def test_a_real_difference_is_found_and_named_right():
    rows = verdicts(1, seed=1, ratio=0.8)
    by_metric = {(row.metric, row.concurrency): row for row in rows}
    for level in LEVELS:
        assert by_metric["time_to_final_answer_s", level].verdict == "faster"
        assert by_metric["time_to_final_answer_s", level].ratio.value < 1
        assert by_metric["tokens_per_s_per_user", level].verdict == "faster"
        assert by_metric["tokens_per_s_per_user", level].ratio.value == pytest.approx(1.25, rel=0.05)
        assert by_metric["ttft_s", level].verdict == "no detectable difference"
    reverse = {row.metric: row.verdict for row in verdicts(1, seed=1, ratio=1.3, n=40)}
    assert reverse["output_tokens_per_s"] == "slower"


def test_the_unit_is_the_pass_from_three_passes_on_else_the_prompt_else_the_request():
    methods = [effects.effect(passes(2, n, 1), passes(2, n, 2), "ttft_s").method for n in (1, 3)]
    assert methods == ["paired by prompt, equal work", "paired by pass"]
    unequal = effects.effect(passes(2, 1, 1), passes(2, 1, 2, tokens=70), "time_to_final_answer_s")
    assert unequal.method.startswith("requests of unequal work")


def test_a_pass_without_a_request_is_no_pass():
    """Two of three passes have requests: their prompts are compared, not three passes that are not there."""
    sides = [passes(1, 3, seed) for seed in (1, 2)]
    empty = request_arrays.pass_arrays(builders.level([], repeat=2), builders.ANCHOR)
    assert effects.effect(*([side[0], empty, side[2]] for side in sides), "ttft_s").method == "paired by prompt, equal work"


def test_a_noisy_machine_is_seen_only_between_passes():
    """Every pass has a pace of its own: prompts within one pass cannot know, passes do, and the interval widens."""
    left = [passes(1, 1, s, gap_s=0.03 * pace)[0] for s, pace in ((1, 1.0), (2, 1.2), (3, 0.85))]
    right = [passes(1, 1, s, gap_s=0.03 * pace)[0] for s, pace in ((4, 1.1), (5, 0.9), (6, 1.05))]
    effect = effects._by_pass(left, right, "tokens_per_s_per_user")
    alone = effects.effect(left[:1], right[:1], "tokens_per_s_per_user")
    assert alone.p_value < 0.01
    assert effect.p_value > 0.1


def test_too_few_and_not_comparable_give_no_ratio():
    few = compare.compare_pairs([pair([compare.PairedLevel(1, passes(1, 1, 1, n=3), passes(1, 1, 2, n=3))])])
    assert {row.verdict for row in few if row.metric == "ttft_s"} == {"too few samples"}
    other = compare.compare_pairs([pair([compare.PairedLevel(1, passes(1, 1, 1), passes(1, 1, 2))], ("mode",))])
    assert {(row.verdict, row.reason) for row in other} == {("not comparable", "different mode")}
    assert all(row.ratio.value is None for row in other)


def test_censored_times_use_means_up_to_a_common_time():
    def cut(seed, gap_s):
        records = builders.closed_loop(2, 30, seed=seed, gap_s=gap_s)
        records[-1] = builders.request(
            records[-1].sent_s, outcome="cut_off", user=1, seq=29, gap_s=gap_s, prompt_id="p-last"
        )
        records[-2] = builders.request(
            records[-2].sent_s, outcome="cut_off", user=0, seq=28, prompt_id="p-other", thinking=9
        )
        return [
            request_arrays.pass_arrays(
                builders.level([r for r in records if seed != 2 or r.seq != 3], concurrency=2), builders.ANCHOR
            )
        ]

    left, right = cut(1, 0.03), cut(2, 0.03)
    effect = effects._restricted(
        *effects._pooled(left, "time_to_final_answer_s"), *effects._pooled(right, "time_to_final_answer_s")
    )
    assert effect.method.startswith("some times censored")
    low, high = effect.interval()
    assert low < 1 < high


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 50), st.floats(0.5, 2), st.integers(20, 90), st.floats(0.1, 3))
def test_why_adds_up_exactly(seed, ratio, tokens, ttft_s):
    a, b = passes(2, 1, seed, gap_s=0.03 * ratio, tokens=tokens), passes(2, 1, seed + 99, ttft_s=ttft_s)
    parts = compare.explain_difference(a, b)
    means = [np.mean(request_arrays.values_of(side[0], "time_to_final_answer_s")[0]) for side in (a, b)]
    total = sum(getattr(parts, key) for key in ("tokens_thought_s", "tokens_answered_s", "seconds_per_token_s", "waiting_s"))
    assert total == pytest.approx(means[0] - means[1], abs=1e-9)
    assert parts.difference_s == pytest.approx(means[0] - means[1], abs=1e-9)


def test_why_names_the_cause():
    """Same pace, same wait, ten tokens more thought each: all of it is tokens thought, 10 x 0.1 s."""
    more = builders.level([builders.request(10.0 * i, thinking=16, seq=i) for i in range(5)])
    less = builders.level([builders.request(10.0 * i, thinking=6, seq=i) for i in range(5)])
    parts = compare.explain_difference(*([request_arrays.pass_arrays(side, builders.ANCHOR)] for side in (more, less)))
    assert parts.tokens_thought_s == pytest.approx(1.0)
    assert parts.seconds_per_token_s == pytest.approx(0.0, abs=1e-9)
    assert parts.waiting_s == pytest.approx(0.0, abs=1e-9)


def one_cell(engine="vllm", model="qwq-32b-awq", gap_s=0.03, seed=0, facts=None, **manifest):
    made = builders.closed_loop(1, 10, gap_s=gap_s, seed=seed)
    return builders.run([builders.cell([builders.level(made)], engine, model, **(facts or {}))], **manifest)


def test_runs_are_compared_cell_by_cell_and_regressions_listed():
    old = builders.study(engines=("vllm",), levels=(1,), n=10)
    slow = one_cell(gap_s=0.04)
    found = compare.compare_runs(old, slow)
    assert {row.metric for row in found.regressions} >= {"time_to_final_answer_s", "tokens_per_s_per_user"}
    assert compare.compare_runs(old, slow, tolerance=0.2).regressions
    assert (
        compare.compare_runs(old, slow, tolerance=0.3).regressions == ()
    )  # a third slower, not shown to be by more than 30 %
    assert compare.compare_runs(old, old).regressions == ()
    assert compare.compare_runs(slow, old).regressions == ()  # faster is none
    row = next(row for row in found.comparisons if row.metric == "time_to_final_answer_s")
    assert row.why.seconds_per_token_s == pytest.approx(row.why.difference_s, rel=0.2)


def test_runs_that_were_asked_for_different_things_are_refused_by_name():
    with pytest.raises(UsageError, match=r"top_k \(40 against 20\).* --allow top_k$"):
        compare.compare_runs(one_cell(), one_cell(contract={"temperature": 0.6, "top_k": 20}))
    with pytest.raises(UsageError, match=r"--allow temperature --allow workload --allow mode"):
        compare.compare_runs(
            one_cell(), one_cell(contract={"temperature": 0.7}, mode="equal-work", workload={"identity": "cd"})
        )
    allowed = compare.compare_runs(one_cell(), one_cell(contract={"top_k": 20}), allow=["top_k"])
    assert allowed.allowed == ("top_k",)
    assert {row.verdict for row in allowed.comparisons} == {"no detectable difference"}
    with pytest.raises(UsageError, match="--allow topk"):
        compare.compare_runs(one_cell(), one_cell(), allow=["topk"])


@pytest.mark.parametrize(
    ("change", "key"),
    [({"model": "qwq-32b"}, "model"), ({"facts": {"gpu": "h20"}}, "gpu"), ({"engine": "vllm-sim"}, "simulated")],
)
def test_cells_that_differ_in_what_was_served_are_refused_by_name(change, key):
    with pytest.raises(UsageError, match=f"--allow {key}"):
        compare.compare_runs(one_cell(), one_cell(**change))
    assert compare.compare_runs(one_cell(), one_cell(**change), allow=[key]).comparisons


def test_cells_are_matched_by_id_then_by_what_they_serve():
    """vllm_tp1 has its like; sglang_tp2 stands against vllm_tp2, the only one left on two cards; a third has none."""
    old = [builders.cell([], "vllm"), builders.cell([], "sglang", tp=2), builders.cell([], "sglang", "qwq-32b")]
    new = [builders.cell([], "vllm"), builders.cell([], "vllm", tp=2)]
    pairs = [(a.id, b.id) for a, b in comparability.matched(old, new)]
    assert pairs == [
        ("sglang_qwq-32b-awq_tp2", "vllm_qwq-32b-awq_tp2"),
        ("vllm_qwq-32b-awq_tp1", "vllm_qwq-32b-awq_tp1"),
    ]
    both = [[builders.cell([], engine, mode=mode) for mode in (None, "equal-work")] for engine in ("vllm", "sglang")]
    modes = [(a.engine.mode, b.engine.mode) for a, b in comparability.matched(*both)]
    assert sorted(modes, key=str) == [("equal-work", "equal-work"), (None, None)]
    two = [builders.cell([], "sglang"), builders.cell([], "sglang-sim")]
    assert comparability.matched([builders.cell([], "vllm")], two) == []  # which of the two is not ours to guess


def test_what_only_rounding_tells_apart_is_no_difference():
    assert effects.Effect(3e-16, 1e-17, 9, 10, 10, "paired by prompt").p_value == 1
    assert effects.Effect(0.3, 1e-17, 9, 10, 10, "paired by prompt").p_value == 0


def test_what_has_no_partner_is_said():
    both = builders.study(levels=(1, 2), n=8)
    less = builders.study(engines=("vllm",), levels=(1,), n=8)
    assert compare.compare_runs(both, less).not_compared == (
        "sglang_qwq-32b-awq_tp1: only in the baseline",
        "vllm_qwq-32b-awq_tp1: only the baseline has 2 users",
    )
    with pytest.raises(UsageError, match="no cell"):
        compare.compare_runs(both, builders.run([]))


@pytest.mark.parametrize(("longer", "verdict"), [(1, "no detectable difference"), (2, "more"), (0.5, "fewer")])
def test_a_side_that_thinks_less_is_caught(longer, verdict):
    """Each output of a is as long as b's, twice, or half: the ratio is exact, and so is its interval."""
    base = [replace(one, completion_tokens=40) for one in builders.closed_loop(1, 8)]
    other = [replace(one, completion_tokens=int(40 * longer)) for one in base]
    old, new = (builders.run([builders.cell([builders.level(rows)])]) for rows in (base, other))
    rows = compare.compare_runs(old, new).comparisons
    (found,) = [row.output_tokens for row in rows if row.metric == "time_to_final_answer_s"]
    assert found.ratio.value == pytest.approx(longer)
    assert found.ratio.ci95 == pytest.approx([longer, longer])
    assert (found.verdict, found.n) == (verdict, 8)


def test_lengths_of_too_few_prompts_are_no_verdict():
    run = builders.run([builders.cell([builders.level(builders.closed_loop(1, 3))])])
    rows = compare.compare_runs(run, run).comparisons
    (found,) = [row.output_tokens for row in rows if row.metric == "time_to_final_answer_s"]
    assert (found.verdict, found.ratio.ci95) == ("too few samples", None)
