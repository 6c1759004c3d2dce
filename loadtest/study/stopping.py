"""When a study may stop: after each repeat, the cells that some open question still needs.

The verdicts hold although they were looked at in between (`decision.verdicts.SEQUENTIAL`), and so does whatever is on disk
when a run is interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from loadtest.analysis.compare import broken_words
from loadtest.decision.rounds import LEAST_ROUNDS
from loadtest.decision.verdicts import LOOKS
from loadtest.metrics.figures import Bounded
from loadtest.metrics.schema import CellFigures, ComparisonVerdict, FactorEffect, Metrics, PairDecision, RepeatUnit
from loadtest.report.verdicts import change_name
from loadtest.study.bursts.asked import Wanted, natural_cells
from loadtest.study.execution import Execution
from loadtest.study.schema import Study

_OPEN = ("undecided", "one start each", "too few samples")
_GONE = ("refused", "skipped")  # such a cell will not be measured by another repeat either


@dataclass(frozen=True, slots=True)
class StudyQuestion:
    """What is asked of some cells: which of two is faster, or what a change does, of which each pair of cells is a part.
    `starts`: how many more would decide (None: not known). `broken`: conditions of bursts that fail for these cells."""

    title: str
    cells: frozenset[str]
    verdict: ComparisonVerdict
    ratio: Bounded
    reason: str
    starts: int | None
    broken: tuple[str, ...]
    unit: RepeatUnit = "start"


def questions(study: Study, metrics: Metrics) -> list[StudyQuestion]:
    """The pairs of a run, but for those that show what a change does: there the change is the question."""
    titles = {cell.id: cell.title for cell in study.cells}
    varied = {pair for one in metrics.factors for pair in one.pairs}
    return [
        *(_of_pair(one, titles) for one in metrics.decisions if (one.a, one.b) not in varied),
        *(_of_change(one, pair, metrics) for one in metrics.factors for pair in one.pairs),
    ]


def _of_pair(one: PairDecision, titles: Mapping[str, str]) -> StudyQuestion:
    title, cells = f"{titles[one.a]} against {titles[one.b]}", frozenset((one.a, one.b))
    return StudyQuestion(title, cells, one.verdict, one.ratio, one.reason, one.n_more_starts, one.broken, one.unit)


def _of_change(one: FactorEffect, pair: tuple[str, str], metrics: Metrics) -> StudyQuestion:
    broken = [text for cell in metrics.cells if cell.id in pair for text in broken_words(cell.id, cell.conditions)]
    return StudyQuestion(change_name(one), frozenset(pair), one.verdict, one.ratio, one.reason, None, tuple(broken))


def look(execution: Execution, metrics: Metrics, repeat: int) -> Wanted:
    """What the next repeat measures: the cells of questions without a certain verdict; says which have one.

    Cells whose bursts break a condition get natural passes instead. What starts vary by is pooled over pairs, so a pair may
    become uncertain again: then it is measured again.
    """
    study, by_id = execution.study, {cell.id: cell for cell in metrics.cells}
    judged = study.until_decided and repeat >= LOOKS[0]
    asked = questions(study, metrics)
    still = [
        one for one in asked if not judged or (_is_open(one, by_id, execution.precision) and not _is_hopeless(one, repeat))
    ]
    if judged or study.decides:
        wanted = _wanted(execution, by_id, still, repeat)
    else:
        wanted = Wanted(levels=frozenset(cell.id for cell in study.cells))
    said = [
        f"{one.title}: natural passes instead of bursts, as {'; '.join(one.broken)}"
        if one in still
        else f"{one.title}: {one.verdict}; {one.reason}"
        for one in asked
        if one.broken or one not in still
    ]
    for line in dict.fromkeys(said):
        execution.say(line)
    if judged:
        n = len(wanted.cells)
        more = "undecided so far" if study.is_duel else f"{n} of {len(study.cells)} cells are still needed"
        execution.say(more if n else "every pair that can be decided is decided")
    return replace(wanted, nearest=_nearest(still))


def _nearest(still: Sequence[StudyQuestion]) -> tuple[frozenset[str], ...]:
    ordered = sorted(still, key=lambda one: math.inf if one.starts is None else one.starts)
    return tuple(dict.fromkeys(one.cells for one in ordered))


def _wanted(execution: Execution, cells: Mapping[str, CellFigures], still: Sequence[StudyQuestion], repeat: int) -> Wanted:
    """The passes that questions still need."""
    study = execution.study
    broken = frozenset(name for one in still if one.broken for name in one.cells)
    whole = frozenset(name for one in still if not one.broken for name in one.cells)
    if not study.decides:
        return Wanted(levels=whole)
    if repeat >= study.repeats:  # it goes on for the natural passes alone
        return Wanted(levels=broken)
    again = {name: words for name, words in _unsure(execution, cells) if name not in broken}
    for name, words in again.items():
        execution.say(f"{name}: one more natural run, as {words}")
    return Wanted(whole, broken, frozenset(_without_natural_run(execution, cells) | again.keys()))


def affordable(execution: Execution, wanted: Wanted) -> Wanted:
    """What of it ends within the budget: all, else the questions that are nearest to their answers."""
    if execution.has_time_for(wanted):
        return wanted
    kept = frozenset[str]()
    for cells in wanted.nearest:
        if execution.has_time_for(wanted.only(kept | cells)):
            kept |= cells
    return wanted.only(kept)


def last_repeat(study: Study, metrics: Metrics, repeat: int, last: int) -> int:
    """The last repeat, after this one: later where bursts were broken too late for two natural starts of each engine."""
    by_id = {cell.id: cell for cell in metrics.cells}
    lacking = [
        LOOKS[0] - (min(one.n_a, one.n_b) if one.evidence == "measured" else 0)
        for one in metrics.decisions
        if one.broken and one.unit == "start" and not _is_gone((one.a, one.b), by_id)
    ]
    return max(last, repeat + max([0, *lacking])) if study.decides else last


def _unsure(execution: Execution, cells: Mapping[str, CellFigures]) -> Iterator[tuple[str, str]]:
    """The cells whose natural run is not surely on the line of its bursts, nor surely off it, and why."""
    for name in natural_cells(execution.study, execution.contract, execution.blocked):
        for one in cells[name].conditions if name in cells else ():
            if one.status == "undecided":
                yield name, f"{one.name}: {one.reason}"


def _without_natural_run(execution: Execution, cells: Mapping[str, CellFigures]) -> set[str]:
    """The cells that should have had a natural run and do not."""
    chosen = natural_cells(execution.study, execution.contract, execution.blocked)
    users = execution.study.natural_users
    return {name for name in chosen if name not in cells or cells[name].level(users) is None}


def _is_open(one: StudyQuestion, cells: Mapping[str, CellFigures], precision: float | None) -> bool:
    unsure = one.verdict in _OPEN if precision is None else one.verdict != "not comparable" and not _within(one, precision)
    return unsure and not _is_gone(one.cells, cells)


def _is_gone(names: Collection[str], cells: Mapping[str, CellFigures]) -> bool:
    sides = [cells[name] for name in names if name in cells]
    return any(side.status in _GONE and not (side.levels or side.composed) for side in sides)


def _is_hopeless(one: StudyQuestion, repeat: int) -> bool:
    """Do rounds of a duel go on without one that a verdict may rest on? More of them would not help."""
    return one.unit == "round" and one.verdict == "too few samples" and repeat >= 2 * LEAST_ROUNDS


def _within(one: StudyQuestion, precision: float) -> bool:
    """Is the interval at most this share wide on either side?"""
    value, low, high = one.ratio.value, one.ratio.low, one.ratio.high
    if value is None or low is None or high is None:
        return False
    return high / value <= 1 + precision and value / low <= 1 + precision
