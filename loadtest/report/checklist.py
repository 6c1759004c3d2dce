"""The checks of a run as a reader sees them: what held, what failed, what was not measured."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from loadtest.report import cells as views
from loadtest.report import formatting
from loadtest.report.decision import listed, simulated
from loadtest.report.formatting import Json


@dataclass(frozen=True, slots=True)
class Check:
    """One gate of the run's health; `state` is pass, fail, unknown, or none where there was nothing to check."""

    name: str
    state: str
    words: str


# What was not measured, and is the run sound -------------------------------------------------------------------------


def not_measured(metrics: Json, manifest: Json) -> tuple[str, ...]:
    """What this run does not tell, each with the reason."""
    found: list[str] = []
    asked = {int(level) for level in manifest.get("levels") or () if formatting.finite(level) is not None}
    absent: dict[str, list[str]] = {}
    for cell in views.cells(metrics):
        if not cell.levels:
            absent.setdefault(f"{cell.status}{': ' + cell.reason if cell.reason else ''}", []).append(cell.name)
        elif missing := sorted(asked - {int(one["concurrency"]) for one in cell.levels if one.get("n_requests") != 0}):
            found.append(f"{cell.name}: no data for {', '.join(map(str, missing))} concurrent users")
    found += [f"{listed(names)}: {why}" for why, names in absent.items()]
    found += _unjudged(formatting.rows(metrics, "findings"))
    found += _thin(formatting.rows(metrics, "comparisons"))
    if simulated(metrics):
        found.append("Real hardware, real weights and the truth of any answer: the runtimes were simulated")
    return tuple(found)


def _unjudged(claims: list[Json]) -> list[str]:
    """The published claims that this run cannot judge; in one line where it can judge none of them."""
    open_ones = [row for row in claims if row.get("verdict") == "not_measured"]
    if len(open_ones) == len(claims) > 1:
        return [f"None of the {len(claims)} published claims: this run has none of the cells that they speak of"]
    return [
        f"Claim “{formatting.clean(row.get('claim'))}”: {formatting.clean(row.get('reason') or 'no data')}"
        for row in open_ones
    ]


def _thin(rows: list[Json]) -> list[str]:
    kinds: Counter[tuple[str, str]] = Counter()
    for row in rows:
        if row.get("verdict") in ("too few samples", "not comparable"):
            kinds[str(row.get("verdict")), formatting.clean(row.get("reason") or "")] += 1
    return [
        f"{n} comparison{'' if n == 1 else 's'}: {verdict}{': ' + why if why else ''}" for (verdict, why), n in kinds.items()
    ]


def _failed(metrics: Json) -> str:
    """How many of all requests failed, in words; empty where none did."""
    counted = [
        (share * n, n)
        for cell in views.cells(metrics)
        for level in cell.levels
        if (share := formatting.finite(formatting.section(level, "failed_share").get("value"))) is not None
        and (n := formatting.finite(level.get("n_requests"))) is not None
    ]
    failed, asked = (sum(column) for column in zip(*counted, strict=True)) if counted else (0, 0)
    return f", but {failed:.0f} of {asked:.0f} requests failed" if failed else ""


def checks(metrics: Json, manifest: Json, engines: Mapping[str, Json] = MappingProxyType({})) -> tuple[Check, ...]:
    """The gates of the run: load generator, client against server, completeness, who counted the tokens where the server
    did not, and the contract where a runtime told its own."""
    health = formatting.section(metrics, "health")
    complete = metrics.get("complete", manifest.get("complete"))
    why = formatting.clean(manifest.get("incomplete_reason") or "the run ended early")
    ended = f"every cell and level has ended{_failed(metrics)}"
    whole = Check("Completeness", *_state(complete, ended, f"incomplete: {why}"))
    return (
        Check(
            "Load generator",
            *_state(health.get("client"), "it did not distort the figures", "it may have distorted the figures"),
        ),
        Check(
            "Client against server",
            *_state(
                health.get("reconciliation"),
                "tokens, requests and times to first token agree",
                "tokens, requests or times to first token disagree",
            ),
        ),
        whole,
        *_count_check(health.get("counted_by")),
        *_contract_check(engines),
    )


def _count_check(counted_by: Any) -> tuple[Check, ...]:
    """Who counted the tokens, where that was not the server."""
    if counted_by == "tokenizer":
        return (Check("Token counts", "pass", "by a local tokenizer, for the server told none"),)
    if counted_by == "chunks":
        words = "the server told none, so each chunk of text counts as one token; give --tokenizer to count them"
        return (Check("Token counts", "unknown", words),)
    return ()


def _contract_check(engines: Mapping[str, Json]) -> tuple[Check, ...]:
    """Did every runtime that tells its settings run as the contract wants it; nothing where none tells them."""
    told = {name: formatting.section(engine, "contract") for name, engine in engines.items()}
    if not any(told.values()):
        return ()
    wrong = {formatting.clean(name): violations(one) for name, one in told.items() if violations(one)}
    words = "; ".join(f"{name} {', '.join(keys)}" for name, keys in wrong.items())
    return (Check("Contract", *_state(not wrong, "every runtime ran as it was asked to", f"not as asked for: {words}")),)


def violations(contract: Json) -> tuple[str, ...]:
    """Keys of the contract that a runtime broke, by `contract.violations` of `engine.json`."""
    found = contract.get("violations")
    return (
        tuple(formatting.clean(key).partition(":")[0] for key in found) if isinstance(found, (Mapping, list, tuple)) else ()
    )


def _state(value: Any, good: str, bad: str) -> tuple[str, str]:
    value = value.get("status", value.get("verdict")) if isinstance(value, dict) else value
    if value in (True, "pass"):
        return "pass", good
    if value == "not_applicable":
        return "none", "fast-forwarded in virtual time, so there was none that could distort the figures"
    return ("fail", bad) if value in (False, "fail") else ("unknown", "not checked")


def health_reasons(metrics: Json, key: str = "reasons") -> tuple[str, ...]:
    """Every reason once, with all the places that it was given for: `CELL at 1, 2, 4: the fast clock ...`. `key`:
    `reasons` for what failed a gate, `windows` for doubts about the steady windows, which fail none."""
    reasons = formatting.section(metrics, "health").get(key)
    places: dict[tuple[str, str], list[str]] = {}
    for reason in reasons if isinstance(reasons, (list, tuple)) else ():
        where, at, what = re.match(r"(?:(.*?) at (\d+): )?(.*)", formatting.clean(reason), re.S).groups()  # type: ignore[union-attr]
        places.setdefault((where or "", what), []).append(at or "")
    return tuple(
        f"{where} at {', '.join(dict.fromkeys(at))}: {what}" if where else what for (where, what), at in places.items()
    )


def clock_error(metrics: Json) -> str:
    """What the fast clock of a simulation cost, in words; empty where it was not measured."""
    error = formatting.section(formatting.section(metrics, "run"), "clock_error")
    names = {"ttft_s": "time to first token", "tpot_s": "time per token", "time_to_final_answer_s": "time to final answer"}
    known = [(name, value) for key, name in names.items() if (value := formatting.finite(error.get(key))) is not None]
    shares = [f"{name} {value * 100:+.1f} %" for name, value in known]
    return f"{', '.join(shares)} (means over {formatting.count(error.get('n'))} requests)" if shares else ""
