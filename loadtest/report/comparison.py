"""The comparison of two or more runs: what changed from the baseline to each candidate, in words, tables and figures.

`compare.runs` has judged each candidate against the baseline; nothing is computed here that it does not hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from loadtest.report import cells, decision, formatting
from loadtest.report.cells import Cell
from loadtest.report.decision import DECIDING, NAMES, Line
from loadtest.report.formatting import Json
from loadtest.report.plots import catalogue, ratios
from loadtest.report.plots.figure import Figure, Table
from loadtest.report.plots.ratios import PARTS, Compared

ALIKE = "Yes, in every key"


@dataclass(frozen=True, slots=True)
class Side:
    """One run of the comparison. `comparison`: what `compare.runs` says of it against the baseline (empty: it is that);
    `differences`: each key in which it was asked for something else, with the baseline's value and its own."""

    name: str
    metrics: Json
    manifest: Json
    comparison: Json
    differences: Mapping[str, tuple[Any, Any]]


def labels(sides: tuple[Side, ...]) -> tuple[str, ...]:
    """Short names of the runs on the page: the baseline, then the candidate or candidates by number.

    >>> labels(())
    ('baseline',)
    """
    candidates = len(sides) - 1
    return ("baseline", *("candidate" if candidates == 1 else f"candidate {i + 1}" for i in range(candidates)))


def rows(baseline: Side, candidate: Side) -> list[Compared]:
    """Each comparison with the name of its place: the cell, or only the deployment where the runtimes differ."""
    return ratios.between_runs(candidate.comparison, places(baseline, candidate))


def places(baseline: Side, candidate: Side) -> dict[str, str]:
    """What each cell of the candidate is compared on, by its id; cells without a partner are absent."""
    old = {cell.id: cell for cell in cells.cells(baseline.metrics)}
    new = {cell.id: cell for cell in cells.cells(candidate.metrics)}
    pairs = {
        formatting.clean(row.get("a")): formatting.clean(row.get("b"))
        for row in formatting.rows(candidate.comparison, "comparisons")
    }
    return {
        a: old[b].name if old[b].engine == new[a].engine else old[b].deployment
        for a, b in pairs.items()
        if a in new and b in old
    }


def lines(candidate: Side, compared: list[Compared]) -> tuple[Line, ...]:
    """The decision for one candidate, most important first."""
    metric = next((m for m in DECIDING if any(one.metric == m and _ratio(one).known for one in compared)), None)
    if metric is None:
        return (Line("What changed", "No verdict", "No level could be compared with an interval."), _asked(candidate))
    chosen = [one.row for one in compared if one.metric == metric]
    said = decision.ahead("the candidate", "the baseline", chosen)
    because = f"{NAMES[metric].capitalize()}, candidate / baseline: {decision.envelope(chosen)}"
    changed = Line("What changed", f"{said[:1].upper()}{said[1:]}", because)
    return (changed, _largest(compared), _reason(compared), _asked(candidate))


def _ratio(one: Compared) -> formatting.Estimate:
    return formatting.estimate(one.row, "ratio")


def _largest(compared: list[Compared]) -> Line:
    """The largest difference that holds, of any metric; where none does, what would have been noticed."""
    asks = "Largest difference"
    held = [one for one in compared if one.row.get("verdict") in ("faster", "slower") and (_ratio(one).value or 0) > 0]
    if not held:
        noticed = [n for one in compared if (n := formatting.finite(one.row.get("smallest_detectable_ratio"))) is not None]
        if not noticed:
            return Line(asks, "None can be named", "No level has enough samples for an interval.")
        span = f"{formatting.number(min(noticed))} to {formatting.number(max(noticed))}"
        because = f"These runs would have noticed ratios beyond {span}, by level and metric (80 % power, 95 % interval)."
        return Line(asks, "None that holds", because)
    one = max(held, key=lambda row: max(_ratio(row).value or 1.0, 1 / (_ratio(row).value or 1.0)))
    title = cells.METRICS.get(one.metric, (one.metric,))[0]
    answer = f"{title} {formatting.number(_ratio(one).value)} times the baseline's: {one.row['verdict']}"
    return Line(asks, answer, f"95 % interval {formatting.span(_ratio(one))}; {one.place}, {formatting.users(one.users)}.")


def _reason(compared: list[Compared]) -> Line:
    """What the largest difference of mean times to final answer is made of."""
    split = [(one, formatting.section(one.row, "why")) for one in compared]
    known = [(one, why) for one, why in split if formatting.finite(why.get("difference_s")) is not None]
    held = [(one, why) for one, why in known if one.row.get("verdict") in ("faster", "slower")] or known
    if not held:
        return Line("Why", "Not known", "No pair of levels finished requests on both sides.")
    one, why = max(held, key=lambda pair: abs(pair[1]["difference_s"]))
    parts = {text: formatting.finite(why.get(key)) or 0.0 for key, text, _ in PARTS}
    first = max(parts, key=lambda text: abs(parts[text]))
    figures = ", ".join(f"{text} {formatting.signed(value)} s" for text, value in parts.items())
    because = (
        f"Of {formatting.signed(why['difference_s'])} s in the mean time to final answer (finished requests, no interval): "
        f"{figures}; {one.place}, {formatting.users(one.users)}."
    )
    answer = f"Mostly {first}" if one.row.get("verdict") in ("faster", "slower") else "No difference to explain"
    return Line("Why", answer, because)


def _asked(candidate: Side) -> Line:
    asks = "Asked for the same"
    apart = [formatting.clean(key).replace("_", " ") for key in candidate.differences]
    if not apart:
        return Line(asks, ALIKE, "Workload, mode, scenario, clock and every key of the inference contract are equal.")
    return Line(asks, f"No: {', '.join(apart)}", "Each ratio mixes this difference with that of the runtimes and machines.")


def differences(sides: tuple[Side, ...]) -> Table | None:
    """Each key in which any candidate was asked for something else, run by run; None where all were asked alike."""
    keys = list(dict.fromkeys(key for side in sides for key in side.differences))
    lines = []
    for key in keys:
        old = next(side.differences[key][0] for side in sides if key in side.differences)
        values = [formatting.clean(old), *(formatting.clean(side.differences.get(key, (old, old))[1]) for side in sides[1:])]
        lines.append((formatting.clean(key).replace("_", " "), *values))
    return Table(("key", *labels(sides)), tuple(lines)) if lines else None


def figures(sides: tuple[Side, ...]) -> tuple[Figure, ...]:
    """Ratios and reasons for each candidate, then all runs on one scale."""
    names, found = labels(sides), []
    for number, side in enumerate(sides[1:], 1):
        compared = rows(sides[0], side)
        said = " (simulated)" if _simulated(sides) else ""
        suffix = "" if len(sides) == 2 else f"-{number}"
        found.append(
            ratios.forest(compared, f"ratios{suffix}", f"{names[number].capitalize()} / baseline: ratio at each level{said}")
        )
        found.append(ratios.reasons(compared, f"why{suffix}", lambda text, tail=said: f"{text}{tail}"))  # type: ignore[misc]
    groups = _groups(sides)
    return (*(one for one in found if one is not None), *(catalogue.of_groups(groups) if groups else ()))


def _simulated(sides: tuple[Side, ...]) -> bool:
    return any(decision.simulated(side.metrics) for side in sides)


def _groups(sides: tuple[Side, ...]) -> dict[str, tuple[Cell, ...]]:
    """The cells of all runs by what they are compared on, the baseline's first."""
    shared = [places(sides[0], side) for side in sides[1:]]
    partners = {
        formatting.clean(row.get("b")): of[formatting.clean(row.get("a"))]
        for side, of in zip(sides[1:], shared, strict=True)
        for row in formatting.rows(side.comparison, "comparisons")
        if formatting.clean(row.get("a")) in of
    }
    groups: dict[str, tuple[Cell, ...]] = {}
    for number, (side, place_of, label) in enumerate(zip(sides, (partners, *shared), labels(sides), strict=True)):
        for cell in cells.cells(side.metrics):
            if cell.levels and (place := place_of.get(cell.id)):
                groups[place] = (*groups.get(place, ()), replace(cell, run=number, label=label, place=place))
    return groups
