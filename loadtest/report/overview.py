"""The entrance of a page: the answer in a sentence, whether it can be relied on, and a row for each configuration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loadtest.metrics.catalogue import Statistic
from loadtest.metrics.figures import Bounded
from loadtest.metrics.level_schema import LevelFigures
from loadtest.metrics.schema import Metrics
from loadtest.records.manifest import Manifest
from loadtest.report.cells import FAMILIES, ShownCell, best_cell, cells_of, headline_level, sound_cells, typical_statistic
from loadtest.report.checklist import THIS_RUN, Check
from loadtest.report.decision import Price, cost_per_1000_answers, named_decisions, price
from loadtest.report.formatting import DASH, clean, count, number, value_or_need
from loadtest.report.plots.figure import Key, look_of
from loadtest.report.verdicts import summary

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
        early = ("incomplete",) if len(failed) > len(doubted) else ()
        return Badge((*simulated, "doubtful", *early), _doubt(doubted))
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
    where = "" if first.where == THIS_RUN else f" ({first.where})"
    more = f" And {len(failed) - 1} more." if len(failed) > 1 else ""
    return f"{first.name}: {first.words.partition('; ')[0]}{where}.{more}"


# The answer ----------------------------------------------------------------------------------------------------------


def answer_of(metrics: Metrics) -> str:
    """The study's question answered in one sentence, from the levels that passed their checks; where it cannot be, that."""
    if not any(cell.levels for cell in cells_of(metrics)):
        return "Nothing was measured."
    cells = sound_cells(cells_of(metrics))
    if not cells:
        return "No answer: a check failed at every level."
    said = [part for part in (_engines(metrics, cells), _capacity(metrics, cells)) if part]
    text = "; ".join(said) or "too few requests for an answer"
    early = "" if metrics.complete else "So far: "
    return f"{early}{text[:1].upper() if not early else text[:1]}{text[1:]}."


def _engines(metrics: Metrics, cells: Sequence[ShownCell]) -> str:
    """Who is faster, where two engines were measured."""
    names = list(dict.fromkeys(FAMILIES[cell.family] for cell in cells))
    if len(names) < 2 and not metrics.decisions:
        return ""
    if metrics.simulated:
        return f"simulated, so no verdict between {' and '.join(names)}"
    found = [one for one in named_decisions(metrics) if one.of.ratio.known]
    return summary(found) if found else f"no verdict between {' and '.join(names)}"


def _capacity(metrics: Metrics, cells: Sequence[ShownCell]) -> str:
    """What the best configuration gives, within the SLOs where there are any."""
    best = best_cell(cells)
    level = headline_level(best)
    if level is None:
        return ""
    limit = best.figures.maximum_concurrency
    speed = _tokens_each(cells, level)
    waits = level.estimate("time_to_final_answer_s", "p50")
    wait = f"half of the answers within {number(waits.value)}\u00a0s" if waits.known else ""
    where = (
        best.placed if metrics.simulated and len({cell.family for cell in cells}) > 1 else f"{best.short} with {best.placed}"
    )
    if limit.by_slo:
        least = "at least " if limit.limit == "not_reached" else ""
        return ", ".join(filter(None, (f"{where} serves {least}{_users(limit.by_slo)} within the SLOs", speed, wait)))
    if metrics.run.slo and limit.by_slo == 0:
        return f"no configuration is within the SLOs, even for {_users(level.concurrency)}"
    total = level.output_tokens_per_s
    whole = f"{number(total.value)} tokens/s in total" if total.known else ""
    figures = ", ".join(filter(None, (speed, whole, wait)))
    return f"{where} gives {_users(level.concurrency)} {figures}" if figures else ""


def _users(n: int) -> str:
    return f"{n} user{'' if n == 1 else 's'}"


def _tokens_each(cells: Sequence[ShownCell], level: LevelFigures) -> str:
    found = level.estimate("tokens_per_s_per_user", typical_statistic(cells, "tokens_per_s_per_user"))
    return f"{number(found.value)} tokens/s each" if found.known else ""


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
    return configurations(cells_of(metrics), price(manifest), with_slos=bool(metrics.run.slo))


def configurations(cells: Sequence[ShownCell], paid: Price, *, with_slos: bool) -> Overview:
    """The table of these cells; without a price, costs are in GPU-hours."""
    each = typical_statistic(cells, "tokens_per_s_per_user")
    cost = paid if paid.gpu_hour is not None else NO_PRICE
    groups = (
        ("concurrency", 2 if with_slos else 1), ("TTFT, s", 1), ("time to final answer, s", 3), ("tokens/s", 2),
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
    level = headline_level(cell)
    if level is None:
        return Row(name, key, (), cell.status.partition(";")[0])
    within = (_within(cell),) if with_slos else ()
    figures: list[Bounded] = [level.estimate(metric, statistic) for metric, statistic in _TIMES]
    figures += [level.estimate("tokens_per_s_per_user", each), level.output_tokens_per_s]
    figures = _composed(cell, level, figures)
    figures += [cost_per_1000_answers(cell, level, paid.gpu_hour or 0.0), cost_per_million_tokens(cell, level, paid)]
    return Row(name, key, (*within, count(level.concurrency), *map(value_or_need, figures), _failed(cell)))


def _composed(cell: ShownCell, level: LevelFigures, figures: list[Bounded]) -> list[Bounded]:
    """The times and speeds that were composed of bursts in place of the bursts' own."""
    made = next((one for one in cell.figures.composed if one.concurrency == level.concurrency), None)
    if made is None or made.time_to_final_answer_s is None:
        return figures
    times = made.time_to_final_answer_s
    return [figures[0], times.p50, times.p90, Bounded(None, None), made.tokens_per_s_per_user, made.output_tokens_per_s]


def _within(cell: ShownCell) -> str:
    limit = cell.figures.maximum_concurrency
    if limit.by_slo is None:
        return DASH
    if limit.by_slo == 0:
        return "none"
    return f"≥ {limit.by_slo}" if limit.limit == "not_reached" else str(limit.by_slo)


def cost_per_million_tokens(cell: ShownCell, level: LevelFigures, paid: Price) -> Bounded:
    """Price of a million output tokens: price of a GPU-hour x GPUs x 1e6 / (3,600 x total tokens/s)."""
    speed = level.output_tokens_per_s.value
    return Bounded((paid.gpu_hour or 0.0) * cell.gpus * 1e6 / (3600 * speed) if speed else None, None)


def _failed(cell: ShownCell) -> str:
    """Failed requests of all levels, of how many."""
    asked = sum(level.n_requests for level in cell.levels)
    failed = sum((level.failed_share.value or 0.0) * level.n_requests for level in cell.levels)
    return f"{failed:.0f} of {count(asked)}"


def _notes(cells: Sequence[ShownCell], each: Statistic, *, with_slos: bool, priced: bool) -> tuple[str, ...]:
    shown = (
        "the highest concurrency within the SLOs, or the lowest where none is" if with_slos else "the highest concurrency"
    )
    found = [f"Figures at {shown}; failures of all levels."]
    found += ["Tokens/s per user: mean of the requests."] if each == "mean" else []
    found += [] if priced else ["No price was given: costs in GPU-hours."]
    levels = [level for cell in cells if (level := headline_level(cell)) is not None]
    if any(not level.time_to_final_answer_s.at("p99").known for level in levels):
        found.append("n ≥ N: needs N requests.")
    reasons = {clean(level.output_tokens_per_s.reason or "") for level in levels if not level.output_tokens_per_s.known}
    found += [f"No total tokens/s: {'; '.join(sorted(filter(None, reasons)))}."] if any(reasons) else []
    return (" ".join(found),)
