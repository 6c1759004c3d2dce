"""The figures of a run, from `metrics.json` alone: what is drawn, what is said about it, and the table under it.

Each figure compares on one scale, draws the 95 % intervals that `metrics.json` holds, and writes its sample sizes. A
null is left out of the drawing and shown as a dash, with the n it needs, in the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from loadtest import view
from loadtest.canvas import CARD, GRID, INK, LOOKS, MUTED, Drawing, Figure, Key, Look, Panel, Table, draw
from loadtest.view import Cell, Estimate, Json

Axes = Any  # matplotlib.axes.Axes, which has no types

METRICS = {
    "output_tokens_per_s": ("Output tokens/s, all users together", "tokens/s", "value"),
    "tokens_per_s_per_user": ("Tokens/s per user", "tokens/s", "p50"),
    "ttft_s": ("Time to first token", "s", "p50"),
    "time_to_first_answer_s": ("Time to first answer text", "s", "p50"),
    "time_to_final_answer_s": ("Time to final answer", "s", "p50"),
    "thinking_s": ("Thinking time", "s", "p50"),
    "tpot_s": ("Time per output token", "s", "p50"),
    "itl_s": ("Gap between tokens", "s", "p50"),
    "reasoning_tokens": ("Tokens thought", "tokens", "mean"),
    "answer_tokens": ("Tokens answered", "tokens", "mean"),
    "answers_per_hour": ("Answers per hour", "answers/h", "value"),
    "goodput_answers_per_hour": ("Answers per hour within the SLOs", "answers/h", "value"),
    "accuracy": ("Share of right answers", "", "value"),
}
PHASES = (("waiting for the first token", 0.0), ("thinking", 0.38), ("answering", 1.0))


def figures(metrics: Json) -> tuple[Figure, ...]:
    """Every figure for which `metrics` holds data, in the order of the page. Titles of simulated runs say so."""
    cells = view.cells(metrics)
    groups = view.deployments(cells)
    if not groups:
        return ()
    makers = (
        partial(_throughput, groups), partial(_per_user, groups), partial(_ttft, groups), partial(_final_answer, groups),
        partial(_breakdown, groups), partial(_survival, groups), partial(_pareto, groups), partial(_ratios, metrics, cells),
        partial(_roofline, cells), partial(_gaps, groups), partial(_server, groups), partial(_timeline, groups),
    )  # fmt: skip
    return tuple(figure for maker in makers if (figure := maker()) is not None)


def draw_all(metrics: Json) -> tuple[Drawing, ...]:
    """Draw every figure once; files and page share the drawing."""
    return tuple(draw(figure) for figure in figures(metrics))


def _title(text: str, cells: Iterable[Cell]) -> str:
    return f"{text} (simulated)" if any(cell.simulated for cell in cells) else text


def _flat(groups: dict[str, tuple[Cell, ...]]) -> tuple[Cell, ...]:
    return tuple(cell for group in groups.values() for cell in group)


def _keys(cells: Iterable[Cell]) -> tuple[Key, ...]:
    seen = {cell.runtime: Key(cell.runtime, LOOKS[cell.family], hollow=cell.simulated) for cell in cells}
    return tuple(seen.values())


def _nothing(axes: Axes, why: str = "no data") -> None:
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", color=MUTED)


# Against concurrency -------------------------------------------------------------------------------------------------


def _throughput(groups: dict[str, tuple[Cell, ...]]) -> Figure | None:
    caption = "All tokens that arrived inside the steady window, divided by its length. Higher is better."
    return _against_concurrency(groups, "tokens-per-s-total", "output_tokens_per_s", caption)


def _per_user(groups: dict[str, tuple[Cell, ...]]) -> Figure | None:
    caption = (
        "Median over requests of what one stream delivers while it decodes. Higher is better. "
        "Dotted: the bound that memory bandwidth sets for a single stream."
    )
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
    cells = _flat(groups)
    title, unit, which = METRICS[key]
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
        title=_title(f"{title} against concurrency", cells),
        caption=f"{caption} Bars: 95 % intervals.",
        says=f"{title} against the number of concurrent users, one panel for each model and number of cards, "
        "one line for each runtime. The table below holds every value.",
        panels=panels,
        keys=_keys(cells),
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
    sizes = "\n".join(f"n {FAMILY[cell.family]}: {_sizes(cell)}" for cell in of[:2])
    axes.set_xlabel(f"concurrent users\n{sizes}", linespacing=1.35, fontsize=7)


FAMILY = {"sglang": "SGLang", "vllm": "vLLM", "other": "other"}


def _sizes(cell: Cell) -> str:
    sizes = [view.count(level.get("n_requests")) for level in cell.levels]
    return f"{sizes[0]} at each level" if len(set(sizes)) == 1 else ", ".join(sizes)


def _line(axes: Axes, cell: Cell, key: str, which: str, shift: float, *, faint: bool = False) -> None:
    points = [(level["concurrency"] * shift, view.estimate(level, key, which)) for level in cell.levels]
    known = [(x, e) for x, e in points if e.value is not None]
    look = LOOKS[cell.family]
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
            line = [f"{cell.runtime} {cell.deployment}", str(level["concurrency"]), view.count(level.get("n_requests"))]
            for one in which:
                line += _value_and_span(view.estimate(level, key, one))
            lines.append(tuple(line))
    return Table(tuple(head), tuple(lines))


def _value_and_span(of: Estimate) -> list[str]:
    if of.value is None:
        return [view.DASH, f"needs n ≥ {of.n_needed}" if of.n_needed else "no data"]
    return [view.number(of.value), view.span(of) or view.DASH]


# Where the time goes -------------------------------------------------------------------------------------------------


def _phases_s(level: Json) -> tuple[float, float, float] | None:
    """Mean seconds waiting, thinking, answering; None where one of them is null."""
    first = view.estimate(level, "ttft_s", "mean").value
    answer = view.estimate(level, "time_to_first_answer_s", "mean").value
    final = view.estimate(level, "time_to_final_answer_s", "mean").value
    if first is None or answer is None or final is None:
        return None
    return first, max(0.0, answer - first), max(0.0, final - answer)


def _breakdown(groups: dict[str, tuple[Cell, ...]]) -> Figure | None:
    cells = _flat(groups)
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
            lines.append((f"{cell.runtime} {cell.deployment}", str(level["concurrency"]), *texts))
    return Figure(
        name="where-the-time-goes",
        title=_title("Where the time to the final answer goes", cells),
        caption="Mean seconds of a request, from bottom to top: waiting for the first token, thinking, answering. "
        "Left bar of each pair SGLang, right bar vLLM. Lower is better.",
        says="Stacked bars: mean seconds waiting, thinking and answering at each number of users, for each runtime.",
        panels=tuple(Panel(text, partial(_bars, of=group, top=max(sums) * 1.08)) for text, group in groups.items()),
        keys=keys,
        table=Table(head, tuple(lines)),
    )


def _bars(axes: Axes, *, of: tuple[Cell, ...], top: float) -> None:
    levels = sorted({int(level["concurrency"]) for cell in of for level in cell.levels})
    width = 0.76 / len(of)
    for index, cell in enumerate(of):
        look = LOOKS[cell.family]
        for level in cell.levels:
            phases = _phases_s(level)
            x = levels.index(int(level["concurrency"])) + (index - (len(of) - 1) / 2) * width
            bottom = 0.0
            for (_, share), seconds in zip(PHASES, phases or (), strict=False):
                colour = look.colour if share else GRID
                axes.bar(x, seconds, width * 0.88, bottom=bottom, color=colour, alpha=share or 1, linewidth=0)
                bottom += seconds
            axes.text(x, bottom, FAMILY[cell.family][0], ha="center", va="bottom", size=6.5, color=look.colour)
    axes.set_xticks(range(len(levels)), [str(level) for level in levels])
    sizes = "\n".join(f"n {FAMILY[cell.family]}: {_sizes(cell)}" for cell in of[:2])
    axes.set_xlabel(f"concurrent users\n{sizes}", linespacing=1.35, fontsize=7)
    axes.set_ylabel("s")
    axes.set_ylim(0, top)


def _top_level(group: tuple[Cell, ...]) -> int:
    """The highest level that every cell of the group has; the highest of any where they share none."""
    shared = set.intersection(*({int(level["concurrency"]) for level in cell.levels} for cell in group))
    return max(shared or {int(level["concurrency"]) for cell in group for level in cell.levels})


def _users(count: int) -> str:
    return f"{count} user{'' if count == 1 else 's'}"


def _survival(groups: dict[str, tuple[Cell, ...]]) -> Figure | None:
    panels = []
    lines: list[tuple[str, ...]] = []
    for text, group in groups.items():
        top = _top_level(group)
        panels.append(Panel(f"{text}, {_users(top)}", partial(_survivors, of=group, concurrency=top)))
        for cell in group:
            for share in (0.75, 0.5, 0.25, 0.1):
                lines.append((f"{cell.runtime} {cell.deployment}", str(top), f"{share:.0%}", _reached(cell, top, share)))
    if not any(_survival_points(cell, _top_level(group)) for group in groups.values() for cell in group):
        return None
    cells = _flat(groups)
    return Figure(
        name="survival",
        title=_title("Share of requests still without their final answer", cells),
        caption="Kaplan-Meier estimate at the highest level; requests cut off or truncated leave at their last chunk. "
        "Band: 95 % interval. Further left is better.",
        says="Survival curves of time to final answer, one panel for each deployment, one step line for each runtime.",
        panels=tuple(panels),
        keys=_keys(cells),
        table=Table(("cell", "users", "still waiting", "after, s"), tuple(lines)),
    )


def _survival_points(cell: Cell, concurrency: int) -> list[list[float]]:
    curves = view.section(cell.level(concurrency), "curves")
    points = curves.get("time_to_final_answer_survival")
    return [p for p in points if len(p) >= 4] if isinstance(points, (list, tuple)) else []


def _reached(cell: Cell, concurrency: int, share: float) -> str:
    times = [p[0] for p in _survival_points(cell, concurrency) if p[1] <= share]
    return view.number(min(times)) if times else f"{view.DASH} (not reached)"


def _survivors(axes: Axes, *, of: tuple[Cell, ...], concurrency: int) -> None:
    empty = True
    for cell in of:
        points = _survival_points(cell, concurrency)
        if not points:
            continue
        empty = False
        look = LOOKS[cell.family]
        times = [0.0, *(p[0] for p in points)]
        axes.step(times, [1.0, *(p[1] for p in points)], where="post", color=look.colour, linestyle=look.dash)
        banded = [p for p in points if p[2] is not None and p[3] is not None]
        lows, highs = [p[2] for p in banded], [p[3] for p in banded]
        axes.fill_between([p[0] for p in banded], lows, highs, step="post", color=look.colour, alpha=0.15, linewidth=0)
    if empty:
        _nothing(axes)
    sizes = ", ".join(
        f"n {FAMILY[cell.family]} {view.count((cell.level(concurrency) or {}).get('n_requests'))}" for cell in of
    )
    axes.set_ylim(0, 1.03)
    axes.set_xlim(left=0)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.set_xlabel(f"seconds since the request was sent\n{sizes}", linespacing=1.35, fontsize=7)
    axes.set_ylabel("share of requests")


# Trade-offs and comparisons ------------------------------------------------------------------------------------------

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def _pareto(groups: dict[str, tuple[Cell, ...]]) -> Figure | None:
    cells = _flat(groups)
    points = [(cell, level, *_pareto_point(level)) for cell in cells for level in cell.levels]
    if not any(x.known and y.known for _, _, x, y in points):
        return None
    keys = tuple(
        Key(c.runtime, Look(LOOKS[c.family].colour, "", LOOKS[c.family].dash))
        for c in {c.runtime: c for c in cells}.values()
    )
    keys += tuple(Key(name, Look(MUTED, MARKERS[i % 8], "")) for i, name in enumerate(groups))
    lines = tuple(
        (f"{cell.runtime} {cell.deployment}", str(level["concurrency"]), view.number(x.value), view.number(y.value),
         view.number(None if y.value is None else y.value / cell.tp))
        for cell, level, x, y in points
    )  # fmt: skip
    return Figure(
        name="pareto",
        title=_title("Throughput against interactivity", cells),
        caption="Each point is one level; the number beside it is its concurrent users. Up and to the right is better. "
        "Per card is the fair view when numbers of cards differ.",
        says="Scatter of output tokens per second against tokens per second per user for every cell and level, in total and per card.",
        panels=(
            Panel("In total", partial(_trade_off, groups=groups, per_card=False)),
            Panel("Per card", partial(_trade_off, groups=groups, per_card=True)),
        ),
        keys=keys,
        table=Table(("cell", "users", "tokens/s per user", "tokens/s in total", "tokens/s per card"), lines),
        height_inches=3.1,
    )


def _pareto_point(level: Json) -> tuple[Estimate, Estimate]:
    return view.estimate(level, "tokens_per_s_per_user", "p50"), view.estimate(level, "output_tokens_per_s")


def _trade_off(axes: Axes, *, groups: dict[str, tuple[Cell, ...]], per_card: bool) -> None:
    for index, cell in ((i, cell) for i, group in enumerate(groups.values()) for cell in group):
        look = LOOKS[cell.family]
        points = [(*_pareto_point(level), level["concurrency"]) for level in cell.levels]
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
        for x, y, concurrency in known[:: max(1, len(known) - 1)] if len(known) > 4 else known:
            axes.annotate(str(concurrency), (x, y), (4, 3), textcoords="offset points", size=6, color=MUTED)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.margins(0.1)
    axes.set_xlabel("tokens/s per user (median)")
    axes.set_ylabel("output tokens/s" + (" per card" if per_card else ""))


def _ratios(metrics: Json, cells: tuple[Cell, ...]) -> Figure | None:
    by_id = {cell.id: cell for cell in cells}
    known = [row for row in view.rows(metrics, "comparisons") if view.estimate(row, "ratio").known]
    pairs = [(row, by_id.get(view.clean(row.get("a"))), by_id.get(view.clean(row.get("b")))) for row in known]
    paired = [(row, a, b) for row, a, b in pairs if a is not None and b is not None]
    if not paired:
        return None
    names = list(dict.fromkeys(str(row.get("metric")) for row, _, _ in paired))
    order = [name for name in METRICS if name in names][:6]
    depth = max(_forest_rows([p for p in paired if p[0].get("metric") == name]) for name in order)
    _, a, b = paired[0]
    title = _title(f"{FAMILIES[a.family]} / {FAMILIES[b.family]}: ratio at each level", (a, b))
    return Figure(
        name="ratios",
        title=title,
        caption="Each point is a ratio with its 95 % interval. Filled: the interval leaves out 1. Hollow grey: no detectable difference.",
        says="Forest plot of the ratio between the two runtimes for each metric, deployment and number of users.",
        panels=tuple(
            Panel(METRICS[name][0], partial(_forest, pairs=[p for p in paired if p[0].get("metric") == name]))
            for name in order
        ),
        keys=(
            Key(f"{FAMILIES[a.family]} better", Look(LOOKS[a.family].colour, LOOKS[a.family].marker)),
            Key(f"{FAMILIES[b.family]} better", Look(LOOKS[b.family].colour, LOOKS[b.family].marker)),
            Key("no detectable difference", Look(MUTED, "D"), hollow=True),
        ),
        table=_ratio_table([p for p in paired if p[0].get("metric") in order]),
        height_inches=1.1 + 0.145 * depth,
        left_inches=0.72,
    )


FAMILIES = view.FAMILIES
Pairs = list[tuple[Json, Cell, Cell]]


def _forest_rows(pairs: Pairs) -> int:
    return len(pairs) + len({a.deployment for _, a, _ in pairs})


def _forest(axes: Axes, *, pairs: Pairs) -> None:
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.set_xscale("log")
    ticks: dict[int, str] = {}
    y, group = 0, ""
    for row, a, b in pairs:
        if a.deployment != group:
            group = a.deployment
            axes.text(0.01, y, group, transform=axes.get_yaxis_transform(), va="center", size=7, weight="bold")
            y -= 1
        _ratio_point(axes, row, a, b, y)
        ticks[y] = _users(int(row.get("concurrency") or 0))
        y -= 1
    axes.set_yticks(list(ticks), list(ticks.values()), fontsize=6.5)
    axes.set_ylim(y + 0.3, 0.8)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    _ratio_axis(axes, pairs)


def _ratio_axis(axes: Axes, pairs: Pairs) -> None:
    found = [view.estimate(row, "ratio") for row, _, _ in pairs]
    values = [v for e in found for v in (e.value, e.low, e.high) if v is not None and v > 0]
    reach = max(1.06, *(max(v, 1 / v) for v in values)) ** 1.08
    axes.set_xlim(1 / reach, reach)
    nice = [t for t in (1.02, 1.05, 1.1, 1.2, 1.5, 2, 3, 5, 10, 30, 100) if t <= reach][-2:]
    marks = sorted({*(1 / t for t in nice), 1.0, *nice})
    axes.set_xticks(marks, [f"{mark:.3g}" for mark in marks])
    axes.minorticks_off()
    name = str(pairs[0][0].get("metric"))
    better = "below 1" if METRICS[name][1] == "s" else "above 1"
    neutral = METRICS[name][1] in ("tokens", "")
    axes.set_xlabel("ratio" if neutral else f"ratio ({better}: {FAMILIES[pairs[0][1].family]} better)", fontsize=7.5)


def _ratio_point(axes: Axes, row: Json, a: Cell, b: Cell, y: float) -> None:
    ratio = view.estimate(row, "ratio")
    verdict = row.get("verdict")
    look = LOOKS[a.family] if verdict == "faster" else LOOKS[b.family] if verdict == "slower" else Look(MUTED, "D")
    if ratio.low is not None and ratio.high is not None:
        axes.plot([ratio.low, ratio.high], [y, y], color=look.colour, linewidth=1.3)
    fill = look.colour if verdict in ("faster", "slower") else CARD
    axes.plot([ratio.value], [y], marker=look.marker, color=look.colour, markerfacecolor=fill, markersize=4)


def _ratio_table(pairs: Pairs) -> Table:
    head = ("metric", "deployment", "users", "ratio", "95 % interval", "verdict", "n")
    lines = []
    for row, a, b in pairs:
        ratio = view.estimate(row, "ratio")
        verdict = (
            f"{FAMILIES[a.family]} {row['verdict']}"
            if row.get("verdict") in ("faster", "slower")
            else view.clean(row.get("verdict"))
        )
        sizes = f"{view.count(row.get('n_a'))} and {view.count(row.get('n_b'))}"
        title = METRICS[str(row.get("metric"))][0]
        lines.append((title, a.deployment, view.count(row.get("concurrency")), *_value_and_span(ratio), verdict, sizes))
        del b
    return Table(head, tuple(lines))


def _roofline(cells: tuple[Cell, ...]) -> Figure | None:
    known = [(cell, bound, _reached_alone(cell)) for cell in cells if (bound := _bound(cell)) and cell.levels]
    known = [row for row in known if row[2].known]
    if not known:
        return None
    lines = tuple(
        (
            f"{cell.runtime} {cell.deployment}",
            view.number(bound),
            *_value_and_span(reached),
            f"{(reached.value or 0) / bound:.0%}",
        )
        for cell, bound, reached in known
    )
    return Figure(
        name="roofline",
        title=_title("A single stream against its memory-bandwidth bound", (cell for cell, _, _ in known)),
        caption="Outlined: reading every weight once per token at the cards' full bandwidth. Filled: median tokens/s of a single user.",
        says="Horizontal bars: tokens per second reached by a single stream, within the bound of memory bandwidth, for each cell.",
        panels=(Panel("One user", partial(_bounds, known=known)),),
        keys=_keys(cell for cell, _, _ in known),
        table=Table(("cell", "bound, tokens/s", "reached, tokens/s", "95 % interval", "share of bound"), lines),
        width_inches=5.4,
        height_inches=1.05 + 0.26 * len(known),
        left_inches=1.75,
    )


def _reached_alone(cell: Cell) -> Estimate:
    return view.estimate(cell.level(1), "tokens_per_s_per_user", "p50")


def _bounds(axes: Axes, *, known: list[tuple[Cell, float, Estimate]]) -> None:
    for index, (cell, bound, reached) in enumerate(known):
        look = LOOKS[cell.family]
        axes.barh(-index, bound, 0.66, facecolor="none", edgecolor=MUTED, linewidth=0.8)
        axes.barh(-index, reached.value, 0.66, color=look.colour, alpha=0.55 if cell.simulated else 0.9)
        axes.text(bound, -index, f"  {(reached.value or 0) / bound:.0%}", va="center", size=7.5)
        if reached.low is not None and reached.high is not None:
            axes.plot([reached.low, reached.high], [-index, -index], color=INK, linewidth=1.2)
    axes.set_yticks(
        [-i for i in range(len(known))], [f"{c.deployment} · {FAMILY[c.family]}" for c, _, _ in known], fontsize=7
    )
    axes.set_xlim(0, max(bound for _, bound, _ in known) * 1.12)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x")
    axes.set_xlabel("tokens/s of one stream")


# What happened inside ------------------------------------------------------------------------------------------------


def _curve(cell: Cell, concurrency: int, name: str) -> Any:
    return view.section(cell.level(concurrency), "curves").get(name)


def _gaps(groups: dict[str, tuple[Cell, ...]]) -> Figure | None:
    tops = {text: _top_level(group) for text, group in groups.items()}
    cells = _flat(groups)
    if not any(_histogram(cell, tops[cell.deployment]) for cell in cells):
        return None
    lines = []
    for cell in cells:
        level = cell.level(tops[cell.deployment])
        values = [view.estimate(level, "itl_s", which) for which in ("p50", "p95", "p99")]
        texts = [view.number(None if e.value is None else e.value * 1000) for e in values]
        lines.append((f"{cell.runtime} {cell.deployment}", str(tops[cell.deployment]), view.count(values[0].n), *texts))
    return Figure(
        name="token-gaps",
        title=_title("Gaps between tokens", cells),
        caption="Distribution of the time from one token to the next at the highest level, weighted by token; logarithmic axis.",
        says="Histograms of the gap between consecutive tokens, one panel for each deployment, one outline for each runtime.",
        panels=tuple(Panel(f"{t}, {_users(tops[t])}", partial(_outlines, of=g, top=tops[t])) for t, g in groups.items()),
        keys=_keys(cells),
        table=Table(("cell", "users", "n gaps", "median, ms", "p95, ms", "p99, ms"), tuple(lines)),
    )


def _histogram(cell: Cell, concurrency: int) -> tuple[list[float], list[float]] | None:
    found = _curve(cell, concurrency, "itl_histogram") or {}
    edges, shares = found.get("edges_s") or [], found.get("shares") or []
    return ([edge * 1000 for edge in edges], list(shares)) if shares and len(edges) == len(shares) + 1 else None


def _outlines(axes: Axes, *, of: tuple[Cell, ...], top: int) -> None:
    found = [(cell, histogram) for cell in of if (histogram := _histogram(cell, top)) is not None]
    for cell, (edges, shares) in found:
        look = LOOKS[cell.family]
        axes.stairs([share * 100 for share in shares], edges, color=look.colour, linestyle=look.dash, linewidth=1.4)
        axes.stairs([share * 100 for share in shares], edges, color=look.colour, alpha=0.12, fill=True)
    if not found:
        _nothing(axes)
    elif min(histogram[0][0] for _, histogram in found) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.minorticks_off()
    sizes = ", ".join(f"n {FAMILY[c.family]} {view.count(view.estimate(c.level(top), 'itl_s', 'p50').n)}" for c in of)
    axes.set_xlabel(f"gap, ms\n{sizes}", linespacing=1.35, fontsize=7)
    axes.set_ylabel("% of gaps")


def _server(groups: dict[str, tuple[Cell, ...]]) -> Figure | None:
    shown = [(cell, _top_level(group)) for group in groups.values() for cell in group]
    shown = [(cell, top) for cell, top in shown if (_curve(cell, top, "server") or {}).get("t_s")]
    if not shown:
        return None
    lines = tuple(
        (f"{cell.runtime} {cell.deployment}", str(top), *_server_peaks(_curve(cell, top, "server"))) for cell, top in shown
    )
    return Figure(
        name="server",
        title=_title("What the server said about itself", (cell for cell, _ in shown)),
        caption="At the highest level, from the runtime's own /metrics: share of the KV cache in use, requests running (solid) and waiting (dotted).",
        says="For each cell, two small charts over time: share of the KV cache in use, and requests running and waiting.",
        panels=tuple(
            Panel(f"{FAMILY[c.family]}: {c.deployment}, {_users(top)}", partial(_server_panel, cell=c, top=top), stacked=2)
            for c, top in shown
        ),
        keys=(),
        table=Table(("cell", "users", "peak KV use", "peak running", "peak waiting"), lines),
    )


def _server_peaks(curve: Json) -> tuple[str, str, str]:
    peaks = [
        max((v for v in curve.get(key) or () if v is not None), default=None) for key in ("kv_usage", "running", "waiting")
    ]
    return view.DASH if peaks[0] is None else f"{peaks[0]:.0%}", view.count(peaks[1]), view.count(peaks[2])


def _series(curve: Json, key: str) -> tuple[list[float], list[float]]:
    pairs = [
        (t, v) for t, v in zip(curve.get("t_s") or (), curve.get(key) or (), strict=False) if t is not None and v is not None
    ]
    return [t for t, _ in pairs], [v for _, v in pairs]


def _server_panel(upper: Axes, lower: Axes, *, cell: Cell, top: int) -> None:
    curve, look = _curve(cell, top, "server"), LOOKS[cell.family]
    times, usage = _series(curve, "kv_usage")
    upper.fill_between(times, [100 * u for u in usage], color=look.colour, alpha=0.2, linewidth=0)
    upper.plot(times, [100 * u for u in usage], color=look.colour, linewidth=1)
    upper.set_ylim(0, 105)
    upper.set_yticks([0, 50, 100])
    upper.set_ylabel("KV cache, %")
    upper.tick_params(labelbottom=False)
    for key, dash in (("running", "-"), ("waiting", ":")):
        lower.step(*_series(curve, key), where="post", color=look.colour, linestyle=dash, linewidth=1.2)
    lower.set_ylim(0, max(top, *_series(curve, "waiting")[1], 1) * 1.15)
    lower.set_ylabel("requests")
    lower.set_xlabel("s since the level began")


def _timeline(groups: dict[str, tuple[Cell, ...]]) -> Figure | None:
    shown = [(cell, _top_level(group)) for group in groups.values() for cell in group]
    shown = [(cell, top) for cell, top in shown if _curve(cell, top, "timeline")]
    if not shown:
        return None
    lines = []
    for cell, top in shown:
        requests = _curve(cell, top, "timeline")
        ends = [r["ended_s"] for r in requests if r.get("ended_s") is not None]
        odd = sum(r.get("outcome") != "ok" for r in requests)
        lines.append(
            (
                f"{cell.runtime} {cell.deployment}",
                str(top),
                view.count(len(requests)),
                view.count(odd),
                view.number(max(ends, default=None)),
            )
        )
    keys = tuple(Key(name, Look(MUTED if share else GRID, share=share or 1), kind="box") for name, share in PHASES)
    return Figure(
        name="timeline",
        title=_title("What each stream was doing", (cell for cell, _ in shown)),
        caption="One row for each stream at the highest level; a cross ends a request that did not end well. Faint: warm-up.",
        says="Timeline of requests, one row for each concurrent stream, each bar split into waiting, thinking and answering.",
        panels=tuple(
            Panel(f"{FAMILY[c.family]}: {c.deployment}, {_users(top)}", partial(_streams, cell=c, top=top))
            for c, top in shown
        ),
        keys=keys,
        table=Table(("cell", "users", "requests drawn", "not ok", "last end, s"), tuple(lines)),
        height_inches=2.5,
    )


def _streams(axes: Axes, *, cell: Cell, top: int) -> None:
    from matplotlib.collections import PolyCollection

    requests, look = _curve(cell, top, "timeline"), LOOKS[cell.family]
    for phase, faint in (("warmup", 0.4), ("measure", 1.0)):
        chosen = [r for r in requests if r.get("phase", "measure") == phase]
        for (start, end), (_, share) in zip(SPANS, PHASES, strict=True):
            boxes = [box for r in chosen if (box := _box(r, start, end)) is not None]
            colour = look.colour if share else GRID
            axes.add_collection(PolyCollection(boxes, facecolors=colour, alpha=(share or 1) * faint, linewidths=0))
    odd = [(r["ended_s"], r["user"]) for r in requests if r.get("outcome") != "ok" and r.get("ended_s") is not None]
    axes.plot([t for t, _ in odd], [u for _, u in odd], linestyle="", marker="x", color=INK, markersize=4, clip_on=False)
    axes.set_xlim(0, max((r["ended_s"] for r in requests if r.get("ended_s") is not None), default=1))
    users = sorted({r["user"] for r in requests})
    axes.set_ylim(users[-1] + 0.6, users[0] - 0.6)
    axes.set_yticks(users[:: max(1, len(users) // 8)])
    axes.grid(visible=False)
    axes.set_ylabel("stream")
    axes.set_xlabel("s since the level began")


SPANS = (("sent_s", "first_s"), ("first_s", "answer_s"), ("answer_s", "ended_s"))


def _box(request: Json, start: str, end: str) -> list[tuple[float, float]] | None:
    """Corners of one phase of one request; a phase that never ended runs to the end of the request."""
    begin, finish = request.get(start), request.get(end)
    if begin is None:
        return None
    finish = request["ended_s"] if finish is None else finish
    low, high = request["user"] - 0.38, request["user"] + 0.38
    return [(begin, low), (finish, low), (finish, high), (begin, high)]


Maker = Callable[[], Figure | None]
