"""The figures of trade-offs: throughput against interactivity, and a single stream against what memory bandwidth allows."""

from __future__ import annotations

from functools import partial
from typing import Any

from loadtest.report import cells as views
from loadtest.report import formatting
from loadtest.report.cells import Cell
from loadtest.report.formatting import Estimate, Json
from loadtest.report.plots.figure import CARD, INK, MUTED, Figure, Key, Look, Panel, Table, legend, look_of

Axes = Any  # matplotlib.axes.Axes, which has no types
Groups = dict[str, tuple[Cell, ...]]

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def pareto(groups: Groups) -> Figure | None:
    """Output tokens/s against tokens/s per user, in total and per card, every level of every cell; None without data."""
    cells = views.flat(groups)
    which = views.typical(cells, "tokens_per_s_per_user")
    points = [(cell, level, *_pareto_point(level, which)) for cell in cells for level in cell.levels]
    if not any(x.known and y.known for _, _, x, y in points):
        return None
    keys = tuple(
        Key(c.runtime, Look(look_of(c).colour, "", look_of(c).dash)) for c in {c.runtime: c for c in cells}.values()
    )
    keys += tuple(Key(name, Look(MUTED, MARKERS[i % 8], "")) for i, name in enumerate(groups))
    lines = tuple(
        (
            cell.name,
            str(level["concurrency"]),
            formatting.count(level.get("n_requests")),
            *formatting.value_and_span(x),
            *formatting.value_and_span(y),
            formatting.number(None if y.value is None else y.value / cell.tp),
        )
        for cell, level, x, y in points
    )
    return Figure(
        name="pareto",
        title=views.title("Throughput against interactivity", cells),
        caption="Each point is one level; the number beside it is its concurrent users. Cross-hairs: 95 % intervals. Up and "
        "to the right is better. Per card is the fair view when numbers of cards differ.",
        says="Scatter of output tokens per second against tokens per second per user for every cell and level, in "
        "total and per card.",
        panels=(
            Panel("In total", partial(_trade_off, groups=groups, which=which, per_card=False)),
            Panel("Per card", partial(_trade_off, groups=groups, which=which, per_card=True)),
        ),
        keys=keys,
        table=Table(
            ("cell", "users", "n", "tokens/s per user", "95 % interval", "in total", "95 % interval", "per card"), lines
        ),
        width_inches=3.6,
        height_inches=2.9,
        bottom_inches=0.46,
        columns=2,
    )


def _pareto_point(level: Json, which: str) -> tuple[Estimate, Estimate]:
    return formatting.estimate(level, "tokens_per_s_per_user", which), formatting.estimate(level, "output_tokens_per_s")


def _trade_off(axes: Axes, *, groups: Groups, which: str, per_card: bool) -> None:
    for index, cell in ((i, cell) for i, group in enumerate(groups.values()) for cell in group):
        look = look_of(cell)
        points = [(*_pareto_point(level, which), level["concurrency"]) for level in cell.levels]
        share = 1 / cell.tp if per_card else 1
        known = [(x.value, y.value * share, c) for x, y, c in points if x.value is not None and y.value is not None]
        for across, upright, _ in points:
            _crosshair(axes, across, upright, share, look.colour)
        fill = CARD if cell.simulated else look.colour
        style: dict[str, Any] = {
            "marker": MARKERS[index % 8],
            "markerfacecolor": fill,
            "linestyle": look.dash,
            "linewidth": 1.1,
        }
        axes.plot([p[0] for p in known], [p[1] for p in known], color=look.colour, **style)
        labelled = known if len(known) < 5 else [known[0], known[-1]]
        for x, y, concurrency in labelled if cell is groups[cell.deployment][0] else []:
            axes.annotate(str(concurrency), (x, y), (4, 3), textcoords="offset points", size=7, color=MUTED)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.margins(0.1)
    axes.set_xlabel(f"tokens/s per user ({'mean' if which == 'mean' else 'median'})")
    axes.set_ylabel("output tokens/s" + (" per card" if per_card else ""))


def _crosshair(axes: Axes, x: Estimate, y: Estimate, share: float, colour: str) -> None:
    """The intervals of a point, across and upright; `share` scales the upright one."""
    if x.value is None or y.value is None:
        return
    if x.low is not None and x.high is not None:
        axes.plot([x.low, x.high], [y.value * share] * 2, color=colour, linewidth=0.7, alpha=0.45)
    if y.low is not None and y.high is not None:
        axes.plot([x.value] * 2, [y.low * share, y.high * share], color=colour, linewidth=0.7, alpha=0.45)


def bound(cell: Cell) -> float | None:
    """Tokens/s at which reading every weight once per token takes the whole bandwidth; None where no card is known."""
    return formatting.finite(cell.roofline.get("bound_tokens_per_s"))


def roofline(groups: Groups) -> Figure | None:
    """Tokens/s of a single stream within the bound of its cards' memory bandwidth; None without either."""
    known = {
        text: rows
        for text, group in groups.items()
        if (rows := [(c, limit, alone) for c in group if (limit := bound(c)) and (alone := _reached_alone(c)).known])
    }
    if not known:
        return None
    flat = [row for rows in known.values() for row in rows]
    lines = tuple(
        (
            cell.name,
            formatting.number(limit),
            *formatting.value_and_span(reached),
            formatting.percent((reached.value or 0) / limit),
        )
        for cell, limit, reached in flat
    )
    top = max(max(limit, reached.high or reached.value or 0.0) for _, limit, reached in flat)
    return Figure(
        name="roofline",
        title=views.title("A single stream against its memory-bandwidth bound", (cell for cell, _, _ in flat)),
        caption="Outlined: reading every weight once per token at the cards' full bandwidth. Filled: mean tokens/s "
        "of a single user, with its 95 % interval. Beside it: share of the bound.",
        says="Horizontal bars: tokens per second reached by a single stream, within the bound of memory bandwidth, for "
        "each cell.",
        panels=tuple(Panel(f"{text}, 1 user", partial(_bounds, known=rows, top=top)) for text, rows in known.items()),
        keys=legend(cell for cell, _, _ in flat),
        table=Table(("cell", "bound, tokens/s", "reached, tokens/s", "95 % interval", "share of bound"), lines),
        height_inches=0.86 + 0.36 * max(len(rows) for rows in known.values()),
        left_inches=0.72,
        bottom_inches=0.46,
    )


def _reached_alone(cell: Cell) -> Estimate:
    return formatting.estimate(cell.level(1), "tokens_per_s_per_user", "mean")


def _bounds(axes: Axes, *, known: list[tuple[Cell, float, Estimate]], top: float) -> None:
    for index, (cell, limit, reached) in enumerate(known):
        look = look_of(cell)
        axes.barh(-index, limit, 0.62, facecolor="none", edgecolor=MUTED, linewidth=0.8)
        axes.barh(-index, reached.value, 0.62, color=look.colour, alpha=0.55 if cell.simulated else 0.9)
        share = f"{formatting.percent((reached.value or 0) / limit)}, n {formatting.count(reached.n)}"
        edge = max(limit, reached.high or 0.0)
        inside = edge > 0.7 * top
        axes.annotate(
            share, (limit if inside else edge, -index), (-5 if inside else 5, 0), textcoords="offset points",
            va="center", ha="right" if inside else "left", size=7.5,
        )  # fmt: skip
        if reached.low is not None and reached.high is not None:
            axes.plot([reached.low, reached.high], [-index, -index], color=INK, linewidth=1.2)
    axes.set_yticks([-i for i in range(len(known))], [c.short for c, _, _ in known], fontsize=7.5)
    axes.set_ylim(0.5 - len(known), 0.5)
    axes.set_xlim(0, top * 1.04)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x")
    axes.set_xlabel("tokens/s of one stream")
