"""Which level a search tries next, and the frontier that it has found: double, then bisect.

A level is *within* (every SLO surely met), *broken* (one surely broken) or *undecided*. Pure: the levels tried so far, in;
the next one, out. So a search that was interrupted goes on where it stood.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Literal, NamedTuple

Word = Literal["within", "broken", "undecided"]

STEP_SHARE = 1 / 8  # of a level: no two levels nearer than this are told apart


class Frontier(NamedTuple):
    """The largest level surely within (0: none), and the smallest surely broken (None: none)."""

    within: int
    broken: int | None


def frontier(tried: Mapping[int, Word]) -> Frontier:
    """The frontier of the levels tried.

    >>> frontier({4: "within", 8: "undecided", 16: "broken"})
    Frontier(within=4, broken=16)
    """
    broken = min((level for level, word in tried.items() if word == "broken"), default=None)
    below = [level for level, word in tried.items() if word == "within" and (broken is None or level < broken)]
    return Frontier(max(below, default=0), broken)


def step(level: int) -> int:
    """How near two levels may be: at least 1.

    >>> step(4), step(20), step(64)
    (1, 2, 8)
    """
    return max(1, int(level * STEP_SHARE))


def next_level(tried: Mapping[int, Word], start: int, most: int) -> int | None:
    """The level to try next; None where the frontier is found as near as levels are told apart.

    From `start` it doubles while levels are within or undecided, up to `most`; it halves while the lowest is broken; then it
    bisects between the largest level within and the smallest broken, around those that stayed undecided.

    >>> next_level({8: "within"}, 8, 100), next_level({8: "within", 16: "broken"}, 8, 100), next_level({8: "broken"}, 8, 100)
    (16, 12, 4)
    """
    if not tried:
        return min(start, most)
    low, high = frontier(tried)
    if high is None:
        top = max(tried)
        return min(2 * top, most) if top < most else _between(tried, low, top)
    return _between(tried, low, high)


def _between(tried: Mapping[int, Word], low: int, high: int) -> int | None:
    """The middle of the gap above `low`, else of that below `high`, if wider than a step; what is between is undecided."""
    gaps = list(pairwise(sorted({low, high, *(level for level in tried if low < level < high)})))
    for a, b in (gaps[0], gaps[-1]) if gaps else ():
        if b - a > step(a):
            return (a + b) // 2
    return None
