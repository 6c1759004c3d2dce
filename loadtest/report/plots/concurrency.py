"""The figures of a run, from `metrics.json` alone: what is drawn, what is said about it, and the table under it.

Each figure compares on one scale, draws the 95 % intervals that `metrics.json` holds, and writes its sample sizes. A
null is left out of the drawing and shown as a dash, with the n it needs, in the table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from loadtest.report import cells as views
from loadtest.report import formatting
from loadtest.report.cells import Cell
from loadtest.report.formatting import Json
from loadtest.report.plots import tradeoffs
from loadtest.report.plots.figure import CARD, GRID, INK, MUTED, PHASES, Figure, Key, Look, Panel, Table, legend, look_of

Axes = Any  # matplotlib.axes.Axes, which has no types

# Against concurrency -------------------------------------------------------------------------------------------------


def throughput_figure(groups: dict[str, tuple[Cell, ...]]) -> Figure | None:
    caption = "All tokens that arrived inside the steady window, divided by its length. Higher is better."
    return _against_concurrency(groups, "tokens-per-s-total", "output_tokens_per_s", caption)


def per_user_figure(groups: dict[str, tuple[Cell, ...]]) -> Figure | None:
    caption = "Median over requests of what one stream delivers while it decodes. Higher is better."
    if any(tradeoffs.bound(cell) for cell in views.flat(groups)):
        caption += " Dotted: the bound that memory bandwidth sets for a single stream."
    return _against_concurrency(groups, "tokens-per-s-per-user", "tokens_per_s_per_user", caption, bound=True)


def ttft_figure(groups: dict[str, tuple[Cell, ...]]) -> Figure | None:
    caption = "From sending to the first text of any kind, thinking included. Median. Lower is better."
    return _against_concurrency(groups, "ttft", "ttft_s", caption, tail="p90")


def first_answer_figure(groups: dict[str, tuple[Cell, ...]]) -> Figure | None:
    caption = "From sending to the first text of the answer, when the thinking is over. Median. Lower is better."
    return _against_concurrency(groups, "time-to-first-answer", "time_to_first_answer_s", caption, tail="p90")


def final_answer_figure(groups: dict[str, tuple[Cell, ...]]) -> Figure | None:
    caption = (
        "From sending to the last word of an answer that ended by itself; unfinished requests count as censored. "
        "Median. Lower is better."
    )
    return _against_concurrency(groups, "time-to-final-answer", "time_to_final_answer_s", caption, tail="p90")


def _against_concurrency(
    groups: dict[str, tuple[Cell, ...]], name: str, key: str, caption: str, *, tail: str = "", bound: bool = False
) -> Figure | None:
    cells = views.flat(groups)
    title, unit, which = views.METRICS[key]
    which = views.typical(cells, key) if which == "p50" else which
    caption = caption.replace("Median", "Mean") if which == "mean" else caption
    columns = (which, tail) if tail else (which,)
    tail = tail if _highest(cells, key, (tail,)) is not None else ""
    highest = _highest(cells, key, columns)
    if highest is None:
        return None
    if bound:
        highest = max([highest, *(limit for cell in cells if (limit := tradeoffs.bound(cell)) is not None)])
    scale = _Scale(tuple(views.concurrencies(cells)), highest * 1.08, unit)
    panels = tuple(
        Panel(text, partial(_curves, of=group, key=key, which=which, tail=tail, scale=scale, bound=bound))
        for text, group in groups.items()
    )
    caption = f"{caption} Faint: 90th percentile." if tail else caption
    return Figure(
        name=name,
        title=views.title(f"{title} against concurrency", cells),
        caption=f"{caption} Bars: 95 % intervals.",
        says=f"{title} against the number of concurrent users, one panel for each model and number of cards, "
        "one line for each runtime. The table below holds every value.",
        panels=panels,
        keys=legend(cells),
        table=_concurrency_table(cells, key, columns, unit),
        bottom_inches=_below(groups),
    )


def _below(groups: dict[str, tuple[Cell, ...]]) -> float:
    """Room (inches) below a panel for its axis and a line with the sample sizes of each of its cells."""
    return 0.46 + 0.12 * max(map(len, groups.values()))


def _highest(cells: Iterable[Cell], key: str, which: tuple[str, ...]) -> float | None:
    found = [formatting.estimate(level, key, one) for cell in cells for level in cell.levels for one in which]
    values = [v for e in found for v in (e.value, e.high if e.known else None) if v is not None]
    return max(values) if values else None


@dataclass(frozen=True, slots=True)
class _Scale:
    """The axes that all panels of a figure share: the levels, the upper end of the figures, and their unit."""

    levels: tuple[int, ...]
    top: float
    unit: str


def _curves(axes: Axes, *, of: tuple[Cell, ...], key: str, which: str, tail: str, scale: _Scale, bound: bool) -> None:
    axes.set_ylim(0, scale.top)
    _concurrency_axis(axes, of, scale.levels)
    axes.set_ylabel(scale.unit)
    for index, cell in enumerate(of):
        shift = 1 + 0.025 * (index - (len(of) - 1) / 2)
        if tail:
            _line(axes, cell, key, tail, shift, faint=True)
        _line(axes, cell, key, which, shift)
    limits = {limit for cell in of if bound and (limit := tradeoffs.bound(cell)) is not None}
    for limit in limits:
        axes.axhline(limit, color=MUTED, linestyle=":", linewidth=1)
        axes.text(
            1, limit, "memory bound ", transform=axes.get_yaxis_transform(), ha="right", va="bottom", color=MUTED, size=7
        )


def _concurrency_axis(axes: Axes, of: tuple[Cell, ...], levels: tuple[int, ...]) -> None:
    if len(levels) < 7:
        axes.set_xscale("log", base=2)
        axes.set_xlim(levels[0] * 0.84, levels[-1] * 1.19)
    axes.set_xticks(levels, [str(level) for level in levels], minor=False)
    axes.minorticks_off()
    _users_label(axes, of)


def _users_label(axes: Axes, of: tuple[Cell, ...]) -> None:
    sizes = "\n".join(f"n {cell.short}: {views.sizes(cell)}" for cell in of)
    axes.set_xlabel(f"concurrent users\n{sizes}", linespacing=1.35, fontsize=7.5)


def _line(axes: Axes, cell: Cell, key: str, which: str, shift: float, *, faint: bool = False) -> None:
    points = [(level["concurrency"] * shift, formatting.estimate(level, key, which)) for level in cell.levels]
    known = [(x, e) for x, e in points if e.value is not None]
    look = look_of(cell)
    axes.plot(
        [x for x, _ in known],
        [e.value for _, e in known],
        color=look.colour,
        marker=look.marker,
        linestyle=look.dash,
        markerfacecolor=CARD if cell.simulated else look.colour,
        alpha=0.4 if faint else 1,
        linewidth=1 if faint else 1.5,
        markersize=3 if faint else 4.5,
        zorder=3,
    )
    spans = [(x, e.low, e.high) for x, e in known if e.low is not None]
    xs, lows, highs = zip(*spans, strict=True) if spans else ((), (), ())
    axes.vlines(xs, lows, highs, color=look.colour, linewidth=1.1, alpha=0.4 if faint else 1)
    for ends in (lows, highs):
        axes.plot(xs, ends, linestyle="", marker="_", color=look.colour, markersize=4, alpha=0.4 if faint else 1)


def _concurrency_table(cells: tuple[Cell, ...], key: str, which: tuple[str, ...], unit: str) -> Table:
    names = {"value": unit, "p50": f"median, {unit}", "p90": f"p90, {unit}", "mean": f"mean, {unit}"}
    head = ["cell", "users", "n"]
    for one in which:
        head += [names[one], "95 % interval"]
    lines = []
    for cell in cells:
        for level in cell.levels:
            line = [cell.name, str(level["concurrency"]), formatting.count(level.get("n_requests"))]
            for one in which:
                line += formatting.value_and_span(formatting.estimate(level, key, one))
            lines.append(tuple(line))
    return Table(tuple(head), tuple(lines))


# Where the time goes -------------------------------------------------------------------------------------------------


def _phases_s(level: Json) -> tuple[float, float, float] | None:
    """Mean seconds waiting, thinking, answering; None where one of them is null."""
    names = ("ttft_s", "time_to_first_answer_s", "time_to_final_answer_s")
    first, answer, final = (formatting.mean(level, name).value for name in names)
    if first is None or answer is None or final is None:
        return None
    return first, max(0.0, answer - first), max(0.0, final - answer)


def breakdown_figure(groups: dict[str, tuple[Cell, ...]]) -> Figure | None:
    cells = views.flat(groups)
    known = [level for cell in cells for level in cell.levels if _phases_s(level) is not None]
    if not known:
        return None
    finals = [formatting.mean(level, "time_to_final_answer_s") for level in known]
    levels = views.concurrencies(cells)
    top = max([sum(_phases_s(level) or ()) for level in known] + [final.high or 0.0 for final in finals])
    keys = tuple(Key(name, Look(MUTED if share else GRID, share=share or 1), kind="box") for name, share in PHASES)
    head = ("cell", "users", "n", "waiting, s", "thinking, s", "answering, s", "final answer, s", "95 % interval")
    lines = []
    for cell in cells:
        for level in cell.levels:
            phases = _phases_s(level)
            texts = [formatting.number(phase) for phase in phases or (None, None, None)]
            final = formatting.value_and_span(formatting.mean(level, "time_to_final_answer_s"))
            lines.append((cell.name, str(level["concurrency"]), formatting.count(level.get("n_requests")), *texts, *final))
    return Figure(
        name="where-the-time-goes",
        title=views.title("Where the time to the final answer goes", cells),
        caption="Mean seconds of a request, from bottom to top: waiting for the first token, thinking, answering. Line: "
        "95 % interval of the whole. Where requests were cut off, means go up to the longest time seen. Lower is better.",
        says="Stacked bars: mean seconds waiting, thinking and answering at each number of users, for each runtime.",
        panels=tuple(Panel(text, partial(_bars, of=group, levels=levels, top=top * 1.1)) for text, group in groups.items()),
        keys=keys,
        table=Table(head, tuple(lines)),
        bottom_inches=_below(groups),
    )


def _bars(axes: Axes, *, of: tuple[Cell, ...], levels: list[int], top: float) -> None:
    width = 0.76 / len(of)
    for index, cell in enumerate(of):
        look = look_of(cell)
        for level in cell.levels:
            phases = _phases_s(level)
            x = levels.index(int(level["concurrency"])) + (index - (len(of) - 1) / 2) * width
            bottom = 0.0
            for (_, share), seconds in zip(PHASES, phases or (), strict=False):
                colour = look.colour if share else GRID
                axes.bar(x, seconds, width * 0.88, bottom=bottom, color=colour, alpha=share or 1, linewidth=0)
                bottom += seconds
            final = formatting.mean(level, "time_to_final_answer_s")
            if bottom and final.low is not None and final.high is not None:
                axes.plot([x, x], [final.low, final.high], color=INK, linewidth=1)
            if bottom:
                highest = max(bottom, final.high or 0.0) + 0.01 * top
                axes.text(x, highest, cell.short[0].upper(), ha="center", va="bottom", size=7, color=look.colour)
    axes.set_xticks(range(len(levels)), [str(level) for level in levels])
    axes.set_xlim(-0.55, len(levels) - 0.45)
    _users_label(axes, of)
    axes.set_ylabel("seconds")
    axes.set_ylim(0, top)
