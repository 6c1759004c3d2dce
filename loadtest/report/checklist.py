"""The checks of a run as a reader sees them: what passed, what failed, what was not measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from loadtest.analysis.validity import Doubt, doubts, window_doubts
from loadtest.metrics.clock_error import time_errors
from loadtest.metrics.level_schema import GateStatus, TokenCounts
from loadtest.metrics.schema import ClaimResult, Comparison, Metrics
from loadtest.records.engine_facts import ContractFacts, EngineFacts
from loadtest.records.manifest import Manifest
from loadtest.records.schema import TokenCountSource
from loadtest.report.cells import by_level, cells_of
from loadtest.report.formatting import clean, count, listed

State = Literal["pass", "fail", "unknown", "none"]
NO_ENGINES: Mapping[str, EngineFacts] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Check:
    """One gate of the run's health; `state` is unknown where it was not checked, none where there was nothing to check."""

    name: str
    state: State
    words: str


# What was not measured -----------------------------------------------------------------------------------------------


def not_measured(metrics: Metrics, manifest: Manifest) -> tuple[str, ...]:
    """What this run does not tell, each with the reason."""
    found: list[str] = []
    absent: dict[str, list[str]] = {}
    for cell in cells_of(metrics):
        if not cell.levels:
            absent.setdefault(cell.status, []).append(cell.name)
        elif missing := sorted(set(manifest.levels) - {level.concurrency for level in cell.levels if level.n_requests}):
            found.append(f"{cell.name}: no data at concurrency {', '.join(map(str, missing))}")
    found += [f"{listed(names)}: {why}" for why, names in absent.items()]
    found += _unjudged(metrics.findings)
    found += _without_verdict(metrics.comparisons)
    if metrics.simulated:
        found.append("Real GPUs, real weights and right answers: the engines were simulated")
    return tuple(found)


def _unjudged(claims: tuple[ClaimResult, ...]) -> list[str]:
    """The published claims that this run cannot judge; in one line where it can judge none of them."""
    unjudged = [row for row in claims if row.verdict == "not_measured"]
    if len(unjudged) == len(claims) > 1:
        return [f"None of the {len(claims)} published claims: this run has no cell that they are about"]
    return [f"Claim “{clean(row.claim)}”: {clean(row.reason or 'no data')}" for row in unjudged]


def _without_verdict(rows: tuple[Comparison, ...]) -> list[str]:
    kinds = Counter((row.verdict, clean(row.reason)) for row in rows if row.verdict in ("too few samples", "not comparable"))
    return [f"{n} comparison{'' if n == 1 else 's'}: {verdict}: {why}" for (verdict, why), n in kinds.items()]


# Gates ---------------------------------------------------------------------------------------------------------------


def gate_checks(metrics: Metrics, manifest: Manifest, engines: Mapping[str, EngineFacts] = NO_ENGINES) -> tuple[Check, ...]:
    """The gates of the run: load generator, client against server, completeness, who counted the tokens where the server
    did not, and the contract where an engine told its settings."""
    health = metrics.health
    distorted = _gate(health.client, "did not distort the figures", "may have distorted the figures")
    agree = _gate(health.reconciliation, "tokens, requests and TTFT agree", "tokens, requests or TTFT do not agree")
    return (
        Check("Load generator", *distorted),
        Check("Client against server", *agree),
        _completeness(metrics, manifest),
        *_token_check(
            health.counted_by, sum(_n_doubted(level.token_counts) for cell in metrics.cells for level in cell.levels)
        ),
        *_contract_check(engines),
    )


def _gate(status: GateStatus, good: str, bad: str) -> tuple[State, str]:
    if status == "not_applicable":
        return "none", "none ran: simulated in virtual time"
    if status == "not_checked":
        return "unknown", "not checked"
    return ("pass", good) if status == "pass" else ("fail", bad)


def _completeness(metrics: Metrics, manifest: Manifest) -> Check:
    if metrics.complete:
        return Check("Completeness", "pass", f"every cell and level has ended{_failures(metrics)}")
    levels = [level for cell in metrics.cells for level in cell.levels]
    torn = "some records are torn" if any(level.torn_lines for level in levels) else ""
    damaged = "records are missing, or not as they were written" if manifest.complete else "the run ended early"
    why = manifest.incomplete_reason or torn or damaged
    return Check("Completeness", "fail", f"incomplete: {clean(why)}")


def _failures(metrics: Metrics) -> str:
    """How many of all requests failed, in words; empty where none did."""
    shares = [(level.failed_share.value, level.n_requests) for cell in metrics.cells for level in cell.levels]
    counted = [(share * n, n) for share, n in shares if share is not None]
    failed, asked = sum(failed for failed, _ in counted), sum(n for _, n in counted)
    return f", but {failed:.0f} of {asked} requests failed" if failed else ""


def _n_doubted(counts: TokenCounts) -> int:
    return counts.n_too_few + counts.n_too_many


def _token_check(counted_by: TokenCountSource | None, n_doubted: int) -> tuple[Check, ...]:
    """Who counted the tokens, where that was not the server; and where the server's count cannot be right."""
    if n_doubted:
        return (Check("Token counts", "fail", f"of {count(n_doubted)} request(s) the text contradicts the server's count"),)
    if counted_by == "tokenizer":
        return (Check("Token counts", "pass", "by a local tokenizer, because the server gave none"),)
    if counted_by == "chunks":
        words = "the server gave none, so each chunk of text counts as one token; give --tokenizer to count them"
        return (Check("Token counts", "unknown", words),)
    return ()


def _contract_check(engines: Mapping[str, EngineFacts]) -> tuple[Check, ...]:
    """Did every engine that tells its settings run as the contract asks; nothing where none tells them."""
    told = {name: engine.contract for name, engine in engines.items() if engine.contract is not None}
    if not told:
        return ()
    wrong = {clean(name): violated_keys(contract) for name, contract in told.items() if contract.violations}
    if not wrong:
        return (Check("Contract", "pass", "every engine ran with the requested settings"),)
    words = "; ".join(f"{name} {', '.join(keys)}" for name, keys in wrong.items())
    return (Check("Contract", "fail", f"not the requested settings: {words}"),)


def violated_keys(contract: ContractFacts) -> tuple[str, ...]:
    """Keys of the contract that an engine does not keep to: each violation begins with its key."""
    return tuple(clean(violation).partition(":")[0] for violation in contract.violations)


# Doubts --------------------------------------------------------------------------------------------------------------


def health_reasons(metrics: Metrics) -> tuple[str, ...]:
    """Why not to rely on the run: every reason once, with all the places that it was given for."""
    of_levels = doubts(metrics.cells)
    said = {str(one) for one in of_levels}
    return (*_grouped(of_levels), *(clean(reason) for reason in metrics.health.reasons if reason not in said))


def window_reasons(metrics: Metrics) -> tuple[str, ...]:
    """Doubts about the steady windows, likewise; these fail no gate."""
    return _grouped(window_doubts(metrics.cells))


def _grouped(found: Iterable[Doubt]) -> tuple[str, ...]:
    """`CELL at concurrency 1, 2, 4: the fast clock ...`"""
    places: dict[tuple[str, str], list[str]] = {}
    for doubt in found:
        places.setdefault((doubt.cell, doubt.reason), []).append(str(doubt.concurrency))
    return tuple(
        clean(f"{cell} at concurrency {', '.join(dict.fromkeys(at))}: {reason}") for (cell, reason), at in places.items()
    )


def clock_error_words(metrics: Metrics) -> str:
    """How far the times that the client saw are off those of the simulator; empty where that was not measured."""
    error = metrics.run.clock_error
    if error is None:
        return ""
    shares = ", ".join(map(str, time_errors(error)))
    return f"{shares} (means of {count(error.n)} requests)" if shares else ""


def failure_lines(metrics: Metrics) -> list[str]:
    """Each level with failed requests: how many, and how. No time of theirs is in the figures."""
    lines = []
    for cell, level in by_level(cells_of(metrics)):
        if share := level.failed_share.value:
            kinds = ", ".join(f"{clean(kind)} {count(n)}" for kind, n in level.error_kinds.items())
            failed = f"{share * level.n_requests:.0f} of {level.n_requests} requests"
            lines.append(f"FAILED: {failed}, {cell.id} at concurrency {level.concurrency} ({kinds})")
    return lines
