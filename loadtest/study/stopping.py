"""When a study may stop: after each repeat, the cells that some pair of engines still needs.

The verdicts hold although they were looked at in between (`decision.verdicts.SEQUENTIAL`), and so does whatever is on disk
when a run is interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from loadtest.decision.rounds import LEAST_ROUNDS
from loadtest.decision.verdicts import LOOKS
from loadtest.metrics.schema import CellFigures, Metrics, PairDecision
from loadtest.study.bursts.asked import Wanted, natural_cells
from loadtest.study.execution import Execution
from loadtest.study.schema import Study


@dataclass(slots=True)
class Budget:
    """Seconds that a run may take (None: any), and what its last repeat took, each cell alike: the first is no measure of
    others, as it alone has the natural runs."""

    seconds: float | None
    started_s: float
    last_s: float = 0.0
    per_cell_s: float = 0.0

    def __post_init__(self) -> None:
        self.last_s = self.started_s

    def repeat_ended(self, now_s: float, cells: int) -> None:
        self.per_cell_s = (now_s - self.last_s) / max(1, cells)
        self.last_s = now_s

    def is_spent(self, now_s: float, cells: int) -> bool:
        """Would another repeat of so many cells end too late?"""
        first = self.per_cell_s == 0
        return self.seconds is not None and not first and now_s - self.started_s + cells * self.per_cell_s > self.seconds


_OPEN = ("undecided", "one start each", "too few samples")
_GONE = ("refused", "skipped")  # such a cell will not be measured by another repeat either


def look(execution: Execution, metrics: Metrics, repeat: int) -> Wanted:
    """What the next repeat measures: the cells of pairs without a certain verdict; says which pairs have one.

    A pair whose bursts break a condition gets natural passes instead. What starts vary by is pooled over pairs, so a pair
    may become uncertain again: then it is measured again.
    """
    study, by_id = execution.study, {cell.id: cell for cell in metrics.cells}
    judged = study.until_decided and repeat >= LOOKS[0]
    still = [
        one
        for one in metrics.decisions
        if not judged or (_is_open(one, by_id, execution.precision) and not _is_hopeless(one, repeat))
    ]
    broken = {name for one in still if one.broken for name in (one.a, one.b)}
    whole = {name for one in still if not one.broken for name in (one.a, one.b)}
    again = {name: words for name, words in _unsure(execution, by_id) if name not in broken} if study.decides else {}
    natural = _without_natural_run(execution, by_id) if study.decides else set()
    wanted = Wanted(frozenset(whole), frozenset(broken), frozenset(natural | again.keys()))
    if not study.decides:
        wanted = Wanted(levels=frozenset(whole))
    elif repeat >= study.repeats:  # it goes on for the natural passes alone
        wanted = Wanted(levels=frozenset(broken))
    for name in again.keys() & wanted.natural:
        execution.say(f"{name}: one more natural run, as {again[name]}")
    titles = {cell.id: cell.title for cell in study.cells}
    for one in metrics.decisions:
        pair = f"{titles[one.a]} against {titles[one.b]}"
        if one.broken and one in still:
            execution.say(f"{pair}: natural passes instead of bursts, as {'; '.join(one.broken)}")
        elif one not in still:
            execution.say(f"{pair}: {one.verdict}; {one.reason}")
    if judged:
        n = len(wanted.cells)
        more = "undecided so far" if study.is_duel else f"{n} of {len(study.cells)} cells are still needed"
        execution.say(more if n else "every pair that can be decided is decided")
    return wanted


def last_repeat(study: Study, metrics: Metrics, repeat: int, last: int) -> int:
    """The last repeat, after this one: later where bursts were broken too late for two natural starts of each engine."""
    by_id = {cell.id: cell for cell in metrics.cells}
    lacking = [
        LOOKS[0] - (min(one.n_a, one.n_b) if one.evidence == "measured" else 0)
        for one in metrics.decisions
        if one.broken and one.unit == "start" and not _is_gone(one, by_id)
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


def _is_open(one: PairDecision, cells: Mapping[str, CellFigures], precision: float | None) -> bool:
    unsure = one.verdict in _OPEN if precision is None else one.verdict != "not comparable" and not _within(one, precision)
    return unsure and not _is_gone(one, cells)


def _is_gone(one: PairDecision, cells: Mapping[str, CellFigures]) -> bool:
    sides = [cells[name] for name in (one.a, one.b) if name in cells]
    return any(side.status in _GONE and not (side.levels or side.composed) for side in sides)


def _is_hopeless(one: PairDecision, repeat: int) -> bool:
    """Do rounds of a duel go on without one that a verdict may rest on? More of them would not help."""
    return one.unit == "round" and one.verdict == "too few samples" and repeat >= 2 * LEAST_ROUNDS


def _within(one: PairDecision, precision: float) -> bool:
    """Is the interval at most this share wide on either side?"""
    value, low, high = one.ratio.value, one.ratio.low, one.ratio.high
    if value is None or low is None or high is None:
        return False
    return high / value <= 1 + precision and value / low <= 1 + precision
