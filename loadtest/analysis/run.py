"""Records of a run to its `Metrics`: every cell, level, comparison and claim."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any
from urllib.parse import urlsplit

import msgspec

from loadtest.analysis import claims as published
from loadtest.analysis import comparability, compare, validity
from loadtest.analysis import objectives as slo_objectives
from loadtest.analysis.level import level_figures
from loadtest.errors import UsageError
from loadtest.metrics import slo
from loadtest.metrics.clock_error import pooled
from loadtest.metrics.request_arrays import Pass, earliest_anchor, read
from loadtest.perfmodel import gpus, memory, models
from loadtest.records.engine_facts import EngineFacts
from loadtest.records.manifest import Manifest
from loadtest.records.read import CellRecords, LevelRecords, Run
from loadtest.records.schema import SCHEMA_VERSION


def analyze(run: Run, claims: Sequence[published.Claim] = ()) -> dict[str, Any]:
    """The whole of metrics.json for a run read by `records.read_run` (keys: docs/reference.md).

    Population: the measured phase of every pass; the warm-up counts only in totals that are held against the server's.
    `claims`: published findings to judge (`findings.load`). Raises UsageError for an SLO it cannot read.
    """
    objectives = [slo.parse(text) for text in run.manifest.slo]
    anchor = earliest_anchor([level for cell in run.cells for level in cell.levels])
    cells: list[dict[str, Any]] = []
    samples: dict[tuple[str, int], list[Pass]] = {}
    for cell in run.cells:
        passes = [(level, read(level, anchor)) for level in cell.levels]
        cells.append(_cell(cell, run.manifest, passes, objectives, anchor))
        for concurrency, group in groupby((columns for _, columns in passes), key=lambda columns: columns.concurrency):
            samples[cell.id, concurrency] = list(group)
    templates = comparability.templates(run.cells)
    comparisons = compare.cells(cells, samples, templates.keys())
    gates = validity.summary(cells, run.manifest)
    gates |= {"windows": _windows(cells)}
    gates["reasons"] += templates.values()
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": run.manifest.run_id,
        "simulated": run.manifest.simulated or any(cell["simulated"] for cell in cells),
        "complete": gates["complete"],
        "run": {
            **_run(run.manifest),
            "clock_error": pooled([c["clock_error"] for c in cells if c["clock_error"]]),
        },
        "health": gates,
        "cells": cells,
        "comparisons": comparisons,
        "findings": published.judge(claims, *_of_mode(run.manifest.mode, cells, comparisons)),
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


def _run(manifest: Manifest) -> dict[str, Any]:
    started = manifest.started_unix_s
    moment = None if started is None else datetime.datetime.fromtimestamp(started, datetime.UTC)
    return {
        "id": manifest.run_id,
        "name": manifest.name,
        "started": None if moment is None else moment.isoformat(timespec="seconds").replace("+00:00", "Z"),
        "mode": manifest.mode,
        "workload": None if manifest.workload is None else msgspec.structs.asdict(manifest.workload),
        "clock_speed": manifest.clock_speed,
        "slo": list(manifest.slo),
    }


def _cell(
    cell: CellRecords,
    manifest: Manifest,
    passes: Sequence[tuple[LevelRecords, Pass]],
    objectives: Sequence[slo.Slo],
    anchor: float,
) -> dict[str, Any]:
    """One cell: what engine.json says, its roofline, and its levels."""
    facts = cell.engine
    fit = None if facts.fit is None else msgspec.structs.asdict(facts.fit)
    clock_error = None if facts.clock_error is None else msgspec.structs.asdict(facts.clock_error)
    simulated = facts.predicts
    by_level = groupby(passes, key=lambda one: one[1].concurrency)
    levels = [level_figures(list(g), objectives, anchor, simulated, clock_error, manifest.driven) for _, g in by_level]
    return {
        "id": cell.id,
        "engine": facts.engine,
        "engine_version": facts.engine_version,
        "model": facts.model,
        "tp": facts.tp,
        "gpu": facts.gpu,
        "endpoint": urlsplit(facts.base_url or "").hostname,
        "mode": facts.mode or manifest.mode,
        "simulated": simulated,
        "clock_speed": facts.clock_speed,
        "clock_error": clock_error,
        "status": facts.status,
        "reason": facts.reason,
        "fit": fit,
        "roofline": _roofline(facts, levels),
        "maximum_concurrency": slo_objectives.maximum_concurrency(levels, objectives, fit),
        "levels": levels,
    }


def _roofline(facts: EngineFacts, levels: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
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


def _bound(facts: EngineFacts) -> tuple[float | None, str | None]:
    if facts.fit is not None and facts.fit.bound_tokens_per_s:
        return facts.fit.bound_tokens_per_s, None
    if not facts.gpu:
        return None, "the GPU is not known, so neither is the bound; name it with --gpu"
    try:
        model, gpu = models.model(str(facts.model)), gpus.gpu(facts.gpu)
        deployment = memory.Deployment(model, gpu, facts.tp or 1, facts.engine)
    except UsageError as error:
        return None, str(error)
    return memory.single_stream_bound_tokens_per_s(deployment), None
