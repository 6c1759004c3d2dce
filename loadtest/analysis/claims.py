"""Published claims as data (reports/findings/*.toml), and what a run says of each.

Verdicts: `reproduced`, `contradicted`, `not_measured`; of simulated cells `predicted`, `not_predicted`, `not_measured`. A
claim of an absolute value is judged only on the cards it was made of; elsewhere its roofline share stands in the reason.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from loadtest.errors import UsageError
from loadtest.metrics import intervals
from loadtest.perfmodel import models

Json = Mapping[str, Any]
Verdict = tuple[bool | None, float | str | None, list[float] | None, str, Sequence[Json]]


class Claim(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One published claim; `tolerance` is relative, `because` its reason; empty `gpus`: judged on any card. `endpoint`: only
    of a server whose host's name ends so. `source`: who says so, where it is not the file's."""

    id: str
    claim: str
    expected: str
    kind: Literal["value", "fit", "weights", "maximum_concurrency", "ahead", "gain"]
    because: str
    model: str = ""
    tp: int = 0
    concurrency: int = 1
    metric: str = ""
    statistic: str = "mean"
    value: float = 0.0
    tolerance: float = 0.0
    gpus: tuple[str, ...] = ()
    endpoint: str = ""
    source: str = ""


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    title: str
    source: str
    claims: tuple[Claim, ...]
    note: str = ""


def parse(raw: bytes, where: str) -> tuple[Claim, ...]:
    """Claims of a TOML file (`where` names it), in its order. Raises UsageError: a key is wrong (named)."""
    try:
        found = msgspec.toml.decode(raw, type=_File)
    except (msgspec.DecodeError, msgspec.ValidationError, ValueError) as error:
        raise UsageError(f"{where}: expected title, source and [[claims]]: {error}") from error
    ids = [claim.id for claim in found.claims]
    double = next((name for name in ids if ids.count(name) > 1), None)
    if double:
        raise UsageError(f"{where}: claims.id: expected each id once, got {double!r} twice")
    return found.claims


def judge(claims: Sequence[Claim], cells: Sequence[Json], comparisons: Sequence[Json]) -> list[dict[str, Any]]:
    """`findings` of metrics.json: one row a claim, from the cells and comparisons of metrics.json."""
    judges = {"value": _value, "fit": _fit, "weights": _weights, "maximum_concurrency": _maximum, "gain": _gain}
    rows = []
    for claim in claims:
        if claim.kind == "ahead":
            held, measured, ci95, reason, used = _ahead(claim, cells, comparisons)
        else:
            held, measured, ci95, reason, used = judges[claim.kind](claim, cells)
        simulated = any(cell["simulated"] for cell in used)
        verdict = "not_measured" if held is None else _WORDS[simulated or claim.kind == "weights"][held]
        rows.append({
            "id": claim.id, "claim": claim.claim, "expected": claim.expected, "measured": measured, "ci95": ci95,
            "kind": claim.kind, "metric": claim.metric, "verdict": verdict, "simulated": simulated, "reason": reason,
            "cells": [cell["id"] for cell in used],
        })  # fmt: skip
    return rows


_WORDS = {False: {True: "reproduced", False: "contradicted"}, True: {True: "predicted", False: "not_predicted"}}


def _model(cell: Json) -> str:
    return str(cell["model"]).rstrip("/").rsplit("/", 1)[-1].lower()


def _chosen(claim: Claim, cells: Sequence[Json]) -> list[Json]:
    """Cells of the claim's model and number of cards (any number where it names none); where it names an endpoint, those
    that were measured there, whose name for the model may have the vendor before it."""
    if claim.endpoint:
        there = [cell for cell in cells if (cell.get("endpoint") or "").endswith(claim.endpoint)]
        return [cell for cell in there if _model(cell).endswith(claim.model)]
    return [cell for cell in cells if _model(cell) == claim.model and claim.tp in (0, cell["tp"])]


def _where(claim: Claim) -> str:
    cards = f" on {claim.tp} card(s)" if claim.tp else ""
    kind = f" of {_either(claim.gpus)}" if claim.gpus else ""
    return f"{claim.model}{cards}{kind}{f' at {claim.endpoint}' if claim.endpoint else ''}"


def _either(names: Sequence[str]) -> str:
    return " or ".join(names)


def _at(claim: Claim, cell: Json) -> tuple[float | None, list[float] | None]:
    level = next((one for one in cell["levels"] if one["concurrency"] == claim.concurrency), None)
    found = level[claim.metric] if level else {}
    interval = found.get("ci95")
    return found.get(claim.statistic), interval.get(claim.statistic) if isinstance(interval, dict) else interval


def _value(claim: Claim, cells: Sequence[Json]) -> Verdict:
    """The better runtime's figure against the claim's band. Held: its interval meets the band and is no wider than it;
    not held: no runtime's interval meets it."""
    found = [(cell, *_at(claim, cell)) for cell in _chosen(claim, cells)]
    measured = [(cell, value, ends) for cell, value, ends in found if value is not None and ends is not None]
    if not measured:
        missing = f"no figure with an interval at concurrency {claim.concurrency}" if found else "no cell"
        return None, None, None, f"{missing} of {_where(claim)}; {claim.because}", []
    cell, value, ends = max(measured, key=lambda one: one[1])
    each = "; ".join(_said(*one) for one in sorted(measured, key=lambda one: str(one[0]["id"])))
    used = [one[0] for one in measured]
    if claim.gpus and cell["gpu"] not in claim.gpus:
        return (
            None,
            value,
            ends,
            f"claimed of {_either(claim.gpus)}, measured on {cell['gpu'] or 'unknown cards'}: {each}",
            used,
        )
    low, high = claim.value * (1 - claim.tolerance), claim.value * (1 + claim.tolerance)
    band = f"band {low:.4g} to {high:.4g} ({claim.because}): {each}"
    if ends[1] - ends[0] > 2 * (high - low):
        return None, value, ends, f"the interval is too wide to judge by; {band}", used
    return ends[0] <= high and ends[1] >= low, value, ends, band, used


def _said(cell: Json, value: float, ends: Sequence[float]) -> str:
    share = (cell.get("roofline") or {}).get("reached_share")
    bound = f", {share['value']:.0%} of the bound" if share else ""
    return f"{cell['engine']} {value:.4g} [{ends[0]:.4g}, {ends[1]:.4g}]{bound}"


def _fit(claim: Claim, cells: Sequence[Json]) -> Verdict:
    """`value` 0: does not fit. By what the cell did: refused by the arithmetic, ended out of memory, or served."""
    found = [cell for cell in _chosen(claim, cells) if not claim.gpus or cell["gpu"] in claim.gpus]
    if not found:
        return None, None, None, f"no cell of {_where(claim)}; {claim.because}", []
    cell = next((one for one in found if one["levels"]), found[0])
    fit = cell.get("fit") or {}
    reason = str(cell.get("reason") or fit.get("reason") or "")
    if cell["levels"]:
        return claim.value > 0, "served", None, f"{cell['id']} was served", found
    if cell.get("status") == "refused" or fit.get("fits") is False:
        return claim.value == 0, "refused", None, f"refused by arithmetic before a start: {reason}", found
    if "memory" in reason.lower():
        return claim.value == 0, "out of memory", None, reason, found
    return None, None, None, reason or "the cell was neither refused nor measured", found


def _weights(claim: Claim, cells: Sequence[Json]) -> Verdict:
    """Bytes of the weights over all cards against the claim's band: by the arithmetic of the fit, so a prediction."""
    found = [cell for cell in _chosen(claim, cells) if (cell.get("fit") or {}).get("weight_bytes_per_card")]
    if not found:
        return None, None, None, f"no cell of {_where(claim)} whose fit was counted; {claim.because}", []
    cell = found[0]
    weights = float(cell["fit"]["weight_bytes_per_card"]) * int(cell["tp"] or 1)
    reason = f"{weights / 1e9:.3g} GB of weights by arithmetic; what the runtime took was not read; {claim.because}"
    return abs(weights / claim.value - 1) <= claim.tolerance, weights, None, reason, [cell]


def _maximum(claim: Claim, cells: Sequence[Json]) -> Verdict:
    """The highest concurrency within the SLOs, best of the chosen cells, against `value` or below."""
    chosen = [cell for cell in _chosen(claim, cells) if cell["levels"]]
    if not chosen:
        return None, None, None, f"no level of {claim.model} was measured", []
    known = [cell for cell in chosen if cell["maximum_concurrency"]["by_slo"] is not None]
    if not known:
        return None, None, None, str(chosen[0]["maximum_concurrency"]["reason"]), chosen
    cell = max(known, key=lambda one: (one["maximum_concurrency"]["by_slo"], one["id"]))
    found = cell["maximum_concurrency"]
    best, top = int(found["by_slo"]), max(level["concurrency"] for level in cell["levels"])
    said = f"{cell['id']}: {best} within the SLOs, tried up to {top}, KV cache holds {found['by_kv_cache']} full contexts"
    if claim.gpus and cell["gpu"] not in claim.gpus:
        return None, best, found["ci95"], f"claimed of {_either(claim.gpus)}, measured on {cell['gpu']}; {said}", known
    if best == 0:
        return None, best, found["ci95"], f"not even the lowest level is within the SLOs ({found['binds']}); {said}", known
    if best <= claim.value and best == top:
        return None, best, None, f"no level broke an SLO, and none above {top} was tried; {said}", known
    limit = f"{found['binds']} breaks above" if found["binds"] else "no level broke an SLO"
    return best <= claim.value, best, found["ci95"], f"{said}; {limit}; {claim.because}", known


def _ahead(claim: Claim, cells: Sequence[Json], comparisons: Sequence[Json]) -> Verdict:
    """Share of scenarios in which SGLang's verdict is "faster"; not held where "slower" has at least half of them. Where the
    claim names cards, what others did is told and not judged."""
    engines = {cell["id"]: str(cell["engine"]).removesuffix("-sim") for cell in cells}
    rows = [row for row in comparisons if row["metric"] == claim.metric and row["p_value"] is not None]
    rows = [row for row in rows if (engines[row["a"]], engines[row["b"]]) == ("sglang", "vllm")]
    if not rows:
        return None, None, None, "no scenario with a verdict between SGLang and vLLM", []
    claimed = [row for row in rows if not claim.gpus or row["gpu"] in claim.gpus]
    elsewhere = "" if claimed else _either(sorted({row["gpu"] or "unknown cards" for row in rows}))
    rows = claimed or rows
    used = [cell for cell in cells if any(cell["id"] in (row["a"], row["b"]) for row in rows)]
    faster, slower = (sum(row["verdict"] == word for row in rows) for word in ("faster", "slower"))
    found = intervals.share(faster, len(rows))
    reason = (
        f"faster in {faster}, slower in {slower}, no detectable difference in {len(rows) - faster - slower} of {len(rows)}"
    )
    if any(cell["simulated"] for cell in used):
        reason = f"the simulator treats the runtimes alike where no difference between them is known; {reason}"
    if elsewhere:
        reason = f"claimed of {_either(claim.gpus)}, measured on {elsewhere}: {reason}"
        return None, found.value, list(found.ci95 or ()) or None, f"{reason} scenarios by {claim.metric}", used
    held = True if faster > claim.value * len(rows) else False if slower >= claim.value * len(rows) else None
    return held, found.value, list(found.ci95 or ()) or None, f"{reason} scenarios by {claim.metric}", used


def _gain(claim: Claim, cells: Sequence[Json]) -> Verdict:
    """Speed-up of two cards over one for the most against the least demanding model of one engine: their log-ratio."""
    speeds: dict[tuple[str, str], dict[str, tuple[Json, Json]]] = defaultdict(dict)
    for one in cells:
        two = next((c for c in cells if _pair(c) == _pair(one) and (one["tp"], c["tp"]) == (1, 2)), None)
        if two is not None and all(_at(claim, cell)[1] is not None for cell in (one, two)):
            speeds[str(one["engine"]), str(one["gpu"])][_model(one)] = (one, two)
    found = [(engine, by_model) for (engine, _), by_model in sorted(speeds.items()) if len(by_model) > 1]
    if not found:
        return None, None, None, claim.because, []
    engine, by_model = found[0]
    ordered = sorted(by_model, key=_demand)
    (small, small_error), (large, large_error) = (_log_gain(claim, *by_model[name]) for name in (ordered[0], ordered[-1]))
    half = intervals.Z * math.hypot(small_error, large_error)
    ends = [math.exp(large - small - half), math.exp(large - small + half)]
    reason = f"{engine}: {math.exp(large):.3g}x for {ordered[-1]}, {math.exp(small):.3g}x for {ordered[0]}; their ratio"
    held = True if ends[0] > 1 else False if ends[1] < 1 else None
    return held, math.exp(large - small), ends, reason, [cell for pair in by_model.values() for cell in pair]


def _pair(cell: Json) -> tuple[Any, ...]:
    return cell["engine"], _model(cell), cell["gpu"]


def _demand(name: str) -> float:
    try:
        return models.model(name).weight_bytes
    except UsageError:
        return 0.0


def _log_gain(claim: Claim, one: Json, two: Json) -> tuple[float, float]:
    """log(two cards / one) and its standard error, from the intervals of the two figures."""
    total, variance = 0.0, 0.0
    for cell, sign in ((two, 1), (one, -1)):
        value, ends = _at(claim, cell)
        assert value is not None
        assert ends is not None
        total += sign * math.log(value)
        variance += ((ends[1] - ends[0]) / (2 * intervals.Z * value)) ** 2
    return total, math.sqrt(variance)
