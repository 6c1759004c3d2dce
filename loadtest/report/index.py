"""The index of a folder of runs: a row for each run, with its health, its answer and its best configuration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from loadtest.metrics.schema import Metrics
from loadtest.records.manifest import Manifest
from loadtest.report.cells import FAMILIES, ShownCell, best_cell, cells_of, points
from loadtest.report.checklist import State, gate_checks
from loadtest.report.decision import Price
from loadtest.report.formatting import DASH, clean, when
from loadtest.report.overview import Badge, Overview, Row, answer_of, badge_of, configurations
from loadtest.report.plots.figure import Figure
from loadtest.report.plots.history import history_charts

_WORST_FIRST = ("doubtful", "incomplete", "not analysed", "imported", "partly checked", "sound")
NOT_ANALYSED = Badge(("not analysed",), "")


@dataclass(frozen=True, slots=True)
class Entry:
    """One run folder: what it holds, or the problem with it; `paged`: it has a page to link to."""

    folder: str
    metrics: Metrics | None
    manifest: Manifest | None
    paged: bool
    problem: str = ""


@dataclass(frozen=True, slots=True)
class IndexRow:
    """One row of the index, as it is shown. `number`: by age, the oldest is 1. `link`: empty where there is no page.
    `figures`: of the run's best configuration; None without one."""

    number: int
    folder: str
    link: str
    name: str
    when: str
    engines: str
    simulated: bool
    badge: Badge
    answer: str
    figures: Row | None

    @property
    def state(self) -> State:
        """Whether its checks passed."""
        labels = set(self.badge.labels)
        if labels & {"doubtful", "incomplete"}:
            return "fail"
        return "unknown" if labels & {"imported", "partly checked", "not analysed"} else "pass"


def index_rows(entries: list[Entry]) -> tuple[IndexRow, ...]:
    """The rows, newest run first; runs without a date last."""
    newest = _newest_first(entries)
    return tuple(_row(entry, len(newest) - i) for i, entry in enumerate(newest))


def _newest_first(entries: list[Entry]) -> list[Entry]:
    dated = sorted(entries, key=lambda entry: entry.folder)
    return sorted(dated, key=lambda entry: -(_started(entry) or 0.0))


def _started(entry: Entry) -> float | None:
    return None if entry.manifest is None else entry.manifest.started_unix_s


def _row(entry: Entry, number: int) -> IndexRow:
    name = entry.manifest.name if entry.manifest is not None else ""
    cell = _best(entry)
    return IndexRow(
        number=number,
        folder=clean(entry.folder), link=f"./{quote(entry.folder)}/report.html" if entry.paged else "",
        name=clean(name or entry.folder), when=when(_started(entry)), engines=_engines(entry),
        simulated=any(one is not None and one.simulated for one in (entry.manifest, entry.metrics)),
        badge=_badge(entry), answer=_answer(entry), figures=None if cell is None else _figures([cell]).rows[0],
    )  # fmt: skip


def _figures(cells: Sequence[ShownCell]) -> Overview:
    """Costs in GPU-hours: runs have prices of their own."""
    return configurations(cells, Price(None, ""), with_slos=True)


def _best(entry: Entry) -> ShownCell | None:
    cells = _measured(entry)
    return best_cell(cells) if cells else None


def _measured(entry: Entry) -> list[ShownCell]:
    """The cells that have figures."""
    cells = () if entry.metrics is None else cells_of(entry.metrics)
    return [cell for cell in cells if points(cell)]


def _engines(entry: Entry) -> str:
    cells = () if entry.manifest is None else entry.manifest.cells
    named = {FAMILIES.get(cell.engine.removesuffix("-sim"), FAMILIES["other"]) for cell in cells}
    return ", ".join(name for name in FAMILIES.values() if name in named) or DASH


def _badge(entry: Entry) -> Badge:
    if entry.metrics is None or entry.manifest is None:
        return NOT_ANALYSED
    return badge_of(entry.metrics, gate_checks(entry.metrics, entry.manifest))


def _answer(entry: Entry) -> str:
    """The run's answer, or why there is none."""
    if entry.problem:
        return clean(entry.problem)
    if entry.metrics is None or entry.manifest is None:
        return "Not analysed yet: loadtest report of this folder makes its page"
    return answer_of(entry.metrics, entry.manifest)


def index_columns() -> Overview:
    """Titles of the columns of figures."""
    return _figures(())


# The first screen ----------------------------------------------------------------------------------------------------


def index_answer(rows: Sequence[IndexRow]) -> str:
    """What the newest run says."""
    if not rows:
        return "This folder holds no run."
    return f"Newest run, {rows[0].name}: {rows[0].answer[:1].lower()}{rows[0].answer[1:]}"


def index_badge(rows: Sequence[IndexRow]) -> Badge:
    """The worst label of all runs, and how many have which."""
    counts = Counter(label for row in rows for label in row.badge.labels)
    worst = [label for label in _WORST_FIRST if counts[label]][:1]
    said = ", ".join(f"{n} {label}" for label, n in counts.items())
    return Badge(tuple(worst or counts), f"{len(rows)} run{'' if len(rows) == 1 else 's'}: {said}.")


def index_charts(entries: list[Entry]) -> tuple[Figure, ...]:
    """The best configuration of each engine, run by run; nothing where no run has any."""
    found = []
    for age, entry in enumerate(reversed(_newest_first(entries)), 1):
        measured = _measured(entry)
        for family in FAMILIES:
            if cells := [cell for cell in measured if cell.family == family]:
                found.append((age, best_cell(cells)))
    return history_charts(found) if found else ()
