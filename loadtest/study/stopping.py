"""When a study may stop: after each repeat, the cells that some pair of engines still needs.

The verdicts hold although they were looked at in between (`decision.verdicts.SEQUENTIAL`), and so does whatever is on disk
when a run is interrupted.
"""

from __future__ import annotations

from loadtest.metrics.schema import CellFigures, Metrics, PairDecision
from loadtest.study.execution import Say
from loadtest.study.schema import Cell

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
