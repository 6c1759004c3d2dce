"""One engine against another: ratios with 95 % intervals, verdicts, what could have been detected, and why they differ.

Holm's correction runs over all verdicts of one metric, times the number of metrics: in a study of equal engines every
verdict of every metric, level and pair is "no detectable difference" at least 95 times of 100. How a ratio is found:
`effects`. Rules, formulas and reasons: docs/comparison.md.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from loadtest.analysis import comparability, effects
from loadtest.analysis.comparability import OF_CELL, OF_PROMPTS, OF_RUN, all_differences, manifest_differences, matched
from loadtest.analysis.decisions import RunComparison
from loadtest.analysis.effects import ALPHA, MIN_SAMPLES, Effect
from loadtest.errors import UsageError
from loadtest.metrics import intervals
from loadtest.metrics.catalogue import COMPARED, METRICS
from loadtest.metrics.figures import Bounded
from loadtest.metrics.intervals import Floats
from loadtest.metrics.request_arrays import Pass, earliest_anchor, pass_arrays
from loadtest.metrics.schema import CellFigures, Comparison, ComparisonVerdict, OutputLengths, Why
from loadtest.records.read import CellRecords, Run
from loadtest.workload import contract

_NO_RATIO = Bounded(None, None)

Samples = Mapping[tuple[str, int], Sequence[Pass]]


class PairedLevel(NamedTuple):
    """One concurrency at which both cells were measured, and their passes."""

    concurrency: int
    a: Sequence[Pass]
    b: Sequence[Pass]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two cells, a and b, at each level that both have.

    `model`, `tp`, `gpu`: of a. `different`: keys in which they are not comparable (none: they are).
    """

    a: str
    b: str
    model: str | None
    tp: int | None
    gpu: str | None
    simulated: bool
    levels: Sequence[PairedLevel]
    different: tuple[str, ...] = ()


def compare_engines(
    described: Sequence[CellFigures], samples: Samples, templates: Collection[frozenset[str]] = frozenset()
) -> list[Comparison]:
    """Every two engines of one run with the same model, GPUs and mode, a before b by name.

    `samples`: the passes by (cell id, concurrency). `templates`: the ids of every two cells that were given different
    prompts (`comparability.templates`), which are not comparable.
    """
    ordered = sorted(described, key=lambda cell: (cell.engine, cell.id))
    return compare_pairs([_pair_of_engines(a, b, samples, templates) for a, b in combinations(ordered, 2) if _rivals(a, b)])


def _rivals(a: CellFigures, b: CellFigures) -> bool:
    return a.engine != b.engine and (a.model, a.tp, a.gpu, a.mode) == (b.model, b.tp, b.gpu, b.mode)


def _pair_of_engines(a: CellFigures, b: CellFigures, samples: Samples, templates: Collection[frozenset[str]]) -> Pair:
    levels = sorted({c for cell, c in samples if cell == a.id} & {c for cell, c in samples if cell == b.id})
    apart = {
        "simulated": a.simulated != b.simulated,
        "clock_speed": a.clock_speed != b.clock_speed,
        comparability.TEMPLATE: frozenset((a.id, b.id)) in templates,
    }
    return Pair(
        a=a.id,
        b=b.id,
        model=a.model,
        tp=a.tp,
        gpu=a.gpu,
        simulated=a.simulated or b.simulated,
        levels=[PairedLevel(level, samples[a.id, level], samples[b.id, level]) for level in levels],
        different=tuple(key for key, differs in apart.items() if differs),
    )


def compare_pairs(pairs: Sequence[Pair]) -> list[Comparison]:
    """Verdicts for every pair at every level in every metric; `why` beside each time to final answer."""
    by_metric = [_of_metric(pairs, metric) for metric in COMPARED]
    return [row for of_pair in zip(*by_metric, strict=True) for of_metric in of_pair for row in of_metric]


def _of_metric(pairs: Sequence[Pair], metric: str) -> list[list[Comparison]]:
    """The rows of one metric, pair by pair, corrected together."""
    found = [
        effects.pool_effects([None if pair.different else effects.effect(level.a, level.b, metric) for level in pair.levels])
        for pair in pairs
    ]
    usable = [one.p_value for of_pair in found for one in of_pair if one is not None and not math.isnan(one.error)]
    adjusted = iter([min(1.0, len(COMPARED) * p) for p in intervals.holm(usable)])
    return [
        [_row(pair, level, one, metric, adjusted, len(usable)) for level, one in zip(pair.levels, of_pair, strict=True)]
        for pair, of_pair in zip(pairs, found, strict=True)
    ]


def _row(
    pair: Pair, level: PairedLevel, one: Effect | None, metric: str, adjusted: Iterator[float], tests: int
) -> Comparison:
    found = _judged(pair, one, metric, adjusted, tests)
    explained = metric == "time_to_final_answer_s" and not pair.different
    return Comparison(
        model=pair.model,
        tp=pair.tp,
        gpu=pair.gpu,
        a=pair.a,
        b=pair.b,
        simulated=pair.simulated,
        concurrency=level.concurrency,
        metric=metric,
        ratio=found.ratio,
        verdict=found.verdict,
        p_value=found.p_value,
        p_value_holm=found.p_value_holm,
        smallest_detectable_ratio=found.smallest_detectable_ratio,
        n_a=0 if one is None else one.n_a,
        n_b=0 if one is None else one.n_b,
        method=found.method,
        reason=found.reason,
        why=explain_difference(level.a, level.b) if explained else None,
        output_tokens=_lengths(effects.output_tokens(level.a, level.b)) if explained else None,
    )


def _lengths(one: Effect) -> OutputLengths:
    """How long a's outputs are against b's. Its interval is its own, not corrected with the others: it explains a verdict,
    and says nothing of speed."""
    if math.isnan(one.error):
        reason = f"at least {MIN_SAMPLES} prompts needed that both finished"
        return OutputLengths(ratio=_NO_RATIO, verdict="too few samples", n=one.n_a, reason=reason)
    ratio = Bounded(math.exp(one.log_ratio), one.interval())
    if one.p_value > ALPHA:
        return OutputLengths(ratio=ratio, verdict="no detectable difference", n=one.n_a, reason=one.method)
    return OutputLengths(ratio=ratio, verdict="fewer" if one.log_ratio < 0 else "more", n=one.n_a, reason=one.method)


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What is said of one metric at one level; without a ratio, why nothing is."""

    verdict: ComparisonVerdict
    reason: str
    ratio: Bounded = _NO_RATIO
    p_value: float | None = None
    p_value_holm: float | None = None
    smallest_detectable_ratio: float | None = None
    method: str | None = None


def _judged(pair: Pair, one: Effect | None, metric: str, adjusted: Iterator[float], tests: int) -> _Verdict:
    if one is None:
        return _Verdict("not comparable", f"different {', '.join(pair.different)}")
    if math.isnan(one.error):
        return _Verdict("too few samples", f"{one.method}: at least {MIN_SAMPLES} of each side needed")
    p_holm = next(adjusted)
    verdict: ComparisonVerdict = "no detectable difference"
    if p_holm <= ALPHA:
        verdict = "faster" if (one.log_ratio > 0) == (METRICS[metric].better == "more") else "slower"
    lost = f"; {one.lost} censored left out" if one.lost else ""
    once = "" if one.repeated else "; without three passes of both, what changes from pass to pass is not in it"
    return _Verdict(
        verdict,
        f"{one.method}{lost}{once}",
        Bounded(math.exp(one.log_ratio), one.interval()),
        one.p_value,
        p_holm,
        one.smallest_detectable_ratio(tests * len(COMPARED)),
        one.method,
    )


# Why -----------------------------------------------------------------------------------------------------------------


def explain_difference(a: Sequence[Pass], b: Sequence[Pass]) -> Why:
    """What the difference of mean times to final answer (a - b, s) is made of; the parts add up to it exactly.

    With W the mean wait for the first token, N the mean tokens after it and S their mean seconds each (weighted by
    token), the mean time is W + N S. So a - b = (W_a - W_b) + (N_a - N_b)(S_a + S_b)/2 + (S_a - S_b)(N_a + N_b)/2; the
    second part is split into tokens thought and tokens answered. Population: measured requests that finished.
    """
    x, y = _parts(a), _parts(b)
    if x is None or y is None:
        return Why(difference_s=None, reason="one side finished no request")
    pace, length = (x.seconds_per_token_s + y.seconds_per_token_s) / 2, (x.thought + x.answered + y.thought + y.answered) / 2
    thought_s, answered_s = (x.thought - y.thought) * pace, (x.answered - y.answered) * pace
    speed_s, waiting_s = (x.seconds_per_token_s - y.seconds_per_token_s) * length, x.wait_s - y.wait_s
    lost = x.lost + y.lost
    return Why(
        difference_s=math.fsum((thought_s, answered_s, speed_s, waiting_s)),
        tokens_thought_s=thought_s,
        tokens_answered_s=answered_s,
        seconds_per_token_s=speed_s,
        waiting_s=waiting_s,
        n_a=x.n,
        n_b=y.n,
        reason=f"{lost} unfinished requests are not in it" if lost else None,
    )


class _Parts(NamedTuple):
    """Mean wait, tokens thought and answered after the first chunk, seconds per token, requests used and not used."""

    wait_s: float
    thought: float
    answered: float
    seconds_per_token_s: float
    n: int
    lost: int


def _parts(passes: Sequence[Pass]) -> _Parts | None:
    use = [one.measured & one.ok & np.isfinite(one.first_s) for one in passes]
    n = int(sum(np.sum(mask) for mask in use))
    if n == 0:
        return None
    wait = math.fsum(float(np.sum((one.first_s - one.sent_s)[mask])) for one, mask in zip(passes, use, strict=True))
    spent = math.fsum(float(np.sum((one.last_s - one.first_s)[mask])) for one, mask in zip(passes, use, strict=True))
    tokens = math.fsum(float(np.sum(one.tokens_after_first[mask])) for one, mask in zip(passes, use, strict=True))
    thought = math.fsum(float(np.sum(_thought_after_first(one)[mask])) for one, mask in zip(passes, use, strict=True))
    lost = int(sum(np.sum(one.measured & ~mask) for one, mask in zip(passes, use, strict=True)))
    return _Parts(wait / n, thought / n, (tokens - thought) / n, spent / tokens if tokens else 0.0, n, lost)


def _thought_after_first(one: Pass) -> Floats:
    return np.clip(one.thinking_tokens - (one.tokens - one.tokens_after_first), 0.0, one.tokens_after_first)


# Two runs ------------------------------------------------------------------------------------------------------------


def compare_runs(baseline: Run, candidate: Run, tolerance: float = 0.0, allow: Collection[str] = ()) -> RunComparison:
    """`loadtest compare`: the candidate (a) against the baseline (b), for the cells that `matched` pairs.

    A regression is a verdict "slower" whose whole 95 % interval is worse than `tolerance` (0.05: 5 %). `allow`: keys that
    may differ. Raises UsageError where the runs were asked for different things, or no pair of their cells can be compared:
    it names every key.
    """
    _check_keys(allow)
    apart = manifest_differences(baseline.manifest, candidate.manifest)
    if refused := {key: values for key, values in apart.items() if key not in allow}:
        raise UsageError(_refusal(refused))
    found = matched(baseline.cells, candidate.cells)
    other_prompts = (comparability.TEMPLATE,) if apart.keys() & OF_PROMPTS else ()  # allowed, and so no sign of the template
    pairs = [_pair(old, new, (*allow, *other_prompts)) for old, new in found]
    if pairs and all(pair.different for pair in pairs):
        values = all_differences(*found[0])
        raise UsageError(_refusal({key: values[key] for key in pairs[0].different}))
    if not any(pair.levels for pair in pairs):
        ids = [", ".join(cell.id for cell in run.cells) or "no cell" for run in (baseline, candidate)]
        raise UsageError(f"expected a cell with a level in both runs, got {ids[0]} and {ids[1]}; measure the same cells")
    rows = compare_pairs(pairs)
    return RunComparison(
        baseline=baseline.manifest.run_id,
        candidate=candidate.manifest.run_id,
        simulated=baseline.manifest.simulated or candidate.manifest.simulated,
        tolerance=tolerance,
        allowed=tuple(sorted(apart.keys() | {key for key in (*OF_CELL, comparability.TEMPLATE) if key in allow})),
        comparisons=tuple(rows),
        regressions=tuple(row for row in rows if row.verdict == "slower" and _least_loss(row) > tolerance),
        not_compared=tuple(_left_over(baseline, candidate, found)),
    )


def _check_keys(allow: Collection[str]) -> None:
    known = [
        "workload",
        *OF_RUN,
        *OF_CELL[:-1],
        comparability.TEMPLATE,
        *(f.name for f in fields(contract.Contract) if f.name != "mode"),
    ]
    unknown = next((key for key in allow if key not in known), None)
    if unknown is not None:
        raise UsageError(f"--allow {unknown}: expected a key in which runs may differ, one of {', '.join(known)}")


def _least_loss(row: Comparison) -> float:
    """How much slower a is at least, by the near end of the interval: 0.05 is 5 %."""
    low, high = row.ratio.low, row.ratio.high
    assert low is not None
    assert high is not None
    return (1 / high if METRICS[row.metric].better == "more" else low) - 1


def _refusal(different: Mapping[str, tuple[Any, Any]]) -> str:
    said = ", ".join(f"{key} ({old} against {new})" for key, (old, new) in different.items())
    allow = " ".join(f"--allow {key}" for key in different)
    return (
        f"not comparable: the runs differ in {said}; measure both alike, or compare all the same with "
        f"loadtest compare BASELINE CANDIDATE {allow}"
    )


def _pair(old: CellRecords, new: CellRecords, allow: Collection[str]) -> Pair:
    before, after = _passes(old), _passes(new)
    return Pair(
        a=new.id,
        b=old.id,
        model=new.engine.model,
        tp=new.engine.tp,
        gpu=new.engine.gpu,
        simulated=old.engine.predicts or new.engine.predicts,
        levels=[PairedLevel(level, after[level], before[level]) for level in sorted(before.keys() & after.keys())],
        different=tuple(key for key in all_differences(old, new) if key not in allow),
    )


def _passes(cell: CellRecords) -> dict[int, list[Pass]]:
    anchor = earliest_anchor(cell.levels)
    found: dict[int, list[Pass]] = defaultdict(list)
    for level in cell.levels:
        found[level.concurrency].append(pass_arrays(level, anchor))
    return found


def _left_over(baseline: Run, candidate: Run, pairs: Sequence[tuple[CellRecords, CellRecords]]) -> list[str]:
    """Cells and levels of one run that the other has no match for, in words."""
    answer = []
    for name, run, side in (("baseline", baseline, 0), ("candidate", candidate, 1)):
        for cell in run.cells:
            partner = next((pair[1 - side] for pair in pairs if pair[side] is cell), None)
            theirs = set() if partner is None else {level.concurrency for level in partner.levels}
            missing = sorted({level.concurrency for level in cell.levels} - theirs)
            if partner is None:
                answer.append(f"{cell.id}: only in the {name}")
            elif missing:
                answer.append(f"{cell.id}: only the {name} has {', '.join(map(str, missing))} users")
    return answer
