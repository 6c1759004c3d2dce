"""One runtime against another: ratios with 95 % intervals, verdicts, what could have been detected, and why they differ.

Holm's correction runs over all verdicts of one metric, times the number of metrics: in a study of equal runtimes every
verdict of every metric, level and pair is "no detectable difference" at least 95 times of 100. How a ratio is found:
`effects`. Rules, formulas and reasons: docs/comparison.md.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any

import numpy as np

from loadtest.analysis import comparability, effects
from loadtest.analysis.comparability import OF_CELL, OF_PROMPTS, OF_RUN, all_differences, differences, different, matched
from loadtest.analysis.effects import ALPHA, METRICS, MIN_SAMPLES, Effect
from loadtest.errors import UsageError
from loadtest.metrics import intervals
from loadtest.metrics.intervals import Floats
from loadtest.metrics.request_arrays import Pass, earliest_anchor, read
from loadtest.records.engine_facts import EngineFacts
from loadtest.records.read import CellRecords, Run
from loadtest.workload import contract

Samples = Mapping[tuple[str, int], Sequence[Pass]]

Json = dict[str, Any]

MORE_IS_FASTER = frozenset({"tokens_per_s_per_user", "output_tokens_per_s"})


@dataclass(frozen=True, slots=True)
class Pair:
    """Two cells, a and b, at each level that both have: (concurrency, passes of a, passes of b).

    `named` begins each of their rows; `different` holds the keys in which they are not comparable (none: they are).
    """

    named: Mapping[str, Any]
    levels: Sequence[tuple[int, Sequence[Pass], Sequence[Pass]]]
    different: tuple[str, ...] = ()


def cells(
    described: Sequence[Mapping[str, Any]], samples: Samples, templates: Collection[frozenset[str]] = frozenset()
) -> list[Json]:
    """`comparisons` of metrics.json: every two runtimes of one run with the same model, tp and GPU, a before b by name.

    `described`: the cells as metrics.json has them; `samples`: their passes by (cell id, concurrency); `templates`: the ids
    of every two cells that were given different prompts (`agreement.templates`), which are not comparable.
    """
    pairs = []
    ordered = sorted(described, key=lambda cell: (str(cell["engine"]), cell["id"]))
    for a, b in combinations(ordered, 2):
        if a["engine"] != b["engine"] and all(a[key] == b[key] for key in ("model", "tp", "gpu", "mode")):
            named = {"model": a["model"], "tp": a["tp"], "gpu": a["gpu"], "a": a["id"], "b": b["id"],
                     "simulated": bool(a["simulated"] or b["simulated"])}  # fmt: skip
            levels = sorted({c for cell, c in samples if cell == a["id"]} & {c for cell, c in samples if cell == b["id"]})
            both = [(level, samples[a["id"], level], samples[b["id"], level]) for level in levels]
            apart = [comparability.TEMPLATE] if frozenset((a["id"], b["id"])) in templates else []
            pairs.append(Pair(named, both, (*different(_facts(a), _facts(b)), *apart)))
    return judge(pairs)


def _facts(cell: Mapping[str, Any]) -> EngineFacts:
    return EngineFacts(id=cell["id"], **{key: cell[key] for key in OF_CELL})


def judge(pairs: Sequence[Pair]) -> list[Json]:
    """Verdicts for every pair at every level in every metric; `why` beside each time to final answer."""
    by_metric = [_of_metric(pairs, metric) for metric in METRICS]
    rows: list[Json] = []
    for of_pair in zip(*by_metric, strict=True):
        rows += [row for of_metric in of_pair for row in of_metric]
    return rows


def _of_metric(pairs: Sequence[Pair], metric: str) -> list[list[Json]]:
    """The rows of one metric, pair by pair, corrected together."""
    found = [
        effects.pooled([None if pair.different else effects.effect(a, b, metric) for _, a, b in pair.levels])
        for pair in pairs
    ]
    usable = [one.p_value for of_pair in found for one in of_pair if one is not None and not math.isnan(one.error)]
    adjusted = iter([min(1.0, len(METRICS) * p) for p in intervals.holm(usable)])
    return [
        [_row(pair, level, one, metric, adjusted, len(usable)) for level, one in zip(pair.levels, of_pair, strict=True)]
        for pair, of_pair in zip(pairs, found, strict=True)
    ]


def _row(
    pair: Pair,
    level: tuple[int, Sequence[Pass], Sequence[Pass]],
    one: Effect | None,
    metric: str,
    adjusted: Iterator[float],
    tests: int,
) -> Json:
    concurrency, a, b = level
    row = {**pair.named, "concurrency": concurrency, "metric": metric, **_verdict(pair, one, metric, adjusted, tests)}
    if metric == "time_to_final_answer_s" and not pair.different:
        row |= {"why": why(a, b), "output_tokens": _lengths(effects.output_tokens(a, b))}
    return row


def _lengths(one: Effect) -> Json:
    """How long a's outputs are against b's: `{ratio, verdict (fewer | more | no detectable difference), n, reason}`. Its
    interval is its own, not corrected with the others: it explains a verdict, and is none about speed."""
    if math.isnan(one.error):
        reason = f"at least {MIN_SAMPLES} prompts needed that both finished"
        return {"ratio": {"value": None, "ci95": None}, "verdict": "too few samples", "n": one.n_a, "reason": reason}
    held = one.p_value <= ALPHA
    verdict = ("fewer" if one.log_ratio < 0 else "more") if held else "no detectable difference"
    ratio = {"value": math.exp(one.log_ratio), "ci95": list(one.interval())}
    return {"ratio": ratio, "verdict": verdict, "n": one.n_a, "reason": one.method}


def _verdict(pair: Pair, one: Effect | None, metric: str, adjusted: Iterator[float], tests: int) -> Json:
    if one is None:
        return _no_verdict("not comparable", f"different {', '.join(pair.different)}", 0, 0)
    if math.isnan(one.error):
        return _no_verdict("too few samples", f"{one.method}: at least {MIN_SAMPLES} of each side needed", one.n_a, one.n_b)
    p_holm = next(adjusted)
    verdict = "no detectable difference"
    if p_holm <= ALPHA:
        verdict = "faster" if (one.log_ratio > 0) == (metric in MORE_IS_FASTER) else "slower"
    lost = f"; {one.lost} censored left out" if one.lost else ""
    once = "" if one.repeated else "; without three passes of both, what changes from pass to pass is not in it"
    return {
        "ratio": {"value": math.exp(one.log_ratio), "ci95": list(one.interval())},
        "verdict": verdict,
        "p_value": one.p_value,
        "p_value_holm": p_holm,
        "smallest_detectable_ratio": one.smallest_detectable_ratio(tests * len(METRICS)),
        "n_a": one.n_a,
        "n_b": one.n_b,
        "method": one.method,
        "reason": f"{one.method}{lost}{once}",
    }


def _no_verdict(verdict: str, reason: str, n_a: int, n_b: int) -> Json:
    return {
        "ratio": {"value": None, "ci95": None}, "verdict": verdict, "p_value": None, "p_value_holm": None,
        "smallest_detectable_ratio": None, "n_a": n_a, "n_b": n_b, "method": None, "reason": reason,
    }  # fmt: skip


# Why -----------------------------------------------------------------------------------------------------------------


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


# Two runs ------------------------------------------------------------------------------------------------------------


def runs(baseline: Run, candidate: Run, tolerance: float = 0.0, allow: Collection[str] = ()) -> Json:
    """`loadtest compare`: the candidate (a) against the baseline (b), for the cells that `matched` pairs.

    `{baseline, candidate, simulated, tolerance, allowed, comparisons, regressions, not_compared}`. A regression is a
    verdict "slower" whose whole 95 % interval is worse than `tolerance` (0.05: 5 %). `allow`: keys that may differ.
    Raises UsageError where the runs were asked for different things, or no pair of their cells can be compared: it names
    every key.
    """
    _check_keys(allow)
    apart = differences(baseline.manifest, candidate.manifest)
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
    rows = judge(pairs)
    return {
        "baseline": baseline.manifest.run_id,
        "candidate": candidate.manifest.run_id,
        "simulated": baseline.manifest.simulated or candidate.manifest.simulated,
        "tolerance": tolerance,
        "allowed": sorted(apart.keys() | {key for key in (*OF_CELL, comparability.TEMPLATE) if key in allow}),
        "comparisons": rows,
        "regressions": [row for row in rows if row["verdict"] == "slower" and _least_loss(row) > tolerance],
        "not_compared": _left_over(baseline, candidate, found),
    }


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


def _least_loss(row: Json) -> float:
    """How much slower a is at least, by the near end of the interval: 0.05 is 5 %."""
    low, high = row["ratio"]["ci95"]
    return float(1 / high if row["metric"] in MORE_IS_FASTER else low) - 1


def _refusal(different: Mapping[str, tuple[Any, Any]]) -> str:
    said = ", ".join(f"{key} ({old} against {new})" for key, (old, new) in different.items())
    allow = " ".join(f"--allow {key}" for key in different)
    return (
        f"not comparable: the runs differ in {said}; measure both alike, or compare all the same with "
        f"loadtest compare BASELINE CANDIDATE {allow}"
    )


def _pair(old: CellRecords, new: CellRecords, allow: Collection[str]) -> Pair:
    named = {"a": new.id, "b": old.id, "simulated": old.engine.predicts or new.engine.predicts}
    before, after = _passes(old), _passes(new)
    levels = [(level, after[level], before[level]) for level in sorted(before.keys() & after.keys())]
    return Pair(named, levels, tuple(key for key in all_differences(old, new) if key not in allow))


def _passes(cell: CellRecords) -> dict[int, list[Pass]]:
    anchor = earliest_anchor(cell.levels)
    found: dict[int, list[Pass]] = defaultdict(list)
    for level in cell.levels:
        found[level.concurrency].append(read(level, anchor))
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
