"""The figures of a run, from `metrics.json` alone: what is drawn, what is said about it, and the table under it.

Each figure compares on one scale, draws the 95 % intervals that `metrics.json` holds, and writes its sample sizes. A
null is left out of the drawing and shown as a dash, with the n it needs, in the table.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from loadtest import ratioplots, timeplots, view
from loadtest.canvas import CARD, GRID, INK, MUTED, PHASES, Drawing, Figure, Key, Look, Panel, Table, draw, legend, look_of
from loadtest.view import Cell, Estimate, Json

Axes = Any  # matplotlib.axes.Axes, which has no types


def figures(metrics: Json) -> tuple[Figure, ...]:
    """Every figure for which `metrics` holds data, in the order of the page. Titles of simulated runs say so."""
    cells = view.cells(metrics)
    groups = view.deployments(cells)
    if not groups:
        return ()
    makers = (
        partial(_throughput, groups),
        partial(_per_user, groups),
        partial(_ttft, groups),
        partial(_final_answer, groups),
        partial(_breakdown, groups),
        partial(timeplots.survival, groups),
        partial(_pareto, groups),
        partial(ratioplots.of_runtimes, metrics, cells),
        partial(ratioplots.why, metrics, cells),
        partial(_roofline, groups),
        partial(timeplots.gaps, groups),
        partial(timeplots.server, groups),
        partial(timeplots.timeline, groups),
    )
    return tuple(figure for maker in makers if (figure := maker()) is not None)


def of_groups(groups: dict[str, tuple[Cell, ...]]) -> tuple[Figure, ...]:
    """The figures that put the cells of several runs on one scale."""
    makers = (_throughput, _per_user, _ttft, _final_answer, _breakdown, timeplots.survival, _pareto)
    return tuple(figure for maker in makers if (figure := maker(groups)) is not None)


def draw_all(metrics: Json) -> tuple[Drawing, ...]:
    """Draw every figure once; files and page share the drawing."""
    return tuple(draw(figure) for figure in figures(metrics))


# Against concurrency -------------------------------------------------------------------------------------------------


def _throughput(groups: dict[str, tuple[Cell, ...]]) -> Figure | None:
    caption = "All tokens that arrived inside the steady window, divided by its length. Higher is better."
    return _against_concurrency(groups, "tokens-per-s-total", "output_tokens_per_s", caption)


def _per_user(groups: dict[str, tuple[Cell, ...]]) -> Figure | None:
    caption = "Median over requests of what one stream delivers while it decodes. Higher is better."
    if any(_bound(cell) for cell in view.flat(groups)):
        caption += " Dotted: the bound that memory bandwidth sets for a single stream."
    return _against_concurrency(groups, "tokens-per-s-per-user", "tokens_per_s_per_user", caption, bound=True)


def _ttft(groups: dict[str, tuple[Cell, ...]]) -> Figure | None:
    caption = (
        "From sending to the first text of any kind, thinking included. Median; faint: 90th percentile. Lower is better."
    )
    return _against_concurrency(groups, "ttft", "ttft_s", caption, tail="p90")


def _final_answer(groups: dict[str, tuple[Cell, ...]]) -> Figure | None:
    caption = (
        "From sending to the last word of an answer that ended by itself; unfinished requests count as censored. "
        "Median; faint: 90th percentile. Lower is better."
    )
    return _against_concurrency(groups, "time-to-final-answer", "time_to_final_answer_s", caption, tail="p90")


def _against_concurrency(
    groups: dict[str, tuple[Cell, ...]], name: str, key: str, caption: str, *, tail: str = "", bound: bool = False
) -> Figure | None:
    cells = view.flat(groups)
    title, unit, which = view.METRICS[key]
    which = view.typical(cells, key) if which == "p50" else which
    caption = caption.replace("Median", "Mean") if which == "mean" else caption
    highest = _highest(cells, key, (which, tail) if tail else (which,))
    if highest is None:
        return None
    if bound:
        highest = max([highest, *(limit for cell in cells if (limit := _bound(cell)) is not None)])
    panels = tuple(
        Panel(text, partial(_curves, of=group, key=key, which=which, tail=tail, unit=unit, top=highest * 1.08, bound=bound))
        for text, group in groups.items()
    )
    return Figure(
        name=name,
        title=view.title(f"{title} against concurrency", cells),
        caption=f"{caption} Bars: 95 % intervals.",
        says=f"{title} against the number of concurrent users, one panel for each model and number of cards, "
        "one line for each runtime. The table below holds every value.",
        panels=panels,
        keys=legend(cells),
        table=_concurrency_table(cells, key, (which, tail) if tail else (which,), unit),
    )


def _highest(cells: Iterable[Cell], key: str, which: tuple[str, ...]) -> float | None:
    found = [view.estimate(level, key, one) for cell in cells for level in cell.levels for one in which]
    values = [v for e in found for v in (e.value, e.high if e.known else None) if v is not None]
    return max(values) if values else None


def _bound(cell: Cell) -> float | None:
    return view.finite(cell.roofline.get("bound_tokens_per_s"))


def _curves(
    axes: Axes, *, of: tuple[Cell, ...], key: str, which: str, tail: str, unit: str, top: float, bound: bool
) -> None:
    axes.set_ylim(0, top)
    _concurrency_axis(axes, of)
    axes.set_ylabel(unit)
    for index, cell in enumerate(of):
        shift = 1 + 0.025 * (index - (len(of) - 1) / 2)
        if tail:
            _line(axes, cell, key, tail, shift, faint=True)
        _line(axes, cell, key, which, shift)
    limits = {limit for cell in of if bound and (limit := _bound(cell)) is not None}
    for limit in limits:
        axes.axhline(limit, color=MUTED, linestyle=":", linewidth=1)
        axes.text(
            1, limit, "memory bound ", transform=axes.get_yaxis_transform(), ha="right", va="bottom", color=MUTED, size=7
        )


def _concurrency_axis(axes: Axes, of: tuple[Cell, ...]) -> None:
    levels = sorted({int(level["concurrency"]) for cell in of for level in cell.levels})
    if len(levels) < 7:
        axes.set_xscale("log", base=2)
        axes.set_xlim(levels[0] * 0.84, levels[-1] * 1.19)
    axes.set_xticks(levels, [str(level) for level in levels], minor=False)
    axes.minorticks_off()
    sizes = "\n".join(f"n {cell.short}: {view.sizes(cell)}" for cell in of[:2])
    axes.set_xlabel(f"concurrent users\n{sizes}", linespacing=1.35, fontsize=7.5)


def _line(axes: Axes, cell: Cell, key: str, which: str, shift: float, *, faint: bool = False) -> None:
    points = [(level["concurrency"] * shift, view.estimate(level, key, which)) for level in cell.levels]
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
            line = [cell.name, str(level["concurrency"]), view.count(level.get("n_requests"))]
            for one in which:
                line += view.value_and_span(view.estimate(level, key, one))
            lines.append(tuple(line))
    return Table(tuple(head), tuple(lines))


# Where the time goes -------------------------------------------------------------------------------------------------


def _phases_s(level: Json) -> tuple[float, float, float] | None:
    """Mean seconds waiting, thinking, answering; None where one of them is null."""
    names = ("ttft_s", "time_to_first_answer_s", "time_to_final_answer_s")
    first, answer, final = (view.mean(level, name).value for name in names)
    if first is None or answer is None or final is None:
        return None
    return first, max(0.0, answer - first), max(0.0, final - answer)


def _breakdown(groups: dict[str, tuple[Cell, ...]]) -> Figure | None:
    cells = view.flat(groups)
    sums = [sum(phases) for cell in cells for level in cell.levels if (phases := _phases_s(level)) is not None]
    if not sums:
        return None
    keys = tuple(Key(name, Look(MUTED if share else GRID, share=share or 1), kind="box") for name, share in PHASES)
    head = ("cell", "users", "waiting, s", "thinking, s", "answering, s", "sum, s")
    lines = []
    for cell in cells:
        for level in cell.levels:
            phases = _phases_s(level)
            texts = [view.number(p) for p in (*phases, sum(phases))] if phases else [view.DASH] * 4
            lines.append((cell.name, str(level["concurrency"]), *texts))
    return Figure(
        name="where-the-time-goes",
        title=view.title("Where the time to the final answer goes", cells),
        caption="Mean seconds of a request, from bottom to top: waiting for the first token, thinking, answering. "
        "Means go up to the longest time seen where requests were cut off. Lower is better.",
        says="Stacked bars: mean seconds waiting, thinking and answering at each number of users, for each runtime.",
        panels=tuple(Panel(text, partial(_bars, of=group, top=max(sums) * 1.08)) for text, group in groups.items()),
        keys=keys,
        table=Table(head, tuple(lines)),
    )


def _bars(axes: Axes, *, of: tuple[Cell, ...], top: float) -> None:
    levels = sorted({int(level["concurrency"]) for cell in of for level in cell.levels})
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
            axes.text(x, bottom, cell.short[0], ha="center", va="bottom", size=7, color=look.colour)
    axes.set_xticks(range(len(levels)), [str(level) for level in levels])
    sizes = "\n".join(f"n {cell.short}: {view.sizes(cell)}" for cell in of[:2])
    axes.set_xlabel(f"concurrent users\n{sizes}", linespacing=1.35, fontsize=7.5)
    axes.set_ylabel("seconds")
    axes.set_ylim(0, top)


# Trade-offs and comparisons ------------------------------------------------------------------------------------------

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def _pareto(groups: dict[str, tuple[Cell, ...]]) -> Figure | None:
    cells = view.flat(groups)
    which = view.typical(cells, "tokens_per_s_per_user")
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
            view.number(x.value),
            view.number(y.value),
            view.number(None if y.value is None else y.value / cell.tp),
        )
        for cell, level, x, y in points
    )
    return Figure(
        name="pareto",
        title=view.title("Throughput against interactivity", cells),
        caption="Each point is one level; the number beside it is its concurrent users. Up and to the right is better. "
        "Per card is the fair view when numbers of cards differ.",
        says="Scatter of output tokens per second against tokens per second per user for every cell and level, in "
        "total and per card.",
        panels=(
            Panel("In total", partial(_trade_off, groups=groups, which=which, per_card=False)),
            Panel("Per card", partial(_trade_off, groups=groups, which=which, per_card=True)),
        ),
        keys=keys,
        table=Table(("cell", "users", "tokens/s per user", "tokens/s in total", "tokens/s per card"), lines),
        width_inches=3.6,
        height_inches=2.9,
        bottom_inches=0.46,
        columns=2,
    )


def _pareto_point(level: Json, which: str) -> tuple[Estimate, Estimate]:
    return view.estimate(level, "tokens_per_s_per_user", which), view.estimate(level, "output_tokens_per_s")


def _trade_off(axes: Axes, *, groups: dict[str, tuple[Cell, ...]], which: str, per_card: bool) -> None:
    for index, cell in ((i, cell) for i, group in enumerate(groups.values()) for cell in group):
        look = look_of(cell)
        points = [(*_pareto_point(level, which), level["concurrency"]) for level in cell.levels]
        known = [
            (x.value, y.value / (cell.tp if per_card else 1), c)
            for x, y, c in points
            if x.value is not None and y.value is not None
        ]
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


def _roofline(groups: dict[str, tuple[Cell, ...]]) -> Figure | None:
    known = {
        text: rows
        for text, group in groups.items()
        if (rows := [(c, limit, alone) for c in group if (limit := _bound(c)) and (alone := _reached_alone(c)).known])
    }
    if not known:
        return None
    flat = [row for rows in known.values() for row in rows]
    lines = tuple(
        (cell.name, view.number(bound), *view.value_and_span(reached), f"{(reached.value or 0) / bound:.0%}")
        for cell, bound, reached in flat
    )
    top = max(max(bound, reached.high or reached.value or 0.0) for _, bound, reached in flat)
    return Figure(
        name="roofline",
        title=view.title("A single stream against its memory-bandwidth bound", (cell for cell, _, _ in flat)),
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
    return view.estimate(cell.level(1), "tokens_per_s_per_user", "mean")


def _bounds(axes: Axes, *, known: list[tuple[Cell, float, Estimate]], top: float) -> None:
    for index, (cell, bound, reached) in enumerate(known):
        look = look_of(cell)
        axes.barh(-index, bound, 0.62, facecolor="none", edgecolor=MUTED, linewidth=0.8)
        axes.barh(-index, reached.value, 0.62, color=look.colour, alpha=0.55 if cell.simulated else 0.9)
        share = f"{(reached.value or 0) / bound:.0%}, n {view.count(reached.n)}"
        edge = max(bound, reached.high or 0.0)
        inside = edge > 0.7 * top
        axes.annotate(
            share, (bound if inside else edge, -index), (-5 if inside else 5, 0), textcoords="offset points",
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
