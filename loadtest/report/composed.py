"""What is composed of bursts, as a table, and what holds of it: for the page and the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from loadtest.metrics.figures import Bounded
from loadtest.metrics.level_schema import ComposedLevel
from loadtest.report.cells import ShownCell
from loadtest.report.formatting import DASH, clean, count, number, span
from loadtest.report.plots.figure import Table

_HEAD = (
    "cell",
    "concurrency",
    "starts",
    "final answer, p50, s",
    "p90, s",
    "mean, s",
    "tokens/s per user",
    "tokens/s in all",
)


def composed_table(cells: Sequence[ShownCell]) -> Table | None:
    """Each level that was composed; None where none was."""
    rows = [(cell.name, *_row(level)) for cell in cells for level in cell.figures.composed]
    if not rows:
        return None
    n = max(level.n_answers for cell in cells for level in cell.figures.composed)
    composed = (
        "Composed, not waited for: seconds of a step from bursts, lengths from"
        f" {count(n)} natural answers. Intervals of times: over starts and prompts, for prompts of this kind; of tokens/s:"
        " over starts, for these prompts."
    )
    return Table(_HEAD, tuple(rows), (composed, *condition_lines(cells)))


def _row(level: ComposedLevel) -> tuple[str, ...]:
    times = level.time_to_final_answer_s
    figures = [Bounded(None, None)] * 3 if times is None else [times.p50, times.p90, times.mean]
    shown = [*figures, level.tokens_per_s_per_user, level.output_tokens_per_s]
    return (count(level.concurrency), count(level.n_starts), *map(_with_span, shown))


def _with_span(found: Bounded) -> str:
    return DASH if found.value is None else f"{number(found.value)}\n{span(found)}".rstrip()


def condition_lines(cells: Sequence[ShownCell]) -> list[str]:
    """The conditions that are broken, each with its cell and by how much; that all hold, where they do."""
    checks = [(cell, one) for cell in cells for one in cell.figures.conditions]
    broken = [
        f"{word.capitalize()}: {cell.name}: {one.name}: {clean(one.reason)}."
        for word in ("broken", "undecided")
        for cell, one in checks
        if one.status == word
    ]
    untold = sorted({one.name for _, one in checks if one.status == "not checked"})
    kept = ["All conditions hold."] if checks and not broken and not untold else []
    return [*broken, *kept, *([f"Not checked everywhere: {', '.join(untold)}."] if untold else [])]


def composed_lines(cells: Sequence[ShownCell]) -> list[str]:
    """The same for a terminal: one line a level, figures without intervals."""
    rows = [(cell, level) for cell in cells for level in cell.figures.composed if level.time_to_final_answer_s is not None]
    if not rows:
        return condition_lines(cells)
    head = ("composed of bursts", "concurrency", "starts", "answer p50 s", "p90 s", "per user", "total")
    table = [head, *((cell.id, *_short_row(level)) for cell, level in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(row[1:], widths[1:], strict=True))])
        for row in table
    ]
    return ["", *(line.rstrip() for line in lines), *condition_lines(cells)]


def _short_row(level: ComposedLevel) -> tuple[str, ...]:
    times = level.time_to_final_answer_s
    figures = [None if times is None else times.p50.value, None if times is None else times.p90.value]
    figures += [level.tokens_per_s_per_user.value, level.output_tokens_per_s.value]
    return (count(level.concurrency), count(level.n_starts), *map(number, figures))
