"""The comparison of two or more runs: what changed from the baseline to each candidate, in words, tables and figures.

`analysis.compare.compare_runs` judges each candidate against the baseline; nothing is computed here that it does not hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from loadtest.analysis.decisions import RunComparison
from loadtest.metrics.catalogue import METRICS
from loadtest.metrics.schema import Comparison, Metrics
from loadtest.records.manifest import Manifest
from loadtest.report.cells import Groups, ShownCell, cells_of, flat
from loadtest.report.decision import Line, price
from loadtest.report.formatting import at_load, clean, number, sentence, signed, span
from loadtest.report.overview import Overview, configurations
from loadtest.report.plots.catalogue import shared_figures
from loadtest.report.plots.figure import Figure, Table
from loadtest.report.plots.ratios import PARTS, Compared, between_runs, explained, ratios_figure, reasons_figure
from loadtest.report.verdicts import Named, evidence, summary

ALIKE = "Yes, in every key"


@dataclass(frozen=True, slots=True)
class Side:
    """One run of the comparison. `comparison`: against the baseline (None: it is the baseline); `differences`: each key in
    which it was asked for something else, with the baseline's value and its own."""

    name: str
    metrics: Metrics
    manifest: Manifest
    comparison: RunComparison | None
    differences: Mapping[str, tuple[Any, Any]]

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        return () if self.comparison is None else self.comparison.comparisons

    @property
    def not_compared(self) -> tuple[str, ...]:
        return () if self.comparison is None else self.comparison.not_compared


def labels(sides: Sequence[Side]) -> tuple[str, ...]:
    """Short names of the runs on the page: the baseline, then the candidate or candidates by number.

    >>> labels(())
    ('baseline',)
    """
    candidates = len(sides) - 1
    return ("baseline", *("candidate" if candidates == 1 else f"candidate {i + 1}" for i in range(candidates)))


def compared_rows(baseline: Side, candidate: Side) -> list[Compared]:
    """Each comparison with the name of its place: the cell, or only the deployment where the engines differ."""
    return between_runs(candidate.comparisons, places(baseline, candidate))


def places(baseline: Side, candidate: Side) -> dict[str, str]:
    """What each cell of the candidate is compared on, by its id; cells without a partner are absent."""
    old = {cell.figures.id: cell for cell in cells_of(baseline.metrics)}
    new = {cell.figures.id: cell for cell in cells_of(candidate.metrics)}
    pairs = {row.a: row.b for row in candidate.comparisons if row.a in new and row.b in old}
    return {
        a: old[b].name if old[b].figures.engine == new[a].figures.engine else old[b].deployment for a, b in pairs.items()
    }


# In words ------------------------------------------------------------------------------------------------------------


def comparison_lines(candidate: Side, compared: Sequence[Compared]) -> tuple[Line, ...]:
    """The decision for one candidate, most important first."""
    names = {one.row.a: one.place for one in compared}
    decisions = () if candidate.comparison is None else candidate.comparison.decisions
    found = [
        Named(one, "the candidate", "the baseline", names.get(one.a, clean(one.a))) for one in decisions if one.ratio.known
    ]
    if not found:
        return (Line("What changed", "No verdict", "No level could be compared."), _asked_alike(candidate))
    words = summary(found)
    changed = Line("What changed", f"{words[:1].upper()}{words[1:]}", " ".join(evidence(found)))
    return (changed, _largest(compared), _reason(compared), _asked_alike(candidate))


def comparison_answer(sides: Sequence[Side]) -> str:
    """What changed, in one sentence."""
    said = []
    for label, side in zip(labels(sides)[1:], sides[1:], strict=True):
        words = comparison_lines(side, compared_rows(sides[0], side))[0].answer
        said.append(words if len(sides) == 2 else f"{label}: {words[:1].lower()}{words[1:]}")
    text = "; ".join(said)
    return f"{sentence(text)}."


def _is_decided(one: Compared) -> bool:
    return one.row.verdict in ("faster", "slower")


def _where(one: Compared) -> str:
    return f"{one.place}, {at_load(one.row.concurrency)}"


def _largest(compared: Sequence[Compared]) -> Line:
    """The largest verified difference, of any metric; where there is none, what would have been found."""
    asks = "Largest difference"
    decided = [(one, value) for one in compared if _is_decided(one) and (value := one.row.ratio.value)]
    if decided:
        one, value = max(decided, key=lambda pair: max(pair[1], 1 / pair[1]))
        answer = f"{METRICS[one.row.metric].title}: {number(value)} times the baseline ({one.row.verdict})"
        return Line(asks, answer, f"95 % CI {span(one.row.ratio)}; {_where(one)}.")
    smallest = [ratio for one in compared if (ratio := one.row.smallest_detectable_ratio) is not None]
    if not smallest:
        return Line(asks, "Not known", "No level has enough samples for a confidence interval.")
    because = (
        f"The runs would have shown ratios beyond {number(min(smallest))} to {number(max(smallest))}, by level and metric "
        "(80 % power)."
    )
    return Line(asks, "No difference is shown in any metric", because)


def _reason(compared: Sequence[Compared]) -> Line:
    """What the largest difference of mean times to final answer is made of."""
    known = explained(compared)
    decided = [one for one in known if _is_decided(one.of)] or known
    if not decided:
        return Line("Why", "Not known", "At no level did both sides finish a request.")
    one = max(decided, key=lambda found: abs(found.difference_s))
    parts = dict(zip((part.name for part in PARTS), one.parts_s(), strict=True))
    largest = max(parts, key=lambda name: abs(parts[name]))
    figures = ", ".join(f"{name} {signed(seconds)} s" for name, seconds in parts.items())
    because = (
        f"Mean time to final answer differs by {signed(one.difference_s)} s (finished requests, no confidence interval): "
        f"{figures}; {_where(one.of)}."
    )
    return Line("Why", f"Mostly {largest}" if _is_decided(one.of) else "No difference to explain", because)


def _asked_alike(candidate: Side) -> Line:
    asks = "Same settings"
    apart = [_key(key) for key in candidate.differences]
    if not apart:
        return Line(asks, ALIKE, "Workload, mode, scenario, clock and every key of the inference contract are equal.")
    return Line(asks, f"No: {', '.join(apart)} differ{'s' if len(apart) == 1 else ''}",
                "Each ratio includes the effect of these settings.")  # fmt: skip


def _key(key: str) -> str:
    return clean(key).replace("_", " ")


# Tables and figures --------------------------------------------------------------------------------------------------


def differences(sides: Sequence[Side]) -> Table | None:
    """Each key in which any candidate was asked for something else, run by run; None where all were asked alike."""
    old = {key: values[0] for side in sides for key, values in side.differences.items()}
    rows = [
        (_key(key), *(clean(str(side.differences.get(key, (value, value))[1])) for side in sides))
        for key, value in old.items()
    ]
    return Table(("key", *labels(sides)), tuple(rows)) if rows else None


def compared_configurations(sides: Sequence[Side]) -> Overview:
    """What all runs have in common, run by run, at the baseline's price."""
    cells = flat(_groups(sides))
    return configurations(cells, price(sides[0].manifest), with_slos=any(side.metrics.run.slo for side in sides))


def comparison_figures(sides: Sequence[Side]) -> tuple[Figure, ...]:
    """Ratios and reasons for each candidate, then all runs on one scale."""
    names, found = labels(sides), []
    simulated = any(side.metrics.simulated for side in sides)
    for index, side in enumerate(sides[1:], 1):
        compared, suffix = compared_rows(sides[0], side), "" if len(sides) == 2 else f"-{index}"
        title = f"{names[index].capitalize()} / baseline: ratio at each level{' (simulated)' if simulated else ''}"
        found.append(ratios_figure(compared, f"ratios{suffix}", title))
        found.append(reasons_figure(compared, f"why{suffix}", simulated=simulated))
    groups = _groups(sides)
    return (
        *(one for one in found if one is not None),
        *(shared_figures(groups, sides[0].metrics.run.slo) if groups else ()),
    )


def _groups(sides: Sequence[Side]) -> Groups:
    """The cells of all runs by what they are compared on, the baseline's first."""
    shared = [places(sides[0], side) for side in sides[1:]]
    partners = {
        row.b: of[row.a] for side, of in zip(sides[1:], shared, strict=True) for row in side.comparisons if row.a in of
    }
    groups: dict[str, tuple[ShownCell, ...]] = {}
    for number_of_run, (side, place_of, label) in enumerate(zip(sides, (partners, *shared), labels(sides), strict=True)):
        for cell in cells_of(side.metrics):
            if cell.levels and (place := place_of.get(cell.figures.id)):
                shown = replace(cell, run=number_of_run, label=label, place=place)
                groups[place] = (*groups.get(place, ()), shown)
    return groups
