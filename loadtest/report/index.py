"""The index of a folder of runs: a row for each run, with its health and its verdict, and a link to its page."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from loadtest.metrics.schema import Metrics
from loadtest.records.manifest import Manifest
from loadtest.report.cells import FAMILIES
from loadtest.report.checklist import State, gate_checks
from loadtest.report.decision import CONCURRENCY, ENGINE, RESULT, decision_lines
from loadtest.report.formatting import DASH, clean, when


@dataclass(frozen=True, slots=True)
class Entry:
    """One run folder: what it holds, or the problem with it; `paged`: it has a page to link to."""

    folder: str
    metrics: Metrics | None
    manifest: Manifest | None
    paged: bool
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the index, as it is shown. `link`: empty where there is no page."""

    folder: str
    link: str
    name: str
    when: str
    engines: str
    simulated: bool
    state: State
    health: str
    answer: str


def index_rows(entries: list[Entry]) -> tuple[Row, ...]:
    """The rows, newest run first; runs without a date last."""
    dated = sorted(entries, key=lambda entry: entry.folder)
    return tuple(_row(entry) for entry in sorted(dated, key=lambda entry: -(_started(entry) or 0.0)))


def _started(entry: Entry) -> float | None:
    return None if entry.manifest is None else entry.manifest.started_unix_s


def _row(entry: Entry) -> Row:
    state, health = _health(entry)
    name = entry.manifest.name if entry.manifest is not None else ""
    return Row(
        folder=clean(entry.folder), link=f"./{quote(entry.folder)}/report.html" if entry.paged else "",
        name=clean(name or entry.folder), when=when(_started(entry)), engines=_engines(entry),
        simulated=any(one is not None and one.simulated for one in (entry.manifest, entry.metrics)),
        state=state, health=health, answer=_answer(entry),
    )  # fmt: skip


def _engines(entry: Entry) -> str:
    cells = () if entry.manifest is None else entry.manifest.cells
    named = {FAMILIES.get(cell.engine.removesuffix("-sim"), FAMILIES["other"]) for cell in cells}
    return ", ".join(name for name in FAMILIES.values() if name in named) or DASH


def _health(entry: Entry) -> tuple[State, str]:
    if entry.metrics is None or entry.manifest is None:
        return "unknown", "not analysed"
    checks = gate_checks(entry.metrics, entry.manifest)
    failed = [f"{check.name}: {check.words}" for check in checks if check.state == "fail"]
    if failed:
        return "fail", "; ".join(failed)
    unchecked = [check.name for check in checks if check.state == "unknown"]
    return ("unknown", f"not checked: {', '.join(unchecked)}") if unchecked else ("pass", "sound")


def _answer(entry: Entry) -> str:
    """The first lines of the run's decision, or why there are none."""
    if entry.problem:
        return clean(entry.problem)
    if entry.metrics is None or entry.manifest is None:
        return "Not analysed yet: loadtest report of this folder makes its page"
    lines = decision_lines(entry.metrics, entry.manifest)
    return ". ".join(line.answer for line in lines if line.asks in (ENGINE, CONCURRENCY, RESULT))
