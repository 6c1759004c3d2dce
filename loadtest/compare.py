"""One runtime against another: ratios with 95 % intervals, verdicts, what could have been detected, and why they differ.

The ratio is a / b on the log scale. Unit of repetition: whole passes where both sides have three or more (paired by
repeat where they have the same, their variance pooled over the levels), else prompts where both did the same work for
them, else requests (Welch). Holm's correction runs over the levels of one metric, times the number of metrics: in a study
of equal runtimes every verdict of every metric is "no detectable difference" at least 95 times of 100. Formulas and
reasons: docs/numbers.md.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from loadtest import statistics, window
from loadtest.columns import Pass, earliest_anchor, per_request, read, values_of
from loadtest.distributions import MIN_PASSES
from loadtest.records import CellRecords, LevelRecords, Run
from loadtest.statistics import Floats

Samples = Mapping[tuple[str, int], Sequence[Pass]]
Json = dict[str, Any]

METRICS = ("time_to_final_answer_s", "time_to_first_answer_s", "ttft_s", "tokens_per_s_per_user", "output_tokens_per_s")
MORE_IS_FASTER = frozenset({"tokens_per_s_per_user", "output_tokens_per_s"})
MIN_SAMPLES = 5
ALPHA = 0.05
POWER = 0.8
BY_PASS = "paired by pass"
_MUST_MATCH = ("mode", "scenario", "contract", "clock_speed")
_SAME_CELL = ("model", "tp", "gpu", "simulated", "clock_speed")


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
    def p_value(self) -> float:
        """Two-sided p-value of "no difference"."""
        if not self.error > 0:
            return 1.0 if abs(self.log_ratio) < 1e-9 else 0.0
        return statistics.two_sided_p(self.log_ratio / self.error, self.df)

    def interval(self) -> tuple[float, float]:
        """95 % interval of the ratio a / b."""
        half = statistics.t_critical(self.df) * self.error
        return _exp(self.log_ratio - half), _exp(self.log_ratio + half)

    def smallest_detectable_ratio(self, tests: int) -> float:
        """The ratio above 1 that a study like this finds with 80 % power, by the strictest step of the correction over
        `tests` verdicts: `exp((t(0.05 / 2 tests) + t(1 - power)) * error)`."""
        tails = statistics.t_critical(self.df, ALPHA / (2 * tests)) + statistics.t_critical(self.df, 1 - POWER)
        return _exp(tails * self.error)


def _exp(x: float) -> float:
    """e to the x, held inside what JSON can carry."""
    return math.exp(min(max(x, -300.0), 300.0))


def cells(described: Sequence[Mapping[str, Any]], samples: Samples) -> list[Json]:
    """`comparisons` of metrics.json: every two runtimes of one run with the same model, tp and GPU, a before b by name.

    `described`: the cells as metrics.json has them; `samples`: their passes by (cell id, concurrency).
    """
    rows: list[Json] = []
    ordered = sorted(described, key=lambda cell: (str(cell["engine"]), cell["id"]))
    for a, b in combinations(ordered, 2):
        if a["engine"] != b["engine"] and all(a[key] == b[key] for key in ("model", "tp", "gpu")):
            different = next((key for key in _SAME_CELL if a.get(key) != b.get(key)), None)
            rows += _levels(a, b, samples, different)
    return rows


def _levels(a: Mapping[str, Any], b: Mapping[str, Any], samples: Samples, different: str | None) -> list[Json]:
    levels = sorted({c for cell, c in samples if cell == a["id"]} & {c for cell, c in samples if cell == b["id"]})
    named = {"model": a["model"], "tp": a["tp"], "gpu": a["gpu"], "a": a["id"], "b": b["id"],
             "simulated": bool(a["simulated"] or b["simulated"])}  # fmt: skip
    pairs = [(level, samples[a["id"], level], samples[b["id"], level]) for level in levels]
    rows = [{**named, **row} for row in judge(pairs, different)]
    for row in rows:
        if row["metric"] == "time_to_final_answer_s":
            row["why"] = why(samples[a["id"], row["concurrency"]], samples[b["id"], row["concurrency"]])
    return rows


def judge(pairs: Sequence[tuple[int, Sequence[Pass], Sequence[Pass]]], different: str | None = None) -> list[Json]:
    """Verdicts for every metric at every level, given as (concurrency, passes of a, passes of b).

    `different`: the key in which the two are not comparable, if any; then no ratio is given.
    """
    rows = []
    for metric in METRICS:
        found = _pool([None if different else effect(a, b, metric) for _, a, b in pairs])
        usable = [one.p_value for one in found if one is not None and not math.isnan(one.error)]
        adjusted = iter([min(1.0, len(METRICS) * p) for p in statistics.holm(usable)])
        for (concurrency, _, _), one in zip(pairs, found, strict=True):
            start = {"concurrency": concurrency, "metric": metric}
            rows.append(start | _row(one, metric, adjusted, len(usable), different))
    return rows


def _pool(found: list[Effect | None]) -> list[Effect | None]:
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


def _row(one: Effect | None, metric: str, adjusted: Any, tests: int, different: str | None) -> Json:
    if one is None:
        return _no_verdict("not comparable", f"different {different}", 0, 0)
    if math.isnan(one.error):
        return _no_verdict("too few samples", f"{one.method}: at least {MIN_SAMPLES} of each side needed", one.n_a, one.n_b)
    p_holm = next(adjusted)
    low, high = one.interval()
    verdict = "no detectable difference"
    if p_holm <= ALPHA:
        verdict = "faster" if (one.log_ratio > 0) == (metric in MORE_IS_FASTER) else "slower"
    lost = f"; {one.lost} censored left out" if one.lost else ""
    return {
        "ratio": {"value": math.exp(one.log_ratio), "ci95": [low, high]},
        "verdict": verdict,
        "p_value": one.p_value,
        "p_value_holm": p_holm,
        "smallest_detectable_ratio": one.smallest_detectable_ratio(tests * len(METRICS)),
        "n_a": one.n_a,
        "n_b": one.n_b,
        "method": one.method,
        "reason": f"{one.method}{lost}",
    }


def _no_verdict(verdict: str, reason: str, n_a: int, n_b: int) -> Json:
    return {
        "ratio": {"value": None, "ci95": None}, "verdict": verdict, "p_value": None, "p_value_holm": None,
        "smallest_detectable_ratio": None, "n_a": n_a, "n_b": n_b, "method": None, "reason": reason,
    }  # fmt: skip


def effect(a: Sequence[Pass], b: Sequence[Pass], metric: str) -> Effect:
    """log(a / b) of one metric at one level, by the finest design that the passes allow (see the module's head)."""
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
    return _welch(x, y, "whole passes", least=MIN_PASSES)


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
    span = window.steady(one)
    value = None if span is None else window.output_tokens_per_s([(one, span)]).value
    return math.log(value) if value else None


def _log_restricted(one: Pass, metric: str, horizon: float) -> float | None:
    values, seen = values_of(one, metric)
    area = statistics.restricted_mean(statistics.kaplan_meier(values, seen), horizon)[0] if len(values) else 0.0
    return math.log(area) if area > 0 else None


def _by_batch(a: Sequence[Pass], b: Sequence[Pass]) -> Effect:
    """Tokens/s of one or two passes: each side's relative error from its batch means."""
    sides = []
    for passes in (a, b):
        spans = [(one, span) for one in passes if (span := window.steady(one)) is not None]
        found = window.output_tokens_per_s(spans)
        if not found.value or found.ci95 is None:
            return Effect(0.0, math.nan, 1, 0, 0, "no steady window")
        half = (found.ci95[1] - found.value) / statistics.t_critical(found.n - 1)
        sides.append((math.log(found.value), half / found.value, found.n))
    (x, x_error, n_a), (y, y_error, n_b) = sides
    error, df = _satterthwaite(x_error, n_a, y_error, n_b)
    return Effect(x - y, error, df, n_a, n_b, "batch means of the steady window; passes were not repeated three times")


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
    error, df = _satterthwaite(errors[0], n_a, errors[1], n_b)
    return Effect(float(np.mean(x) - np.mean(y)), error, df, n_a, n_b, method)


def _satterthwaite(x_error: float, n_a: int, y_error: float, n_b: int) -> tuple[float, float]:
    """Standard error of a difference and its degrees of freedom (Welch 1947)."""
    total = x_error**2 + y_error**2
    if total == 0:
        return 0.0, float(n_a + n_b - 2)
    return math.sqrt(total), total**2 / (x_error**4 / (n_a - 1) + y_error**4 / (n_b - 1))


def _restricted(x: Floats, x_seen: Any, y: Floats, y_seen: Any) -> Effect:
    """Means up to the shorter side's longest time, from Kaplan-Meier, when some times are censored."""
    method = "some times censored: means up to a common time"
    if min(int(np.sum(x_seen)), int(np.sum(y_seen))) < MIN_SAMPLES:
        return Effect(0.0, math.nan, 1, len(x), len(y), method)
    horizon = min(float(np.max(x)), float(np.max(y)))
    sides = [statistics.restricted_mean(statistics.kaplan_meier(t, s), horizon) for t, s in ((x, x_seen), (y, y_seen))]
    (m_a, e_a), (m_b, e_b) = sides
    error, df = _satterthwaite(e_a / m_a, len(x), e_b / m_b, len(y))
    return Effect(math.log(m_a / m_b), error, df, len(x), len(y), method)


def why(a: Sequence[Pass], b: Sequence[Pass]) -> Json:
    """What the difference of mean times to final answer (a - b, s) is made of; the parts add up to it exactly.

    With W the mean wait for the first token, N the mean tokens after it and S their mean seconds each (weighted by
    token), the mean time is W + N S. So a - b = (W_a - W_b) + (N_a - N_b)(S_a + S_b)/2 + (S_a - S_b)(N_a + N_b)/2; the
    second part is split into tokens thought and tokens answered. Population: measured requests that finished.
    """
    sides = [_parts(passes) for passes in (a, b)]
    if None in sides:
        return {"difference_s": None, "reason": "one side finished no request"}
    (w_a, thought_a, answered_a, s_a, n_a, lost_a), (w_b, thought_b, answered_b, s_b, n_b, lost_b) = (s for s in sides if s)
    pace, length = (s_a + s_b) / 2, (thought_a + answered_a + thought_b + answered_b) / 2
    parts = {
        "tokens_thought_s": (thought_a - thought_b) * pace,
        "tokens_answered_s": (answered_a - answered_b) * pace,
        "seconds_per_token_s": (s_a - s_b) * length,
        "waiting_s": w_a - w_b,
    }
    lost = lost_a + lost_b
    reason = f"{lost} unfinished requests are not in it" if lost else None
    return {"difference_s": math.fsum(parts.values()), **parts, "n_a": n_a, "n_b": n_b, "reason": reason}


def _parts(passes: Sequence[Pass]) -> tuple[float, float, float, float, int, int] | None:
    """Mean wait, tokens thought and answered after the first chunk, seconds per token, requests used and not used."""
    use = [one.measured & one.ok & np.isfinite(one.first_s) for one in passes]
    n = int(sum(np.sum(mask) for mask in use))
    if n == 0:
        return None
    wait = math.fsum(float(np.sum((one.first_s - one.sent_s)[mask])) for one, mask in zip(passes, use, strict=True))
    spent = math.fsum(float(np.sum((one.last_s - one.first_s)[mask])) for one, mask in zip(passes, use, strict=True))
    tokens = math.fsum(float(np.sum(one.tokens_after_first[mask])) for one, mask in zip(passes, use, strict=True))
    thought = math.fsum(float(np.sum(_thought_after_first(one)[mask])) for one, mask in zip(passes, use, strict=True))
    lost = int(sum(np.sum(one.measured & ~mask) for one, mask in zip(passes, use, strict=True)))
    return wait / n, thought / n, (tokens - thought) / n, spent / tokens if tokens else 0.0, n, lost


def _thought_after_first(one: Pass) -> Floats:
    return np.clip(one.thinking_tokens - (one.tokens - one.tokens_after_first), 0.0, one.tokens_after_first)


def runs(baseline: Run, candidate: Run, tolerance: float = 0.0) -> Json:
    """`loadtest compare`: the candidate (a) against the baseline (b), for cells of the same id, or the only cell of each.

    `{baseline, candidate, simulated, comparisons, regressions}`; a regression is a verdict "slower" whose ratio is worse
    than `tolerance` (0.05: 5 %). Where a key of the contract differs, every verdict is "not comparable" and names it.
    """
    different = incomparable(baseline.manifest, candidate.manifest)
    rows: list[Json] = []
    for old, new in _same_cells(baseline, candidate):
        key = different or next((k for k in _SAME_CELL if old.engine.get(k) != new.engine.get(k)), None)
        before, after = _passes(old), _passes(new)
        pairs = [(level, after[level], before[level]) for level in sorted(before.keys() & after.keys())]
        rows += [{"a": new.id, "b": old.id, **row} for row in judge(pairs, key)]
    return {
        "baseline": baseline.manifest.get("run_id"),
        "candidate": candidate.manifest.get("run_id"),
        "simulated": bool(baseline.manifest.get("simulated") or candidate.manifest.get("simulated")),
        "comparisons": rows,
        "regressions": [row for row in rows if row["verdict"] == "slower" and _worse(row) > tolerance],
    }


def _worse(row: Json) -> float:
    ratio = float(row["ratio"]["value"])
    return (1 / ratio if row["metric"] in MORE_IS_FASTER else ratio) - 1


def incomparable(a: Mapping[str, Any], b: Mapping[str, Any]) -> str | None:
    """The first key of two manifests in which the runs did not do the same, or None.

    >>> incomparable({"mode": "natural"}, {"mode": "equal-work"})
    'mode'
    """
    workloads = [(one.get("workload") or {}).get("identity") for one in (a, b)]
    if workloads[0] != workloads[1]:
        return "workload"
    return next((key for key in _MUST_MATCH if a.get(key) != b.get(key)), None)


def _same_cells(baseline: Run, candidate: Run) -> list[tuple[CellRecords, CellRecords]]:
    new = {cell.id: cell for cell in candidate.cells}
    same = [(cell, new[cell.id]) for cell in baseline.cells if cell.id in new]
    if not same and len(baseline.cells) == len(candidate.cells) == 1:
        same = [(baseline.cells[0], candidate.cells[0])]
    return same


def _passes(cell: CellRecords) -> dict[int, list[Pass]]:
    anchor = earliest_anchor(cell.levels)
    found: dict[int, list[Pass]] = defaultdict(list)
    levels: Sequence[LevelRecords] = cell.levels
    for level in levels:
        found[level.concurrency].append(read(level, anchor))
    return found
