"""Records to numbers: `analyze` makes the value of metrics.json, `to_rows` that of metrics.csv, `frame` a DataFrame.

Pure: same records, same numbers, whatever the order of lines or their split over files. Definitions and the reasons for
them: docs/numbers.md. In a notebook::

    from loadtest import metrics, records
    frame = metrics.frame(records.read_run(Path("RUN")))
    frame.groupby(["cell", "concurrency"]).ttft_s.median()
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from loadtest import (
    acceleration,
    agreement,
    compare,
    curves,
    distributions,
    energy,
    findings,
    hardware,
    health,
    models,
    roofline,
    slo,
    statistics,
    window,
)
from loadtest.columns import FINISHED, Bools, Ints, Pass, earliest_anchor, per_request, read, values_of
from loadtest.errors import UsageError
from loadtest.records import SCHEMA_VERSION, CellRecords, LevelRecords, RequestRecord, Run
from loadtest.statistics import Estimate, Floats

if TYPE_CHECKING:
    import pandas as pd

WAITS = ("ttft_s", "time_to_first_answer_s", "time_to_final_answer_s", "thinking_s", "reasoning_tokens", "answer_tokens")
PLAIN = ("queued_s", "tpot_s", "tokens_per_s_per_user")
DISTRIBUTIONS = (*WAITS, "itl_s", *PLAIN)
FIGURES = ("output_tokens_per_s", "answers_per_hour", "goodput_answers_per_hour", "accuracy", "failed_share",
           "joules_per_answer", "joules_per_output_token")  # fmt: skip
# The server, or the way to it, failed: not the model, nor the end of the level.
FAILED = frozenset({"http_error", "timeout", "stalled", "connection_error", "protocol_error", "server_error"})


def analyze(run: Run, claims: Sequence[findings.Claim] = ()) -> dict[str, Any]:
    """The whole of metrics.json for a run read by `records.read_run` (keys: docs/reference.md).

    Population: the measured phase of every pass; the warm-up counts only in totals that are held against the server's.
    `claims`: published findings to judge (`findings.load`). Raises UsageError for an SLO it cannot read.
    """
    objectives = [slo.parse(text) for text in run.manifest.get("slo") or ()]
    anchor = earliest_anchor([level for cell in run.cells for level in cell.levels])
    cells: list[dict[str, Any]] = []
    samples: dict[tuple[str, int], list[Pass]] = {}
    for cell in run.cells:
        passes = [(level, read(level, anchor)) for level in cell.levels]
        cells.append(_cell(cell, run.manifest, passes, objectives, anchor))
        for concurrency, group in groupby((columns for _, columns in passes), key=lambda columns: columns.concurrency):
            samples[cell.id, concurrency] = list(group)
    templates = agreement.templates(run.cells)
    comparisons = compare.cells(cells, samples, templates.keys())
    gates = health.summary(cells, run.manifest)
    gates |= {"windows": _windows(cells)}
    gates["reasons"] += templates.values()
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": run.manifest.get("run_id"),
        "simulated": _simulated(run.manifest) or any(cell["simulated"] for cell in cells),
        "complete": gates["complete"],
        "run": {
            **_run(run.manifest),
            "clock_error": acceleration.pooled([c["clock_error"] for c in cells if c["clock_error"]]),
        },
        "health": gates,
        "cells": cells,
        "comparisons": comparisons,
        "findings": findings.judge(claims, *_of_mode(run.manifest.get("mode"), cells, comparisons)),
    }


def _of_mode(
    mode: str | None, cells: list[dict[str, Any]], comparisons: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What the findings are judged by where a study pairs two modes: its first, so that no claim is judged twice; where only
    cells of the second were asked for, those."""
    ids = {cell["id"] for cell in cells if cell["mode"] == mode} or {cell["id"] for cell in cells}
    return [cell for cell in cells if cell["id"] in ids], [row for row in comparisons if row["a"] in ids]


def _windows(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why the window of a level is too short, not steady or not warm, level by level; empty where all can be trusted."""
    return [
        f"{cell['id']} at {level['concurrency']}: {name.replace('_', ' ')}: {found['reason']}"
        for cell in cells
        for level in cell["levels"]
        for name, found in level["checks"].items()
        if found["status"] == "fail"
    ]


def _run(manifest: Mapping[str, Any]) -> dict[str, Any]:
    started = manifest.get("started_unix_s")
    moment = None if started is None else datetime.datetime.fromtimestamp(started, datetime.timezone.utc)
    return {
        "id": manifest.get("run_id"),
        "name": manifest.get("name"),
        "started": None if moment is None else moment.isoformat(timespec="seconds").replace("+00:00", "Z"),
        "mode": manifest.get("mode"),
        "workload": manifest.get("workload"),
        "clock_speed": manifest.get("clock_speed", 1.0),
        "slo": list(manifest.get("slo") or ()),
    }


def _simulated(facts: Mapping[str, Any]) -> bool:
    return bool(facts.get("simulated")) or str(facts.get("engine") or "").endswith("-sim")


def _cell(
    cell: CellRecords,
    manifest: Mapping[str, Any],
    passes: Sequence[tuple[LevelRecords, Pass]],
    objectives: Sequence[slo.Slo],
    anchor: float,
) -> dict[str, Any]:
    """One cell: what engine.json says (else the manifest), its roofline, and its levels."""
    listed: Mapping[str, Any] = next((row for row in manifest.get("cells") or () if row.get("id") == cell.id), {})
    facts = {**listed, **{key: value for key, value in cell.engine.items() if value is not None}}
    simulated = _simulated(facts) or (not cell.engine and _simulated(manifest))
    by_level = groupby(passes, key=lambda one: one[1].concurrency)
    driven = str(manifest.get("driven"))
    levels = [_level(list(g), objectives, anchor, simulated, facts.get("clock_error"), driven) for _, g in by_level]
    return {
        "id": cell.id,
        "engine": facts.get("engine", "other"),
        "engine_version": facts.get("engine_version"),
        "model": facts.get("model"),
        "tp": facts.get("tp"),
        "gpu": facts.get("gpu"),
        "endpoint": urlsplit(facts.get("base_url") or "").hostname,
        "mode": facts.get("mode") or manifest.get("mode"),
        "simulated": simulated,
        "clock_speed": facts.get("clock_speed"),
        "clock_error": facts.get("clock_error"),
        "status": facts.get("status"),
        "reason": facts.get("reason"),
        "fit": facts.get("fit"),
        "roofline": _roofline(facts, levels),
        "maximum_concurrency": slo.maximum_concurrency(levels, objectives, facts.get("fit")),
        "levels": levels,
    }


def _roofline(facts: Mapping[str, Any], levels: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Bound on a single stream and the share of it reached by `tokens_per_s_per_user` at concurrency 1; nulls say why."""
    bound, reason = _bound(facts)
    single = next((level for level in levels if level["concurrency"] == 1), None)
    speed = single["tokens_per_s_per_user"] if single else {"mean": None, "ci95": {}}
    answer = {"bound_tokens_per_s": bound, "reached_tokens_per_s": speed["mean"], "reached_share": None, "reason": reason}
    if bound is None:
        return answer
    if speed["mean"] is None:
        return answer | {"reason": "no request measured at concurrency 1"}
    ends = speed["ci95"]["mean"]
    share = {"value": speed["mean"] / bound, "ci95": [end / bound for end in ends] if ends else None}
    return answer | {"reached_share": share}


def _bound(facts: Mapping[str, Any]) -> tuple[float | None, str | None]:
    if (facts.get("fit") or {}).get("bound_tokens_per_s"):
        return float(facts["fit"]["bound_tokens_per_s"]), None
    if not facts.get("gpu"):
        return None, "the GPU is not known, so neither is the bound; name it with --gpu"
    try:
        engine = str(facts.get("engine", "other"))
        model, gpu = models.model(str(facts.get("model"))), hardware.gpu(str(facts["gpu"]))
        deployment = roofline.Deployment(model, gpu, int(facts.get("tp") or 1), engine)
    except UsageError as error:
        return None, str(error)
    return roofline.single_stream_bound_tokens_per_s(deployment), None


def _level(
    passes: Sequence[tuple[LevelRecords, Pass]],
    objectives: Sequence[slo.Slo],
    anchor: float,
    simulated: bool,
    clock_error: Mapping[str, Any] | None,
    driven: str,
) -> dict[str, Any]:
    """One level: the measured phase of all its passes, pooled."""
    columns = [one for _, one in passes]
    spans = [window.steady(one) for one in columns]
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
        "checks": window.checks(windows, len(columns)),
        "passes": [_pass(one, span) for one, span in zip(columns, spans, strict=True)],
        "token_counts": _token_counts(columns),
        "token_count_sources": _token_count_sources(columns),
        **_distributions(columns),
        **_figures(windows, columns, objectives, simulated),
        "failed_share": statistics.share(sum(outcomes[name] for name in FAILED), sum(outcomes.values())).to_json(),
        **_energy(passes, spans, anchor),
        "context_tokens": _context(columns).to_json(),
        "equal_work": health.equal_work(r for c in columns for r in c.records if r.phase == "measure"),
        "troubles": health.troubles([r for c in columns for r in c.records if r.phase == "measure"], simulated=simulated),
        "curves": curves.of_level(columns, [level for level, _ in passes], spans, anchor),
    }
    gap_s = answer["itl_s"]["p50"] or answer["tpot_s"]["mean"]
    virtual = driven == health.VIRTUAL_TIME
    answer["client_health"] = health.no_client() if virtual else health.client(passes, anchor, gap_s, clock_error)
    answer["reconciliation"] = health.reconciliation(passes, anchor, answer["tpot_s"]["mean"])
    answer["server"] = health.server(passes, anchor)
    answer["slo"] = [slo.judge(objective, answer) for objective in objectives]
    return answer


def _error_kinds(columns: Sequence[Pass]) -> dict[str, int]:
    errors = (r.error.kind for one in columns for r in one.records if r.error is not None and r.phase == "measure")
    return dict(sorted(Counter(errors).items()))


def _window(windows: Sequence[tuple[Pass, window.Window]], n_passes: int) -> dict[str, Any]:
    """Start of the first window and end of the last; `length_s` sums the passes' own."""
    spans = [span for _, span in windows]
    return {
        "start_s": min((span.start_s for span in spans), default=None),
        "end_s": max((span.end_s for span in spans), default=None),
        "length_s": sum(span.length_s for span in spans) if spans else None,
        "n_passes": len(spans),
        "n_passes_without": n_passes - len(spans),
    }


def _pass(columns: Pass, span: window.Window | None) -> dict[str, Any]:
    windows = [] if span is None else [(columns, span)]
    outcomes = Counter(str(outcome) for outcome in np.array(columns.outcome, object)[columns.measured])
    return {
        "repeat": columns.repeat,
        "n_requests": int(np.sum(columns.measured)),
        "outcomes": dict(sorted(outcomes.items())),
        "window": None if span is None else {"start_s": span.start_s, "end_s": span.end_s},
        "output_tokens": float(np.sum(columns.tokens[columns.measured])),
        "output_tokens_per_s": window.output_tokens_per_s(windows).value,
        "answers_per_hour": window.per_hour(windows, [columns.measured & columns.ok] if windows else []).value,
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
    answer["queued_s"] = distributions.plain(*_exact(columns, "queued_s"))
    tpot, groups = _exact(columns, "tpot_s")
    answer["itl_s"] = _gaps(columns)
    answer["tpot_s"] = distributions.plain(tpot, groups)
    answer["tokens_per_s_per_user"] = distributions.plain(1 / tpot[tpot > 0], groups[tpot > 0])
    return answer


def _exact(columns: Sequence[Pass], metric: str) -> tuple[Floats, Ints]:
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
    windows: Sequence[tuple[Pass, window.Window]], columns: Sequence[Pass], objectives: Sequence[slo.Slo], simulated: bool
) -> dict[str, Any]:
    finished = [one.measured & one.ok for one, _ in windows]
    good = [mask & _meets(one, objectives) for (one, _), mask in zip(windows, finished, strict=True)]
    goodput = window.per_hour(windows, good) if objectives else Estimate(None, reason="no SLO was given")
    return {
        "output_tokens_per_s": window.output_tokens_per_s(windows).to_json(),
        "answers_per_hour": window.per_hour(windows, finished).to_json(),
        "goodput_answers_per_hour": goodput.to_json(),
        "accuracy": _accuracy(columns, simulated).to_json(),
    }


def _energy(
    passes: Sequence[tuple[LevelRecords, Pass]], spans: Sequence[window.Window | None], anchor: float
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
    answers = [window.answers_in(one, span, one.ok) for _, one, span in found]
    tokens = [float(window.tokens_in(one, span)[0]) for _, one, span in found]
    return {
        "joules_per_answer": statistics.ratio(np.array(joules), np.array(answers)).to_json(),
        "joules_per_output_token": statistics.ratio(np.array(joules), np.array(tokens)).to_json(),
    }


def _context(columns: Sequence[Pass]) -> Estimate:
    """Mean tokens that a stream holds at its longest: prompt and output of requests that finished."""
    found = [
        r.prompt_tokens + r.completion_tokens
        for one in columns
        for r, use in zip(one.records, one.measured & one.ok, strict=True)
        if use and r.prompt_tokens is not None and r.completion_tokens is not None
    ]
    return statistics.mean(np.array(found, np.float64))


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
    return statistics.share(sum(checked), len(checked)) if checked else Estimate(None, reason="no checkable answer")


def to_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """metrics.csv: one row for each cell x level x metric x statistic; null figures keep their row, with n."""
    rows = []
    for cell in metrics["cells"]:
        named = {"cell": cell["id"], **{key: cell[key] for key in ("engine", "model", "tp", "gpu", "simulated")}}
        for level in cell["levels"]:
            start = {**named, "concurrency": level["concurrency"]}
            rows += [{**start, **row} for name in DISTRIBUTIONS for row in _statistics(name, level[name])]
            rows += [{**start, **_row(name, "value", level[name], level[name]["ci95"])} for name in FIGURES]
    return rows


def _statistics(name: str, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = ("mean", *distributions.QUANTILES, "min", "max")
    return [_row(name, statistic, found, found["ci95"].get(statistic)) for statistic in names]


def _row(name: str, statistic: str, found: Mapping[str, Any], interval: Sequence[float] | None) -> dict[str, Any]:
    low, high = interval or (None, None)
    return {
        "metric": name, "statistic": statistic, "value": found[statistic],
        "ci95_low": low, "ci95_high": high, "n": found.get("n", 0),
    }  # fmt: skip


def frame(run: Run) -> pd.DataFrame:
    """One row a request, all phases, times in seconds since the run's earliest anchor (`sent_s`, `ended_s`) or since
    `sent_s` (the rest); `*_exact` false where a figure is right-censored. Missing is NaN, as pandas has it."""
    import pandas as pd

    anchor = earliest_anchor([level for cell in run.cells for level in cell.levels])
    parts = [
        _frame(level, read(level, anchor), _simulated(cell.engine or run.manifest))
        for cell in run.cells
        for level in cell.levels
        if level.requests
    ]
    whole: pd.DataFrame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*_FRAME, "simulated"])
    return whole


_FRAME = ("cell", "concurrency", "repeat", "phase", "worker", "user", "seq", "prompt_id", "outcome", "finish_reason",
          "prompt_tokens", "completion_tokens", "answer_correct")  # fmt: skip


def _frame(level: LevelRecords, columns: Pass, simulated: bool) -> pd.DataFrame:
    import pandas as pd

    facts: dict[str, Any] = {name: [_fact(r, level, name) for r in columns.records] for name in _FRAME}
    facts["simulated"] = simulated
    facts |= {"sent_s": columns.sent_s, "ended_s": columns.ended_s, "tokens": columns.tokens}
    for metric in (*WAITS, *PLAIN):
        facts[metric], exact = per_request(columns, metric)
        if metric in WAITS:
            facts[f"{metric}_exact"] = exact
    answer: pd.DataFrame = pd.DataFrame(facts)
    return answer


def _fact(record: RequestRecord, level: LevelRecords, name: str) -> Any:
    return level.cell if name == "cell" else getattr(record, name)
