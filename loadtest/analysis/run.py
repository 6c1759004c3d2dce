"""Records of a run to its `Metrics`: every cell, level, comparison and claim."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any
from urllib.parse import urlsplit

from loadtest.analysis import claims as published
from loadtest.analysis import comparability, compare, validity
from loadtest.analysis import objectives as slo_objectives
from loadtest.analysis.level import level_figures
from loadtest.errors import UsageError
from loadtest.metrics import slo
from loadtest.metrics.clock_error import pooled
from loadtest.metrics.request_arrays import Pass, earliest_anchor, read
from loadtest.perfmodel import gpus, memory, models
from loadtest.records.read import CellRecords, LevelRecords, Run
from loadtest.records.schema import SCHEMA_VERSION


def analyze(run: Run, claims: Sequence[published.Claim] = ()) -> dict[str, Any]:
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
    templates = comparability.templates(run.cells)
    comparisons = compare.cells(cells, samples, templates.keys())
    gates = validity.summary(cells, run.manifest)
    gates |= {"windows": _windows(cells)}
    gates["reasons"] += templates.values()
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": run.manifest.get("run_id"),
        "simulated": is_simulated(run.manifest) or any(cell["simulated"] for cell in cells),
        "complete": gates["complete"],
        "run": {
            **_run(run.manifest),
            "clock_error": pooled([c["clock_error"] for c in cells if c["clock_error"]]),
        },
        "health": gates,
        "cells": cells,
        "comparisons": comparisons,
        "findings": published.judge(claims, *_of_mode(run.manifest.get("mode"), cells, comparisons)),
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
    moment = None if started is None else datetime.datetime.fromtimestamp(started, datetime.UTC)
    return {
        "id": manifest.get("run_id"),
        "name": manifest.get("name"),
        "started": None if moment is None else moment.isoformat(timespec="seconds").replace("+00:00", "Z"),
        "mode": manifest.get("mode"),
        "workload": manifest.get("workload"),
        "clock_speed": manifest.get("clock_speed", 1.0),
        "slo": list(manifest.get("slo") or ()),
    }


def is_simulated(facts: Mapping[str, Any]) -> bool:
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
    simulated = is_simulated(facts) or (not cell.engine and is_simulated(manifest))
    by_level = groupby(passes, key=lambda one: one[1].concurrency)
    driven = str(manifest.get("driven"))
    levels = [level_figures(list(g), objectives, anchor, simulated, facts.get("clock_error"), driven) for _, g in by_level]
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
        "maximum_concurrency": slo_objectives.maximum_concurrency(levels, objectives, facts.get("fit")),
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
        model, gpu = models.model(str(facts.get("model"))), gpus.gpu(str(facts["gpu"]))
        deployment = memory.Deployment(model, gpu, int(facts.get("tp") or 1), engine)
    except UsageError as error:
        return None, str(error)
    return memory.single_stream_bound_tokens_per_s(deployment), None
