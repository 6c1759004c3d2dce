"""Records of a run to its `Metrics`: every cell, level, comparison and claim."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from functools import partial
from itertools import groupby

import msgspec

from loadtest.analysis import claims as published
from loadtest.analysis import comparability, compare, validity
from loadtest.analysis import objectives as slo_objectives
from loadtest.analysis.bursts.cells import Recorded, burst_cells, recorded
from loadtest.analysis.bursts.composed import ComposedCell, compose_cells
from loadtest.analysis.level import level_figures
from loadtest.analysis.search.result import search_result
from loadtest.errors import UsageError
from loadtest.metrics import slo
from loadtest.metrics.clock_error import pool_clock_errors
from loadtest.metrics.figures import Bounded
from loadtest.metrics.level_schema import LevelFigures
from loadtest.metrics.request_arrays import Pass, earliest_anchor
from loadtest.metrics.schema import CellFigures, Comparison, Metrics, Roofline, RunFacts
from loadtest.perfmodel import gpus, memory, models
from loadtest.records.engine_facts import ClockError, EngineFacts
from loadtest.records.manifest import Manifest
from loadtest.records.read import CellRecords, Run
from loadtest.records.schema import SCHEMA_VERSION
from loadtest.servers import route


def analyze(run: Run, claims: Sequence[published.Claim] = ()) -> Metrics:
    """Every figure of a run read by `read_run`: what metrics.json holds.

    Population: the measured phase of every pass; the warm-up counts only in totals that are held against the server's.
    `claims`: published claims to judge (`analysis.claims.parse_claims`). Raises UsageError for an SLO it cannot read.
    """
    objectives = [slo.parse_slo(text) for text in run.manifest.slo]
    anchor = earliest_anchor([level for cell in run.cells for level in cell.passes])
    cells: list[CellFigures] = []
    samples: dict[tuple[str, int], list[Pass]] = {}
    columns_of = [recorded(cell, anchor) for cell in run.cells]
    bursts = burst_cells(columns_of, run.manifest.natural_users)
    composed = compose_cells(bursts, run.manifest, anchor)
    for cell, (_, _, passes) in zip(run.cells, columns_of, strict=True):
        cells.append(_cell(cell, run.manifest, passes, objectives, anchor, composed.get(cell.id)))
        for concurrency, group in groupby((columns for _, columns in passes), key=lambda columns: columns.concurrency):
            samples[cell.id, concurrency] = list(group)
    searches = [
        search_result(figures, facts, {c: samples[cell.id, c] for name, c in samples if name == cell.id}, objectives)
        for figures, cell in zip(cells, run.cells, strict=True)
        if (facts := cell.engine.search) is not None
    ]
    templates = comparability.templates(run.cells)
    judged = compare.compare_engines(
        cells, samples, run.manifest, comparability.unlike(run.cells), validity.unsound_places(cells), bursts
    )
    health = validity.judge_run(cells, run.manifest, (*run.altered, *templates.values()), run.missing)
    return Metrics(
        schema_version=SCHEMA_VERSION,
        run_id=run.manifest.run_id,
        simulated=run.manifest.simulated or any(cell.simulated for cell in cells),
        complete=health.complete,
        run=_run(run.manifest, cells),
        health=health,
        cells=tuple(cells),
        comparisons=tuple(judged.comparisons),
        decisions=tuple(judged.decisions),
        factors=tuple(judged.factors),
        findings=published.judge_claims(claims, *_of_mode(run.manifest.mode, cells, judged.comparisons), judged.decisions),
        searches=tuple(searches),
    )


def _of_mode(
    mode: str | None, cells: Sequence[CellFigures], comparisons: Sequence[Comparison]
) -> tuple[list[CellFigures], list[Comparison]]:
    """What the claims are judged by where a study pairs two modes: its first, so that no claim is judged twice; where only
    cells of the second were asked for, those."""
    ids = {cell.id for cell in cells if cell.mode == mode} or {cell.id for cell in cells}
    return [cell for cell in cells if cell.id in ids], [row for row in comparisons if row.a in ids]


def _run(manifest: Manifest, cells: Sequence[CellFigures]) -> RunFacts:
    started = manifest.started_unix_s
    moment = None if started is None else datetime.datetime.fromtimestamp(started, datetime.UTC)
    return RunFacts(
        id=manifest.run_id,
        name=manifest.name,
        started=None if moment is None else moment.isoformat(timespec="seconds").replace("+00:00", "Z"),
        mode=manifest.mode,
        workload=manifest.workload,
        clock_speed=manifest.clock_speed,
        slo=manifest.slo,
        imported=manifest.imported,
        clock_error=pool_clock_errors([cell.clock_error for cell in cells if cell.clock_error is not None]),
    )


def _cell(
    cell: CellRecords,
    manifest: Manifest,
    passes: Recorded,
    objectives: Sequence[slo.Slo],
    anchor: float,
    composed: ComposedCell | None,
) -> CellFigures:
    """One cell: what engine.json says, its roofline, its levels, and what is composed of its bursts."""
    facts = cell.engine
    by_level = groupby(passes, key=lambda one: one[1].concurrency)
    of = "users" if facts.search is None else facts.search.of
    levels = [
        level_figures(
            list(group), objectives, anchor, facts.predicts, _clock_error(facts, concurrency), manifest.driven, of=of
        )
        for concurrency, group in by_level
    ]
    sound = validity.sound_levels(levels)
    fitting = partial(slo_objectives.maximum_concurrency, sound, objectives, facts.fit, held=not manifest.open_loop)
    found = CellFigures(
        id=cell.id,
        engine=facts.engine,
        engine_version=facts.engine_version,
        name=facts.name,
        factors=facts.factors,
        side=facts.side,
        model=facts.model,
        tp=facts.tp,
        gpu=facts.gpu,
        gpus=facts.gpus,
        endpoint=route.host(facts.base_url),
        servers=tuple(map(route.place, facts.base_urls)),
        proxy=facts.proxy,
        insecure=facts.insecure,
        mode=facts.mode or manifest.mode,
        simulated=facts.predicts,
        clock_speed=facts.clock_speed,
        clock_error=facts.clock_error,
        status=facts.status,
        reason=facts.reason,
        fit=facts.fit,
        roofline=_roofline(facts, sound),
        maximum_concurrency=fitting(),
        levels=tuple(levels),
        composed=() if composed is None else composed.levels,
        conditions=() if composed is None else composed.conditions,
    )
    bursts = [level for level in found.usable if not validity.unsound_reasons(level)]
    return msgspec.structs.replace(found, maximum_concurrency=fitting(bursts=bursts)) if bursts else found


def _clock_error(facts: EngineFacts, concurrency: int) -> ClockError | None:
    """Of the level, or, where an older run has that alone, of the whole cell; None where no request was compared."""
    found = facts.clock_error_by_level.get(concurrency, facts.clock_error)
    return found if found is not None and found.n else None


def _roofline(facts: EngineFacts, levels: Sequence[LevelFigures]) -> Roofline:
    """Bound on a single request and the share of it reached by `tokens_per_s_per_user` at concurrency 1, of sound levels."""
    bound, reason = _bound(facts)
    speed = next((level.estimate("tokens_per_s_per_user", "mean") for level in levels if level.concurrency == 1), None)
    reached = None if speed is None else speed.value
    share = None
    if bound is not None and speed is not None and reached is not None:
        share = Bounded(reached / bound, speed.ci95 and (speed.ci95[0] / bound, speed.ci95[1] / bound))
    elif bound is not None:
        reason = "no sound level with a request at concurrency 1"
    return Roofline(bound_tokens_per_s=bound, reached_tokens_per_s=reached, reached_share=share, reason=reason)


def _bound(facts: EngineFacts) -> tuple[float | None, str | None]:
    """Bound on a single request, or why it is not known."""
    if facts.fit is not None and facts.fit.bound_tokens_per_s:
        return facts.fit.bound_tokens_per_s, None
    if facts.gpus:
        return None, "not modelled: several GPU pools behind one URL"
    if not facts.gpu:
        return None, "the GPU is unknown, so the bound is too; name it with --gpu"
    try:
        deployment = memory.Deployment(models.model(str(facts.model)), gpus.gpu(facts.gpu), facts.tp or 1, facts.engine)
    except UsageError as error:
        return None, str(error)
    return memory.single_stream_bound_tokens_per_s(deployment), None
