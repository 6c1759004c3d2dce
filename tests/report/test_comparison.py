"""The comparison page: what changed in words, differences of settings, who is held against whom."""

from __future__ import annotations

from dataclasses import replace

from loadtest.metrics.figures import Bounded
from loadtest.report.comparison import (
    Side,
    compared_rows,
    comparison_figures,
    comparison_lines,
    differences,
    places,
)
from loadtest.report.page import comparison_page
from loadtest.report.plots.ratios import reasons_figure
from tests.support.pages import comparison, with_rows
from tests.support.runs import HOSTILE, change


def lines(side):
    rows = compared_rows(comparison()[0], side)
    return {line.asks: line for line in comparison_lines(side, rows)}


def test_a_slower_candidate_is_called_slower_with_the_reason():
    found = lines(comparison()[1])
    assert found["What changed"].answer == "The baseline is faster in 4 of 4 pairs"
    assert found["Why"].answer == "Mostly time per token"
    assert found["Same settings"].answer == "No: top k differs"


def test_largest_difference_is_the_verified_one_farthest_from_one():
    def edit(row):
        if row.metric == "ttft_s" and row.concurrency == 1:
            return change(row, ratio=Bounded(0.1, (0.05, 0.2)), verdict="faster")
        if row.metric == "ttft_s":
            return change(row, ratio=Bounded(30.0, (0.9, 99.0)), verdict="undecided")
        return row

    answer = lines(with_rows(comparison()[1], edit))["Largest difference"].answer
    assert answer == "Time to first token: 0.100 times the baseline (faster)"


def test_equal_runs_say_what_they_would_have_shown():
    equal = with_rows(comparison()[1], lambda row: change(row, verdict="equal"))
    ratios = [row.smallest_detectable_ratio for row in equal.comparisons if row.smallest_detectable_ratio is not None]
    found = lines(equal)
    assert found["Largest difference"].answer == "No difference is shown in any metric"
    assert f"{min(ratios):.2f}" in found["Largest difference"].because
    assert found["Why"].answer == "No difference to explain"


def test_no_ratio_is_no_verdict():
    side = comparison()[1]
    assert side.comparison is not None
    none = tuple(
        change(one, ratio=Bounded(None, None), verdict="not comparable", reason="different top_k")
        for one in side.comparison.decisions
    )
    found = lines(replace(side, comparison=change(side.comparison, decisions=none)))["What changed"]
    assert found.answer == "No verdict"


def test_every_key_that_differs_is_a_row_with_the_value_of_each_run():
    old, new = comparison()
    table = differences((old, new, replace(new, differences={"mode": ("natural", "equal-work")})))
    assert table is not None
    assert table.head == ("key", "baseline", "candidate 1", "candidate 2")
    assert table.rows == (("top k", "40", "20", "40"), ("mode", "natural", "natural", "equal-work"))
    assert differences((old, replace(new, differences={}))) is None


def test_runs_share_panels_and_scales_and_are_told_apart():
    figures = {figure.name: figure for figure in comparison_figures(comparison())}
    assert [key.label for key in figures["ttft"].keys] == ["baseline", "candidate"]
    assert len({key.look for key in figures["ttft"].keys}) == 2
    assert len(figures["ttft"].panels) == 4  # a panel for each cell that both runs have
    assert {"ratios", "why"} <= set(figures)


def test_engines_of_two_runs_are_compared_on_their_deployment():
    old, new = comparison()
    first, second, *others = new.metrics.cells
    moved = change(first, id="other_x_tp1", engine="other")
    side = replace(
        with_rows(new, lambda row: change(row, a=moved.id) if row.a == first.id else row),
        metrics=change(new.metrics, cells=(moved, second, *others)),
    )
    assert places(old, side)[moved.id] == "QwQ-32B-AWQ, 1 GPU"
    assert places(old, side)[second.id] == "SGLang QwQ-32B-AWQ, 2 GPUs"


def test_parts_of_a_difference_stand_in_the_table_with_their_sign():
    def edit(row):
        if row.why is None:
            return row
        return change(row, why=change(row.why, difference_s=-1.5, waiting_s=-2.0, seconds_per_token_s=0.5))

    rows = compared_rows(comparison()[0], with_rows(comparison()[1], edit))
    figure = reasons_figure(rows, "why", simulated=False)
    assert figure is not None
    assert figure.table.rows[0][2:5] == ("−1.50", "−2.00", "+0.500")


def test_page_of_a_comparison_puts_warning_then_decision_before_any_figure():
    old, new = comparison()
    sick = change(old.metrics, health=change(old.metrics.health, client="fail"))
    page = comparison_page((replace(old, metrics=sick), new))
    order = [
        "Do not rely on the baseline",
        "What changed</dt>",
        new.not_compared[0],
        "Candidate / baseline: ratio",
    ]
    positions = [page.index(text) for text in order]
    assert positions == sorted(positions)


def test_text_of_a_stranger_stays_text():
    old, new = comparison()
    assert new.comparison is not None
    bad = HOSTILE
    side = Side(
        name=bad,
        metrics=change(new.metrics, cells=tuple(change(cell, model=bad, reason=bad) for cell in new.metrics.cells)),
        manifest=change(new.manifest, commands=(bad,)),
        comparison=change(new.comparison, not_compared=(bad,)),
        differences={bad: (bad, bad)},
    )
    page = comparison_page((old, side))
    assert "<img" not in page
    assert page.count("<script") == 1
    assert not set("\u202e\u200b\x07") & set(page)
