"""Figures of differences: forest plots of ratios with their intervals, and what a difference is made of.

One side against the other: two runtimes in one run, or a candidate run against a baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from loadtest.report import cells as views
from loadtest.report import formatting
from loadtest.report.cells import Cell
from loadtest.report.formatting import Json
from loadtest.report.plots.figure import BAD, CARD, GOOD, GRID, INK, LOOKS, MUTED, Figure, Key, Look, Panel, Table

Axes = Any  # matplotlib.axes.Axes, which has no types

PARTS = (
    ("waiting_s", "waiting for the first token", Look(MUTED, share=0.3)),
    ("seconds_per_token_s", "time per token", Look(INK, share=0.85)),
    ("tokens_thought_s", "tokens thought", Look(LOOKS["other"].colour, share=0.45)),
    ("tokens_answered_s", "tokens answered", Look(LOOKS["other"].colour, share=1.0)),
)
MOST_ROWS = 40


@dataclass(frozen=True, slots=True)
class Compared:
    """One row of `comparisons`: where it was measured, and its two sides, a (divided by) b."""

    row: Json
    place: str
    a: str
    b: str
    better: Look
    worse: Look

    @property
    def users(self) -> int:
        return int(self.row.get("concurrency") or 0)

    @property
    def metric(self) -> str:
        return str(self.row.get("metric"))


def between_runtimes(metrics: Json, cells: Iterable[Cell]) -> list[Compared]:
    """The comparisons of one run; where it has more than two runtimes, the place names the pair too."""
    by_id = {cell.id: cell for cell in cells}
    rows = formatting.rows(metrics, "comparisons")
    found = [(row, by_id.get(formatting.clean(row.get("a"))), by_id.get(formatting.clean(row.get("b")))) for row in rows]
    paired = [(row, a, b) for row, a, b in found if a is not None and b is not None]
    several = len({(a.runtime, b.runtime) for _, a, b in paired}) > 1
    return [
        Compared(
            row, f"{a.deployment}: {a.short} / {b.short}" if several else a.deployment, a.short, b.short,
            LOOKS[a.family], LOOKS[b.family],
        )
        for row, a, b in paired
    ]  # fmt: skip


def between_runs(comparison: Json, places: dict[str, str]) -> list[Compared]:
    """The rows of `compare.runs`: the candidate (a) against the baseline (b); `places`: a name for each cell of a."""
    better, worse = Look(GOOD, "o"), Look(BAD, "s")
    return [
        Compared(
            row,
            places.get(formatting.clean(row.get("a")), formatting.clean(row.get("a"))),
            "candidate",
            "baseline",
            better,
            worse,
        )
        for row in formatting.rows(comparison, "comparisons")
    ]


def of_runtimes(metrics: Json, cells: tuple[Cell, ...]) -> Figure | None:
    """Forest plot of one runtime against the other; None without a ratio."""
    rows = between_runtimes(metrics, cells)
    sides = list(dict.fromkeys((one.a, one.b) for one in rows))
    pair = " / ".join(sides[0]) if len(sides) == 1 else "One runtime against another"
    return forest(rows, "ratios", views.title(f"{pair}: ratio at each level", cells))


def forest(rows: list[Compared], name: str, title: str) -> Figure | None:
    """A panel for each metric, a row for each level, all on the same scale of ratios; None without a ratio."""
    known = [one for one in rows if formatting.estimate(one.row, "ratio").known]
    if not known:
        return None
    order = [metric for metric in views.METRICS if any(one.metric == metric for one in known)]
    by_metric = {metric: [one for one in known if one.metric == metric][:MOST_ROWS] for metric in order}
    depth = max(len(some) + len({one.place for one in some}) for some in by_metric.values())
    reach = _reach(one.row for one in known)
    panels = tuple(
        Panel(views.METRICS[metric][0], partial(_forest, rows=some, reach=reach)) for metric, some in by_metric.items()
    )
    cut = f" The first {MOST_ROWS} levels are drawn; the table has all." if any(
        sum(one.metric == metric for one in known) > MOST_ROWS for metric in order) else ""  # fmt: skip
    return Figure(
        name=name,
        title=title,
        caption="Each point is a ratio with its 95 % interval. Filled: a difference, after Holm's correction over the "
        f"levels. Hollow grey: no detectable difference.{cut}",
        says="Forest plot of the ratio between the two sides for each metric, deployment and number of users.",
        panels=panels,
        keys=_keys(known),
        table=ratio_table(rows),
        width_inches=3.4,
        height_inches=0.9 + 0.185 * depth,
        left_inches=0.66,
        bottom_inches=0.46,
    )


def _keys(rows: list[Compared]) -> tuple[Key, ...]:
    sides = {(one.a, one.better) for one in rows} | {(one.b, one.worse) for one in rows}
    named = [Key(f"{name} better", look) for name, look in sorted(sides, key=lambda side: side[0])]
    return (*named, Key("no detectable difference", Look(MUTED, "D"), hollow=True))


def _forest(axes: Axes, *, rows: list[Compared], reach: float) -> None:
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
        _point(axes, one, y)
        ticks[y] = formatting.users(one.users)
        y -= 1
    axes.set_yticks(list(ticks), list(ticks.values()), fontsize=7.5)
    axes.set_ylim(y + 0.3, 0.8)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    _ratio_axis(axes, rows, reach)


def _reach(rows: Iterable[Json]) -> float:
    """How far from 1 the axis reaches, the same factor to both sides; intervals beyond a factor of 30 run off it."""
    found = [formatting.estimate(row, "ratio") for row in rows]
    values = [v for e in found for v in (e.value, e.low, e.high) if v is not None and v > 0]
    return float(min(30.0, max([1.06, *(max(v, 1 / v) for v in values)]) ** 1.08))


def _ratio_axis(axes: Axes, rows: list[Compared], reach: float) -> None:
    axes.set_xlim(1 / reach, reach)
    nice = [t for t in (1.02, 1.05, 1.1, 1.2, 1.5, 2, 3, 5, 10, 30) if t <= reach**0.85]
    nice = [nice[-1], *([t for t in nice if abs(t - nice[-1] ** 0.5) < 0.12 * t][-1:])] if nice else []
    marks = sorted({*(1 / t for t in nice), 1.0, *nice})
    axes.set_xticks(marks, [f"{mark:.2f}" if reach < 2.4 else f"{mark:.2g}" for mark in marks])
    axes.minorticks_off()
    unit = views.METRICS[rows[0].metric][1]
    names = sorted({one.a for one in rows})
    below = "below" if unit == "seconds" else "above"
    axes.set_xlabel(f"ratio ({below} 1: {names[0]} better)" if len(names) == 1 else f"ratio ({below} 1: the first better)")


def _point(axes: Axes, one: Compared, y: float) -> None:
    ratio, verdict = formatting.estimate(one.row, "ratio"), one.row.get("verdict")
    look = {"faster": one.better, "slower": one.worse}.get(str(verdict), Look(MUTED, "D"))
    if ratio.low is not None and ratio.high is not None:
        axes.plot([ratio.low, ratio.high], [y, y], color=look.colour, linewidth=1.3)
    fill = look.colour if verdict in ("faster", "slower") else CARD
    axes.plot([ratio.value], [y], marker=look.marker, color=look.colour, markerfacecolor=fill, markersize=4.5)


def ratio_table(rows: list[Compared]) -> Table:
    """Every ratio with its verdict, how many of each side, and the smallest ratio that would have been noticed."""
    head = ("metric", "deployment", "users", "ratio", "95 % interval", "verdict", "n", "noticed from")
    lines = []
    for one in rows:
        title = views.METRICS.get(one.metric, (formatting.clean(one.metric),))[0]
        verdict = formatting.clean(one.row.get("verdict") or formatting.DASH)
        said = f"{one.a} {verdict}" if verdict in ("faster", "slower") else verdict
        sizes = f"{formatting.count(one.row.get('n_a'))} and {formatting.count(one.row.get('n_b'))}"
        noticed = formatting.number(formatting.finite(one.row.get("smallest_detectable_ratio")))
        figures = formatting.value_and_span(formatting.estimate(one.row, "ratio"))
        lines.append((title, one.place, formatting.count(one.users), *figures, said, sizes, noticed))
    note = "Noticed from: the smallest ratio above 1 that this run would have found with 80 % power."
    return Table(head, tuple(lines), (note,))


# Why -----------------------------------------------------------------------------------------------------------------


def why(metrics: Json, cells: tuple[Cell, ...]) -> Figure | None:
    """What each difference of mean times to final answer is made of, as `compare.why` splits it; None without one."""
    return reasons(between_runtimes(metrics, cells), "why", lambda text: views.title(text, cells))


def reasons(rows: list[Compared], name: str, title: Callable[[str], str]) -> Figure | None:
    """Bars that add up to the difference (s), a panel for each place and a row for each level."""
    known = [one for one in rows if formatting.finite(formatting.section(one.row, "why").get("difference_s")) is not None]
    places = list(dict.fromkeys(one.place for one in known))
    if not known:
        return None
    parts = [abs(_part(one, key)) for one in known for key, *_ in PARTS]
    ends = [sum(v for key, *_ in PARTS if (v := sign * _part(one, key)) > 0) for one in known for sign in (1, -1)]
    pairs = {f"{one.a} minus {one.b}" for one in known}
    head = ("deployment", "users", "difference, s", *(f"{text}, s" for _, text, _ in PARTS), "n")
    lines = [
        (
            one.place,
            formatting.count(one.users),
            formatting.signed(formatting.finite(formatting.section(one.row, "why").get("difference_s"))),
            *(formatting.signed(formatting.finite(formatting.section(one.row, "why").get(key))) for key, *_ in PARTS),
            " and ".join(formatting.count(formatting.section(one.row, "why").get(side)) for side in ("n_a", "n_b")),
        )
        for one in known
    ]
    panels = tuple(
        Panel(place, partial(_bars, rows=[one for one in known if one.place == place], reach=max(ends) or max(parts) or 1.0))
        for place in places
    )
    return Figure(
        name=name,
        title=title(f"Why they differ: {pairs.pop()}" if len(pairs) == 1 else "Why they differ: the first minus the second"),
        caption="The difference of mean times to final answer, in seconds (diamond), and the parts that add up to it. "
        "Left of zero: the first is quicker. Requests that did not finish are not in it.",
        says="Stacked bars: what the difference of mean times to final answer is made of, at each number of users.",
        panels=panels,
        keys=(*(Key(text, look, kind="box") for _, text, look in PARTS), Key("difference", Look(INK, "D", ""))),
        table=Table(head, tuple(lines)),
        width_inches=3.4,
        height_inches=0.86 + 0.25 * max(sum(one.place == place for one in known) for place in places),
        left_inches=0.66,
        bottom_inches=0.46,
    )


def _part(one: Compared, key: str) -> float:
    return formatting.finite(formatting.section(one.row, "why").get(key)) or 0.0


def _bars(axes: Axes, *, rows: list[Compared], reach: float) -> None:
    axes.axvline(0, color=INK, linewidth=0.8)
    for index, one in enumerate(rows):
        ends = {True: 0.0, False: 0.0}
        for key, _, look in PARTS:
            value = _part(one, key)
            axes.barh(-index, value, 0.6, left=ends[value > 0], color=look.colour, alpha=look.share, linewidth=0)
            ends[value > 0] += value
        axes.plot([_part(one, "difference_s")], [-index], marker="D", color=INK, markersize=3.5)
    axes.set_yticks([-i for i in range(len(rows))], [formatting.users(one.users) for one in rows], fontsize=7.5)
    axes.set_ylim(0.6 - len(rows), 0.6)
    axes.set_xlim(-reach * 1.06, reach * 1.06)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=GRID)
    axes.set_xlabel("seconds")
