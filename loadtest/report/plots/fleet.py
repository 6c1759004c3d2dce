"""The chart of a plan: what the first SLO limits, against the number of replicas, and after a loss at the peak."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from loadtest.analysis.decisions import FleetOption, FleetPlan, PeakFigure
from loadtest.metrics.catalogue import METRICS
from loadtest.metrics.slo import Slo, parse_slo
from loadtest.report.formatting import DASH, number
from loadtest.report.plots.figure import BAD, CARD, MUTED, OTHER, SGLANG, VLLM, Figure, Key, Look, Panel, Table, nothing
from loadtest.report.text.plan import figures_text, source_word

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOOKS = {
    "random": Look(VLLM, "s", "--"),
    "round-robin": Look(OTHER, "^", ":"),
    "least-loaded": Look(SGLANG, "o", "-"),
}


def fleet_figure(found: FleetPlan) -> Figure:
    """One panel for each SLO, of the cell with the fewest GPUs: its figure at the peak hour against the replicas."""
    best = found.options[0].cell if found.options else ""
    options = tuple(one for one in found.options if one.cell == best and one.tried)
    panels = tuple(
        Panel(parse_slo(text).text, partial(_against_replicas, options=options, slo=parse_slo(text), index=index))
        for index, text in enumerate(found.slo)
    )
    rows = tuple((one.router, number(one.replicas.likely), figures_text(one.peak) or DASH) for one in options)
    word = source_word(found)
    return Figure(
        name="fleet",
        title=f"Daily peak: {best or 'no cell'} ({word} speed)",
        caption="Each point is a fleet simulated over the daily peak. Dotted: the SLO. Cross: after a loss.",
        says="What the requests of the peak hour see, against the number of replicas, for each router.",
        panels=panels or (Panel("no SLO", nothing),),
        keys=tuple(Key(one.router, LOOKS[one.router]) for one in options),
        table=Table(("router", "replicas", "at the peak"), rows),
        height_inches=2.9,
        bottom_inches=0.5,
        left_inches=0.7,
    )


def _against_replicas(axes: Axes, *, options: Sequence[FleetOption], slo: Slo, index: int) -> None:
    if not options:
        nothing(axes)
        return
    for one in options:
        look = LOOKS[one.router]
        points = [(size.replicas, value) for size in one.tried if (value := _value(size.peak, index)) is not None]
        axes.plot(
            *zip(*points, strict=True), color=look.colour, marker=look.marker, linestyle=look.dash, markerfacecolor=CARD
        )
        for loss in one.losses:
            value = _value(loss.peak, index)
            if value is not None and one.replicas.likely is not None:
                axes.plot([one.replicas.likely - loss.lost], [value], color=BAD, marker="x", linestyle="")
    axes.axhline(slo.limit, color=MUTED, linestyle=":", linewidth=1.0)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("replicas")
    axes.set_ylabel(f"{slo.statistic}, {METRICS[slo.metric].unit}")


def _value(figures: Sequence[PeakFigure], index: int) -> float | None:
    return figures[index].value
