"""The figures drawn from the curves of a level: survival, gaps between tokens, the server over time, the timeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from loadtest.metrics.level_schema import (
    GapHistogram,
    LevelCurves,
    LevelFigures,
    ServerSeries,
    SurvivalPoint,
    TimelineRequest,
)
from loadtest.report.cells import Groups, ShownCell, flat, labelled, load_title, top_concurrency
from loadtest.report.formatting import DASH, count, number, percent
from loadtest.report.plots.figure import (
    GRID,
    INK,
    MUTED,
    PHASES,
    Figure,
    Key,
    Look,
    Panel,
    Table,
    grid,
    legend,
    look_of,
    nothing,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True)
class _Top:
    """A cell at the highest level that it shares with its deployment; `level`: None where it was not tried there."""

    cell: ShownCell
    concurrency: int
    level: LevelFigures | None

    @property
    def name(self) -> tuple[str, str]:
        """The first two columns of a table's row."""
        return self.cell.name, self.cell.load(self.concurrency)

    @property
    def size(self) -> str:
        return f"n {self.cell.short} {count(self.level.n_requests if self.level else None)}"


def _tops(group: tuple[ShownCell, ...]) -> list[_Top]:
    concurrency = top_concurrency(group)
    return [_Top(cell, concurrency, cell.level(concurrency)) for cell in group]


def _panel_title(text: str, tops: Sequence[_Top]) -> str:
    return f"{text}, {tops[0].cell.at(tops[0].concurrency)}"


# Survival ------------------------------------------------------------------------------------------------------------


def survival_figure(groups: Groups) -> Figure | None:
    """Kaplan-Meier curves of time to final answer (s) at the highest shared level; None without data."""
    tops = {text: _tops(group) for text, group in groups.items()}
    every = [one for some in tops.values() for one in some]
    end_s = max((point.time_s for one in every for point in _survival(one)), default=None)
    if end_s is None:
        return None
    rows = [(*one.name, percent(share), _reached(one, share)) for one in every for share in (0.75, 0.5, 0.25, 0.1)]
    cells = flat(groups)
    columns, width_inches = grid(len(groups))
    return Figure(
        name="survival",
        title=labelled("Share of requests still without their final answer", cells),
        caption="Kaplan-Meier estimate at the highest level; requests cut off or truncated are censored at their last "
        "chunk. Band: 95 % confidence interval. Further left is better.",
        says="Survival curves of time to final answer, one panel for each deployment, one step line for each engine.",
        panels=tuple(
            Panel(_panel_title(text, some), partial(_survivors, tops=some, end_s=end_s)) for text, some in tops.items()
        ),
        keys=legend(cells),
        table=Table(("cell", load_title(cells), "still waiting", "after, s"), tuple(rows)),
        width_inches=width_inches,
        columns=columns,
    )


def _survival(top: _Top) -> tuple[SurvivalPoint, ...]:
    return () if top.level is None else top.level.curves.time_to_final_answer_survival


def _reached(top: _Top, share: float) -> str:
    times = [point.time_s for point in _survival(top) if point.share <= share]
    return number(min(times)) if times else f"{DASH} (not reached)"


def _survivors(axes: Axes, *, tops: Sequence[_Top], end_s: float) -> None:
    for top in tops:
        if points := _survival(top):
            look, times = look_of(top.cell), [point.time_s for point in points]
            shares = [1.0, *(point.share for point in points)]
            axes.step([0.0, *times], shares, where="post", color=look.colour, linestyle=look.dash)
            lows, highs = [point.low for point in points], [point.high for point in points]
            axes.fill_between(times, lows, highs, step="post", color=look.colour, alpha=0.15, linewidth=0)
    if not any(map(_survival, tops)):
        nothing(axes)
    _share_axis(axes)
    axes.set_xlim(0, end_s * 1.02 or 1.0)
    sizes = ", ".join(top.size for top in tops)
    axes.set_xlabel(f"seconds since the request was sent\n{sizes}", linespacing=1.35, fontsize=7.5)
    axes.set_ylabel("still waiting")


def _share_axis(axes: Axes) -> None:
    axes.set_ylim(0, 1.03)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])


# Gaps between tokens -------------------------------------------------------------------------------------------------


def gaps_figure(groups: Groups) -> Figure | None:
    """Share of the gaps between tokens up to each length (ms) at the highest shared level; None without data."""
    tops = {text: _tops(group) for text, group in groups.items()}
    every = [one for some in tops.values() for one in some]
    edges_ms = [1000 * edge for one in every if (found := _histogram(one)) is not None for edge in found.edges_s]
    if not edges_ms:
        return None
    draw = partial(_shorter_gaps, span_ms=(min(edges_ms), max(edges_ms)))
    cells = flat(groups)
    columns, width_inches = grid(len(groups))
    return Figure(
        name="token-gaps",
        title=labelled("Gaps between tokens", cells),
        caption="Share of the gaps between tokens that are at most so long, at the highest level, weighted by token; "
        "logarithmic axis. Steep: even; further left: faster. A long tail to the right is felt as stutter.",
        says="Cumulative distributions of the gap between consecutive tokens, one panel for each deployment, one line for "
        "each engine.",
        panels=tuple(Panel(_panel_title(text, some), partial(draw, tops=some)) for text, some in tops.items()),
        keys=legend(cells),
        table=Table(("cell", load_title(cells), "n gaps", "median, ms", "p95, ms", "p99, ms"), tuple(map(_gap_row, every))),
        width_inches=width_inches,
        columns=columns,
    )


def _histogram(top: _Top) -> GapHistogram | None:
    found = None if top.level is None else top.level.curves.itl_histogram
    return found if found is not None and found.shares else None


def _gap_row(top: _Top) -> tuple[str, ...]:
    if top.level is None:
        return (*top.name, DASH, DASH, DASH, DASH)
    gaps = top.level.itl_s
    return (*top.name, count(gaps.n), *(number(None if s is None else 1000 * s) for s in (gaps.p50, gaps.p95, gaps.p99)))


def _shorter_gaps(axes: Axes, *, tops: Sequence[_Top], span_ms: tuple[float, float]) -> None:
    found = [(top, histogram) for top in tops if (histogram := _histogram(top)) is not None]
    for top, histogram in found:
        look, edges_ms = look_of(top.cell), [1000 * edge for edge in histogram.edges_s]
        axes.plot(edges_ms, [0.0, *accumulate(histogram.shares)], color=look.colour, linestyle=look.dash)
    if not found:
        nothing(axes)
    elif span_ms[0] > 0:
        _log_axis(axes, *span_ms)
    sizes = ", ".join(f"n {top.cell.short} {count(top.level.itl_s.n if top.level else None)}" for top in tops)
    _share_axis(axes)
    axes.set_xlabel(f"gap, ms\n{sizes}", linespacing=1.35, fontsize=7.5)
    axes.set_ylabel("gaps up to this long")


def _log_axis(axes: Axes, low: float, high: float) -> None:
    """A logarithmic axis with ticks at 1, 2 and 5 times powers of ten; fewer where the range is wide."""
    steps = (1, 2, 5) if high / low < 300 else (1,)
    marks = [step * 10.0**power for power in range(-4, 7) for step in steps if low <= step * 10.0**power <= high]
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
    axes.minorticks_off()


# Over time -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Shown:
    """A cell whose curve is drawn, and the end (s) of the time axis that it shares with its deployment."""

    top: _Top
    curves: LevelCurves
    end_s: float

    @property
    def panel_title(self) -> str:
        return f"{self.top.cell.short}: {self.top.cell.deployment}, {self.top.cell.at(self.top.concurrency)}"


def _over_time(groups: Groups, times_s: Callable[[LevelCurves], Sequence[float]]) -> list[_Shown]:
    """Each cell that has times to draw at its highest level.

    Engine by engine, so that in a grid with one column for each deployment the two stand one above the other.
    """
    found = []
    for group in groups.values():
        tops = [(top, top.level.curves) for top in _tops(group) if top.level is not None and top.level.n_requests]
        tops = [(top, curves) for top, curves in tops if times_s(curves)]
        end_s = max((max(times_s(curves)) for _, curves in tops), default=0.0)
        found += [_Shown(top, curves, end_s or 1.0) for top, curves in tops]
    return sorted(found, key=lambda one: one.top.cell.family != found[0].top.cell.family)


def _columns(groups: Groups) -> int:
    return len(groups) if 1 < len(groups) < 4 else 3


def server_figure(groups: Groups) -> Figure | None:
    """KV cache in use (%), requests running and waiting, over time (s), for each cell; None without data."""
    shown = _over_time(groups, lambda curves: curves.server.t_s)
    if not shown:
        return None
    head = ("cell", load_title(flat(groups)), "n readings", "peak KV use", "peak running", "peak waiting")
    return Figure(
        name="server",
        title=labelled("The server's own /metrics", (one.top.cell for one in shown)),
        caption="At the highest level, read once a second: share of the KV cache in use; requests running (solid) and "
        "waiting (dotted). The same time axis for both engines.",
        says="For each cell, two small charts over time: share of the KV cache in use, and requests running and waiting.",
        panels=tuple(Panel(one.panel_title, partial(_server_panel, shown=one), stacked=2) for one in shown),
        keys=(),
        table=Table(head, tuple(_server_row(one) for one in shown)),
        columns=_columns(groups),
        bottom_inches=0.4,
        height_inches=2.5,
    )


def _server_row(shown: _Shown) -> tuple[str, ...]:
    """Number of readings, and the peaks of what they told."""
    server = shown.curves.server
    usage, running, waiting = (_peak(values) for values in (server.kv_usage, server.running, server.waiting))
    return (*shown.top.name, count(len(server.t_s)), percent(usage), count(running), count(waiting))


def _peak(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _series(server: ServerSeries, values: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """The times (s) at which the server told, and what."""
    told = [(t, value) for t, value in zip(server.t_s, values, strict=True) if value is not None]
    return [t for t, _ in told], [value for _, value in told]


def _server_panel(upper: Axes, lower: Axes, *, shown: _Shown) -> None:
    server, look = shown.curves.server, look_of(shown.top.cell)
    times, usage = _series(server, server.kv_usage)
    upper.fill_between(times, [100 * share for share in usage], color=look.colour, alpha=0.2, linewidth=0)
    upper.plot(times, [100 * share for share in usage], color=look.colour, linewidth=1)
    for axes in (upper, lower):
        axes.set_xlim(0, shown.end_s)
    upper.set_ylim(0, 105)
    upper.set_yticks([0, 50, 100])
    upper.set_ylabel("KV cache, %")
    upper.tick_params(labelbottom=False)
    for values, dash in ((server.running, "-"), (server.waiting, ":")):
        lower.step(*_series(server, values), where="post", color=look.colour, linestyle=dash, linewidth=1.2)
    asked = shown.top.concurrency if shown.top.cell.of == "users" else _peak(server.running) or 0
    lower.set_ylim(0, max(asked, _peak(server.waiting) or 0, 1) * 1.15)
    lower.set_ylabel("requests")
    lower.set_xlabel(f"seconds since the level began, n {count(len(times))} readings")


def timeline_figure(groups: Groups) -> Figure | None:
    """What each request was doing over time (s), for each cell; None without data."""
    shown = _over_time(groups, lambda curves: [request.ended_s for request in curves.timeline])
    if not shown:
        return None
    return Figure(
        name="timeline",
        title=labelled("What each request was doing", (one.top.cell for one in shown)),
        caption="One row for each request in flight at the highest level, the same time axis for both engines; a cross ends "
        "a request that failed. Faint: warm-up.",
        says="Timeline of requests, one row for each that is in flight at once, each bar split into waiting, thinking and "
        "answering.",
        panels=tuple(Panel(one.panel_title, partial(_timeline_panel, shown=one)) for one in shown),
        keys=tuple(Key(name, Look(MUTED if share else GRID, share=share or 1), kind="box") for name, share in PHASES),
        table=Table(
            ("cell", load_title(flat(groups)), "requests drawn", "not ok", "last end, s"),
            tuple(_timeline_row(one) for one in shown),
        ),
        columns=_columns(groups),
        bottom_inches=0.4,
        height_inches=2.3,
    )


def _timeline_row(shown: _Shown) -> tuple[str, ...]:
    requests = shown.curves.timeline
    odd = sum(request.outcome != "ok" for request in requests)
    return (*shown.top.name, count(len(requests)), count(odd), number(max(request.ended_s for request in requests)))


def _timeline_panel(axes: Axes, *, shown: _Shown) -> None:
    from matplotlib.collections import PolyCollection

    requests, look = shown.curves.timeline, look_of(shown.top.cell)
    rows = {user: row for row, user in enumerate(sorted({(one.worker, one.user) for one in requests}))}
    for phase, faint in (("warmup", 0.4), ("measure", 1.0)):
        spans = [(rows[one.worker, one.user], _spans_s(one)) for one in requests if one.phase == phase]
        for index, (_, share) in enumerate(PHASES):
            boxes = [_box(row, *span) for row, found in spans if (span := found[index]) is not None]
            colour = look.colour if share else GRID
            axes.add_collection(PolyCollection(boxes, facecolors=colour, alpha=(share or 1) * faint, linewidths=0))
    odd = [(one.ended_s, rows[one.worker, one.user]) for one in requests if one.outcome != "ok"]
    axes.plot([t for t, _ in odd], [row for _, row in odd], linestyle="", marker="x", color=INK, markersize=4, clip_on=False)
    axes.set_xlim(0, shown.end_s)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(0, len(rows), max(1, len(rows) // 8)))
    axes.grid(visible=False)
    axes.set_ylabel("in flight")
    axes.set_xlabel(f"seconds since the level began, n {count(len(requests))} requests")


_Span = tuple[float, float]


def _spans_s(request: TimelineRequest) -> tuple[_Span | None, ...]:
    """Start and end of each of `PHASES`, None where it never began; one that never ended runs to the end of the request."""
    starts = (request.sent_s, request.first_s, request.answer_s, request.ended_s)
    return tuple(
        None if start is None else (start, request.ended_s if end is None else end) for start, end in pairwise(starts)
    )


def _box(row: int, start: float, end: float) -> list[tuple[float, float]]:
    low, high = row - 0.38, row + 0.38
    return [(start, low), (end, low), (end, high), (start, high)]
