"""Which figures a page has, and how to draw them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from loadtest.metrics.schema import Metrics
from loadtest.report.cells import Groups, cells_of, deployments
from loadtest.report.plots.concurrency import (
    breakdown_figure,
    final_answer_figure,
    first_answer_figure,
    per_user_figure,
    throughput_figure,
    ttft_figure,
)
from loadtest.report.plots.figure import Drawing, Figure, draw
from loadtest.report.plots.overview import speed_chart, time_chart
from loadtest.report.plots.ratios import engine_ratios_figure, engine_reasons_figure
from loadtest.report.plots.time import gaps_figure, server_figure, survival_figure, timeline_figure
from loadtest.report.plots.tradeoffs import pareto_figure, roofline_figure

ABSENT: Mapping[str, tuple[str, str]] = {  # what each figure is called where it could not be drawn, and why that is
    "ratios": ("Ratio of the engines at each level", "no level was measured with both engines and enough requests"),
    "why": ("Why the engines differ", "at no level did both engines finish a request"),
    "ttft": ("Time to first token", "no level has enough requests for a figure"),
    "time-to-first-answer": ("Time to first answer text", "no request gave an answer after its thinking"),
    "time-to-final-answer": ("Time to final answer", "no level has enough finished requests for a figure"),
    "where-the-time-goes": ("Where the time to the final answer goes", "no level has all of its parts"),
    "survival": ("Requests still without their final answer", "of no request is the end of the answer known"),
    "token-gaps": ("Gaps between tokens", "the records hold fewer than two gaps between tokens"),
    "pareto": ("Total tokens/s against tokens/s per user", "no level has both figures"),
    "roofline": ("Memory bandwidth", "needs a GPU that is known, and requests at concurrency 1"),
    "server": ("The server's own /metrics", "the server gave none"),
    "timeline": ("What each request was doing", "of no request is its user known"),
}


def run_figures(metrics: Metrics) -> tuple[Figure, ...]:
    """Every figure for which `metrics` holds data, in the order of the page. Titles of simulated runs say so."""
    cells = cells_of(metrics)
    groups = deployments(cells)
    charted = deployments(cells, composed=True)
    if not charted:
        return ()
    charts = (speed_chart(charted, metrics.run.slo), time_chart(charted, metrics.run.slo))
    if not groups:
        return charts
    makers = (
        partial(throughput_figure, groups),
        partial(per_user_figure, groups),
        partial(ttft_figure, groups),
        partial(first_answer_figure, groups),
        partial(final_answer_figure, groups),
        partial(breakdown_figure, groups),
        partial(survival_figure, groups),
        partial(pareto_figure, groups),
        partial(engine_ratios_figure, metrics.comparisons, cells),
        partial(engine_reasons_figure, metrics.comparisons, cells),
        partial(roofline_figure, groups),
        partial(gaps_figure, groups),
        partial(server_figure, groups),
        partial(timeline_figure, groups),
    )
    return (*charts, *(figure for maker in makers if (figure := maker()) is not None))


def shared_figures(groups: Groups, slos: Sequence[str] = ()) -> tuple[Figure, ...]:
    """The figures that put the cells of several runs on one scale."""
    makers: tuple[Callable[[Groups], Figure | None], ...] = (
        partial(speed_chart, slos=slos),
        partial(time_chart, slos=slos),
        throughput_figure,
        per_user_figure,
        ttft_figure,
        first_answer_figure,
        final_answer_figure,
        breakdown_figure,
        survival_figure,
        pareto_figure,
    )
    return tuple(figure for maker in makers if (figure := maker(groups)) is not None)


def draw_run(metrics: Metrics) -> tuple[Drawing, ...]:
    """Draw every figure of a run once; files and page share the drawing."""
    return tuple(draw(figure) for figure in run_figures(metrics))
