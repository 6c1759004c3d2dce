"""The comparison page: what changed in words, differences of contract, who is held against whom."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from loadtest.report import comparison
from loadtest.report.comparison import Side
from loadtest.report.page import build_comparison
from loadtest.report.plots import ratios
from tests.support import pages as sample_metrics


@pytest.fixture
def sides() -> tuple[Side, ...]:
    return copy.deepcopy(sample_metrics.comparison())


def answers(sides: tuple[Side, ...]) -> dict[str, str]:
    return {line.asks: line.answer for line in comparison.lines(sides[1], comparison.rows(*sides))}


def test_a_slower_candidate_is_called_behind_with_the_reason(sides: tuple[Side, ...]) -> None:
    said = answers(sides)
    assert said["What changed"] == "The baseline was ahead in 12 of 12 comparisons"
    assert said["Why"] == "Mostly time per token"
    assert said["Asked for the same"] == "No: top k"


def test_largest_difference_is_the_one_farthest_from_one(sides: tuple[Side, ...]) -> None:
    rows = sides[1].comparison["comparisons"]
    rows[5].update(ratio={"value": 0.1, "ci95": [0.05, 0.2]}, verdict="faster")
    rows[6].update(ratio={"value": 30.0, "ci95": [0.9, 99.0]}, verdict="no detectable difference")
    assert "0.100 times" in answers(sides)["Largest difference"]


def test_equal_runs_say_what_they_would_have_noticed(sides: tuple[Side, ...]) -> None:
    for row in sides[1].comparison["comparisons"]:
        row["verdict"] = "no detectable difference"
    said = {line.asks: line for line in comparison.lines(sides[1], comparison.rows(*sides))}
    assert said["What changed"].answer == "No detectable difference in 12 of 12 comparisons"
    assert said["Largest difference"].answer == "None that holds"
    assert "ratios beyond 1.03 to 1.09" in said["Largest difference"].because
    assert said["Why"].answer == "No difference to explain"


def test_no_ratio_is_no_verdict(sides: tuple[Side, ...]) -> None:
    for row in sides[1].comparison["comparisons"]:
        row.update(ratio=None, verdict="not comparable", why=None)
    assert answers(sides)["What changed"] == "No verdict"


def test_every_key_that_differs_is_a_row_with_the_value_of_each_run(sides: tuple[Side, ...]) -> None:
    third = replace(sides[1], differences={"mode": ("natural", "equal-work")})
    table = comparison.differences((*sides, third))
    assert table is not None
    assert table.head == ("key", "baseline", "candidate 1", "candidate 2")
    assert table.rows == (("top k", "40", "20", "40"), ("mode", "natural", "natural", "equal-work"))
    assert comparison.differences((sides[0], replace(sides[1], differences={}))) is None


def test_runs_share_panels_and_scales_and_are_told_apart(sides: tuple[Side, ...]) -> None:
    figures = {figure.name: figure for figure in comparison.figures(sides)}
    assert [key.label for key in figures["ttft"].keys] == ["baseline", "candidate"]
    assert len({key.look for key in figures["ttft"].keys}) == 2
    assert len(figures["ttft"].panels) == 6  # a panel for each cell that both runs have
    assert {"ratios", "why"} <= set(figures)


def test_runtimes_of_two_runs_are_compared_on_their_deployment(sides: tuple[Side, ...]) -> None:
    cells = sides[1].metrics["cells"]
    old = cells[0]["id"]
    cells[0].update(id="vllm_x_tp1", engine="vllm")
    for row in sides[1].comparison["comparisons"]:
        row["a"] = "vllm_x_tp1" if row["a"] == old else row["a"]
    assert comparison.places(*sides)["vllm_x_tp1"] == "QwQ-32B-AWQ, 1 card"
    assert comparison.places(*sides)[cells[1]["id"]] == "vLLM QwQ-32B-AWQ, 1 card"


def test_parts_of_a_difference_stand_in_the_table_with_their_sign(sides: tuple[Side, ...]) -> None:
    row = comparison.rows(*sides)[3]
    row.row["why"].update(difference_s=-1.5, waiting_s=-2.0, seconds_per_token_s=0.5)  # type: ignore[index]
    figure = ratios.reasons([row], "why", str)
    assert figure is not None
    assert figure.table.rows[0][2:5] == ("−1.50", "−2.00", "+0.500")


def test_page_of_a_comparison_puts_warning_then_decision_before_any_figure(sides: tuple[Side, ...]) -> None:
    sides[0].metrics["health"]["client"] = "fail"  # type: ignore[index]
    page = build_comparison(sides)
    order = [
        "Do not rely on the baseline",
        "What changed</dt>",
        "only the baseline has 8 users",
        "Candidate / baseline: ratio",
    ]
    places = [page.index(text) for text in order]
    assert places == sorted(places)


def test_text_of_a_stranger_stays_text(sides: tuple[Side, ...]) -> None:
    bad = sample_metrics.HOSTILE
    for cell in sides[1].metrics["cells"]:
        cell["model"] = bad
    side = replace(sides[1], name=bad, differences={bad: (bad, bad)})
    side.comparison["not_compared"].append(bad)
    page = build_comparison((sides[0], side))
    assert "<img" not in page
    assert page.count("<script") == 1
    assert not set("\u202e\u200b\x07") & set(page)
