"""What a search found, from the records of its cell: the verdict on each level tried, and the frontier between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from loadtest.analysis.search.level_test import LevelTest, least_requests, order_of
from loadtest.decision.search_steps import frontier, next_level
from loadtest.metrics.level_schema import LevelFigures
from loadtest.metrics.request_arrays import Pass
from loadtest.metrics.schema import CellFigures, ConcurrencySearch, SearchLevel, SearchLimit
from loadtest.metrics.slo import Slo
from loadtest.records.engine_facts import SearchedKind, SearchFacts


def search_level(
    passes: Sequence[Pass], objectives: Sequence[Slo], figures: LevelFigures, of: SearchedKind = "users"
) -> SearchLevel:
    """The verdict on one level, by all its passes."""
    test = LevelTest(objectives, least_requests(passes[0].concurrency, of), lambda: None, order_of(of))
    for one in passes:
        test.take_all(one)
    test.judge_figures(figures)
    return SearchLevel(
        concurrency=passes[0].concurrency,
        verdict=test.word,
        objectives=test.objectives,
        n_requests=figures.n_requests,
        load_s=sum(_length_s(one) for one in passes),
    )


def _length_s(one: Pass) -> float:
    return float(np.nanmax(one.ended_s) - np.nanmin(one.sent_s)) if np.any(np.isfinite(one.sent_s)) else 0.0


def search_result(
    cell: CellFigures, facts: SearchFacts, passes: Mapping[int, Sequence[Pass]], objectives: Sequence[Slo]
) -> ConcurrencySearch:
    """The frontier of one cell. `passes`: by concurrency."""
    asked = [level for level, found in passes.items() if any(one.records for one in found)]
    order = sorted(asked, key=lambda level: min(float(np.min(one.ended_s)) for one in passes[level] if one.records))
    figures = {level: cell.level(level) for level in order}
    levels = [
        search_level(passes[level], objectives, found, facts.of) for level in order if (found := figures[level]) is not None
    ]
    words = {one.concurrency: one.verdict for one in levels}
    edge = frontier(words)
    load_s = sum(one.load_s for one in levels)
    return ConcurrencySearch(
        cell=cell.id,
        simulated=cell.simulated,
        within=edge.within,
        broken=edge.broken,
        binds=_binds(levels, edge.broken),
        limit=_limit(levels, facts),
        reason=facts.stopped or (cell.reason if cell.status != "ok" else None),
        start=facts.start,
        start_source=facts.start_source,
        most=facts.most,
        of=facts.of,
        levels=tuple(levels),
        n_requests=sum(one.n_requests for one in levels),
        gpu_minutes=None if cell.tp is None else cell.tp * load_s / 60,
    )


def _binds(levels: Sequence[SearchLevel], broken: int | None) -> str | None:
    return next(
        (slo.slo for one in levels if one.concurrency == broken for slo in one.objectives if slo.verdict == "broken"), None
    )


def _limit(levels: Sequence[SearchLevel], facts: SearchFacts) -> SearchLimit:
    words = {one.concurrency: one.verdict for one in levels}
    if next_level(words, facts.start, facts.most) is not None:
        return "stopped"
    edge = frontier(words)
    if edge.broken is None:
        return facts.most_source if edge.within == facts.most else "undecided"
    between = [level for level in words if edge.within < level < edge.broken]
    return "undecided" if between else "slo"
