"""One figure of each start of a server, in one metric at one level: what `decision` compares.

A start is a repeat of a cell that was started by us, which starts its server anew; all passes over a server that was
attached to are one start. A time to the final answer is taken at the length common to both engines (`adjustment`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.decision import adjustment, renewal, starts
from loadtest.decision.adjustment import Answers
from loadtest.metrics import intervals, survival
from loadtest.metrics.intervals import Floats
from loadtest.metrics.request_arrays import Pass, pace_of, per_request, values_of

MIN_PROMPTS = 5
ALPHA = 0.05
ANSWER = "time_to_final_answer_s"
EQUAL_LENGTH = "at equal length"
WHOLE = "geometric means of requests over the whole answer: tokens came in bursts"
RAW = "geometric means of requests"
CENSORED = "some times censored: means up to a common time"
THROUGHPUT = "total output tokens/s"

Start = Sequence[Pass]


@dataclass(frozen=True, slots=True)
class LogFigure:
    """The log of one start's figure, and the variance of it that its requests alone explain."""

    log: float
    variance: float


@dataclass(frozen=True, slots=True)
class Sides:
    """The figures of both engines' starts (None: a start without one), and how they were found."""

    a: tuple[LogFigure | None, ...]
    b: tuple[LogFigure | None, ...]
    method: str

    @property
    def whole(self) -> bool:
        """Has every start of both a figure?"""
        return bool(self.a and self.b) and None not in self.a and None not in self.b

    @property
    def pair(self) -> starts.PairedStarts | None:
        """The starts that have a figure; None where one side has none."""
        return _pair([one for one in self.a if one is not None], [one for one in self.b if one is not None])


def _pair(a: Sequence[LogFigure], b: Sequence[LogFigure]) -> starts.PairedStarts | None:
    if not (a and b):
        return None
    within = sum(math.fsum(one.variance for one in side) / len(side) ** 2 for side in (a, b))
    return starts.PairedStarts(_logs(a), _logs(b), math.sqrt(within))


def _logs(side: Sequence[LogFigure]) -> Floats:
    return np.array([one.log for one in side], np.float64)


def over_levels(levels: Sequence[Sides]) -> starts.PairedStarts | None:
    """One figure a start: the mean over levels that every start has a figure of; None where there is no such level."""
    whole = [one for one in levels if one.whole]
    return _pair(_means(one.a for one in whole), _means(one.b for one in whole)) if whole else None


def _means(levels: Iterable[tuple[LogFigure | None, ...]]) -> list[LogFigure]:
    found = [[one for one in of_start if one is not None] for of_start in zip(*levels, strict=True)]
    return [
        LogFigure(math.fsum(one.log for one in some) / len(some), math.fsum(one.variance for one in some) / len(some) ** 2)
        for some in found
    ]


def by_start(passes: Sequence[Pass], restarted: bool) -> list[Start]:
    """The passes of one cell at one level that share a start, those without a measured request left out."""
    used = [one for one in passes if bool(np.any(one.measured))]
    if not restarted:
        return [used] if used else []
    return [[one for one in used if one.repeat == repeat] for repeat in sorted({one.repeat for one in used})]


def compared(a: Sequence[Start], b: Sequence[Start], metric: str) -> Sides:
    """Both engines' starts in one metric: at equal length where the metric is the time to the final answer."""
    if metric == ANSWER and (adjusted := at_equal_length(a, b)).pair is not None:
        return adjusted
    return raw(a, b, metric)


def at_equal_length(a: Sequence[Start], b: Sequence[Start]) -> Sides:
    """log time to the final answer at the length common to all starts of both, of answers that finished."""
    found = adjustment.at_common_length([_answers(one) for one in (*a, *b)])
    figures = [
        None if log is None else LogFigure(log, variance)
        for log, variance in zip(found.log_s, found.within_variance, strict=True)
    ]
    return Sides(tuple(figures[: len(a)]), tuple(figures[len(a) :]), EQUAL_LENGTH)


def _answers(start: Start) -> Answers:
    times, lengths = [], []
    for one in start:
        values, seen = per_request(one, ANSWER)
        tokens = np.where(np.isfinite(one.completion_tokens), one.completion_tokens, one.tokens)
        use = one.measured & one.ok & seen & (values > 0) & (tokens > 0)
        times.append(values[use])
        lengths.append(tokens[use])
    return Answers(np.concatenate([np.zeros(0), *times]), np.concatenate([np.zeros(0), *lengths]))


def raw(a: Sequence[Start], b: Sequence[Start], metric: str) -> Sides:
    """A metric as it was seen, lengths and all."""
    if metric == "output_tokens_per_s":
        return _each(a, b, _throughput, THROUGHPUT)
    known = pace_of(metric, [one for start in (*a, *b) for one in start])
    found = [_pooled(one, known) for one in (*a, *b)]
    if all(bool(np.all(seen)) for _, seen in found):
        return _each(a, b, lambda one: _mean_log(_pooled(one, known)[0]), RAW if known == metric else WHOLE)
    horizon = min((float(np.max(values)) for values, _ in found if len(values)), default=0.0)
    return _each(a, b, lambda one: _restricted(*_pooled(one, metric), horizon), CENSORED)


def _each(a: Sequence[Start], b: Sequence[Start], figure: Callable[[Start], LogFigure | None], method: str) -> Sides:
    return Sides(tuple(map(figure, a)), tuple(map(figure, b)), method)


def _pooled(start: Start, metric: str) -> tuple[Floats, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    parts = [values_of(one, metric) for one in start]
    return np.concatenate([values for values, _ in parts]), np.concatenate([seen for _, seen in parts])


def _mean_log(values: Floats) -> LogFigure | None:
    logs = np.log(values[values > 0])
    if len(logs) < adjustment.MIN_ANSWERS:
        return None
    return LogFigure(float(np.mean(logs)), float(np.var(logs, ddof=1)) / len(logs))


def _restricted(values: Floats, seen: np.ndarray[tuple[int], np.dtype[np.bool_]], horizon: float) -> LogFigure | None:
    if int(np.sum(seen)) < adjustment.MIN_ANSWERS:
        return None
    area, error = survival.restricted_mean(survival.kaplan_meier(values, seen), horizon)
    return LogFigure(math.log(area), (error / area) ** 2) if area > 0 else None


def _throughput(start: Start) -> LogFigure | None:
    found, _ = renewal.tokens_per_s(start)
    if not found.value:
        return None
    half = 0.0 if found.ci95 is None else found.ci95[1] - found.value
    error = half / intervals.t_critical(max(found.n - 1, 1)) / found.value
    return LogFigure(math.log(found.value), error**2)


# Lengths -------------------------------------------------------------------------------------------------------------


def output_tokens(a: Sequence[Pass], b: Sequence[Pass]) -> starts.Effect:
    """log(a / b) of the tokens of one output, thinking and answer: does one side finish sooner because it thinks less?

    Prompts that both sides finished are the units, each with its geometric mean. `error` is 0 where every pair is equal,
    as in equal work, and None for fewer than `MIN_PROMPTS`.
    """
    left, right = _lengths_by_prompt(a), _lengths_by_prompt(b)
    shared = sorted(left.keys() & right.keys())
    n = len(shared)
    if n < MIN_PROMPTS:
        return starts.Effect(0.0, None, 1, n, n, None)
    differences = np.array([float(np.mean(np.log(left[p])) - np.mean(np.log(right[p]))) for p in shared])
    error = float(np.std(differences, ddof=1)) / math.sqrt(n)
    return starts.Effect(float(np.mean(differences)), error, n - 1, n, n, None)


def _lengths_by_prompt(passes: Sequence[Pass]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    for one in passes:
        for i in np.flatnonzero(one.measured & one.ok & (one.completion_tokens > 0)):
            found[one.records[i].prompt_id].append(float(one.completion_tokens[i]))
    return found
