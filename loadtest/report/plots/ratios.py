"""Figures of differences: forest plots of ratios with their intervals, and what a difference is made of.

One side against the other: two engines in one run, or a candidate run against a baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from loadtest.metrics.catalogue import METRICS
from loadtest.metrics.schema import Comparison, Why
from loadtest.report.cells import ShownCell, labelled
from loadtest.report.formatting import clean, count, number, signed, value_and_span
from loadtest.report.plots.figure import (
    BAD,
    CARD,
    GOOD,
    GRID,
    INK,
    LOOKS,
    MUTED,
    Figure,
    Key,
    Look,
    Panel,
    Table,
    grid,
    look_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ROWS = 40


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a difference of mean times to final answer."""

    name: str
    look: Look
    seconds: Callable[[Why], float | None]


PARTS = (
    Part("waiting for the first token", Look(MUTED, share=0.3), lambda why: why.waiting_s),
    Part("time per token", Look(INK, share=0.85), lambda why: why.seconds_per_token_s),
    Part("tokens thought", Look(LOOKS["other"].colour, share=0.45), lambda why: why.tokens_thought_s),
    Part("tokens answered", Look(LOOKS["other"].colour, share=1.0), lambda why: why.tokens_answered_s),
)


@dataclass(frozen=True, slots=True)
class Compared:
    """One comparison: where it was measured, and its two sides, a (divided by) b."""

    row: Comparison
    place: str
    a: str
    b: str
    better: Look
    worse: Look


def between_engines(rows: Iterable[Comparison], cells: Iterable[ShownCell]) -> list[Compared]:
    """The comparisons of one run; where it has more than two engines, the place names the pair too."""
    by_id = {cell.figures.id: cell for cell in cells}
    paired = [(row, by_id[row.a], by_id[row.b]) for row in rows if {row.a, row.b} <= by_id.keys()]
    several = len({(a.engine, b.engine) for _, a, b in paired}) > 1
    return [
        Compared(
            row, f"{a.deployment}: {a.short} / {b.short}" if several else a.deployment, a.short, b.short,
            look_of(a), look_of(b),
        )
        for row, a, b in paired
    ]  # fmt: skip


def between_runs(rows: Iterable[Comparison], places: Mapping[str, str]) -> list[Compared]:
    """The comparisons of the candidate (a) with the baseline (b); `places`: a name for each cell of a."""
    better, worse = Look(GOOD, "o"), Look(BAD, "s")
    return [Compared(row, places.get(row.a, clean(row.a)), "candidate", "baseline", better, worse) for row in rows]


# Ratios --------------------------------------------------------------------------------------------------------------


def engine_ratios_figure(comparisons: Sequence[Comparison], cells: Sequence[ShownCell]) -> Figure | None:
    """Forest plot of one engine against the other; None without a ratio."""
    rows = between_engines(comparisons, cells)
    sides = list(dict.fromkeys((one.a, one.b) for one in rows))
    pair = " / ".join(sides[0]) if len(sides) == 1 else "One engine / another"
    return ratios_figure(rows, "ratios", labelled(f"{pair}: ratio at each level", cells))


def ratios_figure(rows: Sequence[Compared], name: str, title: str) -> Figure | None:
    """A panel for each metric, a row for each level, all on the same scale of ratios; None without a ratio."""
    known = [one for one in rows if one.row.ratio.known]
    if not known:
        return None
    by_metric = {metric: [one for one in known if one.row.metric == metric] for metric in METRICS}
    drawn = {metric: some[:MOST_ROWS] for metric, some in by_metric.items() if some}
    cut = any(len(some) > MOST_ROWS for some in by_metric.values())
    reach = _reach(known)
    columns, width_inches = grid(len(drawn))
    rows_drawn = max(len(some) + len({one.place for one in some}) for some in drawn.values())
    return Figure(
        name=name,
        title=title,
        caption="Each point is a ratio with its 95 % confidence interval over starts of the server. Filled: a difference "
        "that holds after correction. Hollow grey: equal, undecided, or one start each."
        f"{f' The first {MOST_ROWS} levels are drawn; the table has all.' if cut else ''}",
        says="Forest plot of the ratio between the two sides for each metric, deployment and concurrency.",
        panels=tuple(
            Panel(METRICS[metric].title, partial(_forest, rows=some, reach=reach)) for metric, some in drawn.items()
        ),
        keys=_keys(known),
        table=ratio_table(rows),
        width_inches=width_inches,
        columns=columns,
        height_inches=0.98 + (0.17 if rows_drawn < 24 else 0.135) * rows_drawn,
        left_inches=0.52,
        bottom_inches=0.56,
    )


def _keys(rows: Iterable[Compared]) -> tuple[Key, ...]:
    sides = {look for one in rows for look in ((one.a, one.better), (one.b, one.worse))}
    named = [Key(f"{name} better", look) for name, look in sorted(sides, key=lambda side: side[0])]
    return (*named, Key("equal or undecided", Look(MUTED, "D"), hollow=True))


def _forest(axes: Axes, *, rows: Sequence[Compared], reach: float) -> None:
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.set_xscale("log")
    ticks: dict[int, str] = {}
    y, place = 0, ""
    for one in rows:
        if one.place != place:
            place = one.place
            text = axes.text(0.01, y, place, transform=axes.get_yaxis_transform(), va="center", size=7.5, weight="bold")
            text.set_bbox({"facecolor": CARD, "edgecolor": "none", "pad": 0.8})
            y -= 1
        _ratio_point(axes, one, y)
        ticks[y] = count(one.row.concurrency)
        y -= 1
    axes.set_yticks(list(ticks), list(ticks.values()), fontsize=7.5)
    if len(ticks) > 2:  # fewer leave no room for the word
        axes.set_ylabel("concurrency")
    axes.set_ylim(y + 0.3, 0.8)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    _ratio_axis(axes, rows, reach)


def _reach(rows: Iterable[Compared]) -> float:
    """The factor from 1 that all ratios and intervals are within; those beyond a factor of 30 run off the axis."""
    ratios = [one.row.ratio for one in rows]
    values = [value for one in ratios for value in (one.value, one.low, one.high) if value is not None and value > 0]
    return float(min(30.0, max([1.02, *(max(value, 1 / value) for value in values)])))


def _ratio_axis(axes: Axes, rows: Sequence[Compared], reach: float) -> None:
    end = _tick_beyond(reach)
    axes.set_xlim(end**-1.12, end**1.12)
    marks = (1 / end, 1.0, end)
    axes.set_xticks(marks, [f"{mark:.2f}" if end < 3 else f"{mark:.2g}" for mark in marks])
    axes.minorticks_off()
    sides = {(one.a, one.b) for one in rows}
    first, second = sides.pop() if len(sides) == 1 else ("the first", "the second")
    left, right = (first, second) if METRICS[rows[0].row.metric].better == "less" else (second, first)
    axes.set_xlabel(f"ratio {first} / {second}\n← {left} better · {right} better →", fontsize=7, linespacing=1.4)


def _tick_beyond(reach: float) -> float:
    """The tick that, with its inverse, brackets all that is drawn.

    >>> _tick_beyond(1.3), _tick_beyond(4)
    (1.5, 5)
    """
    return next((tick for tick in (1.02, 1.05, 1.1, 1.2, 1.5, 2, 3, 5, 10) if tick >= reach), 30)


def _ratio_point(axes: Axes, one: Compared, y: float) -> None:
    ratio, verdict = one.row.ratio, one.row.verdict
    look = one.better if verdict == "faster" else one.worse if verdict == "slower" else Look(MUTED, "D")
    if ratio.low is not None and ratio.high is not None:
        axes.plot([ratio.low, ratio.high], [y, y], color=look.colour, linewidth=1.3)
    fill = look.colour if verdict in ("faster", "slower") else CARD
    axes.plot([ratio.value or 0.0], [y], marker=look.marker, color=look.colour, markerfacecolor=fill, markersize=4.5)


def ratio_table(rows: Iterable[Compared]) -> Table:
    """Every ratio with its verdict, the samples of each side, and the smallest ratio that would have been found."""
    head = ("metric", "deployment", "concurrency", "ratio", "95 % CI", "verdict", "n", "detectable from")
    note = "Detectable from: the smallest ratio above 1 that this run would have found with 80 % power."
    return Table(head, tuple(map(_ratio_row, rows)), (note,))


def _ratio_row(one: Compared) -> tuple[str, ...]:
    row = one.row
    verdict = f"{one.a} {row.verdict}" if row.verdict in ("faster", "slower") else row.verdict
    title = METRICS[row.metric].title if row.metric in METRICS else clean(row.metric)
    sizes = f"{count(row.n_a)} and {count(row.n_b)}"
    found = value_and_span(row.ratio)
    return title, one.place, count(row.concurrency), *found, verdict, sizes, number(row.smallest_detectable_ratio)


# Why -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Explained:
    """A comparison whose difference of mean times to final answer is known, and split."""

    of: Compared
    why: Why
    difference_s: float

    def parts_s(self) -> tuple[float, ...]:
        """Seconds of each of `PARTS`; they add up to the difference."""
        return tuple(part.seconds(self.why) or 0.0 for part in PARTS)


def explained(rows: Iterable[Compared]) -> list[Explained]:
    """The comparisons whose difference is known."""
    return [
        Explained(one, why, why.difference_s)
        for one in rows
        if (why := one.row.why) is not None and why.difference_s is not None
    ]


def engine_reasons_figure(comparisons: Sequence[Comparison], cells: Sequence[ShownCell]) -> Figure | None:
    """What each difference of mean times to final answer is made of; None without one."""
    return reasons_figure(between_engines(comparisons, cells), "why", simulated=any(cell.simulated for cell in cells))


def reasons_figure(rows: Iterable[Compared], name: str, *, simulated: bool) -> Figure | None:
    """Bars that add up to the difference (s), a panel for each place and a row for each level."""
    known = explained(rows)
    if not known:
        return None
    by_place = {place: [one for one in known if one.of.place == place] for place in dict.fromkeys(o.of.place for o in known)}
    ends = [sum(s for s in one.parts_s() if sign * s > 0) * sign for one in known for sign in (1, -1)]
    pairs = {f"{one.of.a} minus {one.of.b}" for one in known}
    columns, width_inches = grid(len(by_place))
    title = f"Why they differ: {pairs.pop() if len(pairs) == 1 else 'the first minus the second'}"
    return Figure(
        name=name,
        title=f"{title} (simulated)" if simulated else title,
        caption="The difference of mean times to final answer, in seconds (diamond), and the parts that add up to it. "
        "Left of zero: the first is faster. Unfinished requests are left out.",
        says="Stacked bars: what the difference of mean times to final answer is made of, at each concurrency.",
        panels=tuple(
            Panel(place, partial(_reason_bars, rows=some, reach=max(ends) or 1.0)) for place, some in by_place.items()
        ),
        keys=(*(Key(part.name, part.look, kind="box") for part in PARTS), Key("difference", Look(INK, "D", ""))),
        table=_reasons_table(known),
        width_inches=width_inches,
        columns=columns,
        height_inches=0.86 + 0.25 * max(map(len, by_place.values())),
        left_inches=0.66,
        bottom_inches=0.46,
    )


def _reasons_table(known: Iterable[Explained]) -> Table:
    head = ("deployment", "concurrency", "difference, s", *(f"{part.name}, s" for part in PARTS), "n")
    rows = [
        (one.of.place, count(one.of.row.concurrency), signed(one.difference_s), *map(signed, one.parts_s()),
         f"{count(one.why.n_a)} and {count(one.why.n_b)}")
        for one in known
    ]  # fmt: skip
    return Table(head, tuple(rows))


def _reason_bars(axes: Axes, *, rows: Sequence[Explained], reach: float) -> None:
    axes.axvline(0, color=INK, linewidth=0.8)
    for index, one in enumerate(rows):
        ends = {True: 0.0, False: 0.0}
        for part, seconds in zip(PARTS, one.parts_s(), strict=True):
            left = ends[seconds > 0]
            axes.barh(-index, seconds, 0.6, left=left, color=part.look.colour, alpha=part.look.share, linewidth=0)
            ends[seconds > 0] += seconds
        axes.plot([one.difference_s], [-index], marker="D", color=INK, markersize=3.5)
    axes.set_yticks([-i for i in range(len(rows))], [count(one.of.row.concurrency) for one in rows], fontsize=7.5)
    axes.set_ylim(0.6 - len(rows), 0.6)
    axes.set_xlim(-reach * 1.06, reach * 1.06)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=GRID)
    axes.set_xlabel("seconds")
    axes.set_ylabel("concurrency")
