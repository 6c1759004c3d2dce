"""What a page says of a run that another tool measured: whose figures they are, what is unknown, what the tool told."""

from __future__ import annotations

from collections.abc import Sequence

from loadtest.records.imported import Imported, ImportedPass
from loadtest.report.formatting import DASH, clean, count, listed, number
from loadtest.report.plots.figure import Table


def imported_words(imported: Imported) -> str:
    """What a reader must know before any figure."""
    return f"Measured by {clean(imported.name)}, not by loadtest: nothing here is verified."


def source_words(imported: Imported) -> str:
    """Tool and files, for the head of a page: `imported from vLLM bench (vllm-c8.json)`."""
    files = list(dict.fromkeys(clean(one.file) for one in imported.passes))
    named = listed(files) if len(files) < 4 else f"{len(files)} files"
    return f"imported from {clean(imported.name)} ({named})"


def not_told_table(imported: Imported) -> Table:
    """What the files do not hold, and what is unknown for it."""
    rows = tuple((clean(one.what), clean(one.so)) for one in imported.not_told)
    return Table(("not told", "so unknown here"), rows, tuple(map(clean, imported.notes)))


def told_table(imported: Imported) -> Table | None:
    """The tool's own figures, a column for each pass; None where it told none."""
    passes = [one for one in imported.passes if one.figures]
    names = list(dict.fromkeys(figure.name for one in passes for figure in one.figures))
    values = [{figure.name: figure.value for figure in one.figures} for one in passes]
    rows = tuple((clean(name), *(number(of[name]) if name in of else DASH for of in values)) for name in names)
    if not rows:
        return None
    note = f"As {clean(imported.name)} names and defines them, in its units; without intervals."
    return Table(("figure", *_heads(passes)), rows, (note,))


def _heads(passes: Sequence[ImportedPass]) -> tuple[str, ...]:
    several = len({one.concurrency for one in passes}) < len(passes)
    return tuple(f"concurrency {count(one.concurrency)}{f', repeat {one.repeat}' if several else ''}" for one in passes)


def totals_alone(imported: Imported) -> str:
    """The answer where no file tells single requests."""
    return f"{clean(imported.name)} tells totals alone: see its own figures."
