"""The figures drawn from the curves of a level: survival, gaps between tokens, the server over time, the timeline."""

from __future__ import annotations

from functools import partial
from itertools import accumulate
from typing import Any

from loadtest.report import formatting
from loadtest.report.cells import Cell, flat, title, top_level
from loadtest.report.formatting import Json
from loadtest.report.plots.figure import GRID, INK, MUTED, PHASES, Figure, Key, Look, Panel, Table, legend, look_of, nothing

Axes = Any  # matplotlib.axes.Axes, which has no types
Groups = dict[str, tuple[Cell, ...]]


def survival(groups: Groups) -> Figure | None:
    """Kaplan-Meier curves of time to final answer (s) at the highest shared level; None without data."""
    panels = []
    end = max((p[0] for c in flat(groups) for p in _survival_points(c, top_level(groups[c.deployment]))), default=1.0)
    lines: list[tuple[str, ...]] = []
    for text, group in groups.items():
        top = top_level(group)
        panels.append(Panel(f"{text}, {formatting.users(top)}", partial(_survivors, of=group, concurrency=top, end=end)))
        for cell in group:
            for share in (0.75, 0.5, 0.25, 0.1):
                lines.append((cell.name, str(top), formatting.percent(share), _reached(cell, top, share)))
    if not any(_survival_points(cell, top_level(group)) for group in groups.values() for cell in group):
        return None
    cells = flat(groups)
    return Figure(
        name="survival",
        title=title("Share of requests still without their final answer", cells),
        caption="Kaplan-Meier estimate at the highest level; requests cut off or truncated leave at their last chunk. "
        "Band: 95 % interval. Further left is better.",
        says="Survival curves of time to final answer, one panel for each deployment, one step line for each runtime.",
        panels=tuple(panels),
        keys=legend(cells),
        table=Table(("cell", "users", "still waiting", "after, s"), tuple(lines)),
    )


def _survival_points(cell: Cell, concurrency: int) -> list[list[float]]:
    curves = formatting.section(cell.level(concurrency), "curves")
    points = curves.get("time_to_final_answer_survival")
    return [p for p in points if len(p) >= 4] if isinstance(points, (list, tuple)) else []


def _reached(cell: Cell, concurrency: int, share: float) -> str:
    times = [p[0] for p in _survival_points(cell, concurrency) if p[1] <= share]
    return formatting.number(min(times)) if times else f"{formatting.DASH} (not reached)"


def _survivors(axes: Axes, *, of: tuple[Cell, ...], concurrency: int, end: float) -> None:
    empty = True
    for cell in of:
        points = _survival_points(cell, concurrency)
        if not points:
            continue
        empty = False
        look = look_of(cell)
        times = [0.0, *(p[0] for p in points)]
        axes.step(times, [1.0, *(p[1] for p in points)], where="post", color=look.colour, linestyle=look.dash)
        banded = [p for p in points if p[2] is not None and p[3] is not None]
        lows, highs = [p[2] for p in banded], [p[3] for p in banded]
        axes.fill_between([p[0] for p in banded], lows, highs, step="post", color=look.colour, alpha=0.15, linewidth=0)
    if empty:
        nothing(axes)
    sizes = ", ".join(f"n {cell.short} {formatting.count((cell.level(concurrency) or {}).get('n_requests'))}" for cell in of)
    _share_axis(axes)
    axes.set_xlim(0, end * 1.02 or 1.0)
    axes.set_xlabel(f"seconds since the request was sent\n{sizes}", linespacing=1.35, fontsize=7.5)
    axes.set_ylabel("still waiting")


def _share_axis(axes: Axes) -> None:
    axes.set_ylim(0, 1.03)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])


def _curve(cell: Cell, concurrency: int, name: str) -> Any:
    return formatting.section(cell.level(concurrency), "curves").get(name)


def gaps(groups: Groups) -> Figure | None:
    """Share of the gaps between tokens up to each length (ms) at the highest shared level; None without data."""
    tops = {text: top_level(group) for text, group in groups.items()}
    cells = flat(groups)
    if not any(_histogram(cell, tops[cell.deployment]) for cell in cells):
        return None
    edges = [edge for cell in cells if (h := _histogram(cell, tops[cell.deployment])) is not None for edge in h[0]]
    span = (min(edges), max(edges))
    lines = []
    for cell in cells:
        level = cell.level(tops[cell.deployment])
        values = [formatting.estimate(level, "itl_s", which) for which in ("p50", "p95", "p99")]
        texts = [formatting.number(None if e.value is None else e.value * 1000) for e in values]
        lines.append((cell.name, str(tops[cell.deployment]), formatting.count(values[0].n), *texts))
    return Figure(
        name="token-gaps",
        title=title("Gaps between tokens", cells),
        caption="Share of the times from one token to the next that were at most so long, at the highest level, weighted "
        "by token; logarithmic axis. Steep: even; further left: faster. A long tail to the right is felt as stutter.",
        says="Cumulative distributions of the gap between consecutive tokens, one panel for each deployment, one step line "
        "for each runtime.",
        panels=tuple(
            Panel(f"{t}, {formatting.users(tops[t])}", partial(_shorter, of=g, top=tops[t], span=span))
            for t, g in groups.items()
        ),
        keys=legend(cells),
        table=Table(("cell", "users", "n gaps", "median, ms", "p95, ms", "p99, ms"), tuple(lines)),
    )


def _histogram(cell: Cell, concurrency: int) -> tuple[list[float], list[float]] | None:
    found = _curve(cell, concurrency, "itl_histogram") or {}
    edges, shares = found.get("edges_s") or [], found.get("shares") or []
    return ([edge * 1000 for edge in edges], list(shares)) if shares and len(edges) == len(shares) + 1 else None


def _shorter(axes: Axes, *, of: tuple[Cell, ...], top: int, span: tuple[float, float]) -> None:
    found = [(cell, histogram) for cell in of if (histogram := _histogram(cell, top)) is not None]
    for cell, (edges, shares) in found:
        look = look_of(cell)
        axes.plot(edges, [0.0, *accumulate(shares)], color=look.colour, linestyle=look.dash)
    if not found:
        nothing(axes)
    elif span[0] > 0:
        _log_axis(axes, *span)
    sizes = ", ".join(f"n {c.short} {formatting.count(formatting.estimate(c.level(top), 'itl_s', 'p50').n)}" for c in of)
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


def _by_runtime(groups: Groups, name: str) -> list[tuple[Cell, int, float]]:
    """Each cell that has the curve, its level, and the end (s) of the time axis it shares with its deployment.

    Runtime by runtime, so that in a grid with one column for each deployment the two stand one above the other.
    """
    found = []
    for group in groups.values():
        top = top_level(group)
        end = max((_end_s(_curve(cell, top, name)) for cell in group if _asked(cell, top)), default=0.0)
        found += [(cell, top, end or 1.0) for cell in group if _curve(cell, top, name) and _asked(cell, top)]
    return sorted(found, key=lambda row: row[0].family != found[0][0].family)


def _asked(cell: Cell, concurrency: int) -> bool:
    """Was any request sent at this level? Without one its clock has no beginning."""
    return (cell.level(concurrency) or {}).get("n_requests") != 0


def _end_s(curve: Any) -> float:
    times = [r.get("ended_s") for r in curve] if isinstance(curve, list) else (curve or {}).get("t_s") or []
    return max((t for t in times if t is not None), default=0.0)


def server(groups: Groups) -> Figure | None:
    """KV cache in use (%), requests running and waiting, over time (s), for each cell; None without data."""
    shown = [(cell, top, end) for cell, top, end in _by_runtime(groups, "server") if _curve(cell, top, "server").get("t_s")]
    if not shown:
        return None
    lines = tuple((cell.name, str(top), *_server_figures(_curve(cell, top, "server"))) for cell, top, _ in shown)
    return Figure(
        name="server",
        title=title("What the server said about itself", (cell for cell, _, _ in shown)),
        caption="At the highest level, read once a second from the runtime's own /metrics: share of the KV cache in use; "
        "requests running (solid) and waiting (dotted). The same time axis for both runtimes.",
        says="For each cell, two small charts over time: share of the KV cache in use, and requests running and waiting.",
        panels=tuple(
            Panel(
                f"{c.short}: {c.deployment}, {formatting.users(top)}",
                partial(_server_panel, cell=c, top=top, end=end),
                stacked=2,
            )
            for c, top, end in shown
        ),
        keys=(),
        columns=len(groups) if 1 < len(groups) < 4 else 3,
        bottom_inches=0.4,
        height_inches=2.5,
        table=Table(("cell", "users", "n readings", "peak KV use", "peak running", "peak waiting"), lines),
    )


def _server_figures(curve: Json) -> tuple[str, str, str, str]:
    """Number of readings, and the peaks of what they told."""
    peaks = [
        max((v for v in curve.get(key) or () if v is not None), default=None) for key in ("kv_usage", "running", "waiting")
    ]
    return (
        formatting.count(len(curve["t_s"])),
        formatting.percent(peaks[0]),
        formatting.count(peaks[1]),
        formatting.count(peaks[2]),
    )


def _series(curve: Json, key: str) -> tuple[list[float], list[float]]:
    pairs = [
        (t, v) for t, v in zip(curve.get("t_s") or (), curve.get(key) or (), strict=False) if t is not None and v is not None
    ]
    return [t for t, _ in pairs], [v for _, v in pairs]


def _server_panel(upper: Axes, lower: Axes, *, cell: Cell, top: int, end: float) -> None:
    curve, look = _curve(cell, top, "server"), look_of(cell)
    times, usage = _series(curve, "kv_usage")
    upper.fill_between(times, [100 * u for u in usage], color=look.colour, alpha=0.2, linewidth=0)
    upper.plot(times, [100 * u for u in usage], color=look.colour, linewidth=1)
    for axes in (upper, lower):
        axes.set_xlim(0, end)
    upper.set_ylim(0, 105)
    upper.set_yticks([0, 50, 100])
    upper.set_ylabel("KV cache, %")
    upper.tick_params(labelbottom=False)
    for key, dash in (("running", "-"), ("waiting", ":")):
        lower.step(*_series(curve, key), where="post", color=look.colour, linestyle=dash, linewidth=1.2)
    lower.set_ylim(0, max(top, *_series(curve, "waiting")[1], 1) * 1.15)
    lower.set_ylabel("requests")
    lower.set_xlabel(f"seconds since the level began, n {formatting.count(len(times))} readings")


def timeline(groups: Groups) -> Figure | None:
    """What each stream was doing over time (s), for each cell; None without data."""
    shown = _by_runtime(groups, "timeline")
    if not shown:
        return None
    lines = []
    for cell, top, _ in shown:
        requests = _curve(cell, top, "timeline")
        ends = [r["ended_s"] for r in requests if r.get("ended_s") is not None]
        odd = sum(r.get("outcome") != "ok" for r in requests)
        lines.append(
            (
                cell.name,
                str(top),
                formatting.count(len(requests)),
                formatting.count(odd),
                formatting.number(max(ends, default=None)),
            )
        )
    keys = tuple(Key(name, Look(MUTED if share else GRID, share=share or 1), kind="box") for name, share in PHASES)
    return Figure(
        name="timeline",
        title=title("What each stream was doing", (cell for cell, _, _ in shown)),
        caption="One row for each stream at the highest level, the same time axis for both runtimes; a cross ends a request "
        "that did not end well. Faint: warm-up.",
        says="Timeline of requests, one row for each concurrent stream, each bar split into waiting, thinking and "
        "answering.",
        panels=tuple(
            Panel(f"{c.short}: {c.deployment}, {formatting.users(top)}", partial(_streams, cell=c, top=top, end=end))
            for c, top, end in shown
        ),
        keys=keys,
        table=Table(("cell", "users", "requests drawn", "not ok", "last end, s"), tuple(lines)),
        columns=len(groups) if 1 < len(groups) < 4 else 3,
        bottom_inches=0.4,
        height_inches=2.3,
    )


def _streams(axes: Axes, *, cell: Cell, top: int, end: float) -> None:
    from matplotlib.collections import PolyCollection

    requests, look = _curve(cell, top, "timeline"), look_of(cell)
    rows = {stream: row for row, stream in enumerate(sorted({_stream(r) for r in requests}))}
    for phase, faint in (("warmup", 0.4), ("measure", 1.0)):
        chosen = [r for r in requests if r.get("phase", "measure") == phase]
        for (first, last), (_, share) in zip(SPANS, PHASES, strict=True):
            boxes = [box for r in chosen if (box := _box(r, rows[_stream(r)], first, last)) is not None]
            colour = look.colour if share else GRID
            axes.add_collection(PolyCollection(boxes, facecolors=colour, alpha=(share or 1) * faint, linewidths=0))
    odd = [(r["ended_s"], rows[_stream(r)]) for r in requests if r.get("outcome") != "ok" and r.get("ended_s") is not None]
    axes.plot([t for t, _ in odd], [u for _, u in odd], linestyle="", marker="x", color=INK, markersize=4, clip_on=False)
    axes.set_xlim(0, end)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(0, len(rows), max(1, len(rows) // 8)))
    axes.grid(visible=False)
    axes.set_ylabel("stream")
    axes.set_xlabel(f"seconds since the level began, n {formatting.count(len(requests))} requests")


SPANS = (("sent_s", "first_s"), ("first_s", "answer_s"), ("answer_s", "ended_s"))


def _stream(request: Json) -> tuple[str, int]:
    return str(request.get("worker") or ""), int(request.get("user") or 0)


def _box(request: Json, row: int, start: str, end: str) -> list[tuple[float, float]] | None:
    """Corners of one phase of one request; a phase that never ended runs to the end of the request."""
    begin, finish = request.get(start), request.get(end)
    if begin is None:
        return None
    finish = request["ended_s"] if finish is None else finish
    low, high = row - 0.38, row + 0.38
    return [(begin, low), (finish, low), (finish, high), (begin, high)]
