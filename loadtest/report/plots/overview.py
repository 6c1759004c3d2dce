"""The two charts on top of a page: tokens/s and time to final answer against concurrency, a small multiple for each
deployment, on scales that all of them share, with the SLOs drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from loadtest.errors import UsageError
from loadtest.metrics.catalogue import METRICS, Statistic
from loadtest.metrics.figures import Estimate
from loadtest.metrics.slo import Slo, parse_slo
from loadtest.report.cells import Groups, ShownCell, by_level, flat, labelled, load_title, points, typical_statistic
from loadtest.report.formatting import clean, count, needs
from loadtest.report.plots.concurrency import concurrency_table, draw_line
from loadtest.report.plots.figure import GRID, INK, MUTED, Figure, Key, Panel, Table, look_of, nothing, one_of_each

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SPEED, TIMES = "overview-speed", "overview-time"
MOST_DEPLOYMENTS = 6
CARD_PX, GAP_PX, PX_PER_INCH = 566, 12, 96
OFF_SCALE = 1.7  # an SLO farther above the data than this factor is named at the edge, not drawn


@dataclass(frozen=True, slots=True)
class _Row:
    """One curve of a chart in all its panels: they share its axis."""

    metric: str
    statistic: Statistic
    title: str
    short: str  # in narrow panels
    slos: tuple[Slo, ...]
    levels: tuple[int, ...]
    top: float
    narrow: bool


def speed_chart(groups: Groups, slos: Sequence[str]) -> Figure:
    """Tokens/s per user, and in total."""
    cells = flat(groups)
    per_user = typical_statistic(cells, "tokens_per_s_per_user")
    rows = (
        _row(groups, slos, "tokens_per_s_per_user", per_user, "tokens/s per user", "per user"),
        _row(groups, slos, "output_tokens_per_s", "value", "tokens/s in total", "in total"),
    )
    caption = f"Per user: {'mean' if per_user == 'mean' else 'median'}. Higher is better."
    return _chart(groups, SPEED, "Tokens/s per user and in total", caption, rows)


def time_chart(groups: Groups, slos: Sequence[str]) -> Figure:
    """Time to final answer: the median, and the 90th percentile; to the first token where no answer is known."""
    metric = "ttft_s" if _has_no_answer(flat(groups)) else "time_to_final_answer_s"
    middle = typical_statistic(flat(groups), metric)
    titles = ("mean, s", "mean, s") if middle == "mean" else ("median (p50), s", "p50, s")
    rows = (
        _row(groups, slos, metric, middle, *titles),
        _row(groups, slos, metric, "p90", "90th percentile (p90), s", "p90, s"),
    )
    return _chart(groups, TIMES, METRICS[metric].title, "Lower is better.", rows)


def _has_no_answer(cells: Iterable[ShownCell]) -> bool:
    """Do responses end, at every level, without anyone who says that an answer did? So of imported runs."""
    outcomes = [level.outcomes for _, level in by_level(cells)]
    return bool(outcomes) and all("ended" in of and "ok" not in of for of in outcomes)


def _row(groups: Groups, slos: Sequence[str], metric: str, statistic: Statistic, title: str, short: str) -> _Row:
    cells = flat(groups)
    limits = tuple(one for one in _parsed(slos) if one.metric == metric and _drawn_with(one) in (statistic, "value"))
    found = [point.at(metric, statistic) for cell in cells for point in points(cell)]
    ends = [end for one in found if one.known for end in (one.value, one.high) if end is not None]
    highest = max(ends, default=0.0)
    near = [one.limit for one in limits if one.limit <= OFF_SCALE * highest]
    top = max([highest, *near]) * 1.12 or 1.0
    levels = tuple(sorted({point.concurrency for cell in cells for point in points(cell)}))
    return _Row(metric, statistic, title, short, limits, levels, top, narrow=len(groups) > 3)


def _drawn_with(slo: Slo) -> str:
    """The statistic that an SLO is drawn with: a limit on a tail with the 90th percentile."""
    return {"p95": "p90", "p99": "p90", "max": "p90", "mean": "p50"}.get(slo.statistic, slo.statistic)


def _parsed(slos: Iterable[str]) -> list[Slo]:
    found = []
    for text in slos:
        try:
            found.append(parse_slo(text))
        except UsageError:  # of a file that another release wrote: named in words, drawn nowhere
            continue
    return found


def _chart(groups: Groups, name: str, title: str, caption: str, rows: tuple[_Row, _Row]) -> Figure:
    shown = dict(list(groups.items())[:MOST_DEPLOYMENTS])
    cells = flat(groups)
    cut = f" The first {MOST_DEPLOYMENTS} of {len(groups)} deployments; the tables have all." if shown != groups else ""
    alone = len(shown) == 1
    panels = (
        [Panel(row.title, partial(_curve, cells=cells, row=row)) for row in rows]
        if alone
        else [
            Panel(text, partial(_curves, cells=group, rows=rows), 2, _short(text, len(shown)))
            for text, group in shown.items()
        ]
    )
    width_px = (CARD_PX - GAP_PX * (len(panels) - 1)) / len(panels)
    lines = max((panel.drawn_title.count("\n") for panel in panels), default=0)
    return Figure(
        name=name,
        title=labelled(title, cells),
        caption=f"{caption} {_sizes(cells)} Bars: 95 % CI.{cut}",
        says=f"{rows[0].title} and {rows[1].title} against {load_title(cells)}, a line for each engine. The table of every"
        " level has the values.",
        panels=tuple(panels),
        keys=_keys(cells),
        table=_values(cells, rows),
        width_inches=width_px / PX_PER_INCH,
        height_inches=2.5 if alone else 2.92 + 0.1 * lines,
        title_size=7.5 if lines else 8.5,
        left_inches=(0.36 if len(shown) < 4 else 0.28) + (0.05 if max(row.top for row in rows) >= 1000 else 0),
        bottom_inches=0.36,
        columns=len(panels),
        top_inches=0.32 if alone else 0.46 + 0.1 * max(0, lines - 1),
        gap_inches=0.3,
    )


def _short(deployment: str, n_panels: int) -> str:
    """A title as wide as its panel: on several lines, and cut, where there are many panels.

    >>> _short("SGLang Qwen2.5-7B-Instruct, 2 GPUs", 5)
    'SGLang\\nQwen2.5…uct\\n2 GPUs'
    """
    if n_panels < 4:
        return deployment
    most = 56 // n_panels
    model, _, rest = deployment.partition(", ")
    return "\n".join(_cut(word, most) for word in (*model.split(" "), rest) if word)


def _cut(word: str, most: int) -> str:
    return word if len(word) <= most else f"{word[: most - 4]}…{word[-3:]}"


def _keys(cells: Iterable[ShownCell]) -> tuple[Key, ...]:
    """One entry for each engine (or run); the title says what is simulated."""
    return tuple(Key(cell.short, look_of(cell), hollow=cell.simulated) for cell in one_of_each(cells))


def _sizes(cells: Iterable[ShownCell]) -> str:
    """How many requests the levels have."""
    sizes = [level.n_requests for _, level in by_level(cells)]
    if not sizes:
        return ""
    least, most = count(min(sizes)), count(max(sizes))
    return f"n = {least} requests a level." if least == most else f"n = {least} to {most} requests a level."


def _values(cells: tuple[ShownCell, ...], rows: Iterable[_Row]) -> Table:
    first, second = rows
    if first.metric == second.metric:
        return concurrency_table(cells, first.metric, (first.statistic, second.statistic))
    left = concurrency_table(cells, first.metric, (first.statistic,))
    right = concurrency_table(cells, second.metric, (second.statistic,))
    pairs = zip(left.rows, right.rows, strict=True)
    return Table((*left.head[:3], first.title, "95 % CI", second.title, "95 % CI"), tuple((*a, *b[3:]) for a, b in pairs))


# Drawing -------------------------------------------------------------------------------------------------------------


def _curves(upper: Axes, lower: Axes, *, cells: tuple[ShownCell, ...], rows: tuple[_Row, _Row]) -> None:
    for axes, row in zip((upper, lower), rows, strict=True):
        title = row.short if row.narrow else row.title
        axes.text(-0.02, 1.05, title, transform=axes.transAxes, ha="left", va="bottom", size=7, color=MUTED)
        _curve(axes, cells=cells, row=row)
    upper.set_xlabel("")
    upper.tick_params(labelbottom=False)


def _curve(axes: Axes, *, cells: tuple[ShownCell, ...], row: _Row) -> None:
    axes.set_ylim(0, row.top)
    axes.locator_params(axis="y", nbins=4)
    _levels_axis(axes, cells, row.levels, most=4 if row.narrow else 7)
    found = [point.at(row.metric, row.statistic) for cell in cells for point in points(cell)]
    if not any(one.known for one in found):
        nothing(axes, "\n".join([_why_missing(cells, row), *(_limit_words(slo, row) for slo in row.slos)]))
        axes.set_yticks([])
        return
    _mark_missing(axes, cells, row)
    for slo in row.slos:
        _limit(axes, slo, row)
    for index, cell in enumerate(cells):
        shift = 1 + 0.02 * (index - (len(cells) - 1) / 2)
        draw_line(axes, cell, [(one.concurrency * shift, one.at(row.metric, row.statistic)) for one in points(cell)])


def _why_missing(cells: Iterable[ShownCell], row: _Row) -> str:
    """Why no level has the figure: the n that it needs, or the reason that the analysis gave."""
    found = [point.at(row.metric, row.statistic) for cell in cells for point in points(cell)]
    said = [needs(one) or clean((isinstance(one, Estimate) and one.reason) or "") for one in found]
    words = next(filter(None, said), "no data").replace("needs ", "needs\n" if row.narrow else "needs ")
    return words if len(words) < 40 else f"{words[:38]}…"


def _mark_missing(axes: Axes, cells: Sequence[ShownCell], row: _Row) -> None:
    """Beside each level that was measured without the figure: for which cell, and the n that it needs."""
    marked = 0.0
    for concurrency in row.levels:
        levels = [(cell, one) for cell in cells for one in points(cell) if one.concurrency == concurrency]
        gone = [(cell, found) for cell, one in levels if not (found := one.at(row.metric, row.statistic)).known]
        if gone and concurrency >= 1.3 * marked:  # no text on another
            marked = concurrency
            words = needs(gone[0][1]).removeprefix("needs ") or "no figure"
            text = words if len(gone) == len(levels) else f"{gone[0][0].short}: {words}"
            axes.text(concurrency, 0.02 * row.top, text, rotation=90, ha="center", va="bottom", size=6, color=MUTED)


def _limit(axes: Axes, slo: Slo, row: _Row) -> None:
    """An SLO as a line, what breaks it shaded; at the edge, in words, where it is far from the data."""
    place, words = axes.get_yaxis_transform(), _limit_words(slo, row)
    if slo.limit > row.top:
        axes.text(0.99, 0.985, f"{words} ↑", transform=axes.transAxes, ha="right", va="top", size=6.5, color=INK)
        return
    axes.axhspan(slo.limit, row.top, color=GRID, alpha=0.5, linewidth=0) if slo.below else axes.axhspan(
        0, slo.limit, color=GRID, alpha=0.5, linewidth=0
    )
    axes.axhline(slo.limit, color=INK, linewidth=0.9, linestyle=(0, (4, 2)))
    above = slo.limit < 0.88 * row.top
    axes.text(0.99, slo.limit + (0.012 if above else -0.012) * row.top, words, transform=place, ha="right",
              va="bottom" if above else "top", size=6.5, color=INK)  # fmt: skip


def _limit_words(slo: Slo, row: _Row) -> str:
    statistic = f"{slo.statistic} " if slo.statistic not in (row.statistic, "value") else ""
    return f"SLO {statistic}{slo.sign} {slo.limit:g}"


def _levels_axis(axes: Axes, cells: Sequence[ShownCell], levels: tuple[int, ...], most: int) -> None:
    """A logarithmic axis of levels, with at most so many of them named."""
    if not levels:
        return
    axes.set_xscale("log", base=2)
    axes.set_xlim(levels[0] * 0.82, levels[-1] * 1.22)
    named = spread(levels, most)
    axes.set_xticks(named, [cells[0].load(level) for level in named])
    axes.minorticks_off()
    axes.set_xlabel(load_title(cells), fontsize=7)


def spread(levels: Sequence[int], most: int) -> list[int]:
    """The first, the last, and those between that stand apart on a logarithmic axis.

    >>> spread((1, 2, 3, 4, 5, 6, 8), 4)
    [1, 2, 4, 8]
    """
    if len(levels) < 2:
        return list(levels)
    apart = math.log(levels[-1] / levels[0]) / max(1, most - 1)
    found = [levels[0]]
    for level in levels[1:-1]:
        if math.log(level / found[-1]) >= 0.99 * apart and math.log(levels[-1] / level) >= 0.99 * apart:
            found.append(level)
    return [*found, levels[-1]]
