"""Which figures a page has, and how to draw them all."""

from __future__ import annotations

from functools import partial

from loadtest.report import cells as views
from loadtest.report.cells import Cell
from loadtest.report.formatting import Json
from loadtest.report.plots import ratios, time, tradeoffs
from loadtest.report.plots.concurrency import (
    breakdown_figure,
    final_answer_figure,
    first_answer_figure,
    per_user_figure,
    throughput_figure,
    ttft_figure,
)
from loadtest.report.plots.figure import Drawing, Figure, draw


def figures(metrics: Json) -> tuple[Figure, ...]:
    """Every figure for which `metrics` holds data, in the order of the page. Titles of simulated runs say so."""
    cells = views.cells(metrics)
    groups = views.deployments(cells)
    if not groups:
        return ()
    makers = (
        partial(throughput_figure, groups),
        partial(per_user_figure, groups),
        partial(ttft_figure, groups),
        partial(first_answer_figure, groups),
        partial(final_answer_figure, groups),
        partial(breakdown_figure, groups),
        partial(time.survival, groups),
        partial(tradeoffs.pareto, groups),
        partial(ratios.of_runtimes, metrics, cells),
        partial(ratios.why, metrics, cells),
        partial(tradeoffs.roofline, groups),
        partial(time.gaps, groups),
        partial(time.server, groups),
        partial(time.timeline, groups),
    )
    return tuple(figure for maker in makers if (figure := maker()) is not None)


def of_groups(groups: dict[str, tuple[Cell, ...]]) -> tuple[Figure, ...]:
    """The figures that put the cells of several runs on one scale."""
    makers = (
        throughput_figure,
        per_user_figure,
        ttft_figure,
        first_answer_figure,
        final_answer_figure,
        breakdown_figure,
        time.survival,
        tradeoffs.pareto,
    )
    return tuple(figure for maker in makers if (figure := maker(groups)) is not None)


def draw_all(metrics: Json) -> tuple[Drawing, ...]:
    """Draw every figure once; files and page share the drawing."""
    return tuple(draw(figure) for figure in figures(metrics))
