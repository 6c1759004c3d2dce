"""The two charts on top of an index: the speed and the waits of each run, oldest first, an engine in its colour."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from loadtest.metrics.catalogue import Statistic
from loadtest.metrics.figures import Bounded
from loadtest.report.cells import ShownCell, headline, labelled
from loadtest.report.formatting import count, value_and_span
from loadtest.report.plots.figure import CARD, Figure, Key, Panel, Table, look_of, nothing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[int, ShownCell]  # number of the run, and a configuration of it
_SPEEDS: tuple[tuple[str, Statistic, str], ...] = (
    ("tokens_per_s_per_user", "p50", "tokens/s per user (median)"), ("output_tokens_per_s", "value", "tokens/s in total"),
)  # fmt: skip
_WAITS: tuple[tuple[str, Statistic, str], ...] = (
    ("time_to_final_answer_s", "p50", "median (p50), s"), ("time_to_final_answer_s", "p90", "90th percentile (p90), s"),
)  # fmt: skip


def history_charts(points: Sequence[Point]) -> tuple[Figure, Figure]:
    """Tokens/s, and time to final answer, of the configurations of each run."""
    speeds = _chart(points, "history-speed", "Tokens/s, run by run", _SPEEDS)
    return speeds, _chart(points, "history-time", "Time to final answer, run by run", _WAITS)


def _chart(points: Sequence[Point], name: str, title: str, rows: Sequence[tuple[str, Statistic, str]]) -> Figure:
    cells = [cell for _, cell in points]
    head = ("run", "configuration", *(text for _, _, words in rows for text in (words, "95 % CI")))
    return Figure(
        name=name,
        title=title if any(not cell.simulated for cell in cells) else labelled(title, cells),
        caption="Each run's best configuration of each engine, by the run's number below. Hollow: simulated. Bars: 95 % CI.",
        says="One point for each run and engine. The table has the values.",
        panels=tuple(
            Panel(words, partial(_points, points=points, metric=metric, statistic=statistic))
            for metric, statistic, words in rows
        ),
        keys=tuple({cell.short: Key(cell.short, look_of(cell)) for cell in cells}.values()),
        table=Table(head, tuple(_row(number, cell, rows) for number, cell in points)),
        width_inches=2.89,
        height_inches=2.3,
        left_inches=0.4,
        bottom_inches=0.36,
        columns=2,
    )


def _row(number: int, cell: ShownCell, rows: Sequence[tuple[str, Statistic, str]]) -> tuple[str, ...]:
    figures = [text for metric, statistic, _ in rows for text in value_and_span(_figure(cell, metric, statistic))]
    return (count(number), cell.name, *figures)


def _figure(cell: ShownCell, metric: str, statistic: Statistic) -> Bounded:
    point = headline(cell)
    return Bounded(None, None) if point is None else point.at(metric, statistic)


def _points(axes: Axes, *, points: Sequence[Point], metric: str, statistic: Statistic) -> None:
    found = [(number, cell, _figure(cell, metric, statistic)) for number, cell in points]
    known = [one for one in found if one[2].known]
    for number, cell, figure in known:
        look, x = look_of(cell), number + {"sglang": -0.12, "vllm": 0.12}.get(cell.family, 0.0)
        if figure.low is not None and figure.high is not None:
            axes.vlines(x, figure.low, figure.high, color=look.colour, linewidth=1.1)
        axes.plot([x], [figure.value or 0.0], color=look.colour, marker=look.marker,
                  markerfacecolor=CARD if cell.simulated else look.colour)  # fmt: skip
    if not known:
        nothing(axes, "no run has enough requests")
        axes.set_yticks([])
    else:
        axes.set_ylim(0, 1.12 * max(figure.high or figure.value or 0.0 for _, _, figure in known) or 1.0)
    numbers = sorted({number for number, _ in points})
    axes.set_xlim(numbers[0] - 0.6, numbers[-1] + 0.6)
    axes.set_xticks(numbers[:: max(1, -(-len(numbers) // 12))])
    axes.set_xlabel("run", fontsize=7)
