"""Runs of other tools: which figures their files support, and that no other is given."""

import pytest

from loadtest.analysis.compare import compare_runs
from loadtest.analysis.run import analyze
from loadtest.metrics.catalogue import METRICS
from loadtest.records.peers.catalogue import read_result
from loadtest.records.peers.run_folder import Said, write_imported_run
from loadtest.records.read import read_run
from tests.support.documents import ROOT

DATA = ROOT / "tests/data/peers"
PACE = {"tpot_s", "tokens_per_s_per_user"}
WINDOW = {"output_tokens_per_s", "run_tokens_per_s"}
KNOWN = {  # the figures of each, beside the share of failed requests
    "vllm-bench-0.32.0.json": {"ttft_s", "chunk_gap_s", *PACE, *WINDOW},
    "sglang-bench-0.5.15.post1.jsonl": {"ttft_s", "chunk_gap_s", *PACE},
    "guidellm-0.8.1.json": {"ttft_s", "time_to_first_answer_s", "thinking_s", "run_tokens_per_s", *PACE},
    "genai-bench-0.0.5/D20_40_text-to-text_num_concurrency_4_time_7s.json": {"ttft_s", *PACE},
    "aiperf-0.13.0/profile_export.jsonl": {
        "ttft_s", "time_to_first_answer_s", "thinking_s", "reasoning_tokens", "chunk_gap_s", *PACE, *WINDOW,
    },
    "inference-perf-0.7.0/per_request_lifecycle_metrics.json": {"time_to_first_answer_s", "run_tokens_per_s"},
    "evalscope-1.14.0/benchmark_data.db": {"ttft_s", "chunk_gap_s", *PACE, *WINDOW},
}  # fmt: skip


def imported(tmp_path, name, **said):
    write_imported_run(tmp_path / "run", [read_result(DATA / name)], Said(**said), "loadtest import")
    return analyze(read_run(tmp_path / "run"))


@pytest.mark.parametrize("name", KNOWN)
def test_a_figure_is_known_where_the_files_tell_it_and_nowhere_else(tmp_path, name):
    found = imported(tmp_path, name)
    ((level,),) = (cell.levels for cell in found.cells)
    known = {
        metric
        for metric in METRICS
        if level.estimate(metric, "value" if METRICS[metric].shape == "estimate" else "mean").value is not None
    }
    assert known == KNOWN[name] | {"failed_share"}
    assert set(level.outcomes) == {"ended"}
    assert level.population == "these prompts"
    assert not level.bursty
    assert level.curves.timeline == ()
    assert level.curves.time_to_final_answer_survival == ()
    for metric, true in (("ttft_s", 0.2), ("time_to_first_answer_s", 0.4), ("thinking_s", 0.2), ("tpot_s", 0.02)):
        if metric in known:
            assert level.estimate(metric, "p50").value == pytest.approx(true, rel=0.15)
    if "tokens_per_s_per_user" in known:
        assert level.tokens_per_s_per_user.p50 == pytest.approx(50, rel=0.05)


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_not_told_is_named_with_what_follows(tmp_path, name):
    found = imported(tmp_path, name)
    (reason,) = [one for one in found.health.reasons if one.startswith("imported, not verified")]
    assert found.run.imported is not None
    assert all(one.what in reason for one in found.run.imported.not_told)
    assert (found.health.client, found.health.reconciliation) == ("not_checked", "not_checked")
    told = {one.what for one in found.run.imported.not_told}
    assert ("when each request was sent" in told) == ("sglang" in name or "genai" in name)
    assert ("where thinking ends" in told) == ("time_to_first_answer_s" not in KNOWN[name])
    assert ("text before the answer" in told) == ("inference-perf" in name)


def test_lengths_that_the_user_says_were_forced_make_whole_answers(tmp_path):
    found = imported(tmp_path, "vllm-bench-0.32.0.json", mode="equal-work")
    ((level,),) = (cell.levels for cell in found.cells)
    assert (found.run.mode, level.outcomes) == ("equal-work", {"ok": 24})
    assert level.time_to_final_answer_s.p50 == pytest.approx(0.98, rel=0.05)
    assert level.answers_per_hour.value == pytest.approx(3600 * 4 / 0.98, rel=0.1)
    assert level.context_tokens.value == 60
    for metric in ("time_to_first_answer_s", "thinking_s", "reasoning_tokens", "answer_tokens"):
        assert (metric, level.figure(metric).n) == (metric, 0)
    assert found.run.imported is not None
    assert "how a response ended" not in {one.what for one in found.run.imported.not_told}


def test_forced_runs_are_compared_at_equal_length_and_not_split_by_thinking(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        imported(tmp_path / name, "vllm-bench-0.32.0.json", mode="equal-work")
    judged = compare_runs(*(read_run(tmp_path / name / "run") for name in ("a", "b")))
    (decision,) = judged.decisions
    assert (decision.metric, decision.verdict) == ("time_to_final_answer_s", "one start each")
    assert decision.ratio.value == pytest.approx(1.0)
    (row,) = [one for one in judged.comparisons if one.metric == "time_to_final_answer_s"]
    assert row.why is not None
    assert (row.why.difference_s, row.why.reason) == (None, "thinking is not told from the answer")


def test_requests_that_failed_stand_beside_those_that_ended(tmp_path):
    """vLLM bench, its server gone with 4 of 12 requests answered: the broken ones keep the chunks that came."""
    found = imported(tmp_path, "vllm-bench-0.32.0-server-died.json")
    ((level,),) = (cell.levels for cell in found.cells)
    assert (level.outcomes, level.error_kinds) == ({"ended": 4, "failed": 8}, {"told": 8})
    assert level.failed_share.value == pytest.approx(8 / 12)
    assert level.ttft_s.n == 8
    records = read_run(tmp_path / "run").cells[0].levels[0].requests
    assert {len(one.chunk_s) for one in records} == {42, 33, 0}
    assert all("/" not in one.error.message for one in records if one.error is not None)
    forced = imported(tmp_path / "forced", "vllm-bench-0.32.0-server-died.json", mode="equal-work")
    assert forced.cells[0].levels[0].outcomes == {"failed": 8, "ok": 4}


def test_requests_that_were_cut_off_are_known_where_the_tool_says_so(tmp_path):
    """GuideLLM, stopped in the middle: nothing tells how the others ended, so no time to the final answer is given."""
    found = imported(tmp_path, "guidellm-0.8.1-cut-off.json")
    ((level,),) = (cell.levels for cell in found.cells)
    assert level.outcomes == {"cut_off": 4, "ended": 4}
    assert (level.time_to_final_answer_s.n, level.ttft_s.n) == (0, 8)
    forced = imported(tmp_path / "forced", "guidellm-0.8.1-cut-off.json", mode="equal-work")
    ((level,),) = (cell.levels for cell in forced.cells)
    assert (level.outcomes, level.time_to_final_answer_s.n_censored) == ({"cut_off": 4, "ok": 4}, 4)
    assert level.tpot_s.mean == pytest.approx(0.1, rel=0.02)
