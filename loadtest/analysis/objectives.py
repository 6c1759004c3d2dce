"""SLOs judged on the figures of a level, the highest concurrency that meets them, and the gate of `loadtest check`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from msgspec import structs

from loadtest.analysis.bursts.objectives import judge_composed
from loadtest.analysis.decisions import GateReport, GateRow
from loadtest.analysis.validity import unsound_reasons
from loadtest.metrics.catalogue import QUANTILES, is_wait
from loadtest.metrics.figures import Bounded, Estimate
from loadtest.metrics.level_schema import ComposedLevel, LevelFigures, SloResult
from loadtest.metrics.schema import MaximumConcurrency, Metrics
from loadtest.metrics.slo import Slo, parse_slo
from loadtest.records.engine_facts import MemoryFit


def judge_slo(slo: Slo, level: LevelFigures) -> SloResult:
    """Does a level meet it? `met`: what the whole 95 % interval says, None where the interval holds the limit or is missing;
    `likely`: what the figure alone says, None without one.

    A failed request never got its answer. So where more requests failed than a quantile leaves over (10 % for p90), a wait
    below a limit is not met, however fast the others were served.
    """
    found = level.estimate(slo.metric, slo.statistic)
    likely = None if found.value is None else slo.holds(found.value)
    ends = {slo.holds(end) for end in found.ci95 or ()}
    met = ends.pop() if len(ends) == 1 else None
    if slo.below and is_wait(slo.metric) and slo.statistic in QUANTILES:
        likely, met = _with_failures(likely, met, level.failed_share, 1 - QUANTILES[slo.statistic])
    return SloResult(slo=slo.text, value=found.value, ci95=found.ci95, met=met, likely=likely, n_needed=found.n_needed)


def _with_failures(
    likely: bool | None, met: bool | None, failed: Estimate, left_over: float
) -> tuple[bool | None, bool | None]:
    if not failed.value or failed.ci95 is None:
        return likely, met
    low, high = failed.ci95
    if failed.value > left_over:
        return False, False if low > left_over else None
    return likely, met if met is False or high <= left_over else None


def gate(
    metrics: Metrics, objectives: Sequence[Slo], concurrency: int | None = None, *, allow_unhealthy: bool = False
) -> GateReport:
    """Every objective at every level of every cell (or at `concurrency` alone).

    `unhealthy`: an incomplete run, or a level that is not sound; it fails the gate unless
    allowed. `unmeasured`: cells that should have had a level; one that was refused because it does not fit fails nothing.
    """
    rows: list[GateRow] = []
    unhealthy = [] if metrics.complete else ["the run is incomplete"]
    unmeasured = []
    for cell in metrics.cells:
        levels = [level for level in cell.levels if concurrency in (None, level.concurrency)]
        made = [level for level in cell.usable if concurrency in (None, level.concurrency)]
        if not (levels or made) and cell.status != "refused":
            where = "" if concurrency is None else f" at concurrency {concurrency}"
            unmeasured.append(f"{cell.id}: nothing was measured{where}")
        for at in _by_level(levels, made, objectives):
            rows += [_row(one, cell.id, at.concurrency, cell.simulated) for one in at.slos]
        both: list[LevelFigures | ComposedLevel] = [*levels, *made]
        for level in both:
            unhealthy += [f"{cell.id} at concurrency {level.concurrency}: {reason}" for reason in unsound_reasons(level)]
    if metrics.run.imported is not None:
        unhealthy.append(f"imported from {metrics.run.imported.name}: nothing shows that its times are right")
    if not rows and not unmeasured:
        unmeasured.append("nothing was measured")
    met = not unmeasured and all(row.result == "met" for row in rows) and (allow_unhealthy or not unhealthy)
    return GateReport(
        met=met,
        rows=tuple(rows),
        unhealthy=tuple(unhealthy),
        unmeasured=tuple(unmeasured),
        run_id=metrics.run_id,
        simulated=metrics.simulated,
    )


def _row(judged: SloResult, cell: str, concurrency: int, simulated: bool) -> GateRow:
    return GateRow(
        slo=judged.slo,
        value=judged.value,
        ci95=judged.ci95,
        met=judged.met,
        likely=judged.likely,
        n_needed=judged.n_needed,
        cell=cell,
        concurrency=concurrency,
        simulated=simulated,
        result="not shown" if judged.met is None else "met" if judged.met else "not met",
        evidence=judged.evidence,
    )


@dataclass(frozen=True, slots=True)
class _Judged:
    """A level and its SLOs."""

    concurrency: int
    slos: Sequence[SloResult]


def maximum_concurrency(
    levels: Sequence[LevelFigures],
    objectives: Sequence[Slo],
    fit: MemoryFit | None,
    composed: Callable[[Slo, int], float | None] = lambda slo, concurrency: None,
    *,
    bursts: Sequence[ComposedLevel] = (),
    held: bool = True,
) -> MaximumConcurrency:
    """The highest concurrency up to which every level meets every SLO, and what limits it; of sound levels.

    `by_slo` follows the figures alone, `ci95` the intervals. `by_kv_cache`: requests of the cell's whole context that the KV
    cache holds; `by_kv_workload`: requests as long as those that were measured. `limit` is `kv_cache` where the level that
    broke an SLO (`binds`) has more requests than `by_kv_workload`. `composed` gives the figure that a level has too few
    requests for; it has no interval. `bursts`: levels of a decision, whose conditions hold; what they tell counts before
    what a level does. An open loop holds no concurrency (`held`) and so has no maximum.
    """
    room = _room(levels, fit)
    if not held:
        return _unjudged("requests came by the clock: no concurrency was held", room, fit)
    if not objectives or not (levels or bursts):
        return _unjudged("no SLO was given" if levels or bursts else "no sound level was measured", room, fit)
    judged = _by_level(levels, bursts, objectives, composed)
    broke, found = next(
        ((level.concurrency, one) for level in judged for one in level.slos if one.likely is not True), (None, None)
    )
    if found is not None and found.likely is None:
        needed = f"needs {found.n_needed} requests there" if found.n_needed else _why_unknown(found, broke, levels)
        return _unjudged(f"{found.slo} cannot be judged at concurrency {broke}: {needed}", room, fit)
    broken = any(one.met is False for level in judged for one in level.slos)
    full = broke is not None and room.value is not None and broke > room.value
    return MaximumConcurrency(
        by_slo=_before(judged, lambda one: one.likely is not True),
        ci95=(
            _before(judged, lambda one: one.met is not True),
            _before(judged, lambda one: one.met is False) if broken else None,
        ),
        by_kv_cache=None if fit is None else fit.max_streams,
        by_kv_workload=room,
        limit="not_reached" if found is None else "kv_cache" if full else "slo",
        tried=judged[-1].concurrency,
        binds=found.slo if found else None,
        reason=None,
    )


def _why_unknown(found: SloResult, concurrency: int | None, levels: Sequence[LevelFigures]) -> str:
    """Why a figure is unknown that asks for no more requests."""
    if found.evidence == "composed":
        return "bursts do not tell; mode natural does"
    slo = parse_slo(found.slo)
    reasons = [one.estimate(slo.metric, slo.statistic).reason for one in levels if one.concurrency == concurrency]
    return next(filter(None, reasons), "too few requests")


def _by_level(
    levels: Sequence[LevelFigures],
    bursts: Sequence[ComposedLevel],
    objectives: Sequence[Slo],
    composed: Callable[[Slo, int], float | None] = lambda slo, concurrency: None,
) -> list[_Judged]:
    """Every concurrency with its SLOs, ascending: by bursts where these tell, else as it was measured."""
    measured = {
        level.concurrency: [_judged(one, level, composed(one, level.concurrency)) for one in objectives] for level in levels
    }
    made = {level.concurrency: [judge_composed(one, level) for one in objectives] for level in bursts}
    return [
        _Judged(n, [_best_known(a, b) for a, b in zip_longest(made.get(n, ()), measured.get(n, ()))])
        for n in sorted(measured.keys() | made.keys())
    ]


def _best_known(made: SloResult | None, measured: SloResult | None) -> SloResult:
    found = made if made is not None and (measured is None or made.likely is not None) else measured
    assert found is not None
    return found


def _judged(slo: Slo, level: LevelFigures, composed: float | None) -> SloResult:
    """By the level; where that has no figure, by the one composed."""
    found = judge_slo(slo, level)
    if found.value is not None or composed is None:
        return found
    return structs.replace(found, value=composed, likely=False if found.likely is False else slo.holds(composed))


def _room(levels: Sequence[LevelFigures], fit: MemoryFit | None) -> Bounded:
    """Requests of the highest level's length that the KV cache holds."""
    highest = max(levels, key=lambda one: one.concurrency, default=None)
    if fit is None or not fit.kv_capacity_tokens or highest is None or not highest.context_tokens.value:
        return Bounded(None, None)
    tokens, context = fit.kv_capacity_tokens, highest.context_tokens
    ends = context.ci95 and (_share(tokens, context.ci95[1]), _share(tokens, context.ci95[0]))
    return Bounded(tokens / highest.context_tokens.value, ends)


def _share(tokens: int, each: float) -> float | None:
    return tokens / each if each else None


def _unjudged(reason: str, room: Bounded, fit: MemoryFit | None) -> MaximumConcurrency:
    return MaximumConcurrency(
        by_slo=None,
        ci95=None,
        by_kv_cache=None if fit is None else fit.max_streams,
        by_kv_workload=room,
        limit=None,
        tried=None,
        binds=None,
        reason=reason,
    )


def _before(judged: Sequence[_Judged], fails: Callable[[SloResult], bool]) -> int:
    """The highest level below the first one that fails an SLO; 0 where the lowest level fails."""
    highest = 0
    for level in judged:
        if any(fails(one) for one in level.slos):
            break
        highest = level.concurrency
    return highest
