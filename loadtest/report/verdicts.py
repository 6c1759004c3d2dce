"""Verdicts on pairs of engines in words: who is faster, by how much, with the interval that the verdict is read off."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.metrics.catalogue import METRICS
from loadtest.metrics.schema import PairDecision
from loadtest.report.formatting import DASH, clean


@dataclass(frozen=True, slots=True)
class Named:
    """A decision with the names that its sentence uses; `place`: what was compared, empty where there is nothing to add."""

    of: PairDecision
    a: str
    b: str
    place: str = ""

    @property
    def quicker(self) -> str:
        """The side that the ratio favours, whether that holds or not."""
        return self.a if _a_is_quicker(self.of) else self.b


def _a_is_quicker(one: PairDecision) -> bool:
    return ((one.ratio.value or 1.0) > 1) == (METRICS[one.metric].better == "more")


def faster_by(one: PairDecision) -> str:
    """How much faster the quicker side is, in percent with the interval; where it is 0, the other may be as fast.

    `5.1 % [2.9, 7.4]`: in the time that the slower side takes to its final answer, beyond that of the quicker.
    """
    ratio = one.ratio
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
