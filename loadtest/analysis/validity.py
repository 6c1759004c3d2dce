"""What holds a run as a whole: complete, healthy, reconciled, equal work done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from loadtest.records.manifest import Manifest
from loadtest.records.schema import FINISHED, RequestRecord


def equal_work(records: Iterable[RequestRecord]) -> dict[str, Any]:
    """Did every forced output come out as long as it was forced? `{status: pass|fail|not_applicable, reasons, n_forced}`.

    Population: measured requests with a forced length that the server ended by itself and counted. The plan holds for one
    that broke or was cut off too, but its length says nothing of whether the runtime keeps to it.
    """
    forced = [r for r in records if r.forced_tokens is not None and r.outcome in FINISHED]
    counted = [r for r in forced if r.token_count_source == "server"]
    wrong = [r for r in counted if r.completion_tokens != r.forced_tokens]
    first = min(wrong, key=lambda r: r.seq, default=None)
    reasons = []
    if first is not None:
        reasons.append(
            f"{len(wrong)} of {len(counted)} outputs have not the length that was forced (first: {first.prompt_id},"
            f" {first.completion_tokens} tokens in place of {first.forced_tokens}): not equal work"
        )
    status = "fail" if wrong else "pass" if counted else "not_applicable"
    return {"status": status, "reasons": reasons, "n_forced": len(counted)}


def summary(cells: Sequence[Mapping[str, Any]], manifest: Manifest) -> dict[str, Any]:
    """The run's gates in one place: `{client, reconciliation, complete, counted_by, reasons}`. A request whose record was
    torn, as its writer was killed in mid-line, is missing: such a run is not complete. `counted_by`: who counted the tokens
    of finished requests, the least trustworthy of `server`, `tokenizer`, `chunks`; null where none finished."""  # fmt: skip
    reasons = []
    torn = 0
    counters: set[str] = set()
    states: dict[str, set[str]] = {"client_health": set(), "reconciliation": set()}
    for cell in cells:
        for level in cell["levels"]:
            if level["torn_lines"]:
                torn += level["torn_lines"]
                reasons.append(f"{cell['id']} at {level['concurrency']}: {level['torn_lines']} torn line(s) left out")
            if (forced := level.get("equal_work")) is not None:
                reasons += [f"{cell['id']} at {level['concurrency']}: {reason}" for reason in forced["reasons"]]
            counters.update(level["token_count_sources"])
            for gate, seen in states.items():
                seen.add(level[gate]["status"])
                if level[gate]["status"] in ("fail", "not_checked"):
                    reasons += [f"{cell['id']} at {level['concurrency']}: {reason}" for reason in level[gate]["reasons"]]
    if not manifest.complete:
        reasons.append(manifest.incomplete_reason or "the run did not come to its end")
    return {
        "client": _worst(states["client_health"]),
        "reconciliation": _worst(states["reconciliation"]),
        "complete": manifest.complete and not torn,
        "counted_by": next((one for one in ("chunks", "tokenizer", "server") if one in counters), None),
        "reasons": reasons,
    }


def _worst(states: set[str]) -> str:
    return next((state for state in ("fail", "not_checked", "pass") if state in states), min(states, default="not_checked"))
