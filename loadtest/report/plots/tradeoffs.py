"""The figures of trade-offs: total speed against speed per user, and a single request against memory bandwidth."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from loadtest.metrics.catalogue import Statistic
from loadtest.metrics.figures import Estimate
from loadtest.metrics.level_schema import LevelFigures
from loadtest.report.cells import Groups, ShownCell, by_level, flat, labelled, load_title, typical_statistic
from loadtest.report.formatting import at_load, count, number, percent, value_and_span
from loadtest.report.plots.figure import CARD, INK, MUTED, Figure, Key, Look, Panel, Table, legend, look_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def pareto_figure(groups: Groups) -> Figure | None:
    """Output tokens/s against tokens/s per user, in total and per GPU, every level of every cell; None without data."""
    cells = flat(groups)
    statistic = typical_statistic(cells, "tokens_per_s_per_user")
    points = [_point(level, statistic) for _, level in by_level(cells)]
    if not any(x.known and y.known for x, y in points):
        return None
    draw = partial(_trade_off, groups=groups, statistic=statistic)
    return Figure(
        name="pareto",
        title=labelled("Total tokens/s against tokens/s per user", cells),
        caption=f"Each point is one level; the number beside it is its {load_title(cells)}. Cross-hairs: 95 % confidence"
        " intervals. Up and to the right is better. Compare per GPU where the numbers of GPUs differ.",
        says="Scatter plot of output tokens per second against tokens per second per user for every cell and level, in "
        "total and per GPU.",
        panels=(Panel("In total", partial(draw, per_gpu=False)), Panel("Per GPU", partial(draw, per_gpu=True))),
        keys=_pareto_keys(groups),
        table=_pareto_table(cells, statistic),
        width_inches=3.6,
        height_inches=2.9,
        bottom_inches=0.46,
        columns=2,
    )


def _point(level: LevelFigures, statistic: Statistic) -> tuple[Estimate, Estimate]:
    return level.estimate("tokens_per_s_per_user", statistic), level.output_tokens_per_s


def _pareto_keys(groups: Groups) -> tuple[Key, ...]:
    """Engines by colour and dash, deployments by marker."""
    engines = {cell.engine: look_of(cell) for cell in flat(groups)}
    lines = [Key(name, Look(look.colour, "", look.dash)) for name, look in engines.items()]
    return (*lines, *(Key(name, Look(MUTED, MARKERS[i % len(MARKERS)], "")) for i, name in enumerate(groups)))


def _pareto_table(cells: tuple[ShownCell, ...], statistic: Statistic) -> Table:
    head = ("cell", load_title(cells), "n", "tokens/s per user", "95 % CI", "in total", "95 % CI", "per GPU")
    rows = []
    for cell, level in by_level(cells):
        alone, total = _point(level, statistic)
        each = number(None if total.value is None or not cell.gpus_known else total.value / cell.gpus)
        sizes = (cell.load(level.concurrency), count(level.n_requests))
        rows.append((cell.name, *sizes, *value_and_span(alone), *value_and_span(total), each))
    return Table(head, tuple(rows))


def _trade_off(axes: Axes, *, groups: Groups, statistic: Statistic, per_gpu: bool) -> None:
    for index, group in enumerate(groups.values()):
        for cell in group:
            share = 1 / cell.gpus if per_gpu else 1.0
            _cell_points(axes, cell, statistic, share, MARKERS[index % len(MARKERS)], numbered=cell is group[0])
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.margins(0.1)
    axes.set_xlabel(f"tokens/s per user ({'mean' if statistic == 'mean' else 'median'})")
    axes.set_ylabel("output tokens/s" + (" per GPU" if per_gpu else ""))


def _cell_points(axes: Axes, cell: ShownCell, statistic: Statistic, share: float, marker: str, *, numbered: bool) -> None:
    """The levels of a cell as a line; `numbered`: with their concurrency, or that of the first and last of many."""
    look = look_of(cell)
    known = []
    for level in cell.levels:
        alone, total = _point(level, statistic)
        if alone.value is not None and total.value is not None:
            known.append((alone.value, total.value * share, cell.load(level.concurrency)))
            _crosshair(axes, alone, total, share, look.colour)
    axes.plot(
        [x for x, _, _ in known], [y for _, y, _ in known], color=look.colour, marker=marker, linestyle=look.dash,
        markerfacecolor=CARD if cell.simulated else look.colour, linewidth=1.1,
    )  # fmt: skip
    for x, y, text in (known if len(known) < 5 else [known[0], known[-1]]) if numbered else []:
        axes.annotate(text, (x, y), (4, 3), textcoords="offset points", size=7, color=MUTED)


def _crosshair(axes: Axes, x: Estimate, y: Estimate, share: float, colour: str) -> None:
    """The intervals of a point, across and upright; `share` scales the upright one."""
    if x.ci95 is not None and y.value is not None:
        axes.plot(x.ci95, [y.value * share] * 2, color=colour, linewidth=0.7, alpha=0.45)
    if y.ci95 is not None and x.value is not None:
        axes.plot([x.value] * 2, [end * share for end in y.ci95], color=colour, linewidth=0.7, alpha=0.45)


# A single request against memory bandwidth ---------------------------------------------------------------------------


def bound_tokens_per_s(cell: ShownCell) -> float | None:
    """Tokens/s at which reading every weight once per token takes the whole bandwidth; None where no GPU is known."""
    return cell.figures.roofline.bound_tokens_per_s


def roofline_figure(groups: Groups) -> Figure | None:
    """Tokens/s of a single request within the bound of its GPUs' memory bandwidth; None without either."""
    known = {text: found for text, group in groups.items() if (found := _bounded(group))}
    if not known:
        return None
    every = [one for found in known.values() for one in found]
    top = max(max(limit, reached.high or reached.value or 0.0) for _, limit, reached in every)
    cells = [cell for cell, _, _ in every]
    rows = [
        (cell.name, number(limit), *value_and_span(reached), percent((reached.value or 0) / limit))
        for cell, limit, reached in every
    ]
    return Figure(
        name="roofline",
        title=labelled("A single request against the limit of memory bandwidth", cells),
        caption="Outlined: tokens/s if every weight is read once per token at the full bandwidth of the GPUs. Filled: mean "
        "tokens/s of a single request, with its 95 % confidence interval. Beside it: share of the limit.",
        says="Horizontal bars: tokens per second of a single request, within the limit of memory bandwidth, for each cell.",
        panels=tuple(Panel(f"{text}, {at_load(1)}", partial(_bounds, known=some, top=top)) for text, some in known.items()),
        keys=legend(cells),
        table=Table(("cell", "limit, tokens/s", "reached, tokens/s", "95 % CI", "share of limit"), tuple(rows)),
        height_inches=0.86 + 0.36 * max(map(len, known.values())),
        left_inches=0.72,
        bottom_inches=0.46,
    )


_Bound = tuple[ShownCell, float, Estimate]


def _bounded(group: tuple[ShownCell, ...]) -> list[_Bound]:
    """Cells whose bound and speed at concurrency 1 are known, with both."""
    return [
        (cell, limit, reached)
        for cell in group
        if (limit := bound_tokens_per_s(cell)) is not None
        and (reached := cell.figures.estimate(1, "tokens_per_s_per_user", "mean")) is not None
        and reached.known
    ]


def _bounds(axes: Axes, *, known: list[_Bound], top: float) -> None:
    for index, (cell, limit, reached) in enumerate(known):
        look, value = look_of(cell), reached.value or 0.0
        axes.barh(-index, limit, 0.62, facecolor="none", edgecolor=MUTED, linewidth=0.8)
        axes.barh(-index, value, 0.62, color=look.colour, alpha=0.55 if cell.simulated else 0.9)
        edge = max(limit, reached.high or 0.0)
        inside = edge > 0.7 * top
        axes.annotate(
            f"{percent(value / limit)}, n {count(reached.n)}", (limit if inside else edge, -index),
            (-5 if inside else 5, 0), textcoords="offset points", va="center", ha="right" if inside else "left", size=7.5,
        )  # fmt: skip
        if reached.ci95 is not None:
            axes.plot(reached.ci95, [-index, -index], color=INK, linewidth=1.2)
    axes.set_yticks([-i for i in range(len(known))], [cell.short for cell, _, _ in known], fontsize=7.5)
    axes.set_ylim(0.5 - len(known), 0.5)
    axes.set_xlim(0, top * 1.04)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x")
    axes.set_xlabel("tokens/s of one request")
