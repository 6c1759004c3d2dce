"""From an effect to a verdict: faster, slower, equal as far as it matters, undecided; and what would decide.

An interval at a stricter level than 95 % holds for all pairs of a study at once. Its level comes from a Monte Carlo over
studies of equal engines (tests/intervals/test_nominal_levels.py repeats it): the strictest that any of six patterns of
start-to-start variation needs, among them engines whose starts vary 0.3 % against 2 %. `FIXED`: a study judged once;
`SEQUENTIAL`: one looked at after every start from the second to the sixth, and stopped whenever one likes.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import Literal

from loadtest.decision.starts import Effect
from loadtest.metrics import intervals

Word = Literal["faster", "slower", "equal", "undecided", "one start each"]

ALPHA = 0.05
MATTERS = 0.05  # a difference below this is of no consequence, unless a study says otherwise
LOOKS = (2, 3, 4, 5, 6)
TYPICAL_START_SD = 0.01  # assumed in plans; nobody has measured it on a GPU yet
MOST_STARTS = 40  # beyond this nobody measures: the difference is too small for these starts

_PAIRS = (1, 2, 3, 4, 5, 6, 8, 10)
FIXED = dict(zip(_PAIRS, (0.039, 0.037, 0.028, 0.022, 0.018, 0.015, 0.0096, 0.0068), strict=True))
SEQUENTIAL = dict(zip(_PAIRS, (0.0110, 0.0103, 0.0080, 0.0070, 0.0051, 0.0043, 0.0028, 0.0019), strict=True))


def nominal_level(pairs: int, *, sequential: bool = False) -> float:
    """The level of each pair's interval at which at most 5 % of studies of equal engines have a verdict that is wrong.

    Between the numbers of pairs tabled the next larger one's; beyond ten, in proportion.

    >>> nominal_level(5), nominal_level(7, sequential=True), round(nominal_level(20), 4)
    (0.018, 0.0028, 0.0034)
    """
    table = SEQUENTIAL if sequential else FIXED
    place = bisect_right(_PAIRS, max(pairs, 1) - 1)
    return table[_PAIRS[place]] if place < len(_PAIRS) else table[_PAIRS[-1]] * _PAIRS[-1] / pairs


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said of a pair. `interval`: of a / b, for all pairs at once; `more_starts`: how many more of each engine
    would decide if starts go on as they do (None: decided, or beyond `MOST_STARTS`)."""

    word: Word
    ratio: float
    interval: tuple[float, float] | None
    more_starts: int | None = None
    too_close: bool = False

    @property
    def decided(self) -> bool:
        return self.word in ("faster", "slower", "equal")

    @property
    def differs(self) -> bool:
        """Does the interval exclude 1, whether that matters or not?"""
        return self.interval is not None and not self.interval[0] <= 1 <= self.interval[1]


def verdict_on(effect: Effect, level: float, matters: float = MATTERS, *, more_is_faster: bool = False) -> Verdict:
    """The verdict on a against b. Less of the figure is faster, unless `more_is_faster`.

    *equal*: the interval lies within 1 / (1 + matters) to 1 + matters, so that whatever differs does not matter. Else
    *faster* or *slower*: it excludes 1.
    """
    ratio, ends = math.exp(effect.log_ratio), effect.interval(level)
    if ends is None:
        return Verdict("one start each", ratio, None, more_starts=max(1, 2 - min(effect.starts_a, effect.starts_b)))
    if is_equal(ends, matters):
        return Verdict("equal", ratio, ends)
    if not ends[0] <= 1 <= ends[1]:
        return Verdict("faster" if (ratio > 1) == more_is_faster else "slower", ratio, ends)
    more = starts_needed(effect, level, matters)
    return Verdict("undecided", ratio, ends, more, too_close=more is None)


def is_equal(ends: tuple[float, float], matters: float) -> bool:
    """Does the whole interval lie where no difference matters?"""
    return 1 / (1 + matters) <= ends[0] and ends[1] <= 1 + matters


def starts_needed(effect: Effect, level: float, matters: float) -> int | None:
    """How many more starts of each engine would decide, if the ratio and the variation stay as they are seen."""
    if effect.error is None:
        return None
    now = min(effect.starts_a, effect.starts_b)
    for more in range(1, MOST_STARTS - now + 1):
        grown = (now + more) / now
        then = replace(effect, error=effect.error / math.sqrt(grown), df=effect.df * grown)
        ends = then.interval(level)
        if ends is not None and (not ends[0] <= 1 <= ends[1] or is_equal(ends, matters)):
            return more
    return None


def detectable_ratio(effect: Effect, level: float, power: float = 0.8) -> float | None:
    """The ratio above 1 that a study like this finds with this power: `exp((t(level / 2) + t(1 - power)) error)`."""
    if effect.error is None:
        return None
    tails = intervals.t_critical(effect.df, level / 2) + intervals.t_critical(effect.df, 1 - power)
    return math.exp(min(tails * effect.error, 300.0))


def _planned(pairs: int, starts: int, start_sd: float | None) -> Effect:
    """The effect of so many starts of each engine, before any is made.

    `start_sd` None: as if starts varied by `TYPICAL_START_SD`, seen a fifth larger where several pairs are pooled, for the
    larger of two variances is taken.
    """
    sd = TYPICAL_START_SD * (1.2 if pairs > 1 else 1.0) if start_sd is None else start_sd
    df = 2.0 * (starts - 1) if start_sd is None else math.inf
    return Effect(0.0, sd * math.sqrt(2 / starts), df, starts, starts, sd)


def planned_power(
    ratio: float, pairs: int, starts: int, start_sd: float | None = None, *, sequential: bool = False
) -> float:
    """The chance that so many starts of each engine show this ratio as a difference; `start_sd` as in `planned_ratio`.

    >>> round(planned_power(1.05, 5, 3), 2), round(planned_power(1.05, 5, 6, sequential=True), 2)
    (0.84, 1.0)
    """
    planned = _planned(pairs, starts, start_sd)
    away = math.log(ratio) / max(planned.error or 0.0, 1e-12)
    beyond = intervals.t_critical(planned.df, nominal_level(pairs, sequential=sequential) / 2) - away
    tail = intervals.two_sided_p(beyond, planned.df) / 2
    return tail if beyond > 0 else 1 - tail


def planned_ratio(pairs: int, starts: int, start_sd: float | None = None, *, sequential: bool = False) -> float:
    """The ratio above 1 that so many starts of each engine find with about 80 % power. `start_sd` None: as is typical.

    >>> round(planned_ratio(1, 3), 3), round(planned_ratio(5, 3), 3)
    (1.033, 1.048)
    """
    planned = _planned(pairs, starts, start_sd)
    found = detectable_ratio(planned, nominal_level(pairs, sequential=sequential))
    return 1.0 if found is None else found
