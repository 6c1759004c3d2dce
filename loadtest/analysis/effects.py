"""How much one side differs from the other in one metric at one level: log ratios with their errors.

The ratio is a / b on the log scale. Unit of repetition: whole passes where both sides have three or more (paired by
repeat where they have the same, their variance pooled over the levels), else prompts where both did the same work for
them, else requests (Welch). Formulas and reasons: docs/comparison.md.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from loadtest.metrics import intervals, steady_window, survival
from loadtest.metrics.intervals import MIN_PASSES, Floats
from loadtest.metrics.request_arrays import Pass, per_request, values_of

MIN_SAMPLES = 5
ALPHA = 0.05
POWER = 0.8
BY_PASS = "paired by pass"
WHOLE_PASSES = "whole passes"


@dataclass(frozen=True, slots=True)
class Effect:
    """log(a / b), its standard error and degrees of freedom, from `n_a` and `n_b` units, by `method`; `lost` pairs or
    times that were censored and could not be used. `error` NaN: too few units."""

    log_ratio: float
    error: float
    df: float
    n_a: int
    n_b: int
    method: str
    lost: int = 0

    @property
    def repeated(self) -> bool:
        """Does the error know what changes from pass to pass?"""
        return self.method in (BY_PASS, WHOLE_PASSES)

    @property
    def p_value(self) -> float:
        """Two-sided p-value of "no difference"; an error of no more than rounding is none."""
        if not self.error > 1e-12:
            return 1.0 if abs(self.log_ratio) < 1e-9 else 0.0
        return intervals.two_sided_p(self.log_ratio / self.error, self.df)

    def interval(self) -> tuple[float, float]:
        """95 % interval of the ratio a / b."""
        half = intervals.t_critical(self.df) * self.error
        return _exp(self.log_ratio - half), _exp(self.log_ratio + half)

    def smallest_detectable_ratio(self, tests: int) -> float:
        """The ratio above 1 that a study like this finds with 80 % power, by the strictest step of the correction over
        `tests` verdicts: `exp((t(0.05 / 2 tests) + t(1 - power)) * error)`."""
        tails = intervals.t_critical(self.df, ALPHA / (2 * tests)) + intervals.t_critical(self.df, 1 - POWER)
        return _exp(tails * self.error)


def _exp(x: float) -> float:
    """e to the x, held inside what JSON can carry."""
    return math.exp(min(max(x, -300.0), 300.0))


def effect(a: Sequence[Pass], b: Sequence[Pass], metric: str) -> Effect:
    """log(a / b) of one metric at one level, by the finest design that the passes allow (see the module's head)."""
    a, b = ([one for one in side if bool(np.any(one.measured))] for side in (a, b))
    if not (a and b):
        return Effect(0.0, math.nan, 1, 0, 0, "no request was measured")
    if len(a) >= MIN_PASSES and len(b) >= MIN_PASSES:
        return _by_pass(a, b, metric)
    if metric == "output_tokens_per_s":
        return _by_batch(a, b)
    pairs, lost = _prompt_pairs(a, b, metric)
    if pairs is not None:
        return _paired(pairs, "paired by prompt, equal work", lost)
    (x, x_seen), (y, y_seen) = _pooled(a, metric), _pooled(b, metric)
    if not (np.all(x_seen) and np.all(y_seen)):
        return _restricted(x, x_seen, y, y_seen)
    return _welch(np.log(x[x > 0]), np.log(y[y > 0]), "requests of unequal work, geometric means")


def _pooled(passes: Sequence[Pass], metric: str) -> tuple[Floats, np.ndarray[Any, np.dtype[np.bool_]]]:
    parts = [values_of(one, metric) for one in passes]
    return np.concatenate([values for values, _ in parts]), np.concatenate([seen for _, seen in parts])


def _by_pass(a: Sequence[Pass], b: Sequence[Pass], metric: str) -> Effect:
    """Passes as units: the log of each pass's figure; pairs of one repeat share what the machine did meanwhile."""
    figure = _figure_of_passes([*a, *b], metric)
    left = {one.repeat: value for one in a if (value := figure(one)) is not None}
    right = {one.repeat: value for one in b if (value := figure(one)) is not None}
    if left.keys() == right.keys():
        return _paired(np.array([left[r] - right[r] for r in sorted(left)]), BY_PASS, least=MIN_PASSES)
    x, y = (np.array([side[r] for r in sorted(side)]) for side in (left, right))
    return _welch(x, y, WHOLE_PASSES, least=MIN_PASSES)


def _figure_of_passes(passes: Sequence[Pass], metric: str) -> Callable[[Pass], float | None]:
    """The log of one pass's figure: tokens/s; a geometric mean; or, with censored times, a mean up to one horizon."""
    if metric == "output_tokens_per_s":
        return _log_throughput
    found = [values_of(one, metric) for one in passes]
    if all(bool(np.all(seen)) for _, seen in found):
        return lambda one: _mean_log(values_of(one, metric)[0])
    horizon = min((float(np.max(values)) for values, _ in found if len(values)), default=0.0)
    return lambda one: _log_restricted(one, metric, horizon)


def _mean_log(values: Floats) -> float | None:
    positive = values[values > 0]
    return float(np.mean(np.log(positive))) if len(positive) else None


def _log_throughput(one: Pass) -> float | None:
    span = steady_window.steady(one)
    value = None if span is None else steady_window.window_tokens_per_s([(one, span)]).value
    return math.log(value) if value else None


def _log_restricted(one: Pass, metric: str, horizon: float) -> float | None:
    values, seen = values_of(one, metric)
    area = survival.restricted_mean(survival.kaplan_meier(values, seen), horizon)[0] if len(values) else 0.0
    return math.log(area) if area > 0 else None


def _by_batch(a: Sequence[Pass], b: Sequence[Pass]) -> Effect:
    """Tokens/s of one or two passes: each side's relative error from its batch means."""
    sides = []
    for passes in (a, b):
        spans = [(one, span) for one in passes if (span := steady_window.steady(one)) is not None]
        found = steady_window.window_tokens_per_s(spans)
        if not found.value or found.ci95 is None:
            return Effect(0.0, math.nan, 1, 0, 0, "no steady window")
        half = (found.ci95[1] - found.value) / intervals.t_critical(found.n - 1)
        sides.append((math.log(found.value), half / found.value, found.n))
    (x, x_error, n_a), (y, y_error, n_b) = sides
    error, df = intervals.combined_error(x_error, n_a, y_error, n_b)
    return Effect(x - y, error, df, n_a, n_b, "batch means of the steady window")


def output_tokens(a: Sequence[Pass], b: Sequence[Pass]) -> Effect:
    """log(a / b) of the tokens of one output, thinking and answer: does one side finish sooner because it thinks less?

    Prompts that both sides finished are the units, each with its geometric mean; prompts that only one side finished are
    `lost`. `error` is 0 where every pair is equal, as in equal work.
    """
    left, right = _lengths_by_prompt(a), _lengths_by_prompt(b)
    shared = sorted(left.keys() & right.keys())
    differences = np.array([float(np.mean(np.log(left[p])) - np.mean(np.log(right[p]))) for p in shared])
    return _paired(differences, "paired by prompt", len(left.keys() ^ right.keys()))


def _lengths_by_prompt(passes: Sequence[Pass]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    for one in passes:
        for i in np.flatnonzero(one.measured & one.ok & (one.completion_tokens > 0)):
            found[one.records[i].prompt_id].append(float(one.completion_tokens[i]))
    return found


def _prompt_pairs(a: Sequence[Pass], b: Sequence[Pass], metric: str) -> tuple[Floats | None, int]:
    """Differences of mean logs by prompt, and the prompts lost to censoring; None where the work was not equal."""
    left, right = _by_prompt(a, metric), _by_prompt(b, metric)
    shared = sorted(left.keys() & right.keys())
    if not shared or len(shared) < 0.8 * max(len(left), len(right)):
        return None, 0
    differences, lost = [], 0
    for prompt in shared:
        (x, x_tokens), (y, y_tokens) = left[prompt], right[prompt]
        if None in x_tokens or None in y_tokens or not x or not y:
            lost += 1
        elif x_tokens != y_tokens:
            return None, 0
        else:
            differences.append(float(np.mean(np.log(x)) - np.mean(np.log(y))))
    return (np.array(differences), lost) if lost <= len(differences) else (None, 0)


def _by_prompt(passes: Sequence[Pass], metric: str) -> dict[str, tuple[list[float], set[float | None]]]:
    """Values and the set of output lengths of each prompt; a request that did not finish has the length None."""
    found: dict[str, tuple[list[float], set[float | None]]] = defaultdict(lambda: ([], set()))
    for one in passes:
        values, seen = per_request(one, metric)
        for i in np.flatnonzero(one.measured):
            done = one.ok[i] and seen[i] and values[i] > 0
            logs, lengths = found[one.records[i].prompt_id]
            lengths.add(float(one.completion_tokens[i]) if done and np.isfinite(one.completion_tokens[i]) else None)
            if done:
                logs.append(float(values[i]))
    return found


def _paired(differences: Floats, method: str, lost: int = 0, least: int = MIN_SAMPLES) -> Effect:
    n = len(differences)
    if n < least:
        return Effect(0.0, math.nan, 1, n, n, method)
    return Effect(float(np.mean(differences)), float(np.std(differences, ddof=1)) / math.sqrt(n), n - 1, n, n, method, lost)


def _welch(x: Floats, y: Floats, method: str, least: int = MIN_SAMPLES) -> Effect:
    n_a, n_b = len(x), len(y)
    if min(n_a, n_b) < least:
        return Effect(0.0, math.nan, 1, n_a, n_b, method)
    errors = [float(np.std(side, ddof=1)) / math.sqrt(len(side)) for side in (x, y)]
    error, df = intervals.combined_error(errors[0], n_a, errors[1], n_b)
    return Effect(float(np.mean(x) - np.mean(y)), error, df, n_a, n_b, method)


def _restricted(x: Floats, x_seen: Any, y: Floats, y_seen: Any) -> Effect:
    """Means up to the shorter side's longest time, from Kaplan-Meier, when some times are censored."""
    method = "some times censored: means up to a common time"
    if min(int(np.sum(x_seen)), int(np.sum(y_seen))) < MIN_SAMPLES:
        return Effect(0.0, math.nan, 1, len(x), len(y), method)
    horizon = min(float(np.max(x)), float(np.max(y)))
    sides = [survival.restricted_mean(survival.kaplan_meier(t, s), horizon) for t, s in ((x, x_seen), (y, y_seen))]
    (m_a, e_a), (m_b, e_b) = sides
    error, df = intervals.combined_error(e_a / m_a, len(x), e_b / m_b, len(y))
    return Effect(math.log(m_a / m_b), error, df, len(x), len(y), method)


def pool_effects(found: list[Effect | None]) -> list[Effect | None]:
    """Effects paired by pass, with the variance between passes pooled over the levels (as in an analysis of variance):
    three passes at one level alone have two degrees of freedom, too few to detect anything."""
    paired = [one for one in found if one is not None and one.method == BY_PASS and one.error > 0]
    if len(paired) < 2:
        return found
    df = math.fsum(one.df for one in paired)
    variance = math.fsum(one.df * one.error**2 * one.n_a for one in paired) / df
    return [
        replace(one, error=math.sqrt(variance / one.n_a), df=df) if one is not None and one in paired else one
        for one in found
    ]
