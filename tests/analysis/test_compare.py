"""Who is compared with whom: the engines of a run, and two runs; what is refused, and what is a regression."""

from dataclasses import replace

import pytest

from loadtest.analysis import comparability, compare
from loadtest.errors import UsageError
from tests.support import builders


def one_cell(engine="vllm", model="qwq-32b-awq", gap_s=0.03, seed=0, facts=None, **manifest):
    """Three starts of one cell at one user."""
    made = [builders.level(builders.closed_loop(1, 10, gap_s=gap_s, seed=10 * seed + r), repeat=r) for r in (1, 2, 3)]
    return builders.run([builders.cell(made, engine, model, **(facts or {}))], **manifest)


def test_runs_are_compared_cell_by_cell_and_regressions_listed():
    old, slow = one_cell(), one_cell(gap_s=0.04, seed=1)
    found = compare.compare_runs(old, slow)
    assert [(one.verdict, one.n_a, one.concurrency) for one in found.decisions] == [("slower", 3, (1,))]
    assert {row.metric for row in found.regressions} >= {"time_to_final_answer_s", "tokens_per_s_per_user"}
    assert compare.compare_runs(old, slow, tolerance=0.15).regressions
    assert (
        compare.compare_runs(old, slow, tolerance=0.4).regressions == ()
    )  # a third slower, not shown to be by more than 40 %
    assert compare.compare_runs(old, old).regressions == ()
    assert compare.compare_runs(slow, old).regressions == ()  # faster is none
    row = next(row for row in found.comparisons if row.metric == "time_to_final_answer_s")
    assert row.why.seconds_per_token_s == pytest.approx(row.why.difference_s, rel=0.2)


def test_a_regression_that_does_not_matter_is_one_where_none_is_tolerated():
    found = compare.compare_runs(one_cell(matters=0.9), one_cell(gap_s=0.04, seed=1))
    assert [one.verdict for one in found.decisions] == ["slower"]  # the least of what the two runs call a difference
    found = compare.compare_runs(one_cell(matters=0.9), one_cell(gap_s=0.04, seed=1, matters=0.9))
    assert [one.verdict for one in found.decisions] == ["equal"]
    assert found.regressions


def test_one_start_each_is_no_verdict_unless_it_is_known_how_much_starts_differ():
    old, slow = (
        builders.run([builders.cell([builders.level(builders.closed_loop(1, 20, gap_s=gap_s, noise=0.01))])])
        for gap_s in (0.03, 0.04)
    )
    found = compare.compare_runs(old, slow)
    assert {one.verdict for one in (*found.decisions, *found.comparisons)} == {"one start each"}
    assert found.regressions == ()
    assert found.decisions[0].ratio.value == pytest.approx(1.31, rel=0.03)
    assert compare.compare_runs(old, slow, known_start_sd=0.01).decisions[0].verdict == "slower"
    assert compare.compare_runs(old, slow, known_start_sd=0.2).decisions[0].verdict == "undecided"


def test_passes_over_a_server_that_was_attached_to_are_one_start():
    old, slow = (one_cell(facts={"base_url": "http://h:1"}, gap_s=gap_s) for gap_s in (0.03, 0.04))
    (found,) = compare.compare_runs(old, slow).decisions
    assert (found.verdict, found.n_a, found.n_b) == ("one start each", 1, 1)


def test_in_virtual_time_no_start_differs_from_another():
    runs = [builders.run([builders.cell([builders.level(builders.closed_loop(1, 20, gap_s=gap_s, noise=0.01))],
                                        "vllm-sim")], driven="virtual time") for gap_s in (0.03, 0.04)]  # fmt: skip
    (found,) = compare.compare_runs(*runs).decisions
    assert (found.verdict, found.n_a, found.start_sd) == ("slower", 1, 0.0)


def test_runs_that_were_asked_for_different_things_are_refused_by_name():
    with pytest.raises(UsageError, match=r"top_k \(40 against 20\).* --allow top_k$"):
        compare.compare_runs(one_cell(), one_cell(contract={"temperature": 0.6, "top_k": 20}))
    with pytest.raises(UsageError, match=r"--allow temperature --allow workload --allow mode"):
        compare.compare_runs(
            one_cell(), one_cell(contract={"temperature": 0.7}, mode="equal-work", workload={"identity": "cd"})
        )
    allowed = compare.compare_runs(one_cell(), one_cell(contract={"top_k": 20}), allow=["top_k"])
    assert allowed.allowed == ("top_k",)
    assert {row.verdict for row in allowed.comparisons} == {"equal"}
    with pytest.raises(UsageError, match="--allow topk"):
        compare.compare_runs(one_cell(), one_cell(), allow=["topk"])


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"model": "qwq-32b"}, "model"),
        ({"facts": {"gpu": "h20"}}, "gpu"),
        ({"engine": "vllm-sim"}, "simulated"),
        ({"facts": {"proxy": "http://10.0.0.1:3128"}}, "proxy"),
        ({"facts": {"base_urls": ["http://a:1", "http://b:1"]}}, "n_servers"),
    ],
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
