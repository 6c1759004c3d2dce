"""When a study may stop: after each repeat, the cells that some pair of engines still needs.

The verdicts hold although they were looked at in between (`decision.verdicts.SEQUENTIAL`), and so does whatever is on disk
when a run is interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from loadtest.decision.rounds import LEAST_ROUNDS
from loadtest.decision.verdicts import LOOKS
from loadtest.metrics.schema import CellFigures, Metrics, PairDecision
from loadtest.study.bursts.asked import Wanted, natural_cells
from loadtest.study.execution import Execution


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
    judged = repeat >= LOOKS[0]
    still = [
        one
        for one in metrics.decisions
        if not judged or (_is_open(one, by_id, execution.precision) and not _is_hopeless(one, repeat))
    ]
    broken = {name for one in still if one.broken for name in (one.a, one.b)}
    whole = {name for one in still if not one.broken for name in (one.a, one.b)}
    natural = _without_natural_run(execution, by_id) if study.decides else set()
    wanted = Wanted(frozenset(whole), frozenset(broken), frozenset(natural))
    if not study.decides:
        wanted = Wanted(levels=frozenset(whole))
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


def _without_natural_run(execution: Execution, cells: Mapping[str, CellFigures]) -> set[str]:
    """The cells that should have had a natural run and do not."""
    chosen = natural_cells(execution.study, execution.contract, execution.blocked)
    users = execution.study.natural_users
    return {name for name in chosen if name not in cells or cells[name].level(users) is None}


def _is_open(one: PairDecision, cells: Mapping[str, CellFigures], precision: float | None) -> bool:
    sides = [cells[name] for name in (one.a, one.b) if name in cells]
    gone = any(side.status in _GONE and not (side.levels or side.composed) for side in sides)
    unsure = one.verdict in _OPEN if precision is None else one.verdict != "not comparable" and not _within(one, precision)
    return unsure and not gone


def _is_hopeless(one: PairDecision, repeat: int) -> bool:
    """Do rounds of a duel go on without one that a verdict may rest on? More of them would not help."""
    return one.unit == "round" and one.verdict == "too few samples" and repeat >= 2 * LEAST_ROUNDS


def _within(one: PairDecision, precision: float) -> bool:
    """Is the interval at most this share wide on either side?"""
    value, low, high = one.ratio.value, one.ratio.low, one.ratio.high
    if value is None or low is None or high is None:
        return False
    return high / value <= 1 + precision and value / low <= 1 + precision
