"""Verdicts on pairs of engines in words: who is faster, by how much, with the interval that the verdict is read off."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.metrics.catalogue import METRICS
from loadtest.metrics.figures import Bounded
from loadtest.metrics.schema import ComparisonVerdict, FactorEffect, PairDecision
from loadtest.report.formatting import DASH, clean


@dataclass(frozen=True, slots=True)
class Named:
    """A decision with the names that its sentence uses; `place`: what was compared, empty where there is nothing to add.
    `same_engine`: two configurations of one."""

    of: PairDecision
    a: str
    b: str
    place: str = ""
    same_engine: bool = False

    @property
    def quicker(self) -> str:
        """The side that the ratio favours, whether that holds or not."""
        return self.a if _a_is_quicker(self.of) else self.b


def _a_is_quicker(one: PairDecision) -> bool:
    return ((one.ratio.value or 1.0) > 1) == (METRICS[one.metric].better == "more")


def faster_by(one: PairDecision | FactorEffect) -> str:
    """How much faster the quicker side is, in percent with the interval; where it is 0, the other may be as fast.

    `5.1 % [2.9, 7.4]`: in the time that the slower side takes to its final answer, beyond that of the quicker.
    """
    return _faster_by(one.ratio)


def _faster_by(ratio: Bounded) -> str:
    if not ratio.value:
        return DASH
    upright = ratio.value > 1
    percent = [100 * ((value if upright else 1 / value) - 1) for value in (ratio.value, *(ratio.ci95 or ())) if value]
    ends = sorted(percent[1:])
    return f"{percent[0]:.1f} % [{ends[0]:.1f}, {ends[1]:.1f}]" if ends else f"{percent[0]:.1f} %"


def verdict_of(named: Named) -> str:
    """One pair's verdict as a sentence without its end.

    vLLM is 5.1 % faster [2.9, 7.4]
    """
    one, amount = named.of, faster_by(named.of)
    value, _, ends = amount.partition(" [")
    interval = f" [{ends}" if ends else ""
    match one.verdict:
        case "faster" | "slower":
            return f"{named.quicker} is {value} faster{interval}"
        case "equal":
            within = f"{100 * one.equal_within_share:g} %"
            return f"{named.a} and {named.b} are equal within {within} ({named.quicker} {value} faster{interval})"
        case "undecided":
            return f"Undecided: {named.quicker} seems {value} faster{interval}"
        case "one start each":
            return f"No verdict from one start each ({named.quicker} was {value} faster)"
        case _:
            return f"No verdict: {one.verdict}"


def evidence(decisions: Sequence[Named]) -> tuple[str, ...]:
    """What was compared, then each pair's sentence and what it rests on; what all rest on is said once."""
    first = decisions[0].of
    measure = f"{METRICS[first.metric].title}, mean over levels, {first.population}."
    reasons = list(dict.fromkeys(clean(one.of.reason) for one in decisions))
    if len(reasons) > 1:
        return (measure, *(f"{_placed(one)}; {clean(one.of.reason)}." for one in decisions))
    return (measure, *(f"{_placed(one)}." for one in decisions), f"{reasons[0][:1].upper()}{reasons[0][1:]}.")


def _placed(named: Named) -> str:
    said = f"{verdict_of(named)}{outputs(named)}"
    return f"{named.place}: {said}" if named.place else said


def outputs(named: Named) -> str:
    """Whether both sides think as long as each other: else the engine alone is not what the user waits for. Empty where the
    lengths were forced, or too few prompts tell.

    outputs alike (0.97 [0.85, 1.10])
    """
    found = named.of.output_tokens
    if found is None or found.ratio.value is None or found.ratio.low is None or found.ratio.high is None:
        return ""
    if found.ratio.low == found.ratio.high == 1:
        return ""
    interval = f"({found.ratio.value:.2f} [{found.ratio.low:.2f}, {found.ratio.high:.2f}])"
    if found.verdict in ("fewer", "more"):
        return f"; outputs of {named.a} have {found.verdict} tokens {interval}"
    return f"; outputs alike {interval}"


def summary(decisions: Sequence[Named]) -> str:
    """All pairs in one line: the sentence of the only one, or how many each verdict has."""
    if len(decisions) == 1:
        return verdict_of(decisions[0])
    differing = [one for one in decisions if one.of.verdict in ("faster", "slower")]
    winners = Counter(one.quicker for one in differing).most_common()
    said = [f"{name} is faster in {n} of {len(decisions)} pairs" for name, n in winners]
    said += [f"{words} in {n}" if said else f"{words} in {n} of {len(decisions)} pairs" for words, n in _others(decisions)]
    text = "; ".join(said)
    return text if differing else f"{text[:1].upper()}{text[1:]}"


def _others(decisions: Sequence[Named]) -> list[tuple[str, int]]:
    """The verdicts that name no winner, each with how many pairs have it."""
    words = [_other(one.of) for one in decisions if one.of.verdict not in ("faster", "slower")]
    return Counter(words).most_common()


def _other(one: PairDecision) -> str:
    if one.verdict == "equal":
        return f"equal within {100 * one.equal_within_share:g} %"
    return {"undecided": "undecided", "one start each": "no verdict from one start each"}.get(one.verdict, "not judged")


# What is varied ------------------------------------------------------------------------------------------------------


def change_name(one: FactorEffect) -> str:
    """A change in a few words: `--max-num-seqs 64 instead of 8`."""
    return clean(f"{one.factor} {one.level} instead of {one.baseline}")


def change_verdict(one: FactorEffect) -> str:
    """What a change does, in a few words; a simulated one is predicted."""
    words = plain_verdict(one)
    return f"Predicted: {words}" if one.simulated and one.ratio.known else f"{words[:1].upper()}{words[1:]}"


def plain_verdict(one: FactorEffect) -> str:
    return _word_of(one.verdict, one.ratio, METRICS[one.metric].better)


def differs(one: FactorEffect) -> bool:
    return one.verdict in ("faster", "slower")


def _word_of(verdict: ComparisonVerdict, ratio: Bounded, better: str | None) -> str:
    """A verdict on a change, with how much faster or slower it is.

    >>> _word_of("faster", Bounded(0.95, (0.93, 0.97)), "less")
    '5.3 % faster [3.1, 7.5]'
    """
    faster = ((ratio.value or 1.0) > 1) == (better == "more")
    amount, _, ends = _faster_by(ratio).partition(" [")
    said = f"{amount} {'faster' if faster else 'slower'}{f' [{ends}' if ends else ''}"
    match verdict:
        case "faster" | "slower":
            return said
        case "equal" | "undecided":
            return f"{verdict} ({said})"
        case "one start each":
            return f"no verdict from one start each ({amount} {'faster' if faster else 'slower'})"
        case _:
            return f"no verdict: {verdict}"


def change_evidence(one: FactorEffect) -> str:
    """What a change rests on, other metrics, and each concurrency."""
    others = [row for row in one.figures if row.metric != one.metric]
    parts = [", ".join(f"{METRICS[row.metric].name} {_percent_more(row.ratio)}" for row in others)]
    better = METRICS[one.metric].better
    if len(one.by_concurrency) > 1:
        each = [f"{row.concurrency}: {_word_of(row.verdict, row.ratio, better)}" for row in one.by_concurrency]
        parts.append(f"By concurrency, {'; '.join(each)}")
    if len(one.pair_ratios) > 1:
        parts.append(f"Ratios of the pairs: {min(one.pair_ratios):.2f} to {max(one.pair_ratios):.2f}")
    basis = f"{METRICS[one.metric].title}, {clean(one.reason)}"
    return " ".join(f"{part[:1].upper()}{part[1:]}." for part in (basis, *parts) if part)


def _percent_more(ratio: Bounded) -> str:
    """By how much a figure is larger with the change.

    >>> _percent_more(Bounded(1.06, (1.04, 1.08)))
    '+6.0 % [4.0, 8.0]'
    """
    if ratio.value is None:
        return DASH
    ends = "" if ratio.low is None or ratio.high is None else f" [{100 * (ratio.low - 1):.1f}, {100 * (ratio.high - 1):.1f}]"
    return f"{100 * (ratio.value - 1):+.1f} %{ends}".replace("-", "\N{MINUS SIGN}")
