"""The decision in the terminal."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loadtest.metrics.figures import Estimate, unknown
from loadtest.metrics.level_schema import SloResult, TokenCounts
from loadtest.records.engine_facts import ClockError
from loadtest.report import tables
from loadtest.report.cells import cells_of
from loadtest.report.formatting import number
from loadtest.report.page import run_page
from loadtest.report.terminal import decision_text
from tests.support import runs
from tests.support.runs import change


def said(source, columns=120):
    return decision_text(source.metrics, source.manifest, columns)


def test_the_table_has_a_row_for_each_level_under_the_name_of_its_cell():
    source = runs.simulated()
    lines = said(source).splitlines()
    assert lines[0] == "SIMULATED: these figures are predictions"
    for cell in source.metrics.cells:
        (place,) = [i for i, line in enumerate(lines) if line.split(":")[0] == cell.id]
        below = lines[place + 1 : place + 1 + len(cell.levels)]
        assert [line.split()[:2] for line in below] == [[str(one.concurrency), str(one.n_requests)] for one in cell.levels]
        assert cell.levels or lines[place].startswith(f"{cell.id}: refused: does not fit: QwQ-32B on 1 x NVIDIA L20")


def test_a_row_has_quantiles_of_both_waits_both_speeds_and_the_failures():
    source = runs.with_levels(
        runs.small(), lambda level: change(level, n_requests=24, failed_share=Estimate(0.125, (0.0, 0.3), 24))
    )
    level = source.metrics.cells[0].levels[0]
    row = next(line.split() for line in said(source).splitlines() if line.split()[:1] == [str(level.concurrency)])
    ttft, answer = level.ttft_s, level.time_to_final_answer_s
    assert row[2:6] == [number(one) for one in (ttft.p50, ttft.p90, answer.p50, answer.p90)]
    assert row[6:] == [number(level.tokens_per_s_per_user.p50), number(level.output_tokens_per_s.value), "3"]
    assert f"p99 needs {ttft.n_needed.p99} requests of a level" in said(source).splitlines()


def test_a_quantile_that_only_some_levels_have_is_a_column():
    source = runs.with_levels(runs.small(), lambda one: change(one, ttft_s=change(one.ttft_s, p99=7.5)))
    level = source.metrics.cells[0].levels[0]
    row = next(line.split() for line in said(source).splitlines() if line.split()[:1] == [str(level.concurrency)])
    assert (row[4], row[7]) == ("7.50", f"n≥{level.time_to_final_answer_s.n_needed.p99}")
    assert "n≥N: the figure needs N requests at its level" in said(source).splitlines()


def test_a_total_that_is_missing_is_a_dash_with_its_reason():
    source = runs.with_levels(runs.small(), lambda level: change(level, output_tokens_per_s=unknown("no steady window")))
    text = said(source, 200)
    first, second = (cell.id for cell in source.metrics.cells)
    assert f"no total tokens/s: no steady window ({first} at 1, 2; {second} at 1, 2)" in text
    assert text.count("no steady window") == 1


@pytest.mark.parametrize("source", [runs.simulated, runs.measured, runs.damaged])
@pytest.mark.parametrize("columns", [80, 100])
def test_the_verdict_has_at_most_twelve_lines_and_what_is_missing_one(source, columns):
    made = source()
    lines = said(made, columns).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(("Which engine: ", "Which configuration: ")))
    missing = [i for i, line in enumerate(lines) if line.startswith("Not measured: ")]
    assert len(missing) == 1
    assert missing[0] == len(lines) - 1
    assert 3 <= missing[0] - start <= 12
    for asks in ("Which configuration: ", "Maximum concurrency: ", "Cost of 1,000 answers: "):
        assert sum(line.startswith(asks) for line in lines) == 1


def test_what_was_not_measured_is_counted():
    assert said(runs.simulated()).splitlines()[-1] == (
        "Not measured: 2 of 8 cells (refused), 7 of 13 published claims, real GPUs; reasons: report.html"
    )
    whole = runs.with_metrics(runs.small(), findings=(), comparisons=())
    assert "Not measured" not in said(whole)


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_no_line_is_wider_than_the_terminal(columns):
    assert max(map(len, said(runs.simulated(), columns).splitlines())) <= columns


def test_token_counts_that_the_text_contradicts_are_said():
    cell = runs.small().metrics.cells[0]
    counts = TokenCounts(told_by_chunk=0, spread_over_chunks=1, n_too_few=1, reasons=("the server counts fewer",))
    level = change(cell.levels[0], token_counts=counts, n_resends=2)
    lied = runs.with_metrics(runs.small(), cells=(change(cell, levels=(level,)),))
    words = "of 1 request(s) the text contradicts the server's count"
    assert words in said(lied)
    page = run_page(lied)
    assert words.replace("'", "&#39;") in page
    assert "the server counts fewer" in page
    assert "resends" in tables.failures_table(cells_of(lied.metrics)).head


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


def open_loop(met, **options):
    """The small run as if its requests had come by the clock."""
    source = runs.with_levels(
        runs.small(),
        lambda level: change(
            level,
            output_tokens_per_s=unknown("no steady window"),
            run_tokens_per_s=Estimate(77.0, None, 1),
            slo=(SloResult(slo="ttft_s:p50<2", value=1.0, ci95=None, met=met, likely=met, n_needed=None),),
        ),
    )
    return replace(source, manifest=change(source.manifest, scenario_options={"arrivals": "poisson"} | options))


def test_an_open_loop_answers_at_its_rate_and_claims_no_concurrency():
    text = said(open_loop(True, rate=0.5), 200)
    assert "Open loop: 0.5 requests/s (poisson); concurrency is the most in flight" in text
    assert "At 0.5 requests/s (poisson): Every SLO is met. " in text
    assert "median time to first token " in text
    assert "Maximum concurrency" not in text
    assert "Which configuration" not in text
    assert "no total tokens/s" not in text
    assert " 77.0 " in text


@pytest.mark.parametrize(("met", "words"), [(False, "Not met: median"), (None, "Undecided, too few requests: median")])
def test_an_open_loop_outside_its_slos_says_so(met, words):
    assert f"At the recorded rate: {words} time to first token < 2 s." in said(open_loop(met, arrivals="recorded"), 200)
