"""The decision in the terminal."""

from __future__ import annotations

import pytest

from loadtest.metrics.figures import Estimate
from loadtest.records.engine_facts import ClockError
from loadtest.report.page import run_page
from loadtest.report.terminal import decision_text
from tests.support import runs
from tests.support.runs import change


def said(source, columns=120):
    return decision_text(source.metrics, source.manifest, columns)


def test_terminal_table_has_a_line_for_each_level_and_the_decision():
    text = said(runs.simulated())
    lines = text.splitlines()
    assert lines[0] == "SIMULATED: these figures are predictions"
    assert sum(line.startswith(("sglang-sim_", "vllm-sim_")) for line in lines) == 6 * 2 + 2
    assert "Which engine: No verdict: simulated run" in text
    assert "refused" in text


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_no_line_is_wider_than_the_terminal(columns):
    assert max(map(len, said(runs.simulated(), columns).splitlines())) <= columns


def test_terminal_shows_failed_gates():
    assert "DO NOT RELY ON THIS RUN. Load generator FAIL: may have distorted the figures" in said(runs.damaged())


def test_tokens_that_only_chunks_count_are_said_to_be():
    sample = runs.with_metrics(runs.small(), cells=())
    assert "Token counts" not in said(sample)
    counted = runs.with_metrics(sample, health=change(sample.metrics.health, counted_by="chunks"))
    assert "Token counts: the server gave none, so each chunk of text counts as one" in said(counted)
    page = run_page(counted)
    assert "each chunk of text counts as one token" in page


@pytest.mark.parametrize(("speed", "words"), [(10.0, "Simulator speed-up error"), (1.0, "Simulator timing error")])
def test_the_terminal_says_how_far_off_a_simulated_clock_is(speed, words):
    error = ClockError(n=12, ttft_s=0.01, tpot_s=None, time_to_final_answer_s=None)
    sample = runs.simulated()
    run = change(sample.metrics.run, clock_speed=speed, clock_error=error)
    assert f"{words}: TTFT +1.0 % (means of 12 requests)" in said(runs.with_metrics(sample, run=run))


def test_the_terminal_says_which_requests_failed_and_nothing_where_none_did():
    assert "FAILED" not in said(runs.small())
    failed = runs.with_levels(
        runs.small(),
        lambda level: change(
            level,
            n_requests=24,
            failed_share=Estimate(0.625, (0.4, 0.8), 24),
            error_kinds={"error_in_stream": 14, "http_503": 1},
        ),
    )
    told = "FAILED: 15 of 24 requests, vllm_qwq-32b-awq_tp1 at concurrency 2 (error_in_stream 14, http_503 1)"
    assert told in said(failed)
