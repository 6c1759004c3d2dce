"""The entrance of a page: the answer in a sentence, whether it can be relied on, and a row for each configuration."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import msgspec

from loadtest.metrics.catalogue import Statistic
from loadtest.metrics.figures import Bounded, Estimate
from loadtest.metrics.schema import ConcurrencySearch, Metrics
from loadtest.records.manifest import Manifest
from loadtest.report.cells import (
    FAMILIES,
    Point,
    ShownCell,
    best_cell,
    cells_of,
    headline,
    load_title,
    points,
    sound_cells,
    typical_statistic,
)
from loadtest.report.checklist import THIS_RUN, Check
from loadtest.report.decision import Price, cost_per_1000_answers, doubted_ends, named_decisions, price, rate_of
from loadtest.report.formatting import DASH, clean, count, needs, number, sentence, value_or_need
from loadtest.report.imported import imported_words, totals_alone
from loadtest.report.plots.figure import Key, look_of
from loadtest.report.search import search_answer
from loadtest.report.verdicts import change_name, differs, plain_verdict, summary

NO_PRICE = Price(1.0, "GPU-hours")  # one GPU-hour costs one GPU-hour


# The badge -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Badge:
    """What a reader must know before any figure, in one line: one or two labels, and the reason."""

    labels: tuple[str, ...]
    words: str


def badge_of(metrics: Metrics, checks: Sequence[Check]) -> Badge:
    """Simulated or not; then the worst that the checks found: doubtful, incomplete, not fully checked, sound."""
    simulated = ("simulated",) if metrics.simulated else ()
    failed = [check for check in checks if check.state == "fail"]
    doubted = [check for check in failed if check.name != "Completeness"]
    unknown = [check.name.lower() for check in checks if check.state == "unknown"]
    if doubted:
        imported = () if metrics.run.imported is None else ("imported",)
        early = ("incomplete",) if len(failed) > len(doubted) else ()
        return Badge((*simulated, *imported, "doubtful", *early), _doubt(doubted))
    if metrics.run.imported is not None:
        return Badge((*simulated, "imported"), imported_words(metrics.run.imported))
    if failed:
        return Badge((*simulated, "incomplete"), failed[0].words.removeprefix("incomplete: "))
    if simulated:
        return Badge(simulated, "Every figure on this page is a prediction: no engine and no GPU was measured.")
    if unknown:
        return Badge(("partly checked",), f"Not checked: {', '.join(unknown)}.")
    return Badge(("sound",), f"Passed: {', '.join(check.name.lower() for check in checks if check.state == 'pass')}.")


def _doubt(failed: Sequence[Check]) -> str:
    """The first check that failed, where, and its cause without the cure; how many more have failed."""
    first = failed[0]
    where = "" if first.where == THIS_RUN else f" ({first.where if len(first.where) < 60 else 'at several levels'})"
    more = f" And {len(failed) - 1} more." if len(failed) > 1 else ""
    return f"{first.name}: {first.words.partition('; ')[0]}{where}.{more}"


# The answer ----------------------------------------------------------------------------------------------------------


def answer_of(metrics: Metrics, manifest: Manifest) -> str:
    """The study's question answered in one sentence, from the levels that passed their checks; where it cannot be, that."""
    if not any(cell.levels or cell.figures.composed for cell in cells_of(metrics)):
        return "Nothing was measured." if metrics.run.imported is None else totals_alone(metrics.run.imported)
    cells = sound_cells(cells_of(metrics))
    if not cells:
        return "No answer: a check failed at every level."
    best = _searched(metrics) or (_at_rate(cells, manifest) if manifest.open_loop else _capacity(metrics, cells))
    said = [part for part in (_engines(metrics), best) if part]
    lacking = "too few requests for an answer" if metrics.run.imported is None else "nothing that is told answers it"
    text = "; ".join(said) or lacking
    return f"{sentence(text) if metrics.complete else f'So far: {text}'}."


def _engines(metrics: Metrics) -> str:
    """Who is faster, where two engines were measured."""
    names = list(dict.fromkeys(FAMILIES[cell.family] for cell in cells_of(metrics) if points(cell)))
    known = [one for one in named_decisions(metrics) if one.of.ratio.known]
    found = [one for one in known if one.same_engine] if metrics.simulated else known
    if metrics.factors and all(one.same_engine for one in found):
        return _changes(metrics)
    if len(names) < 2 or found:
        words = summary(found) if found else ""
        return f"predicted: {words}" if words and metrics.simulated else words
    pair = f"no verdict between {' and '.join(names)}"
    return f"simulated, so {pair}" if metrics.simulated else pair


_MOST_CHANGES = 3


def _changes(metrics: Metrics) -> str:
    """What the largest differences of what is varied are, and how many changes make none."""
    sizes = {one: abs(math.log(one.ratio.value)) for one in metrics.factors if one.ratio.value and differs(one)}
    found = sorted(sizes, key=lambda one: -sizes[one])
    said = [f"{change_name(one)} is {plain_verdict(one)}" for one in found[:_MOST_CHANGES]]
    said += [f"{len(found) - _MOST_CHANGES} more changes differ"] if len(found) > _MOST_CHANGES else []
    left = len(metrics.factors) - len(found)
    said += [f"no difference is shown for {left} change{'' if left == 1 else 's'}"] if left else []
    return f"{'predicted: ' if metrics.simulated else ''}{'; '.join(said)}"


def _at_rate(cells: Sequence[ShownCell], manifest: Manifest) -> str:
    """What the quickest cell gives at the rate of an open loop, and whether that is within the SLOs."""
    point = headline(best := best_cell(cells))
    if point is None or point.level is None:
        return ""
    met = {one.met for one in point.level.slo}
    kept = "not within" if False in met else "undecided against" if None in met else "within"
    slos = f", {kept} the SLOs" if met else ""
    return f"{best.short} with {best.placed} at {rate_of(manifest)}{slos}, {_wait(point) or 'too few requests for a time'}"


def _searched(metrics: Metrics) -> str:
    """What the search found for the cell with the most users; empty where nothing was searched."""
    cells = {cell.figures.id: cell for cell in cells_of(metrics)}
    sure = [one for one in metrics.searches if one.cell in cells and not doubted_ends(one, cells[one.cell])]
    found = max(sure, key=lambda one: one.within, default=None)
    if found is None:
        return "a check failed where the search ended" if metrics.searches else ""
    if found.within == 0:
        return "no configuration is shown to be within the SLOs"
    cell = cells[found.cell]
    return f"{cell.short} with {cell.placed} serves {search_answer(found).partition(';')[0]} within the SLOs"


def _wait(point: Point) -> str:
    found = point.at("time_to_final_answer_s", "p50")
    return f"half of the answers within {number(found.value)}\u00a0s" if found.known else ""


def _capacity(metrics: Metrics, cells: Sequence[ShownCell]) -> str:
    """What the best configuration gives, within the SLOs where there are any."""
    best = best_cell(cells)
    point = headline(best)
    if point is None:
        return ""
    limit = best.figures.maximum_concurrency
    speed, wait = _tokens_each(cells, point), _wait(point)
    where = (
        best.placed if metrics.simulated and len({cell.family for cell in cells}) > 1 else f"{best.short} with {best.placed}"
    )
    if limit.by_slo:
        least = "at least " if limit.limit == "not_reached" else ""
        return ", ".join(filter(None, (f"{where} serves {least}{_users(limit.by_slo)} within the SLOs", speed, wait)))
    if metrics.run.slo and {cell.figures.maximum_concurrency.by_slo for cell in cells_of(metrics) if points(cell)} == {0}:
        return "no configuration is within the SLOs"
    total = point.at("output_tokens_per_s")
    whole = f"{number(total.value)} tokens/s in total" if total.known else ""
    figures = ", ".join(filter(None, (speed, whole, wait)))
    unjudged = "; none is shown to be within the SLOs" if metrics.run.slo else ""
    return f"{where} gives {_users(point.concurrency)} {figures}{unjudged}" if figures else unjudged.removeprefix("; ")


def _users(n: int) -> str:
    return f"{n} user{'' if n == 1 else 's'}"


def _tokens_each(cells: Sequence[ShownCell], point: Point) -> str:
    found = point.at("tokens_per_s_per_user", typical_statistic(cells, "tokens_per_s_per_user"))
    bursty = point.composed is None and point.level is not None and point.level.bursty
    return f"{number(found.value)} tokens/s each{' over the whole answer' if bursty else ''}" if found.known else ""


# The table -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """One configuration: its name and mark, and its figures; `status` instead of figures where it was not measured."""

    name: str
    key: Key
    figures: tuple[str, ...]
    status: str = ""


@dataclass(frozen=True, slots=True)
class Overview:
    """A row for each configuration. `groups`: titles over as many columns as they say; `head`: titles of the columns."""

    groups: tuple[tuple[str, int], ...]
    head: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


_TIMES: tuple[tuple[str, Statistic], ...] = (
    ("ttft_s", "p90"),
    ("time_to_final_answer_s", "p50"),
    ("time_to_final_answer_s", "p90"),
    ("time_to_final_answer_s", "p99"),
)


def overview_of(metrics: Metrics, manifest: Manifest) -> Overview:
    """Every configuration of a run, those of one deployment next to each other."""
    searched = {one.cell: one for one in metrics.searches}
    cells = [_as_searched(cell, searched.get(cell.figures.id)) for cell in cells_of(metrics)]
    return configurations(cells, price(manifest), with_slos=bool(metrics.run.slo))


def _as_searched(cell: ShownCell, found: ConcurrencySearch | None) -> ShownCell:
    """The cell with the level that its search found to be surely within the SLOs, where it was searched."""
    if found is None:
        return cell
    limit = "not_reached" if found.broken is None else "slo"
    most = msgspec.structs.replace(cell.figures.maximum_concurrency, by_slo=found.within, limit=limit)
    return replace(cell, figures=msgspec.structs.replace(cell.figures, maximum_concurrency=most))


def configurations(cells: Sequence[ShownCell], paid: Price, *, with_slos: bool) -> Overview:
    """The table of these cells; without a price, costs are in GPU-hours."""
    each = typical_statistic(cells, "tokens_per_s_per_user")
    cost = paid if paid.gpu_hour is not None else NO_PRICE
    groups = (
        (load_title(cells), 2 if with_slos else 1), ("TTFT, s", 1), ("time to final answer, s", 3), ("tokens/s", 2),
        (f"{cost.currency or 'price'} for", 2), ("", 1),
    )  # fmt: skip
    head = (
        *(("within SLOs", "shown") if with_slos else ("shown",)), "p90", "p50", "p90", "p99", "per user", "total",
        "1,000 answers", "1M tokens", "failed",
    )  # fmt: skip
    rows = tuple(_row(cell, each, cost, with_slos=with_slos) for cell in _side_by_side(cells))
    return Overview(groups, head, rows, _notes(cells, each, with_slos=with_slos, priced=paid.gpu_hour is not None))


def _side_by_side(cells: Iterable[ShownCell]) -> list[ShownCell]:
    groups: dict[str, list[ShownCell]] = {}
    for cell in cells:
        groups.setdefault(cell.deployment, []).append(cell)
    return [cell for group in groups.values() for cell in group]


def _row(cell: ShownCell, each: Statistic, paid: Price, *, with_slos: bool) -> Row:
    key = Key(cell.engine, look_of(cell), hollow=cell.simulated)
    name = f"{cell.place}, {cell.label}" if cell.label else cell.name
    sound = sound_cells((cell,))
    point = headline(sound[0]) if sound else None
    if point is None:
        failed = bool(cell.levels or cell.figures.composed) and not sound
        return Row(name, key, (), "a check failed at every level" if failed else cell.status.partition(";")[0])
    within = (_within(cell),) if with_slos else ()
    figures = [point.at(metric, statistic) for metric, statistic in _TIMES]
    figures += [point.at("tokens_per_s_per_user", each), point.at("output_tokens_per_s")]
    figures += [_answers_cost(cell, point, paid.gpu_hour or 0.0), cost_per_million_tokens(cell, point, paid)]
    return Row(name, key, (*within, cell.load(point.concurrency), *map(value_or_need, figures), _failed(cell)))


def _answers_cost(cell: ShownCell, point: Point, gpu_hour: float) -> Bounded:
    """Price of 1,000 answers; composed: price of a GPU-hour x GPUs x 1,000 x mean time / (3,600 x concurrency)."""
    made = point.composed
    if made is not None and made.time_to_final_answer_s is not None:
        mean_s = made.time_to_final_answer_s.mean.value
        return Bounded(None if mean_s is None else gpu_hour * cell.gpus * mean_s / (3.6 * made.concurrency), None)
    return Bounded(None, None) if point.level is None else cost_per_1000_answers(cell, point.level, gpu_hour)


def _within(cell: ShownCell) -> str:
    limit = cell.figures.maximum_concurrency
    if limit.by_slo is None:
        return DASH
    if limit.by_slo == 0:
        return "none"
    most = cell.load(limit.by_slo)
    return f"≥ {most}" if limit.limit == "not_reached" else most


def cost_per_million_tokens(cell: ShownCell, point: Point, paid: Price) -> Bounded:
    """Price of a million output tokens: price of a GPU-hour x GPUs x 1e6 / (3,600 x total tokens/s)."""
    speed = point.at("output_tokens_per_s").value
    if not speed or not cell.gpus_known:
        return Bounded(None, None)
    return Bounded((paid.gpu_hour or 0.0) * cell.gpus * 1e6 / (3600 * speed), None)


def _failed(cell: ShownCell) -> str:
    """Failed requests of all levels, of how many."""
    asked = sum(level.n_requests for level in cell.levels)
    failed = sum((level.failed_share.value or 0.0) * level.n_requests for level in cell.levels)
    return f"{failed:.0f} of {count(asked)}" if asked else DASH


def _notes(cells: Sequence[ShownCell], each: Statistic, *, with_slos: bool, priced: bool) -> tuple[str, ...]:
    highest = f"the highest {load_title(cells)}"
    shown = f"{highest} within the SLOs, or the lowest where none is" if with_slos else highest
    found = [f"Figures at {shown}; failures of all levels."]
    found += ["Tokens/s per user: mean of the requests."] if each == "mean" else []
    found += [] if priced else ["No price was given: costs in GPU-hours."]
    shown_points = [point for cell in sound_cells(cells) if (point := headline(cell)) is not None]
    if any(point.composed is not None for point in shown_points):
        found.append("Composed of bursts where a decision composed them.")
    if any(needs(point.at("time_to_final_answer_s", "p99")) for point in shown_points):
        found.append("n ≥ N: needs N requests.")
    totals = [point.at("output_tokens_per_s") for point in shown_points]
    reasons = {clean(one.reason or "") for one in totals if isinstance(one, Estimate) and not one.known}
    found += [f"No total tokens/s: {'; '.join(sorted(filter(None, reasons)))}."] if any(reasons) else []
    return (" ".join(found),)
