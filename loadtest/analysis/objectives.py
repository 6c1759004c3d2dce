"""SLOs judged on the figures of a level, and the highest concurrency that meets them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loadtest.metrics.slo import DURATIONS, QUANTILES, Slo


def judge(slo: Slo, level: Mapping[str, Any]) -> dict[str, Any]:
    """Does a level of metrics.json meet it? `met` is true or false where the whole 95 % interval says so, null where the
    interval holds the limit or cannot be had; `likely` is what the figure alone says (null without a figure).

    A request that failed never got its answer: where the failed are more than a quantile leaves over (10 % for p90), a wait
    below a limit is not met, whatever those that were served took.
    """
    found = level.get(slo.metric) or {}
    value = found.get(slo.statistic)
    interval = found.get("ci95")
    interval = interval.get(slo.statistic) if isinstance(interval, dict) else interval
    likely = None if value is None else slo.holds(value)
    ends = {slo.holds(end) for end in interval} if interval else set()
    met = ends.pop() if len(ends) == 1 else None
    if slo.below and slo.metric in DURATIONS and slo.statistic in QUANTILES:
        likely, met = _with_failures(likely, met, level.get("failed_share") or {}, 1 - QUANTILES[slo.statistic])
    needed = found.get("n_needed")
    needed = needed.get(slo.statistic) if isinstance(needed, dict) else needed
    return {"slo": slo.text, "value": value, "ci95": interval, "met": met, "likely": likely, "n_needed": needed}


def _with_failures(
    likely: bool | None, met: bool | None, failed: Mapping[str, Any], left_over: float
) -> tuple[bool | None, bool | None]:
    if not failed.get("value"):
        return likely, met
    low, high = failed["ci95"]
    if failed["value"] > left_over:
        return False, False if low > left_over else None
    return likely, met if met is False or high <= left_over else None


def gate(
    metrics: Mapping[str, Any], objectives: Sequence[Slo], concurrency: int | None = None, *, allow_unhealthy: bool = False
) -> dict[str, Any]:
    """`loadtest check`: every objective at every level of every cell (or at `concurrency` alone), as metrics.json has them.

    `{met, rows, unhealthy, unmeasured}`. A row's `result` is "met", "not met", or "not shown": the interval holds the
    limit or cannot be had, which does not meet it either. `unhealthy` names what makes the figures doubtful (an incomplete
    run, a level whose load generator or reconciliation failed); it fails the gate unless allowed. `unmeasured` names cells
    that should have had a level; one that was refused because it does not fit fails nothing.
    """
    rows, unhealthy, unmeasured = [], [], []
    if not metrics["complete"]:
        unhealthy.append("the run is incomplete")
    for cell in metrics["cells"]:
        levels = [level for level in cell["levels"] if concurrency in (None, level["concurrency"])]
        if not levels and cell["status"] != "refused":
            where = "" if concurrency is None else f" at {concurrency} users"
            unmeasured.append(f"{cell['id']}: nothing was measured{where}")
        for level in levels:
            named = {"cell": cell["id"], "concurrency": level["concurrency"], "simulated": cell["simulated"]}
            rows += [{**named, **_result(judge(one, level))} for one in objectives]
            unhealthy += [f"{cell['id']} at {level['concurrency']} users: {reason}" for reason in _doubts(level)]
    if not rows and not unmeasured:
        unmeasured.append("nothing was measured")
    met = not unmeasured and all(row["result"] == "met" for row in rows) and (allow_unhealthy or not unhealthy)
    return {"met": met, "rows": rows, "unhealthy": unhealthy, "unmeasured": unmeasured}


def _result(judged: Mapping[str, Any]) -> dict[str, Any]:
    return {**judged, "result": {True: "met", False: "not met", None: "not shown"}[judged["met"]]}


def _doubts(level: Mapping[str, Any]) -> list[str]:
    gates = ("client_health", "reconciliation")
    return [reason for name in gates if level[name]["status"] == "fail" for reason in level[name]["reasons"]]


def maximum_concurrency(
    levels: Sequence[Mapping[str, Any]], objectives: Sequence[Slo], fit: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The highest level up to which every level meets every SLO, and which limit binds.

    `by_slo` goes by the figures alone; `ci95` by the intervals: low, the highest level up to which all of them are met
    for certain (0: none); high, the highest level before one that is certainly broken (null: none was). `by_kv_cache`:
    streams of the cell's whole context that the KV cache holds; `by_kv_workload`: streams of the prompts and outputs that
    were measured, at their longest. `limit`: "slo"; "kv_cache", where the level that broke an SLO (`binds`) has more
    streams than `by_kv_workload`; "not_reached", where none up to `tried` broke.
    """
    kv = _by_kv(levels, fit or {})
    if not objectives or not levels:
        return _unknown("no SLO was given" if levels else "no level was measured", kv)
    judged = [(level["concurrency"], [judge(one, level) for one in objectives]) for level in levels]
    judged.sort(key=lambda one: one[0])
    broke, found = next(((c, one) for c, row in judged for one in row if one["likely"] is not True), (None, None))
    if found is not None and found["likely"] is None:
        needed = f": {found['n_needed']} requests needed" if found["n_needed"] else ""
        return _unknown(f"{found['slo']} cannot be judged from so few requests{needed}", kv)
    broken = any(one["met"] is False for _, row in judged for one in row)
    low = _before(judged, lambda one: one["met"] is not True)
    high = _before(judged, lambda one: one["met"] is False) if broken else None
    room = kv["by_kv_workload"]["value"]
    full = broke is not None and room is not None and broke > room
    return {
        "by_slo": _before(judged, lambda one: one["likely"] is not True),
        "ci95": [low, high],
        **kv,
        "limit": "not_reached" if found is None else "kv_cache" if full else "slo",
        "tried": judged[-1][0],
        "binds": found["slo"] if found else None,
        "reason": None,
    }


def _by_kv(levels: Sequence[Mapping[str, Any]], fit: Mapping[str, Any]) -> dict[str, Any]:
    """Streams that the KV cache holds: of full contexts, and of those of the highest level, `{value, ci95}`."""
    tokens, highest = fit.get("kv_capacity_tokens"), max(levels, key=lambda one: one["concurrency"], default=None)
    context = (highest or {}).get("context_tokens") or {}
    room: dict[str, Any] = {"value": None, "ci95": None}
    if tokens and context.get("value"):
        ends = context["ci95"]
        room = {"value": tokens / context["value"], "ci95": ends and [tokens / end if end else None for end in ends[::-1]]}
    return {"by_kv_cache": fit.get("max_streams"), "by_kv_workload": room}


def _unknown(reason: str, kv: Mapping[str, Any]) -> dict[str, Any]:
    return {"by_slo": None, "ci95": None, **kv, "limit": None, "tried": None, "binds": None, "reason": reason}


def _before(judged: Sequence[tuple[int, list[dict[str, Any]]]], fails: Callable[[dict[str, Any]], bool]) -> int:
    highest = 0
    for concurrency, found in judged:
        if any(fails(one) for one in found):
            break
        highest = concurrency
    return highest
