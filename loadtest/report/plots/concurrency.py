"""The figures against concurrency: what is drawn, what is said about it, and the table under it.

Each figure compares on one scale, draws the 95 % confidence intervals, and writes its sample sizes. A figure that is
missing is left out of the drawing and shown as a dash, with the n that it needs, in the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from loadtest.metrics.catalogue import METRICS, Statistic
from loadtest.metrics.figures import Bounded
from loadtest.metrics.level_schema import LevelFigures
from loadtest.report.cells import (
    Groups,
    ShownCell,
    by_level,
    concurrencies,
    flat,
    labelled,
    load_title,
    sample_sizes,
    typical_statistic,
)
from loadtest.report.formatting import count, listed, needs, number, value_and_span
from loadtest.report.plots.figure import (
    CARD,
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
    one_of_each,
)
from loadtest.report.plots.tradeoffs import bound_tokens_per_s

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TAILS: tuple[Statistic, ...] = ("p90", "p95", "p99")

# Against concurrency -------------------------------------------------------------------------------------------------


def throughput_figure(groups: Groups) -> Figure | None:
    caption = "All tokens that arrived in the steady window, divided by its length. Higher is better."
    return _against_concurrency(groups, "tokens-per-s-total", "output_tokens_per_s", caption)


def per_user_figure(groups: Groups) -> Figure | None:
    caption = "What one request receives while it decodes. Median over requests. Higher is better."
    if any(bound_tokens_per_s(cell) for cell in flat(groups)):
        caption += " Dotted: the limit that memory bandwidth sets for a single request."
    return _against_concurrency(groups, "tokens-per-s-per-user", "tokens_per_s_per_user", caption, bound=True)


def ttft_figure(groups: Groups) -> Figure | None:
    caption = "From sending the request to its first text, thinking included. Median. Lower is better."
    return _against_concurrency(groups, "ttft", "ttft_s", caption, tails=_TAILS)


def first_answer_figure(groups: Groups) -> Figure | None:
    caption = "From sending the request to the first text of the answer, after the thinking. Median. Lower is better."
    return _against_concurrency(groups, "time-to-first-answer", "time_to_first_answer_s", caption, tails=_TAILS)


def final_answer_figure(groups: Groups) -> Figure | None:
    caption = (
        "From sending the request to the end of its answer; unfinished requests count as censored. Median. Lower is better."
    )
    return _against_concurrency(groups, "time-to-final-answer", "time_to_final_answer_s", caption, tails=_TAILS)


@dataclass(frozen=True, slots=True)
class _Curves:
    """What a figure draws, and the axes that its panels share: the concurrencies and the upper end."""

    metric: str
    statistic: Statistic
    tails: tuple[Statistic, ...]
    levels: tuple[int, ...]
    top: float
    bound: bool


def _against_concurrency(
    groups: Groups, name: str, metric: str, caption: str, *, tails: tuple[Statistic, ...] = (), bound: bool = False
) -> Figure | None:
    cells, described = flat(groups), METRICS[metric]
    statistic = "value" if described.shape == "estimate" else typical_statistic(cells, metric)
    statistics = (statistic, *tails)
    highest = _highest(cells, metric, statistics)
    if highest is None:
        return None
    limits = [limit for cell in cells if bound and (limit := bound_tokens_per_s(cell)) is not None]
    drawn = tuple(one for one in tails if _highest(cells, metric, (one,)) is not None)
    top = max([highest, *limits]) * 1.08
    curves = _Curves(metric, statistic, drawn, concurrencies(cells), top, bound)
    columns, width_inches = grid(len(groups))
    return Figure(
        name=name,
        title=labelled(f"{described.title} against {load_title(cells)}", cells),
        caption=_caption(caption, curves, _absent(cells, metric, tails)),
        says=f"{described.title} against {load_title(cells)}, one panel for each model and number of GPUs, one line for"
        " each engine. The table below has every value.",
        panels=tuple(Panel(text, partial(_draw_curves, cells=group, curves=curves)) for text, group in groups.items()),
        keys=legend(cells),
        table=concurrency_table(cells, metric, statistics),
        bottom_inches=_below(groups),
        width_inches=width_inches,
        columns=columns,
    )


def _caption(text: str, curves: _Curves, absent: str) -> str:
    text = text.replace("Median", "Mean") if curves.statistic == "mean" else text
    faint = f" Faint: {listed(list(curves.tails))}." if curves.tails else ""
    return f"{text}{faint}{absent} Bars: 95 % confidence intervals."


def _absent(cells: Iterable[ShownCell], metric: str, tails: Iterable[Statistic]) -> str:
    """The quantiles that no level has, with the n that they need."""
    found = {one: [level.estimate(metric, one) for _, level in by_level(cells)] for one in tails}
    gone = {one: figures for one, figures in found.items() if not any(figure.known for figure in figures)}
    said = [f"{one} {next(filter(None, map(needs, figures)), 'is not known')}" for one, figures in gone.items()]
    return f" Not drawn: {', '.join(said)}." if said else ""


def _below(groups: Groups) -> float:
    """Room (inches) below a panel for its axis and a line with the sample sizes of each of its cells."""
    return 0.46 + 0.12 * max(map(len, groups.values()))


def _highest(cells: Iterable[ShownCell], metric: str, statistics: tuple[Statistic, ...]) -> float | None:
    found = [level.estimate(metric, one) for _, level in by_level(cells) for one in statistics]
    ends = (end for one in found if one.known for end in (one.value, one.high))
    return max((end for end in ends if end is not None), default=None)


def _draw_curves(axes: Axes, *, cells: tuple[ShownCell, ...], curves: _Curves) -> None:
    axes.set_ylim(0, curves.top)
    _concurrency_axis(axes, cells, curves.levels)
    axes.set_ylabel(METRICS[curves.metric].unit)
    for index, cell in enumerate(cells):
        shift = 1 + 0.025 * (index - (len(cells) - 1) / 2)
        for tail in curves.tails:
            draw_line(axes, cell, _figures(cell, curves.metric, tail, shift), faint=True)
        draw_line(axes, cell, _figures(cell, curves.metric, curves.statistic, shift))
    for limit in {limit for cell in cells if curves.bound and (limit := bound_tokens_per_s(cell)) is not None}:
        axes.axhline(limit, color=MUTED, linestyle=":", linewidth=1)
        place = axes.get_yaxis_transform()
        axes.text(1, limit, "memory bandwidth ", transform=place, ha="right", va="bottom", color=MUTED, size=7)


def _concurrency_axis(axes: Axes, cells: tuple[ShownCell, ...], levels: tuple[int, ...]) -> None:
    if len(levels) < 7:
        axes.set_xscale("log", base=2)
        axes.set_xlim(levels[0] * 0.84, levels[-1] * 1.19)
    axes.set_xticks(levels, [cells[0].load(level) for level in levels], minor=False)
    axes.minorticks_off()
    _concurrency_label(axes, cells)


def _concurrency_label(axes: Axes, cells: tuple[ShownCell, ...]) -> None:
    sizes = "\n".join(f"n {cell.short}: {sample_sizes(cell)}" for cell in cells)
    axes.set_xlabel(f"{load_title(cells)}\n{sizes}", linespacing=1.35, fontsize=7.5)


def _figures(cell: ShownCell, metric: str, statistic: Statistic, shift: float) -> list[tuple[float, Bounded]]:
    """One statistic of each level, and where it is drawn: `shift` keeps cells apart."""
    return [(level.concurrency * shift, level.estimate(metric, statistic)) for level in cell.levels]


def draw_line(axes: Axes, cell: ShownCell, found: Sequence[tuple[float, Bounded]], *, faint: bool = False) -> None:
    """Figures of a cell against concurrency, with their confidence intervals."""
    known = [(x, one.value) for x, one in found if one.value is not None]
    look = look_of(cell)
    axes.plot(
        [x for x, _ in known],
        [value for _, value in known],
        color=look.colour,
        marker=look.marker,
        linestyle=look.dash,
        markerfacecolor=CARD if cell.simulated else look.colour,
        alpha=0.4 if faint else 1,
        linewidth=1 if faint else 1.5,
        markersize=3 if faint else 4.5,
        zorder=3,
    )
    spans = [(x, one.low, one.high) for x, one in found if one.known and one.low is not None and one.high is not None]
    xs, lows, highs = zip(*spans, strict=True) if spans else ((), (), ())
    axes.vlines(xs, lows, highs, color=look.colour, linewidth=1.1, alpha=0.4 if faint else 1)
    for ends in (lows, highs):
        axes.plot(xs, ends, linestyle="", marker="_", color=look.colour, markersize=4, alpha=0.4 if faint else 1)


def concurrency_table(cells: tuple[ShownCell, ...], metric: str, statistics: tuple[Statistic, ...]) -> Table:
    """Each level with the figure, its confidence interval and its number of requests."""
    unit = METRICS[metric].unit
    names = {"value": unit, "p50": f"median, {unit}", "mean": f"mean, {unit}"}
    head = ["cell", load_title(cells), "n"]
    for one in statistics:
        head += [names.get(one, f"{one}, {unit}"), "95 % CI"]
    rows = []
    for cell, level in by_level(cells):
        figures = [text for one in statistics for text in value_and_span(level.estimate(metric, one))]
        rows.append((cell.name, cell.load(level.concurrency), count(level.n_requests), *figures))
    return Table(tuple(head), tuple(rows))


# Where the time goes -------------------------------------------------------------------------------------------------


def _phases_s(level: LevelFigures) -> tuple[float, float, float] | None:
    """Mean seconds waiting, thinking, answering; None where one of them is not known."""
    times = (level.ttft_s, level.time_to_first_answer_s, level.time_to_final_answer_s)
    first, answer, final = (one.average().value for one in times)
    if first is None or answer is None or final is None:
        return None
    return first, max(0.0, answer - first), max(0.0, final - answer)


def breakdown_figure(groups: Groups) -> Figure | None:
    cells = flat(groups)
    known = [(level, phases) for _, level in by_level(cells) if (phases := _phases_s(level)) is not None]
    if not known:
        return None
    top = max(max(sum(phases), level.time_to_final_answer_s.average().high or 0.0) for level, phases in known)
    draw = partial(_bars, levels=concurrencies(cells), top=top * 1.1)
    columns, width_inches = grid(len(groups))
    return Figure(
        name="where-the-time-goes",
        title=labelled("Where the time to the final answer goes", cells),
        caption="Mean seconds of a request, from bottom to top: waiting for the first token, thinking, answering. Line: "
        "95 % confidence interval of the whole. Where requests were cut off, means go up to the longest time seen. "
        "Lower is better.",
        says="Stacked bars: mean seconds waiting, thinking and answering at each concurrency, for each engine.",
        panels=tuple(Panel(text, partial(draw, cells=group)) for text, group in groups.items()),
        keys=(
            *(Key(name, Look(MUTED if share else GRID, share=share or 1), kind="box") for name, share in PHASES),
            *(Key(cell.engine, Look(look_of(cell).colour), kind="box") for cell in one_of_each(cells)),
        ),
        table=_breakdown_table(cells),
        bottom_inches=_below(groups),
        width_inches=width_inches,
        columns=columns,
    )


def _breakdown_table(cells: tuple[ShownCell, ...]) -> Table:
    head = ("cell", load_title(cells), "n", "waiting, s", "thinking, s", "answering, s", "final answer, s", "95 % CI")
    rows = []
    for cell, level in by_level(cells):
        phases = [number(phase) for phase in _phases_s(level) or (None, None, None)]
        final = value_and_span(level.time_to_final_answer_s.average())
        rows.append((cell.name, cell.load(level.concurrency), count(level.n_requests), *phases, *final))
    return Table(head, tuple(rows))


def _bars(axes: Axes, *, cells: tuple[ShownCell, ...], levels: tuple[int, ...], top: float) -> None:
    width = 0.76 / len(cells)
    for index, cell in enumerate(cells):
        for level in cell.levels:
            if (phases := _phases_s(level)) is not None:
                x = levels.index(level.concurrency) + (index - (len(cells) - 1) / 2) * width
                _bar(axes, cell, level, x, width, phases, top)
    axes.set_xticks(range(len(levels)), [cells[0].load(level) for level in levels])
    axes.set_xlim(-0.55, len(levels) - 0.45)
    _concurrency_label(axes, cells)
    axes.set_ylabel("seconds")
    axes.set_ylim(0, top)


def _bar(
    axes: Axes, cell: ShownCell, level: LevelFigures, x: float, width: float, phases: tuple[float, ...], top: float
) -> None:
    look, bottom, final = look_of(cell), 0.0, level.time_to_final_answer_s.average()
    for (_, share), seconds in zip(PHASES, phases, strict=True):
        colour = look.colour if share else GRID
        axes.bar(x, seconds, width * 0.88, bottom=bottom, color=colour, alpha=share or 1, linewidth=0)
        bottom += seconds
    if final.low is not None and final.high is not None:
        axes.plot([x, x], [final.low, final.high], color=INK, linewidth=1)
    highest = max(bottom, final.high or 0.0) + 0.01 * top
    if level is cell.levels[0]:
        axes.text(x, highest, f" {cell.short}", rotation=90, ha="center", va="bottom", size=6.5, color=look.colour)
