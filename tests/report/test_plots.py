"""Figures: what is drawn, what is left out, and that a drawing is fit for a page."""

from __future__ import annotations

import copy
import re
import struct
from typing import Any
from xml.etree import ElementTree

import pytest

from loadtest.report import formatting
from loadtest.report.plots import catalogue
from loadtest.report.plots.figure import HEADER_INCHES, LOOKS, PNG_DPI, Drawing, Figure, draw
from tests.support import pages as sample_metrics

SVG = "{http://www.w3.org/2000/svg}"
NAMES = [
    "tokens-per-s-total", "tokens-per-s-per-user", "ttft", "time-to-first-answer", "time-to-final-answer",
    "where-the-time-goes", "survival", "pareto", "ratios", "why", "roofline", "token-gaps", "server", "timeline",
]  # fmt: skip


@pytest.fixture(scope="module")
def drawings() -> dict[str, Drawing]:
    return {d.figure.name: d for d in catalogue.draw_all(sample_metrics.full_matrix(levels=(1, 8)).metrics)}


def figures(metrics: dict[str, Any]) -> dict[str, Figure]:
    return {figure.name: figure for figure in catalogue.figures(metrics)}


def test_full_matrix_gives_every_figure_once(drawings: dict[str, Drawing]) -> None:
    assert list(drawings) == NAMES


def test_every_title_of_a_simulated_run_says_so_and_of_a_measured_run_does_not() -> None:
    simulated = catalogue.figures(sample_metrics.full_matrix().metrics)
    measured = catalogue.figures(sample_metrics.full_matrix(simulated=False).metrics)
    assert all("(simulated)" in figure.title for figure in simulated)
    assert not any("simulated" in figure.title for figure in measured)


def test_files_carry_the_label_in_their_own_titles(drawings: dict[str, Drawing]) -> None:
    for drawing in drawings.values():
        root = ElementTree.fromstring(drawing.svg)
        shown = {"".join(text.itertext()) for text in root.iter(f"{SVG}text")}
        assert drawing.figure.title in shown
    assert b"(simulated)" in drawings["ttft"].png()  # the PNG's Title


def test_one_panel_for_each_deployment_and_one_view_box_for_each_panel(drawings: dict[str, Drawing]) -> None:
    titles = [panel.title for panel in drawings["ttft"].figure.panels]
    assert titles == ["QwQ-32B-AWQ, 1 card", "QwQ-32B-AWQ, 2 cards", "QwQ-32B, 2 cards"]
    assert all(len(d.boxes) == len(d.figure.panels) for d in drawings.values())


def test_page_form_has_unique_identifiers_and_no_fixed_colour(drawings: dict[str, Drawing]) -> None:
    identifiers = [one for d in drawings.values() for one in re.findall(r' id="([^"]+)"', d.inner)]
    for one in set(identifiers):
        owners = [d.figure.name for d in drawings.values() if f' id="{one}"' in d.inner]
        assert len(owners) == 1, one
    for drawing in drawings.values():
        assert set(re.findall(r"#[0-9a-f]{6}\b", drawing.inner)) <= {"#ffffff"}
        assert f'id="drawing-{drawing.figure.name}"' in drawing.inner
        assert "<style" not in drawing.inner


def test_same_metrics_draw_the_same_bytes() -> None:
    metrics = sample_metrics.full_matrix(levels=(1,), deployments=1).metrics
    figure = figures(metrics)["ttft"]
    assert draw(figure).svg == draw(figure).svg


def test_png_is_one_picture_of_the_size_of_its_panels(drawings: dict[str, Drawing]) -> None:
    drawing = drawings["ttft"]
    width, height = struct.unpack(">II", drawing.png()[16:24])
    assert width == round(3 * drawing.figure.width_inches * PNG_DPI)
    assert height == pytest.approx((drawing.figure.height_inches + HEADER_INCHES) * PNG_DPI, abs=1)


def test_table_under_a_figure_holds_value_interval_and_sample_size() -> None:
    metrics = sample_metrics.full_matrix(levels=(4,)).metrics
    table = figures(metrics)["tokens-per-s-total"].table
    total = metrics["cells"][0]["levels"][0]["output_tokens_per_s"]
    low, high = total["ci95"]
    assert table.head == ("cell", "users", "n", "tokens/s", "95 % interval")
    expected = (formatting.number(total["value"]), f"{formatting.number(low)} to {formatting.number(high)}")
    assert table.rows[0] == ("SGLang-sim QwQ-32B-AWQ, 1 card", "4", "32", *expected)


def test_null_quantile_is_a_dash_with_the_n_it_needs() -> None:
    table = figures(sample_metrics.full_matrix(levels=(1,), deployments=1).metrics)["ttft"].table
    assert table.rows[0][-2:] == ("—", "needs n ≥ 29")


def test_ratio_table_names_the_better_runtime() -> None:
    metrics = sample_metrics.full_matrix(levels=(1,), deployments=1).metrics
    rows = figures(metrics)["ratios"].table.rows
    assert rows[0][:3] == ("Tokens/s per user", "QwQ-32B-AWQ, 1 card", "1")
    assert rows[0][5] == "SGLang faster"
    assert {row[5] for row in rows if row[0] == "Time to first token"} == {"no detectable difference"}


def test_grey_tells_runtimes_apart_by_marker_and_dash() -> None:
    looks = list(LOOKS.values())
    assert len({look.marker for look in looks}) == len({look.dash for look in looks}) == len(looks)


@pytest.mark.parametrize("lost", ["curves", "ttft_s", "output_tokens_per_s", "tokens_per_s_per_user", "n_requests"])
def test_any_lost_key_costs_its_figure_and_no_other(lost: str) -> None:
    metrics = sample_metrics.full_matrix(levels=(1, 2)).metrics
    for cell in metrics["cells"]:
        for level in cell["levels"]:
            level[lost] = None
    found = figures(metrics)
    gone = {
        "curves": {"survival", "token-gaps", "server", "timeline"},
        "ttft_s": {"ttft", "where-the-time-goes"},
        "output_tokens_per_s": {"tokens-per-s-total", "pareto"},
        "tokens_per_s_per_user": {"tokens-per-s-per-user", "pareto", "roofline"},
        "n_requests": set(),
    }
    assert set(NAMES) - set(found) == gone[lost]


def test_damaged_run_is_drawn_without_the_missing_cells() -> None:
    assert sorted(re.findall(r'id="figure-([^"]+)"', sample_metrics.page("damaged"))) == sorted(NAMES)


def test_run_without_a_level_has_no_figure() -> None:
    metrics = copy.deepcopy(sample_metrics.full_matrix(levels=(1,), deployments=1).metrics)
    for cell in metrics["cells"]:
        cell["levels"] = []
    assert catalogue.figures(metrics) == ()


def test_global_state_of_matplotlib_is_left_as_it_was() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    draw(figures(sample_metrics.full_matrix(levels=(1,), deployments=1).metrics)["roofline"])
    assert dict(matplotlib.rcParams) == before
