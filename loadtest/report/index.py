"""The index of a folder of runs: a row for each run, with its health and its verdict, and a link to its page."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from loadtest.report import cells as views
from loadtest.report import checklist, decision, formatting
from loadtest.report.formatting import Json


@dataclass(frozen=True, slots=True)
class Entry:
    """One run folder: what it holds, or why it cannot be read; `paged`: it has a page to link to."""

    folder: str
    metrics: Json
    manifest: Json
    paged: bool
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the index, as it is shown. `state`: pass, fail, unknown; `link`: empty where there is no page."""

    folder: str
    link: str
    name: str
    when: str
    engines: str
    simulated: bool
    state: str
    health: str
    answer: str


def rows(entries: list[Entry]) -> tuple[Row, ...]:
    """The rows, newest run first; runs without a date last."""
    dated = sorted(entries, key=lambda entry: entry.folder)
    return tuple(_row(entry) for entry in sorted(dated, key=lambda entry: -(_started(entry) or 0.0)))


def _started(entry: Entry) -> float | None:
    return formatting.finite(entry.manifest.get("started_unix_s"))


def _row(entry: Entry) -> Row:
    name = formatting.clean(entry.manifest.get("name") or entry.folder)
    link = f"./{quote(entry.folder)}/report.html" if entry.paged else ""
    cells = views.cells(entry.metrics or entry.manifest)
    runtimes = ", ".join(dict.fromkeys(cell.short for cell in cells)) or formatting.DASH
    state, health = _health(entry)
    return Row(
        folder=formatting.clean(entry.folder), link=link, name=name, when=when(entry.manifest.get("started_unix_s")),
        engines=runtimes, simulated=bool(entry.manifest.get("simulated")) or decision.simulated(entry.metrics),
        state=state, health=health, answer=_answer(entry),
    )  # fmt: skip


def _health(entry: Entry) -> tuple[str, str]:
    if not entry.metrics:
        return "unknown", "not analysed"
    checks = checklist.checks(entry.metrics, entry.manifest)
    failed = [check for check in checks if check.state == "fail"]
    if failed:
        return "fail", "; ".join(f"{check.name}: {check.words}" for check in failed)
    open_ones = [check.name for check in checks if check.state == "unknown"]
    return ("unknown", f"not checked: {', '.join(open_ones)}") if open_ones else ("pass", "sound")


def _answer(entry: Entry) -> str:
    """The first line of the run's decision, or why there is none."""
    if entry.problem:
        return formatting.clean(entry.problem)
    if not entry.metrics:
        return "Not analysed yet: loadtest report of this folder makes its page"
    found = decision.lines(entry.metrics, entry.manifest)
    return "; ".join(line.answer for line in found if line.asks in ("Which runtime", "How many users", "Result"))


def when(unix_s: Any) -> str:
    """A time in words, UTC; empty where it is none.

    >>> when(0.5), when(None)
    ('1 January 1970, 00:00 UTC', '')
    """
    seconds = formatting.finite(unix_s)
    if seconds is None or not 0 < seconds < 4e9:
        return ""
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%-d %B %Y, %H:%M UTC")
