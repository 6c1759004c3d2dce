"""Configurations of one engine in one study: which is held against which, and what each thing that is varied does."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from loadtest.analysis import effects
from loadtest.analysis.judgement import Pair, PairFigures, pair_figures
from loadtest.decision import verdicts
from loadtest.decision.contrasts import mean_effect
from loadtest.decision.starts import Effect, PairedStarts
from loadtest.metrics.catalogue import COMPARED, METRICS
from loadtest.metrics.figures import Bounded
from loadtest.metrics.schema import CellFigures, ComparisonVerdict, FactorEffect, FactorFigure, FactorLevel


class Configuration(Protocol):
    """A cell, of a study or of its figures: what it is, and where it is served."""

    @property
    def id(self) -> str: ...
    @property
    def engine(self) -> str: ...
    @property
    def name(self) -> str | None: ...
    @property
    def model(self) -> str | None: ...
    @property
    def tp(self) -> int | None: ...
    @property
    def gpu(self) -> str | None: ...
    @property
    def mode(self) -> str | None: ...


def baselines(cells: Sequence[Configuration], named: str | None) -> dict[str, str]:
    """Whom each configuration is held against, by id: the cell of its deployment that `named` names or whose id it is, of
    its own engine if there is one; else the first of its engine there. Baselines are left out."""
    found = {}
    for cell in cells:
        there = [one for one in cells if _place(one) == _place(cell)]
        own = [one for one in there if one.engine == cell.engine]
        chosen = next((one for one in (*own, *there) if named is not None and named in (one.name, one.id)), own[0])
        if chosen is not cell:
            found[cell.id] = chosen.id
    return found


def _place(cell: Configuration) -> tuple[object, ...]:
    return cell.model, cell.tp, cell.gpu, cell.mode


def are_rivals(a: Configuration, b: Configuration) -> bool:
    """Two engines of one deployment, in a configuration of the same name?"""
    return a.engine != b.engine and a.name == b.name and _place(a) == _place(b)


# What is varied ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One level of a factor against another, and the cells that show it: those with the level, and beside each the cell
    that differs from it in nothing else."""

    factor: str
    level: str
    baseline: str
    cells: tuple[tuple[CellFigures, CellFigures], ...]


def changes(cells: Sequence[CellFigures], baseline_of: Mapping[str, str]) -> list[Change]:
    """Every change that the cells show, in their order: against the level of the baseline, else of the first cell."""
    held_against = set(baseline_of.values())
    groups: dict[tuple[object, ...], list[CellFigures]] = defaultdict(list)
    for cell in cells:
        if cell.factors:
            groups[(cell.engine, *_place(cell), tuple(cell.factors), _own_name(cell))].append(cell)
    found: list[Change] = []
    for group in groups.values():
        found += _changes_from(next((cell for cell in group if cell.id in held_against), group[0]), group)
    return found


def _own_name(cell: CellFigures) -> str:
    """The name of a configuration without what it varies."""
    label = ",".join(f"{factor.lstrip('-')}={level}" for factor, level in cell.factors.items())
    return (cell.name or "").removesuffix(label)


def _changes_from(first: CellFigures, group: Sequence[CellFigures]) -> Iterable[Change]:
    for factor, baseline in first.factors.items():
        for level in dict.fromkeys(cell.factors[factor] for cell in group):
            like = {_others(cell, factor): cell for cell in group if cell.factors[factor] == baseline}
            there = [cell for cell in group if cell.factors[factor] == level]
            pairs = [(cell, like[key]) for cell in there if (key := _others(cell, factor)) in like]
            if level != baseline and pairs:
                yield Change(factor=factor, level=level, baseline=baseline, cells=tuple(pairs))


def _others(cell: CellFigures, factor: str) -> tuple[str, ...]:
    return tuple(level for name, level in cell.factors.items() if name != factor)


# What it does --------------------------------------------------------------------------------------------------------


def judge_changes(
    found: Sequence[tuple[Change, Sequence[Pair]]], start_sd: float | None, matters: float, *, sequential: bool
) -> list[FactorEffect]:
    """What each change does, from its pairs of cells; intervals hold for all changes at once."""
    figures = [[one for pair in pairs if (one := pair_figures(pair))] for _, pairs in found]
    asked = [_questions(some) for some in figures]
    level = verdicts.nominal_level(sum(bool(some) for some in asked), sequential=sequential)
    return [
        _effect(change, pairs, some, _Judge(start_sd, matters, level))
        for (change, pairs), some in zip(found, figures, strict=True)
    ]


def _questions(some: Sequence[PairFigures]) -> list[PairedStarts]:
    """The starts of every pair in the question; none where a pair has no answer, or answers another question."""
    starts = [one.by_start for one in some if one.by_start is not None]
    alike = len({(one.metric, one.levels) for one in some}) == 1
    return starts if alike and len(starts) == len(some) else []


@dataclass(frozen=True, slots=True)
class _Judge:
    """By what effects are judged: `level` is that of an interval which holds for all changes at once."""

    start_sd: float | None
    matters: float
    level: float

    def verdict(self, effect: Effect, metric: str, among: int = 1) -> verdicts.Verdict:
        more = METRICS[metric].better == "more"
        return verdicts.verdict_on(effect, self.level / among, self.matters, more_is_faster=more)


def _effect(change: Change, pairs: Sequence[Pair], some: Sequence[PairFigures], judge: _Judge) -> FactorEffect:
    starts, metric = _questions(some), some[0].metric
    effect = mean_effect(starts, judge.start_sd) if starts else None
    verdict = None if effect is None else judge.verdict(effect, metric)
    word: ComparisonVerdict = "too few samples" if verdict is None else verdict.word
    if any(pair.different for pair in pairs):
        word = "not comparable"
    cell = change.cells[0][0]
    return FactorEffect(
        factor=change.factor,
        level=change.level,
        baseline=change.baseline,
        engine=cell.engine,
        model=cell.model,
        tp=cell.tp,
        gpu=cell.gpu,
        simulated=any(pair.simulated for pair in pairs),
        pairs=tuple((a.id, b.id) for a, b in change.cells),
        metric=metric,
        concurrency=some[0].levels,
        verdict=word,
        ratio=Bounded(None, None) if verdict is None else Bounded(verdict.ratio, verdict.interval),
        pair_ratios=tuple(math.exp(one.log_ratio) for one in starts),
        n_starts=0 if effect is None else min(effect.starts_a, effect.starts_b),
        by_concurrency=_by_concurrency(some, metric, judge),
        figures=tuple(_figures(some, judge.start_sd)),
        reason=_reason(effect, some),
    )


def _reason(effect: Effect | None, some: Sequence[PairFigures]) -> str:
    if effect is None:
        lacking = dict.fromkeys(one.lacking for one in some if one.lacking)
        return "; ".join(lacking) or "its pairs of cells were not measured alike"
    of = f"{len(some)} pair{'' if len(some) == 1 else 's'} of cells"
    each = min(effect.starts_a, effect.starts_b)
    text = f"{of}, {each} start{'' if each == 1 else 's'} each"
    vary = "are taken to vary" if math.isinf(effect.df) else "vary"
    return text if effect.start_sd is None else f"{text}; starts {vary} by {100 * effect.start_sd:.1f} %"


def _by_concurrency(some: Sequence[PairFigures], metric: str, judge: _Judge) -> tuple[FactorLevel, ...]:
    levels = sorted(set.intersection(*({level for level, name in one.at if name == metric} for one in some)))
    made = []
    for level in levels:
        sides = [one.at[level, metric] for one in some]
        if all(side.whole for side in sides):
            made.append((level, mean_effect([pair for side in sides if (pair := side.pair)], judge.start_sd)))
    return tuple(_at_level(level, effect, judge.verdict(effect, metric, len(made))) for level, effect in made)


def _at_level(concurrency: int, effect: Effect, verdict: verdicts.Verdict) -> FactorLevel:
    return FactorLevel(concurrency=concurrency, ratio=Bounded(verdict.ratio, verdict.interval), verdict=verdict.word)


def _figures(some: Sequence[PairFigures], start_sd: float | None) -> Iterable[FactorFigure]:
    """Every metric, over the levels at which all starts have it."""
    for metric in COMPARED:
        found = [effects.over_levels([sides for (_, name), sides in one.at.items() if name == metric]) for one in some]
        known = [one for one in found if one is not None]
        if known and len(known) == len(found):
            effect = mean_effect(known, start_sd)
            yield FactorFigure(metric=metric, ratio=Bounded(math.exp(effect.log_ratio), effect.interval()))
