"""When a study may stop: after each repeat, the cells that some pair of engines still needs.

The verdicts hold although they were looked at in between (`decision.verdicts.SEQUENTIAL`), and so does whatever is on disk
when a run is interrupted.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadtest.metrics.schema import CellFigures, Metrics, PairDecision
from loadtest.study.execution import Say
from loadtest.study.schema import Cell


@dataclass(slots=True)
class Budget:
    """Seconds that a run may take (None: any), and what its repeats have taken so far, each cell alike."""

    seconds: float | None
    started_s: float
    last_s: float = 0.0
    per_cell_s: float = 0.0

    def __post_init__(self) -> None:
        self.last_s = self.started_s

    def repeat_ended(self, now_s: float, cells: int) -> None:
        self.per_cell_s = max(self.per_cell_s, (now_s - self.last_s) / max(1, cells))
        self.last_s = now_s

    def is_spent(self, now_s: float, cells: int) -> bool:
        """Would another repeat of so many cells end too late?"""
        first = self.per_cell_s == 0
        return self.seconds is not None and not first and now_s - self.started_s + cells * self.per_cell_s > self.seconds


_OPEN = ("undecided", "one start each", "too few samples")
_GONE = ("refused", "skipped")  # such a cell will not be measured by another repeat either


def undecided_cells(cells: tuple[Cell, ...], metrics: Metrics, say: Say) -> tuple[Cell, ...]:
    """Of `cells`, those of a pair without a certain verdict; says which pairs have one.

    What starts vary by is pooled over pairs, so a pair may become uncertain again: then it is measured again.
    """
    by_id = {cell.id: cell for cell in metrics.cells}
    needed = {name for one in metrics.decisions if _is_open(one, by_id) for name in (one.a, one.b)}
    kept = tuple(cell for cell in cells if cell.id in needed)
    for one in metrics.decisions:
        if not _is_open(one, by_id):
            say(f"{one.a} against {one.b}: {one.verdict}; {one.reason}")
    say(f"{len(kept)} of {len(cells)} cells are still needed" if kept else "every pair that can be decided is decided")
    return kept


def _is_open(one: PairDecision, cells: dict[str, CellFigures]) -> bool:
    gone = any(cells[name].status in _GONE and not cells[name].levels for name in (one.a, one.b) if name in cells)
    return one.verdict in _OPEN and not gone
