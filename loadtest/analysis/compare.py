"""Who is held against whom: the engines of one run, or a candidate run against a baseline.

What is said of them: `judgement`. What may be compared: `comparability`. Rules: docs/deciding.md.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from itertools import combinations
from typing import NamedTuple

from loadtest.analysis import comparability
from loadtest.analysis.bursts.cells import BurstCell, burst_cells, recorded
from loadtest.analysis.bursts.composed import compose_cells, composed_pair, decision_levels
from loadtest.analysis.comparability import (
    OF_CELL,
    OF_PROMPTS,
    OF_RUN,
    Values,
    all_differences,
    manifest_differences,
    matched,
)
from loadtest.analysis.decisions import RunComparison
from loadtest.analysis.factors import are_rivals, baselines, changes, judge_changes
from loadtest.analysis.judgement import ComposedPair, Judged, Pair, PairedLevel, judge_pairs
from loadtest.analysis.validity import LevelPlace, unsound_reasons
from loadtest.decision.verdicts import ALPHA, MATTERS
from loadtest.errors import UsageError
from loadtest.metrics.catalogue import METRICS
from loadtest.metrics.level_schema import ConditionCheck
from loadtest.metrics.request_arrays import Pass, earliest_anchor, pass_arrays
from loadtest.metrics.schema import CellFigures, Comparison, PairDecision
from loadtest.records.manifest import VIRTUAL_TIME, Manifest
from loadtest.records.read import CellRecords, Run
from loadtest.workload import contract

Samples = Mapping[tuple[str, int], Sequence[Pass]]


def compare_engines(
    described: Sequence[CellFigures],
    samples: Samples,
    manifest: Manifest,
    unlike: Mapping[frozenset[str], Sequence[str]],
    unsound: Collection[LevelPlace],
    bursts: Mapping[str, BurstCell] | None = None,
) -> Judged:
    """Every two engines of one run with the same model, GPUs, mode and name, a before b by name; every other configuration
    (a) against its baseline (b); and what each change does that the study varies.

    `samples`: the passes by (cell id, concurrency). `unlike`: the ids of every two cells that ran differently, with the keys
    (`comparability.unlike`): they are not comparable. `unsound`: levels on which no verdict rests. `bursts`: the cells that
    were measured by bursts.
    """
    asked = {cell.id: place for place, cell in enumerate(manifest.cells)}
    listed = sorted(described, key=lambda cell: asked.get(cell.id, len(asked)))
    baseline_of = baselines(listed, manifest.baseline) if not any(cell.side for cell in described) else {}
    composed = _Composed(described, manifest.levels, bursts or {})

    def pair_of(a: CellFigures, b: CellFigures) -> Pair:
        return composed.added_to(_pair_of_engines(a, b, samples, unlike, unsound))

    judged = judge_pairs(
        [pair_of(a, b) for a, b in _rivals(described, baseline_of)],
        start_sd(manifest),
        matters(manifest),
        sequential=manifest.until_decided,
        unit="round" if any(cell.side is not None for cell in described) else "start",
    )
    found = [(one, [pair_of(a, b) for a, b in one.cells]) for one in changes(listed, baseline_of)]
    return judged._replace(
        factors=judge_changes(found, start_sd(manifest), matters(manifest), sequential=manifest.until_decided)
    )


class _Composed:
    """What bursts say of the pairs of a run."""

    def __init__(self, described: Sequence[CellFigures], levels: Collection[int], bursts: Mapping[str, BurstCell]) -> None:
        self._bursts, self._levels = bursts, decision_levels(levels)
        self._broken = {
            cell.id: broken_words(cell.side.upper() if cell.side else cell.id, cell.conditions) for cell in described
        }
        self._doubtful = {(cell.id, one.concurrency) for cell in described for one in cell.composed if unsound_reasons(one)}

    def added_to(self, pair: Pair) -> Pair:
        """The pair with what bursts say of it; as it is in a run without bursts."""
        if not self._bursts:
            return pair
        a, b = self._bursts.get(pair.a), self._bursts.get(pair.b)
        found = composed_pair(a, b, self._levels, (*self._broken[pair.a], *self._broken[pair.b]))
        sound = not any((name, level) in self._doubtful for name in (pair.a, pair.b) for level in self._levels)
        return _with_bursts(pair, found if found is None or sound else replace(found, by_start=None))


def _with_bursts(pair: Pair, composed: ComposedPair | None) -> Pair:
    """The pair as bursts show it. Where a condition is broken natural passes decide: of starts that have all levels."""
    if composed is None or not composed.broken:
        return replace(pair, composed=composed)
    asked = [level for level in pair.levels if level.concurrency in composed.levels]
    a, b = (_repeats_of_all([one.a for one in asked]), _repeats_of_all([one.b for one in asked]))
    kept = [
        PairedLevel(
            level.concurrency, [one for one in level.a if one.repeat in a], [one for one in level.b if one.repeat in b]
        )
        for level in asked
    ]
    others = [level for level in pair.levels if level not in asked]
    return replace(pair, composed=composed, levels=sorted([*kept, *others], key=lambda level: level.concurrency))


def _repeats_of_all(levels: Sequence[Sequence[Pass]]) -> set[int]:
    return set.intersection(*({one.repeat for one in passes} for passes in levels)) if levels else set()


def broken_words(cell_id: str, conditions: Sequence[ConditionCheck]) -> list[str]:
    """The conditions of composed figures that fail, in words."""
    return [f"{cell_id}: {one.name}: {one.reason}" for one in conditions if one.status == "broken"]


def start_sd(*manifests: Manifest) -> float | None:
    """How much starts differ, as a share, by what the runs say, the most of it; 0 in virtual time, where none does.
    None: one of them does not say."""
    said = [0.0 if one.driven == VIRTUAL_TIME else one.start_sd for one in manifests]
    return None if None in said else max(one for one in said if one is not None)


def matters(*manifests: Manifest) -> float:
    """The difference that matters, the least that the runs say."""
    return min(MATTERS if one.matters is None else one.matters for one in manifests)


def _rivals(cells: Sequence[CellFigures], baseline_of: Mapping[str, str]) -> list[tuple[CellFigures, CellFigures]]:
    """Who is held against whom: the servers of a duel, a configuration and its baseline, two engines by name."""
    found = []
    ordered = sorted(cells, key=lambda cell: (cell.side or "", cell.engine, cell.id))
    for a, b in combinations(ordered, 2):
        if baseline_of.get(b.id) == a.id:
            found.append((b, a))
        elif baseline_of.get(a.id) == b.id or (a.side != b.side if a.side is not None else are_rivals(a, b)):
            found.append((a, b))
    return found


def _pair_of_engines(
    a: CellFigures,
    b: CellFigures,
    samples: Samples,
    unlike: Mapping[frozenset[str], Sequence[str]],
    unsound: Collection[LevelPlace],
) -> Pair:
    both = sorted({c for cell, c in samples if cell == a.id} & {c for cell, c in samples if cell == b.id})
    left_out = tuple(level for level in both if {(a.id, level), (b.id, level)} & {*unsound})
    keys = ("simulated", "n_servers", "proxy", "clock_speed")
    apart = {key: getattr(a, key) != getattr(b, key) for key in keys}
    return Pair(
        a=a.id,
        b=b.id,
        model=a.model,
        tp=a.tp,
        gpu=a.gpu,
        simulated=a.simulated or b.simulated,
        levels=[PairedLevel(level, samples[a.id, level], samples[b.id, level]) for level in both if level not in left_out],
        unsound=left_out,
        restarted=(a.endpoint is None or a.side is not None, b.endpoint is None or b.side is not None),
        different=(*(key for key, differs in apart.items() if differs), *unlike.get(frozenset((a.id, b.id)), ())),
    )


# Two runs ------------------------------------------------------------------------------------------------------------


def compare_runs(
    baseline: Run,
    candidate: Run,
    tolerance: float = 0.0,
    allow: Collection[str] = (),
    known_start_sd: float | None = None,
    unsound: tuple[Collection[LevelPlace], Collection[LevelPlace]] = ((), ()),
) -> RunComparison:
    """`loadtest compare`: the candidate (a) against the baseline (b), for the cells that `matched` pairs.

    A regression is a difference that holds, and whose whole 95 % interval is worse than `tolerance` (0.05: 5 %). `allow`:
    keys that may differ. `known_start_sd`: how much starts differ, as a share, where the runs do not say. `unsound`: levels
    of the baseline and of the candidate on which no verdict rests (`validity.unsound_places`). Raises UsageError where the
    runs were asked for different things, or no pair of their cells can be compared: it names every key.
    """
    _check_keys(allow)
    apart = manifest_differences(baseline.manifest, candidate.manifest)
    if refused := {key: values for key, values in apart.items() if key not in allow}:
        raise UsageError(_refusal(refused))
    found = matched(baseline.cells, candidate.cells)
    other_prompts = (comparability.TEMPLATE,) if apart.keys() & OF_PROMPTS else ()  # allowed, and so no sign of the template
    pairs = [_pair(old, new, (*allow, *other_prompts), unsound) for old, new in found]
    pairs = _composed_runs(pairs, baseline, candidate)
    if pairs and all(pair.different for pair in pairs):
        values = all_differences(*found[0])
        raise UsageError(_refusal({key: values[key] for key in pairs[0].different}))
    if not any(pair.levels or pair.unsound or pair.composed for pair in pairs):
        ids = [", ".join(cell.id for cell in run.cells) or "no cell" for run in (baseline, candidate)]
        raise UsageError(f"expected a cell with a level in both runs, got {ids[0]} and {ids[1]}; measure the same cells")
    manifests = (baseline.manifest, candidate.manifest)
    said = _known_start_sd(manifests, known_start_sd)
    judged = judge_pairs(pairs, said, matters(*manifests), sequential=any(one.until_decided for one in manifests))
    return RunComparison(
        baseline=baseline.manifest.run_id,
        candidate=candidate.manifest.run_id,
        simulated=baseline.manifest.simulated or candidate.manifest.simulated,
        tolerance=tolerance,
        allowed=tuple(sorted(apart.keys() | {key for key in (*OF_CELL, comparability.TEMPLATE) if key in allow})),
        decisions=tuple(judged.decisions),
        comparisons=tuple(judged.comparisons),
        regressions=tuple(row for row in judged.comparisons if _differs(row) and _least_loss(row) > tolerance),
        slower=tuple(one for one in judged.decisions if _is_slower(one, tolerance)),
        not_compared=tuple(_left_over(baseline, candidate, found)),
    )


def _known_start_sd(manifests: Sequence[Manifest], given: float | None) -> float | None:
    """None where a run was imported: no verdict rests on times that nobody checked. Raises UsageError: one was given all
    the same."""
    if any(one.imported is not None for one in manifests):
        if given is not None:
            raise UsageError("--start-sd: expected two runs that loadtest measured, got one of another tool; leave it out")
        return None
    return start_sd(*manifests) if given is None else given


def _is_slower(one: PairDecision, tolerance: float) -> bool:
    """Is the candidate slower by bursts, with the whole interval beyond the tolerance?"""
    return one.evidence == "composed" and one.verdict == "slower" and (one.ratio.low or 0.0) > 1 + tolerance


def _composed_runs(pairs: Sequence[Pair], baseline: Run, candidate: Run) -> list[Pair]:
    """The pairs as bursts show them, where both runs have some."""
    before, after = _burst_side(baseline), _burst_side(candidate)
    levels = decision_levels(set(baseline.manifest.levels) & set(candidate.manifest.levels))
    found = []
    for pair in pairs:
        broken = (*after.broken.get(pair.a, ()), *before.broken.get(pair.b, ()))
        composed = composed_pair(after.cells.get(pair.a), before.cells.get(pair.b), levels, broken)
        found.append(_with_bursts(pair, composed))
    return found


class _BurstSide(NamedTuple):
    """The cells of one run that have sound bursts, by id, and the conditions that each breaks."""

    cells: Mapping[str, BurstCell]
    broken: Mapping[str, list[str]]


def _burst_side(run: Run) -> _BurstSide:
    anchor = earliest_anchor([one for cell in run.cells for one in cell.passes])
    if not any(cell.bursts for cell in run.cells):
        return _BurstSide({}, {})
    cells = burst_cells([recorded(cell, anchor) for cell in run.cells], run.manifest.natural_users)
    composed = compose_cells(cells, run.manifest, anchor)
    sound = {name: cells[name] for name, one in composed.items() if not any(map(unsound_reasons, one.levels))}
    return _BurstSide(sound, {name: broken_words(name, one.conditions) for name, one in composed.items()})


def _check_keys(allow: Collection[str]) -> None:
    known = [
        "workload",
        *OF_RUN,
        *OF_CELL[:-1],
        comparability.TEMPLATE,
        comparability.TOOL,
        *(f.name for f in fields(contract.Contract) if f.name != "mode"),
    ]
    unknown = next((key for key in allow if key not in known), None)
    if unknown is not None:
        raise UsageError(f"--allow {unknown}: expected a key in which runs may differ, one of {', '.join(known)}")


def _differs(row: Comparison) -> bool:
    return row.p_value_holm is not None and row.p_value_holm <= ALPHA


def _least_loss(row: Comparison) -> float:
    """How much slower a is at least, by the near end of the interval: 0.05 is 5 %."""
    low, high = row.ratio.low, row.ratio.high
    assert low is not None
    assert high is not None
    return (1 / high if METRICS[row.metric].better == "more" else low) - 1


def _refusal(different: Mapping[str, Values]) -> str:
    said = ", ".join(f"{key} ({old} against {new})" for key, (old, new) in different.items())
    allow = " ".join(f"--allow {key}" for key in different)
    return (
        f"not comparable: the runs differ in {said}; measure both alike, or compare all the same with "
        f"loadtest compare BASELINE CANDIDATE {allow}"
    )


def _pair(
    old: CellRecords,
    new: CellRecords,
    allow: Collection[str],
    unsound: tuple[Collection[LevelPlace], Collection[LevelPlace]],
) -> Pair:
    before, after = _passes(old), _passes(new)
    both = sorted(before.keys() & after.keys())
    left_out = tuple(level for level in both if (old.id, level) in unsound[0] or (new.id, level) in unsound[1])
    return Pair(
        a=new.id,
        b=old.id,
        model=new.engine.model,
        tp=new.engine.tp,
        gpu=new.engine.gpu,
        simulated=old.engine.predicts or new.engine.predicts,
        levels=[PairedLevel(level, after[level], before[level]) for level in both if level not in left_out],
        unsound=left_out,
        restarted=(new.engine.started_by_run, old.engine.started_by_run),
        imported=new.engine.imported or old.engine.imported,
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
