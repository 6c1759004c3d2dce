"""The figures of one level: its records to distributions, rates with intervals, checks and health.

Pure: same records, same numbers, whatever the order of lines or their split over files. Definitions: docs/numbers.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from loadtest.analysis import objectives as slo_objectives
from loadtest.analysis import validity
from loadtest.grading.troubles import count_troubles
from loadtest.metrics import client_health, distributions, energy, intervals, reconciliation, series, slo, steady_window
from loadtest.metrics.intervals import Estimate, Floats
from loadtest.metrics.request_arrays import Bools, Ints, Pass, per_request, values_of
from loadtest.records.manifest import VIRTUAL_TIME
from loadtest.records.read import LevelRecords
from loadtest.records.schema import FAILED, FINISHED

WAITS = ("ttft_s", "time_to_first_answer_s", "time_to_final_answer_s", "thinking_s", "reasoning_tokens", "answer_tokens")

PLAIN = ("queued_s", "tpot_s", "tokens_per_s_per_user")

DISTRIBUTIONS = (*WAITS, "itl_s", *PLAIN)

FIGURES = ("output_tokens_per_s", "answers_per_hour", "goodput_answers_per_hour", "accuracy", "failed_share",
           "joules_per_answer", "joules_per_output_token")  # fmt: skip


def level_figures(
    passes: Sequence[tuple[LevelRecords, Pass]],
    objectives: Sequence[slo.Slo],
    anchor: float,
    simulated: bool,
    clock_error: Mapping[str, Any] | None,
    driven: str,
) -> dict[str, Any]:
    """One level: the measured phase of all its passes, pooled."""
    columns = [one for _, one in passes]
    spans = [steady_window.steady(one) for one in columns]
    windows = [(one, span) for one, span in zip(columns, spans, strict=True) if span is not None]
    outcomes = Counter(outcome for one in columns for outcome in np.array(one.outcome, object)[one.measured])
    answer: dict[str, Any] = {
        "concurrency": columns[0].concurrency,
        "n_requests": sum(outcomes.values()),
        "n_prompts": len({r.prompt_id for one in columns for r in one.records if r.phase == "measure"}),
        "n_warmup": sum(int(np.sum(~one.measured)) for one in columns),
        "torn_lines": sum(len(level.torn) for level, _ in passes),
        "outcomes": dict(sorted(outcomes.items())),
        "error_kinds": _error_kinds(columns),
        "window": _window(windows, len(columns)),
        "checks": steady_window.checks(windows, len(columns)),
        "passes": [_pass(one, span) for one, span in zip(columns, spans, strict=True)],
        "token_counts": _token_counts(columns),
        "token_count_sources": _token_count_sources(columns),
        **_distributions(columns),
        **_figures(windows, columns, objectives, simulated),
        "failed_share": intervals.share(sum(outcomes[name] for name in FAILED), sum(outcomes.values())).to_json(),
        **_energy(passes, spans, anchor),
        "context_tokens": _context(columns).to_json(),
        "equal_work": validity.equal_work(r for c in columns for r in c.records if r.phase == "measure"),
        "troubles": count_troubles([r for c in columns for r in c.records if r.phase == "measure"], simulated=simulated),
        "curves": series.of_level(columns, [level for level, _ in passes], spans, anchor),
    }
    gap_s = answer["itl_s"]["p50"] or answer["tpot_s"]["mean"]
    virtual = driven == VIRTUAL_TIME
    answer["client_health"] = (
        client_health.no_client() if virtual else client_health.client(passes, anchor, gap_s, clock_error)
    )
    answer["reconciliation"] = reconciliation.reconciliation(passes, anchor, answer["tpot_s"]["mean"])
    answer["server"] = reconciliation.server(passes, anchor)
    answer["slo"] = [slo_objectives.judge(objective, answer) for objective in objectives]
    return answer


def _error_kinds(columns: Sequence[Pass]) -> dict[str, int]:
    errors = (r.error.kind for one in columns for r in one.records if r.error is not None and r.phase == "measure")
    return dict(sorted(Counter(errors).items()))


def _window(windows: Sequence[tuple[Pass, steady_window.Window]], n_passes: int) -> dict[str, Any]:
    """Start of the first window and end of the last; `length_s` sums the passes' own."""
    spans = [span for _, span in windows]
    return {
        "start_s": min((span.start_s for span in spans), default=None),
        "end_s": max((span.end_s for span in spans), default=None),
        "length_s": sum(span.length_s for span in spans) if spans else None,
        "n_passes": len(spans),
        "n_passes_without": n_passes - len(spans),
    }


def _pass(columns: Pass, span: steady_window.Window | None) -> dict[str, Any]:
    windows = [] if span is None else [(columns, span)]
    outcomes = Counter(str(outcome) for outcome in np.array(columns.outcome, object)[columns.measured])
    return {
        "repeat": columns.repeat,
        "n_requests": int(np.sum(columns.measured)),
        "outcomes": dict(sorted(outcomes.items())),
        "window": None if span is None else {"start_s": span.start_s, "end_s": span.end_s},
        "output_tokens": float(np.sum(columns.tokens[columns.measured])),
        "output_tokens_per_s": steady_window.output_tokens_per_s(windows).value,
        "answers_per_hour": steady_window.per_hour(windows, [columns.measured & columns.ok] if windows else []).value,
    }


def _token_counts(columns: Sequence[Pass]) -> dict[str, int]:
    """How many requests told their tokens chunk by chunk, and for how many they had to be spread over the chunks."""
    spread = sum(int(np.sum(one.estimated & one.measured)) for one in columns)
    told = sum(int(np.sum(~one.estimated & one.measured & (one.tokens > 0))) for one in columns)
    return {"told_by_chunk": told, "spread_over_chunks": spread}


def _token_count_sources(columns: Sequence[Pass]) -> dict[str, int]:
    """Who counted the tokens of how many finished requests: the server, a local tokenizer, or nobody (each chunk is one)."""
    records = (r for one in columns for r in one.records if r.phase == "measure" and r.outcome in FINISHED)
    return dict(sorted(Counter(r.token_count_source for r in records).items()))


def _distributions(columns: Sequence[Pass]) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    for name in WAITS:
        parts = [values_of(one, name) for one in columns]
        groups = np.repeat(np.arange(len(parts)), [len(times) for times, _ in parts])
        times, observed = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        answer[name] = distributions.waiting(times, observed, groups)
    answer["queued_s"] = distributions.plain(*exact_values(columns, "queued_s"))
    tpot, groups = exact_values(columns, "tpot_s")
    answer["itl_s"] = _gaps(columns)
    answer["tpot_s"] = distributions.plain(tpot, groups)
    answer["tokens_per_s_per_user"] = distributions.plain(1 / tpot[tpot > 0], groups[tpot > 0])
    return answer


def exact_values(columns: Sequence[Pass], metric: str) -> tuple[Floats, Ints]:
    """One metric that is never censored, of the measured requests that have it, and the pass of each."""
    parts = [values_of(one, metric)[0] for one in columns]
    return np.concatenate(parts), np.repeat(np.arange(len(parts)), [len(one) for one in parts])


def _gaps(columns: Sequence[Pass]) -> dict[str, Any]:
    parts = [one.gaps() for one in columns]
    offsets = np.cumsum([0, *(len(gaps) for gaps, _, _ in parts)])
    starts: Ints = np.concatenate([part[2] + offset for part, offset in zip(parts, offsets, strict=False)])
    groups = np.repeat(np.arange(len(parts)), [len(part[2]) for part in parts])
    if len(parts) == 1:
        return distributions.weighted(*parts[0], groups)
    gaps = np.concatenate([part[0] for part in parts])
    weights = np.concatenate([part[1] for part in parts])
    del parts  # as large as what was made of them
    return distributions.weighted(gaps, weights, starts, groups)


def _figures(
    windows: Sequence[tuple[Pass, steady_window.Window]],
    columns: Sequence[Pass],
    objectives: Sequence[slo.Slo],
    simulated: bool,
) -> dict[str, Any]:
    finished = [one.measured & one.ok for one, _ in windows]
    good = [mask & _meets(one, objectives) for (one, _), mask in zip(windows, finished, strict=True)]
    goodput = steady_window.per_hour(windows, good) if objectives else Estimate(None, reason="no SLO was given")
    return {
        "output_tokens_per_s": steady_window.output_tokens_per_s(windows).to_json(),
        "answers_per_hour": steady_window.per_hour(windows, finished).to_json(),
        "goodput_answers_per_hour": goodput.to_json(),
        "accuracy": _accuracy(columns, simulated).to_json(),
    }


def _energy(
    passes: Sequence[tuple[LevelRecords, Pass]], spans: Sequence[steady_window.Window | None], anchor: float
) -> dict[str, Any]:
    """Joules of all cards inside the steady windows, per answer and per output token there; passes are the unit."""
    found = [
        (energy.joules(level.gpu, span, anchor), one, span)
        for (level, one), span in zip(passes, spans, strict=True)
        if span is not None
    ]
    joules = [total for total, _, _ in found if total is not None]
    if not found or len(joules) < len(found):
        absent = Estimate(None, reason="the power of the cards was not read throughout the steady window").to_json()
        return {"joules_per_answer": absent, "joules_per_output_token": absent}
    answers = [steady_window.answers_in(one, span, one.ok) for _, one, span in found]
    tokens = [float(steady_window.tokens_in(one, span)[0]) for _, one, span in found]
    return {
        "joules_per_answer": intervals.ratio(np.array(joules), np.array(answers)).to_json(),
        "joules_per_output_token": intervals.ratio(np.array(joules), np.array(tokens)).to_json(),
    }


def _context(columns: Sequence[Pass]) -> Estimate:
    """Mean tokens that a stream holds at its longest: prompt and output of requests that finished."""
    found = [
        r.prompt_tokens + r.completion_tokens
        for one in columns
        for r, use in zip(one.records, one.measured & one.ok, strict=True)
        if use and r.prompt_tokens is not None and r.completion_tokens is not None
    ]
    return intervals.mean(np.array(found, np.float64))


def _meets(columns: Pass, objectives: Iterable[slo.Slo]) -> Bools:
    """Requests that meet the limit of every objective that speaks of requests; a gap limit is held against tpot."""
    meets = np.ones(len(columns.records), bool)
    for objective in objectives:
        if objective.metric in slo.SINGLE:
            continue
        values, observed = per_request(columns, "tpot_s" if objective.metric == "itl_s" else objective.metric)
        absent = ~np.isfinite(values)  # no thinking, one token: nothing to break the limit
        within = values < objective.limit if objective.below else values > objective.limit
        meets &= (within & observed) | absent
    return meets


def _accuracy(columns: Sequence[Pass], simulated: bool) -> Estimate:
    if simulated:
        return Estimate(None, reason="simulated: the answers are not a model's")
    checked = [
        r.answer_correct for one in columns for r in one.records if r.phase == "measure" and r.answer_correct is not None
    ]
    return intervals.share(sum(checked), len(checked)) if checked else Estimate(None, reason="no checkable answer")
