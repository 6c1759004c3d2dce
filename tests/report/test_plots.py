"""Figures: what is drawn, what is left out, and that a drawing is fit for a page."""

from __future__ import annotations

import re
import struct
from xml.etree import ElementTree

import matplotlib
import pytest

from loadtest.metrics.figures import unknown
from loadtest.report.formatting import number, span
from loadtest.report.plots.catalogue import draw_run, run_figures
from loadtest.report.plots.figure import HEADER_INCHES, LOOKS, PNG_DPI, draw
from tests.support import runs
from tests.support.pages import page
from tests.support.runs import change, without_distribution

SVG = "{http://www.w3.org/2000/svg}"
NAMES = [
    "overview-speed", "overview-time",
    "tokens-per-s-total", "tokens-per-s-per-user", "ttft", "time-to-first-answer", "time-to-final-answer",
    "where-the-time-goes", "survival", "pareto", "ratios", "why", "roofline", "token-gaps", "server", "timeline",
]  # fmt: skip


@pytest.fixture(scope="module")
def drawings():
    return {drawing.figure.name: drawing for drawing in draw_run(runs.simulated().metrics)}


def figures(metrics):
    return {figure.name: figure for figure in run_figures(metrics)}


def test_study_gives_every_figure_once(drawings):
    assert list(drawings) == NAMES


def test_every_title_of_a_simulated_run_says_so_and_of_a_measured_run_does_not(drawings):
    assert all("(simulated)" in drawing.figure.title for drawing in drawings.values())
    assert not any("simulated" in figure.title for figure in run_figures(runs.measured().metrics))


def test_files_carry_the_label_in_their_own_titles(drawings):
    for drawing in drawings.values():
        root = ElementTree.fromstring(drawing.svg)
        shown = {"".join(text.itertext()) for text in root.iter(f"{SVG}text")}
        assert drawing.figure.title in shown
    assert b"(simulated)" in drawings["ttft"].png()  # the PNG's Title


def test_one_panel_for_each_deployment_and_one_view_box_for_each_panel(drawings):
    titles = [panel.title for panel in drawings["ttft"].figure.panels]
    assert titles == ["QwQ-32B-AWQ, 1 GPU", "QwQ-32B-AWQ, 2 GPUs", "QwQ-32B, 2 GPUs"]
    assert all(len(d.boxes) == len(d.figure.panels) for d in drawings.values())


def test_page_form_has_unique_identifiers_and_no_fixed_colour(drawings):
    identifiers = [one for d in drawings.values() for one in re.findall(r' id="([^"]+)"', d.inner)]
    for one in set(identifiers):
        owners = [d.figure.name for d in drawings.values() if f' id="{one}"' in d.inner]
        assert len(owners) == 1, one
    for drawing in drawings.values():
        assert set(re.findall(r"#[0-9a-f]{6}\b", drawing.inner)) <= {"#ffffff"}
        assert f'id="drawing-{drawing.figure.name}"' in drawing.inner
        assert "<style" not in drawing.inner


def test_same_metrics_draw_the_same_bytes(drawings):
    assert draw(drawings["ttft"].figure).svg == drawings["ttft"].svg


def test_png_is_one_picture_of_the_size_of_its_panels(drawings):
    drawing = drawings["ttft"]
    width, height = struct.unpack(">II", drawing.png()[16:24])
    assert width == round(3 * drawing.figure.width_inches * PNG_DPI)
    assert height == pytest.approx((drawing.figure.height_inches + HEADER_INCHES) * PNG_DPI, abs=1)


def test_table_under_a_figure_holds_value_interval_and_sample_size(drawings):
    table = drawings["tokens-per-s-total"].figure.table
    total = runs.simulated().metrics.cells[0].levels[1].output_tokens_per_s
    assert table.head == ("cell", "concurrency", "n", "tokens/s", "95 % CI")
    assert total.ci95 is not None
    assert table.rows[1] == ("SGLang-sim QwQ-32B-AWQ, 1 GPU", "4", "40", number(total.value), span(total))


def test_unknown_quantile_is_a_dash_with_the_n_it_needs(drawings):
    assert drawings["ttft"].figure.table.rows[0][-6:] == (
        *("—", "needs n ≥ 36"), *("—", "needs n ≥ 72"), *("—", "needs n ≥ 368")
    )  # fmt: skip


def test_ratio_table_names_the_faster_engine():
    sample = runs.with_comparisons(
        runs.measured(),
        lambda row: change(row, verdict="faster" if row.metric == "ttft_s" else "equal"),
    )
    rows = figures(sample.metrics)["ratios"].table.rows
    assert rows[0][:3] == ("Time to final answer", "QwQ-32B-AWQ, 1 GPU", "1")
    assert {row[5] for row in rows if row[0] == "Time to first token"} == {"SGLang faster"}
    assert {row[5] for row in rows if row[0] == "Time to final answer"} == {"equal"}


def test_axis_of_a_ratio_names_both_sides(drawings):
    text = drawings["ratios"].svg.decode()
    assert "← SGLang better · vLLM better →" in text
    assert "← vLLM better · SGLang better →" in text


def test_grey_tells_engines_apart_by_marker_and_dash():
    looks = list(LOOKS.values())
    assert len({look.marker for look in looks}) == len({look.dash for look in looks}) == len(looks)


def without_curves(level):
    """A level whose requests left nothing to draw."""
    empty = change(
        level.curves,
        time_to_final_answer_survival=(),
        itl_histogram=change(level.curves.itl_histogram, edges_s=(), shares=()),
        timeline=(),
        server=change(level.curves.server, t_s=(), running=(), waiting=(), kv_usage=()),
    )
    return change(level, curves=empty)


@pytest.mark.parametrize(
    ("missing", "gone"),
    [
        ("curves", {"survival", "token-gaps", "server", "timeline"}),
        ("ttft_s", {"ttft", "where-the-time-goes"}),
        ("output_tokens_per_s", {"tokens-per-s-total", "pareto"}),
        ("tokens_per_s_per_user", {"tokens-per-s-per-user", "pareto", "roofline"}),
    ],
)
def test_figures_that_no_level_has_cost_their_plot_and_no_other(missing, gone):
    def edit(level):
        if missing == "curves":
            return without_curves(level)
        if missing == "output_tokens_per_s":
            return change(level, output_tokens_per_s=unknown("no steady window"))
        return without_distribution(level, missing)

    assert set(NAMES) - set(figures(runs.with_levels(runs.simulated(), edit).metrics)) == gone


def test_level_without_requests_has_no_time_line():
    asked_nothing = runs.with_levels(runs.simulated(), lambda level: change(level, n_requests=0))
    assert {"server", "timeline"} & set(figures(asked_nothing.metrics)) == set()


def test_damaged_run_is_drawn_without_the_missing_cells():
    files_only = {"tokens-per-s-total", "tokens-per-s-per-user"}
    assert set(re.findall(r'id="figure-([^"]+)"', page("damaged"))) == set(NAMES) - files_only


def test_run_without_a_level_has_no_figure():
    sample = runs.with_cells(runs.simulated(), lambda cell: change(cell, levels=()))
    assert run_figures(sample.metrics) == ()


def test_global_state_of_matplotlib_is_left_as_it_was(drawings):
    before = dict(matplotlib.rcParams)
    draw(drawings["roofline"].figure)
    assert dict(matplotlib.rcParams) == before
