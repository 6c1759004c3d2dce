"""The decision in words, for the page and the terminal: which engine, which GPUs, what concurrency, what cost.

Every sentence carries its confidence interval or says that there is none. A simulated run only predicts, and its sentences
say so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from loadtest.analysis.validity import unsound_reasons
from loadtest.errors import UsageError
from loadtest.metrics import slo
from loadtest.metrics.catalogue import METRICS, Statistic
from loadtest.metrics.figures import Bounded
from loadtest.metrics.level_schema import ComposedLevel, LevelFigures
from loadtest.metrics.schema import ConcurrencySearch, Metrics
from loadtest.records.manifest import Manifest
from loadtest.report.cells import (
    FAMILIES,
    ShownCell,
    at_level,
    best_cell,
    by_level,
    cells_of,
    level_places,
    sound_cells,
    typical_statistic,
)
from loadtest.report.formatting import clean, listed, needs, number, span, with_interval
from loadtest.report.search import search_answer, search_basis
from loadtest.report.verdicts import Named, change_evidence, change_name, change_verdict, evidence, summary

SERVER = "Which server"
ENGINE, CONFIGURATION, CONCURRENCY = "Which engine", "Which configuration", "Maximum concurrency"
BASELINE = "Against the baseline"
COST, RESULT, LEFT_OUT = "Cost of 1,000 answers", "Result", "Left out"

_TOTAL = "output_tokens_per_s"


@dataclass(frozen=True, slots=True)
class Line:
    """One part of the decision: what it answers, the answer in a few words, and the figure behind it with its interval."""

    asks: str
    answer: str
    because: str


@dataclass(frozen=True, slots=True)
class Price:
    """Price of one GPU for an hour; None where none was given."""

    gpu_hour: float | None
    currency: str


def question_of(metrics: Metrics, manifest: Manifest) -> str:
    """The study's own question, else one made of the engines and models that were asked for."""
    if manifest.question:
        return clean(manifest.question)
    cells = cells_of(metrics)
    engines = list(dict.fromkeys(FAMILIES[cell.family] for cell in cells))
    models = listed(list(dict.fromkeys(cell.model for cell in cells)))
    load = "concurrency" if all(one.of == "users" for one in metrics.searches) else "rate of requests"
    if len(engines) > 1:
        return f"{' or '.join(engines)} for {models}: which is faster, and up to what {load}?"
    if engines:
        return f"How fast does {engines[0]} serve {models}, and up to what {load}?"
    return "Nothing was measured"


def decision_lines(metrics: Metrics, manifest: Manifest) -> tuple[Line, ...]:
    """The decision, most important first; what cannot be said is said to be unknown and why."""
    cells = tuple(cell for cell in cells_of(metrics) if cell.levels or cell.figures.composed)
    if not cells:
        return (Line(RESULT, "Nothing was measured", "No cell has a level with data; see what was not measured."),)
    sound = sound_cells(cells)
    if not sound:
        return (Line(RESULT, "No verdict", f"A check failed at every level: {level_places(by_level(cells))}."),)
    left_out = _left_out(cells)
    which = "all levels" if left_out is None else "the levels that passed"
    found = [
        *_searches(metrics, cells),
        _engine(metrics, cells),
        _against_baseline(metrics),
        *(Line(change_name(one), change_verdict(one), change_evidence(one)) for one in metrics.factors),
        *_of_load(metrics, manifest, sound, which),
        _cost(sound, price(manifest), which),
        left_out,
    ]
    return tuple(line for line in found if line is not None)


def _of_load(metrics: Metrics, manifest: Manifest, sound: tuple[ShownCell, ...], which: str) -> list[Line]:
    """What users wait for at the rate of an open loop, which a search varies; else which configuration is best."""
    if not manifest.open_loop:
        return _closed_loop(metrics, sound, which)
    return [] if metrics.searches else [_at_rate(cell, manifest) for cell in sound]


def _closed_loop(metrics: Metrics, sound: tuple[ShownCell, ...], which: str) -> list[Line]:
    return [_configuration(sound, which), *([] if metrics.searches else [_concurrency(sound, slos_in_words(metrics))])]


def rate_of(manifest: Manifest) -> str:
    """What an open loop sent.

    >>> rate_of(Manifest(run_id="r", scenario_options={"rate": 0.5, "arrivals": "poisson"}))
    '0.5 requests/s (poisson)'
    """
    options = manifest.scenario_options or {}
    kind, rate = clean(str(options.get("arrivals"))), options.get("rate")
    return f"{rate:g} requests/s ({kind})" if isinstance(rate, int | float) else f"the {kind} rate"


def _at_rate(cell: ShownCell, manifest: Manifest) -> Line:
    """What users of a cell wait for at the rate of an open loop, and whether that is within the SLOs."""
    (level, *_) = cell.levels
    broken = [slo_words(one.slo) for one in level.slo if one.met is False]
    open_ones = [slo_words(one.slo) for one in level.slo if one.met is None]
    answer = "Every SLO is met" if level.slo else "No SLO was set"
    if broken or open_ones:
        answer = f"Not met: {'; '.join(broken)}" if broken else f"Undecided, too few requests: {'; '.join(open_ones)}"
    waits = ("ttft_s", "time_to_final_answer_s")
    told = [f"{STATISTICS['p50']}{METRICS[one].name} {with_interval(level.estimate(one, 'p50'), 's')}" for one in waits]
    return Line(f"At {rate_of(manifest)}", answer, f"{cell.engine}, {cell.deployment}: {'; '.join(told)}.")


def _left_out(cells: tuple[ShownCell, ...]) -> Line | None:
    """The levels that no line above rests on, as a check failed."""
    unsound = [(cell, level) for cell, level in by_level(cells) if unsound_reasons(level)]
    return Line(LEFT_OUT, level_places(unsound), "A check failed there: nothing above rests on it.") if unsound else None


# Which engine --------------------------------------------------------------------------------------------------------


def _engine(metrics: Metrics, cells: tuple[ShownCell, ...]) -> Line | None:
    pairs = [one for one in named_decisions(metrics) if not one.same_engine]
    if len({cell.family for cell in cells}) < 2 and not pairs:
        return None
    found = [one for one in pairs if one.of.ratio.known]
    if not found:
        reasons = "; ".join(dict.fromkeys(clean(one.of.reason) for one in pairs))
        return Line(ENGINE, "No verdict", f"No pair of cells could be compared{f': {reasons}' if reasons else ''}.")
    because = " ".join(evidence(found))
    if metrics.simulated and all(one.of.unit == "start" for one in found):
        alike = "The simulator treats two engines alike wherever no difference between them is known."
        return Line(ENGINE, "No verdict: simulated run", f"{alike} {because}")
    return Line(ENGINE if found[0].of.unit == "start" else SERVER, summary(found), because)


def named_decisions(metrics: Metrics) -> list[Named]:
    """The decisions of a run with the names of their engines and of what was compared."""
    cells = {cell.figures.id: cell for cell in cells_of(metrics)}
    sides = [(one, cells[one.a], cells[one.b]) for one in metrics.decisions if one.a in cells and one.b in cells]
    return [Named(one, a.short, b.short, a.deployment, _configurations_of_one(a, b)) for one, a, b in sides]


def _configurations_of_one(a: ShownCell, b: ShownCell) -> bool:
    return a.figures.side is None and a.figures.engine == b.figures.engine


def _against_baseline(metrics: Metrics) -> Line | None:
    """Configurations of one engine that differ by more than what is varied: each against its baseline."""
    varied = {pair for one in metrics.factors for pair in one.pairs}
    found = [one for one in named_decisions(metrics) if one.same_engine and (one.of.a, one.of.b) not in varied]
    if not found:
        return None
    known = [one for one in found if one.of.ratio.known]
    if not known:
        return Line(BASELINE, "No verdict", f"{'; '.join(dict.fromkeys(clean(one.of.reason) for one in found))}.")
    words = summary(known)
    return Line(BASELINE, f"Predicted: {words}" if metrics.simulated else words, " ".join(evidence(known)))


# Which configuration, what concurrency, what it costs ----------------------------------------------------------------


def _configuration(cells: tuple[ShownCell, ...], which: str) -> Line:
    """The best for one user alone, at concurrency 1, and in total at any of `which`; levels without a figure are named."""
    alone = _best(
        [at_level(cell, 1) for cell in cells], "tokens_per_s_per_user", typical_statistic(cells, "tokens_per_s_per_user")
    )
    total = _best(cells, _TOTAL, "value")
    parts = [
        f"{words}: {with_interval(best[2])}, {_place(*best[:2])}{without}"
        for words, best, without in (
            ("tokens/s of one user alone", alone, ""),
            (f"highest total output tokens/s of {which}", total, _without(cells, _TOTAL)),
        )
        if best is not None
    ]
    best = alone or total
    if best is None:
        return Line(CONFIGURATION, "No verdict", f"No level has enough requests for a figure{_without(cells, _TOTAL)}.")
    only = len({cell.deployment for cell in cells}) == 1
    answer = f"Only {best[0].deployment} was measured" if only else best[0].deployment
    because = "; ".join(parts)
    return Line(CONFIGURATION, answer, f"{because[:1].upper()}{because[1:]}.")


def _without(cells: Iterable[ShownCell], metric: str) -> str:
    """The levels that have no such figure, each with the reason: any of them might be better."""
    gone: dict[str, list[tuple[ShownCell, LevelFigures]]] = {}
    for cell, level in by_level(cells):
        found = level.estimate(metric)
        if not found.known:
            gone.setdefault(clean(found.reason or needs(found) or "no data"), []).append((cell, level))
    reasons = [f"{level_places(levels)}: {reason}" for reason, levels in gone.items()]
    return f" (not known for {'; '.join(reasons)})" if reasons else ""


_Shown = LevelFigures | ComposedLevel


def _best(cells: Iterable[ShownCell], metric: str, statistic: Statistic) -> tuple[ShownCell, _Shown, Bounded] | None:
    """The highest of all levels; of a decision, of the composed levels that all its cells have."""
    found: list[tuple[ShownCell, _Shown, Bounded]]
    composed = [cell for cell in cells if cell.figures.usable]
    if composed:
        shared = set.intersection(*({level.concurrency for level in cell.figures.usable} for cell in composed))
        levels = [(cell, level) for cell in composed for level in cell.figures.usable if level.concurrency in shared]
        found = [(cell, level, getattr(level, metric)) for cell, level in levels]
    else:
        found = [(cell, level, level.estimate(metric, statistic)) for cell, level in by_level(cells)]
    return max((row for row in found if row[2].known), key=lambda row: row[2].value or 0.0, default=None)


def _place(cell: ShownCell, level: _Shown) -> str:
    how = ", composed" if isinstance(level, ComposedLevel) else ""
    return f"{cell.engine}, {cell.deployment}, {cell.at(level.concurrency)}{how}"


STATISTICS = {f"p{n}": f"{n}{'st' if n == 1 else 'th'} percentile of " for n in (1, 5, 10, 90, 95, 99)} | {
    "p50": "median ",
    "mean": "mean ",
    "value": "",
}
_UNITS = {"seconds": " s", "share": ""}


def slo_words(text: str) -> str:
    """An SLO as a person says it.

    >>> slo_words("ttft_s:p90<2"), slo_words("accuracy>0.5")
    ('90th percentile of time to first token < 2 s', 'share of right answers > 0.5')
    """
    try:
        found = slo.parse_slo(text)
    except UsageError:
        return clean(text)
    metric = METRICS[found.metric]
    statistic = STATISTICS.get(found.statistic, f"{found.statistic} ")
    unit = _UNITS.get(metric.unit, f" {metric.unit}")
    return f"{statistic}{metric.name} {found.sign} {found.limit:g}{unit}"


def slos_in_words(metrics: Metrics) -> tuple[str, ...]:
    """The study's SLOs."""
    return tuple(map(slo_words, metrics.run.slo))


def _concurrency(cells: tuple[ShownCell, ...], wanted: tuple[str, ...]) -> Line:
    slos = f"SLO{'' if len(wanted) == 1 else 's'}: {'; '.join(wanted)}."
    if not wanted:
        because = "Without an SLO there is no maximum: set one with slo in the study, or --slo of attach."
        return Line(CONCURRENCY, "No SLO was set", because)
    cell = best_cell(cells)
    n, certain = cell.figures.maximum_concurrency.by_slo or 0, surely_met(cell)
    if n == 0:
        return Line(CONCURRENCY, "No level is shown to meet the SLOs", f"{_binding(cells)}. {slos}")
    more = "; higher was not tried" if n == cell.figures.maximum_concurrency.tried else ""
    known = f"up to concurrency {certain}" if certain else "at no level"
    how = f" Composed of bursts at {spoken_levels(cell)}." if cell.figures.usable else ""
    because = f"{cell.engine}, {cell.deployment}. The confidence intervals are within the SLOs {known}.{how} {slos}"
    return Line(CONCURRENCY, f"{n} within the SLOs{more}", because)


def spoken_levels(cell: ShownCell) -> str:
    """The concurrencies that bursts composed."""
    return listed([str(level.concurrency) for level in cell.figures.usable])


def surely_met(cell: ShownCell) -> int:
    """The highest concurrency up to which every SLO is met with its whole confidence interval; 0 where none is."""
    ends = cell.figures.maximum_concurrency.ci95
    return 0 if ends is None else ends[0]


def _binding(cells: tuple[ShownCell, ...]) -> str:
    found = {slo_words(binds) for cell in cells if (binds := cell.figures.maximum_concurrency.binds)}
    if found:
        return f"Not met, or too few requests to tell: {'; '.join(sorted(found))}"
    reasons = {clean(reason) for cell in cells if (reason := cell.figures.maximum_concurrency.reason)}
    return "; ".join(sorted(reasons)) or "Too few requests to tell"


def _searches(metrics: Metrics, cells: tuple[ShownCell, ...]) -> list[Line]:
    """The answer of each search; where there are several, with the name of the cell."""
    by_id = {cell.figures.id: cell for cell in cells}
    several = len(metrics.searches) > 1
    return [
        _search(one, by_id[one.cell], f"{_asked(one)}, {by_id[one.cell].name}" if several else _asked(one))
        for one in metrics.searches
        if one.cell in by_id
    ]


def _asked(found: ConcurrencySearch) -> str:
    return CONCURRENCY if found.of == "users" else "Maximum rate"


def doubted_ends(found: ConcurrencySearch, cell: ShownCell) -> list[LevelFigures]:
    """The ends of a search's frontier at which a check failed: its answer then rests on nothing."""
    ends = (found.within, found.broken)
    return [level for level in cell.levels if level.concurrency in ends and unsound_reasons(level)]


def _search(found: ConcurrencySearch, cell: ShownCell, asks: str) -> Line:
    if unsound := doubted_ends(found, cell):
        failed = level_places([(cell, level) for level in unsound])
        return Line(asks, "No verdict", f"A check failed at an end of the frontier: {failed}. {search_basis(found)}.")
    return Line(asks, search_answer(found), f"{search_basis(found)}.")


def price(manifest: Manifest) -> Price:
    return Price(manifest.prices.gpu_hour, clean(manifest.prices.currency or ""))


def cost_per_1000_answers(cell: ShownCell, level: LevelFigures | ComposedLevel, gpu_hour_price: float) -> Bounded:
    """Price of 1,000 finished answers: price of a GPU-hour x GPUs x 1,000 / answers per hour; the interval is inverted."""
    rate, hour = level.estimate("answers_per_hour") or Bounded(None, None), 1000 * gpu_hour_price * cell.gpus
    if not rate.value or not cell.gpus_known:
        return Bounded(None, None)
    return Bounded(hour / rate.value, (hour / rate.high if rate.high else None, hour / rate.low if rate.low else None))


def cheapest_level(
    cells: Iterable[ShownCell], gpu_hour_price: float
) -> tuple[Bounded, ShownCell, LevelFigures | ComposedLevel] | None:
    """The level with the lowest cost of 1,000 answers, of a decision the composed one; None where no level tells it."""
    shown: list[tuple[ShownCell, LevelFigures | ComposedLevel]] = [
        (cell, level) for cell in cells for level in cell.figures.usable or cell.levels
    ]
    costs = [(cost_per_1000_answers(cell, level, gpu_hour_price), cell, level) for cell, level in shown]
    return min((row for row in costs if row[0].known), key=lambda row: row[0].value or 0.0, default=None)


def _cost(cells: tuple[ShownCell, ...], price: Price, which: str) -> Line:
    if price.gpu_hour is None:
        because = "Give the price of a GPU-hour: gpu_hour in the prices of a study, or --gpu-hour-price of plan --from RUN."
        return Line(COST, "No price was given", because)
    best = cheapest_level(cells, price.gpu_hour)
    if best is None:
        return Line(COST, "Not known", "No level finished enough answers.")
    found, cell, level = best
    interval = f"95 % CI {span(found)}" if span(found) else "no confidence interval"
    because = (
        f"Lowest of {which} ({interval}): {_place(cell, level)}, at {price.gpu_hour:g} {price.currency} per GPU-hour"
        f"{_without(cells, 'answers_per_hour')}."
    )
    return Line(COST, f"{number(found.value)} {price.currency}", because)
