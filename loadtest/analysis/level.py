"""The figures of one level: its records to distributions, rates with intervals, checks and health.

Pure: same records, same numbers, in any order of lines, split over any files. Definitions: `metrics.catalogue`.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from msgspec.structs import replace

from loadtest.analysis import objectives as slo_objectives
from loadtest.analysis import validity
from loadtest.decision import renewal
from loadtest.grading.troubles import count_troubles
from loadtest.metrics import (
    client_health,
    distributions,
    energy,
    intervals,
    reconciliation,
    series,
    slo,
    steady_window,
    token_counts,
)
from loadtest.metrics.catalogue import CENSORED_METRICS, METRICS
from loadtest.metrics.client_health import Passes
from loadtest.metrics.figures import CensoredDistribution, Distribution, Estimate, GapDistribution, unknown
from loadtest.metrics.level_schema import (
    NO_CALL,
    NO_SCHEMA,
    ClientHealth,
    LevelFigures,
    PassFigures,
    ReplicaFigures,
    ReplicaRequests,
    ServerCounters,
    SteadyWindow,
    TokenArrivals,
    TokenCounts,
    TroubleCounts,
    WindowSpan,
)
from loadtest.metrics.request_arrays import Bools, Ints, Pass, Small, pace_of, pass_arrays, per_request, values_of
from loadtest.records.engine_facts import ClockError, SearchedKind
from loadtest.records.manifest import IMPORTED, VIRTUAL_TIME
from loadtest.records.read import LevelRecords
from loadtest.records.schema import FAILED, FINISHED, OutputForm, RequestRecord, TokenCountSource


def level_figures(
    passes: Sequence[tuple[LevelRecords, Pass]],
    objectives: Sequence[slo.Slo],
    anchor: float,
    simulated: bool,
    clock_error: ClockError | None,
    driven: str,
    *,
    of: SearchedKind = "users",
) -> LevelFigures:
    """One level: the measured phase of all its passes, pooled. `of`: what it is; at a rate no concurrency is held."""
    columns = [one for _, one in passes]
    spans = [steady_window.steady(one) for one in columns]
    measured = [r for one in columns for r in one.records if r.phase == "measure"]
    joules = _joules(passes, spans, anchor)
    throughput, method = renewal.tokens_per_s(columns)
    per_hour = partial(_per_hour, columns, spans, throughput if method == "renewal" else None)
    tpot_s, gaps_s = _pace(columns, "tpot_s"), gap_distribution([one.gaps() for one in columns])
    level = LevelFigures(
        concurrency=columns[0].concurrency,
        n_requests=len(measured),
        n_prompts=(n_prompts := len({r.prompt_id for r in measured})),
        population="prompts of this kind" if n_prompts == len(measured) and _names_prompts(measured) else "these prompts",
        n_warmup=sum(int(np.sum(~one.measured)) for one in columns),
        torn_lines=sum(len(level.torn) for level, _ in passes),
        damaged_files=tuple(f"{level.path.name}/{one}" for level, _ in passes for one in level.damaged),
        outcomes=dict(sorted(Counter(r.outcome for r in measured).items())),
        error_kinds=_error_kinds(measured),
        n_resends=sum(r.resends for r in measured),
        window=_window([span for span in spans if span is not None], len(columns)),
        checks=steady_window.check_windows(_with_window(columns, spans), len(columns)),
        passes=tuple(_pass(one, span) for one, span in zip(columns, spans, strict=True)),
        token_counts=_token_counts(columns, measured),
        token_count_sources=_token_count_sources(columns),
        **_named(columns, measured, simulated),
        queued_s=exact_distribution(columns, "queued_s"),
        itl_s=gaps_s,
        chunk_gap_s=_chunk_gaps(columns, gaps_s),
        tpot_s=tpot_s,
        tokens_per_s_per_user=_pace(columns, "tokens_per_s_per_user"),
        output_tokens_per_s=throughput,
        throughput_method=method,
        run_tokens_per_s=steady_window.run_tokens_per_s(columns),
        answers_per_hour=per_hour([one.measured & one.ok for one in columns]),
        goodput_answers_per_hour=per_hour([one.measured & one.ok & _meets(one, objectives, columns) for one in columns])
        if objectives
        else unknown("no SLO was given"),
        arrivals=_arrivals(columns),
        joules_per_answer=joules.per_answer,
        joules_per_output_token=joules.per_output_token,
        context_tokens=_context(columns),
        equal_work=validity.equal_work(measured),
        troubles=TroubleCounts(**count_troubles(measured, simulated=simulated)),
        curves=series.of_level(columns, [level for level, _ in passes], spans, anchor),
        client_health=_client_health(passes, anchor, _usual_gap_s(columns, gaps_s, tpot_s), driven, clock_error, of),
        reconciliation=reconciliation.reconcile(passes, anchor, tpot_s.mean),
        server=_with_requests(reconciliation.count_server(passes, anchor), passes, anchor),
        slo=(),
    )
    return _judged(level if of == "users" else _without_total_rates(level), objectives)


def _judged(level: LevelFigures, objectives: Sequence[slo.Slo]) -> LevelFigures:
    return replace(level, slo=tuple(slo_objectives.judge_slo(objective, level) for objective in objectives))


def _without_total_rates(level: LevelFigures) -> LevelFigures:
    unheld = unknown("requests came by the clock: no concurrency was held")
    return replace(level, output_tokens_per_s=unheld, answers_per_hour=unheld, goodput_answers_per_hour=unheld)


def _with_requests(server: ServerCounters, passes: Passes, anchor: float) -> ServerCounters:
    """The counters with what the client saw of each server, where several took turns."""
    told = {one.source: one for one in server.replicas}
    sources = sorted({one.replica for level, _ in passes for one in level.requests if one.replica is not None})
    silent = partial(ReplicaFigures, n_requests=None, request_share=None, output_tokens=None, output_token_share=None,
                     prefix_cache_hit_share=None, peak_kv_usage_share=None, peak_waiting_at_once=None)  # fmt: skip
    asked = [replace(told.get(one) or silent(source=one), asked=_requests_of(one, passes, anchor)) for one in sources]
    return replace(server, replicas=tuple(asked)) if asked else server


def _requests_of(source: str, passes: Passes, anchor: float) -> ReplicaRequests:
    """Population: measured requests that were sent to this server."""
    own = [dataclasses.replace(one, requests=tuple(r for r in one.requests if r.replica == source)) for one, _ in passes]
    columns = [pass_arrays(one, anchor) for one in own if one.requests]
    measured = [r for one in columns for r in one.records if r.phase == "measure"]
    return ReplicaRequests(
        n_requests=len(measured),
        failed_share=intervals.share(sum(r.outcome in FAILED for r in measured), len(measured)),
        error_kinds=_error_kinds(measured),
        ttft_s=censored_distribution(columns, "ttft_s"),
        run_tokens_per_s=steady_window.run_tokens_per_s(columns),
    )


def _error_kinds(records: Iterable[RequestRecord]) -> dict[str, int]:
    return dict(sorted(Counter(r.error.kind for r in records if r.error is not None).items()))


def _usual_gap_s(columns: Sequence[Pass], gaps_s: GapDistribution, tpot_s: Distribution) -> float | None:
    """The median gap between tokens; for bursts, where most gaps are 0, the time per token."""
    return (None if any(one.bursty for one in columns) else gaps_s.p50) or tpot_s.mean


def _client_health(
    passes: Sequence[tuple[LevelRecords, Pass]],
    anchor: float,
    gap_s: float | None,
    driven: str,
    clock_error: ClockError | None,
    of: SearchedKind,
) -> ClientHealth:
    if driven == IMPORTED:
        return client_health.client_not_told()
    if driven == VIRTUAL_TIME:
        return client_health.no_client()
    return client_health.check_client(passes, anchor, gap_s, clock_error, waits_count=of == "users")


def _with_window(columns: Sequence[Pass], spans: Sequence[WindowSpan | None]) -> list[tuple[Pass, WindowSpan]]:
    return [(one, span) for one, span in zip(columns, spans, strict=True) if span is not None]


def _window(spans: Sequence[WindowSpan], n_passes: int) -> SteadyWindow:
    """Start of the first window and end of the last; `length_s` sums the passes' own."""
    return SteadyWindow(
        start_s=min((span.start_s for span in spans), default=None),
        end_s=max((span.end_s for span in spans), default=None),
        length_s=sum(span.length_s for span in spans) if spans else None,
        n_passes=len(spans),
        n_passes_without=n_passes - len(spans),
    )


UNJUDGED = "whether a response ended with an answer is not told"


def _names_prompts(measured: Iterable[RequestRecord]) -> bool:
    """Is it known which of them had the same prompt?"""
    return not any(record.lacks for record in measured)


def _pass(columns: Pass, span: WindowSpan | None) -> PassFigures:
    windows = None if span is None else [(columns, span)]
    outcomes = Counter(r.outcome for r in columns.records if r.phase == "measure")
    return PassFigures(
        repeat=columns.repeat,
        n_requests=int(np.sum(columns.measured)),
        outcomes=dict(sorted(outcomes.items())),
        window=span,
        output_tokens=float(np.sum(columns.tokens[columns.measured])),
        output_tokens_per_s=steady_window.window_tokens_per_s(windows).value if windows else None,
        answers_per_hour=steady_window.per_hour(windows, [columns.measured & columns.ok]).value
        if windows and not columns.unjudged
        else None,
    )


def _token_counts(columns: Sequence[Pass], measured: Sequence[RequestRecord]) -> TokenCounts:
    """How many requests told their tokens chunk by chunk, for how many they had to be spread, and whose cannot be right."""
    spread = sum(int(np.sum(one.estimated & one.measured)) for one in columns)
    told = sum(int(np.sum(~one.estimated & one.measured & (one.tokens > 0))) for one in columns)
    return token_counts.count_requests(measured, told_by_chunk=told, spread_over_chunks=spread)


def _pace(columns: Sequence[Pass], metric: str) -> Distribution:
    """A rate of each request: while it decodes, or, where tokens came in bursts, over its whole answer."""
    return exact_distribution(columns, pace_of(metric, columns))


def _arrivals(columns: Sequence[Pass]) -> TokenArrivals:
    """How many tokens came at once, and the rates over the whole answer and between arrivals."""
    whole, between = (exact_distribution(columns, name) for name in ("whole_answer_tokens_per_s", "tokens_per_s_per_user"))
    return token_counts.count_arrivals(columns, whole_answer=whole, between_arrivals=between)


def _token_count_sources(columns: Sequence[Pass]) -> dict[TokenCountSource, int]:
    """Who counted the tokens of how many finished requests: the server, a local tokenizer, or nobody (each chunk is one)."""
    records = (r for one in columns for r in one.records if r.phase == "measure" and r.outcome in FINISHED)
    return dict(sorted(Counter(r.token_count_source for r in records).items()))


def censored_distribution(columns: Sequence[Pass], metric: str) -> CensoredDistribution:
    """One metric with right-censored values."""
    parts = [values_of(one, metric) for one in columns]
    groups = np.repeat(np.arange(len(parts)), [len(times) for times, _ in parts])
    times, observed = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return distributions.waiting(times, observed, groups)


def exact_distribution(columns: Sequence[Pass], metric: str) -> Distribution:
    """One metric that is never censored."""
    parts = [values_of(one, metric)[0] for one in columns]
    groups = np.repeat(np.arange(len(parts)), [len(values) for values in parts])
    return distributions.plain(np.concatenate(parts), groups)


def _chunk_gaps(columns: Sequence[Pass], token_gaps: GapDistribution) -> GapDistribution:
    """Gaps between chunks: those between tokens where every chunk carries one."""
    if all(bool(np.all(one.token_weight == 1)) and "tokens" not in one.lacks for one in columns):
        return token_gaps
    parts = [one.chunk_gaps() for one in columns]
    return gap_distribution([(gaps, np.ones_like(tokens), starts) for gaps, tokens, starts in parts])


def gap_distribution(parts: Sequence[tuple[Small, Small, Ints]]) -> GapDistribution:
    """Gaps of all passes, each with its weights and where each request's begin."""
    offsets = np.cumsum([0, *(len(gaps) for gaps, _, _ in parts)])
    starts: Ints = np.concatenate([part[2] + offset for part, offset in zip(parts, offsets, strict=False)])
    groups = np.repeat(np.arange(len(parts)), [len(part[2]) for part in parts])
    if len(parts) == 1:
        return distributions.weighted(*parts[0], groups)
    gaps = np.concatenate([part[0] for part in parts])
    weights = np.concatenate([part[1] for part in parts])
    return distributions.weighted(gaps, weights, starts, groups)


def _per_hour(
    columns: Sequence[Pass], spans: Sequence[WindowSpan | None], rate: Estimate | None, good: Sequence[Bools]
) -> Estimate:
    """Answers per hour among `good`: by the steady windows, unless the tokens/s were found otherwise (`rate`)."""
    if any(one.unjudged for one in columns):
        return unknown(UNJUDGED)
    if rate is not None:
        return steady_window.per_hour_at(rate, columns, good)
    held = [(one, span, mask) for one, span, mask in zip(columns, spans, good, strict=True) if span is not None]
    if not held:
        return steady_window.no_window(columns)
    return steady_window.per_hour([(one, span) for one, span, _ in held], [mask for _, _, mask in held])


class _Joules(NamedTuple):
    per_answer: Estimate
    per_output_token: Estimate


def _joules(passes: Sequence[tuple[LevelRecords, Pass]], spans: Sequence[WindowSpan | None], anchor: float) -> _Joules:
    """Joules of all GPUs inside the steady windows, per answer and per output token there; passes are the unit."""
    found = [
        (energy.joules(level.gpu, span, anchor), one, span)
        for (level, one), span in zip(passes, spans, strict=True)
        if span is not None
    ]
    joules = [total for total, _, _ in found if total is not None]
    if not found or len(joules) < len(found):
        absent = unknown("GPU power was not read throughout the steady window")
        return _Joules(absent, absent)
    answers = [steady_window.answers_in(one, span, one.ok) for _, one, span in found]
    tokens = [float(steady_window.tokens_in(one, span)[0]) for _, one, span in found]
    return _Joules(intervals.ratio(np.array(joules), np.array(answers)), intervals.ratio(np.array(joules), np.array(tokens)))


def _context(columns: Sequence[Pass]) -> Estimate:
    """Mean tokens that a request holds in the KV cache at its end: prompt and output of requests that finished."""
    found = [
        r.prompt_tokens + r.completion_tokens
        for one in columns
        for r, use in zip(one.records, one.measured & one.ok, strict=True)
        if use and r.prompt_tokens is not None and r.completion_tokens is not None
    ]
    return intervals.mean(np.array(found, np.float64))


def _meets(columns: Pass, objectives: Iterable[slo.Slo], passes: Sequence[Pass]) -> Bools:
    """Requests that meet the limit of every objective on requests; a gap limit is held against tpot. `passes`: all of the
    level."""
    meets = np.ones(len(columns.records), bool)
    for objective in objectives:
        if not objective.of_requests:
            continue
        metric = "tpot_s" if METRICS[objective.metric].shape == "gaps" else objective.metric
        values, observed = per_request(columns, pace_of(metric, passes))
        absent = ~np.isfinite(values)  # no thinking, one token: nothing to break the limit
        meets &= (objective.which_hold(values) & observed) | absent
    return meets


def _named(columns: Sequence[Pass], measured: Sequence[RequestRecord], simulated: bool) -> dict[str, Any]:
    """Every metric with censored values, and every one that is a share of requests."""
    return {name: censored_distribution(columns, name) for name in CENSORED_METRICS} | {
        "accuracy": _accuracy(measured, simulated),
        "valid_call_share": _valid(measured, NO_CALL, "call", "call or text"),
        "valid_json_share": _valid(measured, NO_SCHEMA, "json"),
        "failed_share": intervals.share(sum(r.outcome in FAILED for r in measured), len(measured)),
    }


def _accuracy(measured: Sequence[RequestRecord], simulated: bool) -> Estimate:
    if simulated:
        return unknown("simulated: no model gave the answers")
    checked = [r.answer_correct for r in measured if r.answer_correct is not None]
    return intervals.share(sum(checked), len(checked)) if checked else unknown("no checkable answer")


def _valid(measured: Sequence[RequestRecord], reason: str, *asked: OutputForm) -> Estimate:
    """Share of the outputs that have the form that was asked for, of those that could be judged."""
    judged = [r.form_valid for r in measured if r.output_form in asked and r.form_valid is not None]
    return intervals.share(sum(judged), len(judged)) if judged else unknown(reason)
