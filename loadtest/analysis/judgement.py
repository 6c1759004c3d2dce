"""Verdicts on pairs of engines: one question for each pair, and behind its answer each level and metric.

The question: who is faster at equal work, by the mean over levels of the log ratio of times to the final answer at equal
length. Starts of servers are the unit, the level of the interval makes at most 5 % of studies of equal engines wrong
(`decision.verdicts`). Levels and other metrics cost that question nothing: where it is answered, Holm's correction runs
over the pair's own levels, then over its other metrics; where not, over those of all such pairs at a tenth of 5 %.
Rules and reasons: docs/deciding.md.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from loadtest.analysis import effects
from loadtest.analysis.effects import ALPHA, ANSWER, MIN_PROMPTS, Sides
from loadtest.analysis.why import explain_difference
from loadtest.decision import rounds, starts, verdicts
from loadtest.decision.starts import Effect
from loadtest.decision.verdicts import MATTERS, Verdict
from loadtest.metrics import intervals
from loadtest.metrics.catalogue import COMPARED, METRICS
from loadtest.metrics.figures import Bounded
from loadtest.metrics.level_schema import Evidence
from loadtest.metrics.request_arrays import Pass
from loadtest.metrics.schema import (
    Comparison,
    ComparisonVerdict,
    FactorEffect,
    OutputLengths,
    PairDecision,
    RepeatUnit,
)

PACE = "tokens_per_s_per_user"
CLOSED_GATE = 0.1  # share of 5 % for what differs although its pair is not decided
POPULATION = "at equal length, for these prompts"
COMPOSED = "at the lengths of both engines, composed of bursts, for these prompts"
OF_KIND = "for prompts of this kind"
FEW = "at least 2 finished requests of each start needed"

_NO_RATIO = Bounded(None, None)


class PairedLevel(NamedTuple):
    """One concurrency at which both cells were measured, and their passes."""

    concurrency: int
    a: Sequence[Pass]
    b: Sequence[Pass]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposedPair:
    """What bursts say of two cells: log mean time to the final answer of each start, the mean over `levels`, at the lengths
    of both engines (`by_start`) and of its own (`raw`, to which `output_tokens` adds the error of lengths).

    `broken`: conditions that fail, in words; then natural passes at `levels` decide, where there are any.
    """

    levels: tuple[int, ...]
    by_start: starts.PairedStarts | None
    raw: starts.PairedStarts | None
    output_tokens: Effect
    broken: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two cells, a and b, at each level that both have.

    `model`, `tp`, `gpu`: of a. `restarted`: does each repeat of a, of b start its server anew? `different`: keys in which
    they are not comparable (none: they are). `unsound`: levels that both have, left out as a check of either failed.
    `imported`: another tool measured either side. `composed`: what bursts say, where they were measured.
    """

    a: str
    b: str
    model: str | None = None
    tp: int | None = None
    gpu: str | None = None
    simulated: bool = False
    levels: Sequence[PairedLevel]
    unsound: tuple[int, ...] = ()
    restarted: tuple[bool, bool] = (True, True)
    imported: bool = False
    different: tuple[str, ...] = ()
    composed: ComposedPair | None = None


class Judged(NamedTuple):
    """What is said of every pair, and of each of its levels in every metric."""

    decisions: list[PairDecision]
    comparisons: list[Comparison]
    factors: Sequence[FactorEffect] = ()


Place = tuple[int, str]  # concurrency, metric


@dataclass(frozen=True, slots=True)
class _Question:
    """A pair's question: the metric, the levels, each start's mean over them, and the same as it was seen. `length_error`:
    what luck of lengths adds to the error of that."""

    metric: str
    levels: tuple[int, ...]
    by_start: starts.PairedStarts
    raw: starts.PairedStarts | None
    length_error: float = 0.0
    evidence: Evidence = "measured"


@dataclass(frozen=True, slots=True)
class _Measured:
    """A pair with its sides at every place, and its question; without both where it is not comparable."""

    pair: Pair
    sides: Mapping[Place, Sides]
    question: _Question | None


class PairFigures(NamedTuple):
    """The starts of a pair, side by side: of its question (None: it has none), and in each metric at each level. `lacking`:
    why the question has none."""

    metric: str
    levels: tuple[int, ...]
    by_start: starts.PairedStarts | None
    at: Mapping[Place, Sides]
    lacking: str


def pair_figures(pair: Pair) -> PairFigures:
    """What verdicts on this pair, and averages over several, are made from."""
    one = _measured(pair)
    if one.question is None:
        lacking = f"different {', '.join(pair.different)}" if pair.different else _lacking(pair)
        return PairFigures(ANSWER, (), None, one.sides, lacking)
    asked = one.question
    at = one.sides if pair.composed is None else _at_its_levels(asked, one.sides)
    return PairFigures(asked.metric, asked.levels, asked.by_start, at, "")


def _at_its_levels(asked: _Question, sides: Mapping[Place, Sides]) -> Mapping[Place, Sides]:
    """Without the run that told the lengths alone; nothing where bursts answer."""
    return {} if asked.evidence == "composed" else {at: one for at, one in sides.items() if at[0] in asked.levels}


@dataclass(frozen=True, slots=True)
class _Answer:
    effect: Effect
    verdict: Verdict


def judge_pairs(
    pairs: Sequence[Pair],
    start_sd: float | None = None,
    matters: float = MATTERS,
    *,
    sequential: bool = False,
    unit: RepeatUnit = "start",
) -> Judged:
    """Verdicts on every pair, and at every level in every metric; `why` beside each time to the final answer.

    `start_sd`: how much starts of a server differ, as a share, where it is known from elsewhere. `sequential`: the study
    was judged after every start, and stopped when certain: a stricter level makes up for the looks. `unit`: what a repeat
    is; rounds of a duel are judged by `decision.rounds`, whatever the looks.
    """
    measured = [_measured(pair) for pair in pairs]
    asked = [index for index, one in enumerate(measured) if one.question is not None]
    questions = [one.question for one in measured if one.question is not None]
    judged = _of_rounds(questions, start_sd) if unit == "round" else _of_starts(questions, start_sd, sequential)
    level = min((one.level for one in judged if one is not None), default=ALPHA)
    answers = {
        index: _Answer(
            one.effect, verdicts.verdict_on(one.effect, one.level, matters, more_is_faster=question.metric == PACE)
        )
        for index, question, one in zip(asked, questions, judged, strict=True)
        if one is not None
    }
    rows = _rows(measured, {index for index, one in answers.items() if one.verdict.differs}, level, start_sd)
    return Judged(
        [_decision(one, answers.get(index), start_sd, matters, unit) for index, one in enumerate(measured)],
        [
            _comparison(one, at, metric, rows.get((index, (at.concurrency, metric))), level, matters)
            for index, one in enumerate(measured)
            for metric in COMPARED
            for at in one.pair.levels
        ],
    )


@dataclass(frozen=True, slots=True)
class _AtLevel:
    """An effect, and the level at which its interval holds for what was asked."""

    effect: Effect
    level: float


def _of_starts(questions: Sequence[_Question], start_sd: float | None, sequential: bool) -> list[_AtLevel | None]:
    found = starts.effects_of_starts([one.by_start for one in questions], start_sd)
    level = verdicts.nominal_level(sum(effect.error is not None for effect in found), sequential=sequential)
    return [_AtLevel(effect, level) for effect in found]


def _of_rounds(questions: Sequence[_Question], start_sd: float | None) -> list[_AtLevel | None]:
    found = [rounds.effect_of_rounds(one.by_start, start_sd) for one in questions]
    return [None if one is None else _AtLevel(one, rounds.level_of_rounds(one.starts_a)) for one in found]


# The question --------------------------------------------------------------------------------------------------------


def _measured(pair: Pair) -> _Measured:
    if pair.different:
        return _Measured(pair, {}, None)
    sides: dict[Place, Sides] = {}
    seen: dict[int, Sides] = {}
    for level in pair.levels:
        a, b = (effects.by_start(side, new) for side, new in zip((level.a, level.b), pair.restarted, strict=True))
        if a and b:
            sides |= {(level.concurrency, metric): effects.compared(a, b, metric) for metric in COMPARED}
            seen[level.concurrency] = effects.raw(a, b, ANSWER)
    return _Measured(pair, sides, _question(sides, seen) if pair.composed is None else _decided(pair.composed, sides, seen))


def _decided(composed: ComposedPair, sides: Mapping[Place, Sides], seen: Mapping[int, Sides]) -> _Question | None:
    """By bursts; where a condition is broken, by natural passes at the same levels, if all of these have them."""
    if composed.broken:
        ours = {level: seen[level] for level in composed.levels if level in seen}
        return _question(sides, ours) if len(ours) == len(composed.levels) else None
    if composed.by_start is None:
        return None
    error = composed.output_tokens.error or 0.0
    return _Question(ANSWER, composed.levels, composed.by_start, composed.raw, error, "composed")


def _question(sides: Mapping[Place, Sides], seen: Mapping[int, Sides]) -> _Question | None:
    """Time to the final answer at equal length over all levels that have it; where none has, tokens/s per user."""
    for metric in (ANSWER, PACE):
        levels = tuple(level for level in seen if sides[level, metric].whole)
        found = effects.over_levels([sides[level, metric] for level in levels])
        if found is not None:
            raw = effects.over_levels([seen[level] for level in levels]) if metric == ANSWER else found
            return _Question(metric, levels, found, raw)
    return None


def _decision(
    one: _Measured, answer: _Answer | None, start_sd: float | None, matters: float, unit: RepeatUnit
) -> PairDecision:
    pair, question = one.pair, one.question
    effect, verdict = (None, None) if answer is None else (answer.effect, answer.verdict)
    word, reason = _said(one, answer, unit)
    raw = None if question is None else _raw(question, start_sd)
    return PairDecision(
        model=pair.model,
        tp=pair.tp,
        gpu=pair.gpu,
        a=pair.a,
        b=pair.b,
        simulated=pair.simulated,
        metric=ANSWER if question is None else question.metric,
        concurrency=() if question is None else question.levels,
        verdict=word,
        ratio=_NO_RATIO if verdict is None else Bounded(verdict.ratio, verdict.interval),
        evidence="measured" if question is None else question.evidence,
        broken=() if pair.composed is None else pair.composed.broken,
        raw_ratio=_NO_RATIO if raw is None else Bounded(math.exp(raw.log_ratio), raw.interval()),
        equal_within_share=matters,
        n_a=0 if effect is None else effect.starts_a,
        n_b=0 if effect is None else effect.starts_b,
        start_sd=None if effect is None else effect.start_sd,
        n_more_starts=None if verdict is None else verdict.more_starts,
        output_tokens=None if pair.different else output_lengths(_all_outputs(pair)),
        population=_population(one, start_sd, unit),
        raw_population=OF_KIND if question is not None and question.length_error else "for these prompts",
        reason=reason,
        unit=unit,
    )


def _population(one: _Measured, start_sd: float | None, unit: RepeatUnit) -> str:
    """What the interval of the question holds for."""
    kind = COMPOSED if one.question is not None and one.question.evidence == "composed" else POPULATION
    if unit == "start":
        return kind
    if start_sd is not None:
        return f"{kind}, whenever both servers are started anew"
    return f"{kind}, of these two servers as they stand: a restart may differ, as start-to-start variation is unknown"


def _raw(question: _Question, start_sd: float | None) -> Effect | None:
    """The ratio as it was seen. Composed: at each engine's own lengths, with their error beside that of the starts."""
    if question.raw is None:
        return None
    found = starts.effects_of_starts([question.raw], start_sd)[0]
    return found if found.error is None else replace(found, error=math.hypot(found.error, question.length_error))


def _all_outputs(pair: Pair) -> Effect:
    """The outputs of all levels, by prompt; of natural runs, where bursts were measured."""
    if pair.composed is not None:
        return pair.composed.output_tokens
    return effects.output_tokens(
        [x for level in pair.levels for x in level.a], [x for level in pair.levels for x in level.b]
    )


def _said(one: _Measured, answer: _Answer | None, unit: RepeatUnit) -> tuple[ComparisonVerdict, str]:
    pair = one.pair
    if pair.different:
        return "not comparable", f"different {', '.join(pair.different)}"
    if answer is None and unit == "round" and one.question is not None:
        return "too few samples", f"at least {rounds.LEAST_ROUNDS} rounds of both servers needed{_left_out(pair)}"
    if answer is None:
        return "too few samples", f"{_lacking(pair)}{_left_out(pair)}"
    if pair.imported:
        return "one start each", f"imported: all files of a run count as one start{_left_out(pair)}"
    if answer.verdict.word == "one start each":
        unknown = "start-to-start variation unknown: measure two or more starts of each, or say start_sd"
        return "one start each", f"{unknown}{_left_out(pair)}"
    broken = () if pair.composed is None else pair.composed.broken
    natural = f"; by natural passes, as {'; '.join(broken)}" if broken else ""
    return answer.verdict.word, f"{_basis(answer.effect, answer.verdict, unit)}{natural}{_left_out(pair)}"


def _left_out(pair: Pair) -> str:
    """The levels that no verdict rests on, in words."""
    used = pair.composed is None or bool(pair.composed.broken)
    return f"; without concurrency {', '.join(map(str, pair.unsound))}: a check failed" if pair.unsound and used else ""


def _lacking(pair: Pair) -> str:
    """Why the question cannot be answered yet."""
    composed = pair.composed
    if composed is None:
        return FEW if pair.levels or not pair.unsound else "no sound level"
    if composed.broken:
        return f"natural passes needed at {' and '.join(map(str, composed.levels))}: {'; '.join(composed.broken)}"
    return "bursts at each level, whose checks pass, and a natural run of either engine needed"


def _basis(effect: Effect, verdict: Verdict, unit: RepeatUnit) -> str:
    """What a verdict rests on, in words."""
    counts = {effect.starts_a, effect.starts_b}
    each = f"{_counted(counts.pop(), unit)} each" if len(counts) == 1 else f"{effect.starts_a} and {effect.starts_b} {unit}s"
    vary = "are taken to vary" if math.isinf(effect.df) else "vary"
    text = f"{each}; {unit}s {vary} by {100 * (effect.start_sd or 0):.1f} %"
    if verdict.more_starts is not None:
        return f"{text}; about {_counted(verdict.more_starts, f'more {unit}')} of each would decide"
    return f"{text}; more than {verdicts.MOST_STARTS} {unit}s of each would be needed" if verdict.too_close else text


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


# Levels and metrics --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    """One metric at one level: its effect, its p-value after correction, and among how many it was corrected."""

    effect: Effect
    p_adjusted: float
    family: int


def _rows(
    measured: Sequence[_Measured], open_gates: Collection[int], level: float, start_sd: float | None
) -> dict[tuple[int, Place], _Row]:
    """Every usable row by the index of its pair and its place; `p_adjusted` is at most 0.05 where the difference holds."""
    found = _effects(measured, start_sd)
    families: dict[tuple[int, bool] | None, list[tuple[int, Place]]] = defaultdict(list)
    for index, place in found:
        families[(index, place[1] == ANSWER) if index in open_gates else None].append((index, place))
    rows = {}
    for family, places in families.items():
        scale = 1 / CLOSED_GATE if family is None else ALPHA / level
        adjusted = intervals.holm([found[one].p_value for one in places])
        for one, p in zip(places, adjusted, strict=True):
            rows[one] = _Row(found[one], min(1.0, scale * p), len(places))
    return rows


def _effects(measured: Sequence[_Measured], start_sd: float | None) -> dict[tuple[int, Place], Effect]:
    """The effects at each place, with the variance of starts pooled over the pairs."""
    found = {}
    for place in sorted({place for one in measured for place in one.sides}):
        pairs = {
            index: pair
            for index, one in enumerate(measured)
            if place in one.sides and (pair := one.sides[place].pair) is not None
        }
        for index, effect in zip(pairs, starts.effects_of_starts(list(pairs.values()), start_sd), strict=True):
            found[index, place] = effect
    return found


def _comparison(one: _Measured, at: PairedLevel, metric: str, row: _Row | None, level: float, matters: float) -> Comparison:
    pair = one.pair
    explained = metric == ANSWER and not pair.different
    known = row is not None and row.effect.error is not None
    method = one.sides[at.concurrency, metric].method if row is not None else None
    verdict, reason = _word(pair, metric, row, method, level, matters)
    return Comparison(
        model=pair.model,
        tp=pair.tp,
        gpu=pair.gpu,
        a=pair.a,
        b=pair.b,
        simulated=pair.simulated,
        concurrency=at.concurrency,
        metric=metric,
        ratio=_NO_RATIO if row is None else Bounded(math.exp(row.effect.log_ratio), row.effect.interval()),
        verdict=verdict,
        p_value=row.effect.p_value if row is not None and known else None,
        p_value_holm=row.p_adjusted if row is not None and known else None,
        smallest_detectable_ratio=None if row is None else verdicts.detectable_ratio(row.effect, level / row.family),
        n_a=0 if row is None else row.effect.starts_a,
        n_b=0 if row is None else row.effect.starts_b,
        method=method,
        reason=reason,
        why=explain_difference(at.a, at.b) if explained else None,
        output_tokens=output_lengths(effects.output_tokens(at.a, at.b)) if explained else None,
    )


def _word(
    pair: Pair, metric: str, row: _Row | None, method: str | None, level: float, matters: float
) -> tuple[ComparisonVerdict, str]:
    if pair.different:
        return "not comparable", f"different {', '.join(pair.different)}"
    if row is None or method is None:
        return "too few samples", FEW
    ends = row.effect.interval(level)
    if ends is None:
        return "one start each", f"{method}; start-to-start variation unknown"
    if verdicts.is_equal(ends, matters):
        return "equal", method
    if row.p_adjusted > ALPHA:
        return "undecided", method
    return "faster" if (row.effect.log_ratio > 0) == (METRICS[metric].better == "more") else "slower", method


def output_lengths(one: Effect) -> OutputLengths:
    """How long a's outputs are against b's. Its interval is its own, not corrected with the others: it explains a verdict,
    and says nothing of speed."""
    ends = one.interval()
    if ends is None:
        reason = f"at least {MIN_PROMPTS} prompts needed that both finished"
        return OutputLengths(ratio=_NO_RATIO, verdict="too few samples", n=one.starts_a, reason=reason)
    ratio, method = Bounded(math.exp(one.log_ratio), ends), "paired by prompt"
    if one.p_value > ALPHA:
        return OutputLengths(ratio=ratio, verdict="no detectable difference", n=one.starts_a, reason=method)
    return OutputLengths(ratio=ratio, verdict="fewer" if one.log_ratio < 0 else "more", n=one.starts_a, reason=method)
