"""The checks of a run as a reader sees them: what passed, what failed, what was not measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from loadtest.analysis.validity import Doubt, dead_replicas, doubts, window_doubts
from loadtest.errors import UsageError
from loadtest.metrics.clock_error import time_errors
from loadtest.metrics.level_schema import ClientHealth, GateStatus, LevelFigures, Reconciliation
from loadtest.metrics.schema import Comparison, Metrics
from loadtest.records.engine_facts import ContractFacts, EngineFacts
from loadtest.records.manifest import Manifest
from loadtest.records.schema import TokenCountSource
from loadtest.report.cells import ShownCell, by_level, cells_of, level_places
from loadtest.report.formatting import clean, count, instrument_words, listed
from loadtest.workload.contract import from_table

State = Literal["pass", "fail", "unknown", "none"]
NO_ENGINES: Mapping[str, EngineFacts] = MappingProxyType({})


THIS_RUN = "this run"


@dataclass(frozen=True, slots=True)
class Check:
    """One gate of the run's health; `state` is unknown where it was not checked, none where there was nothing to check.

    `words`: what was found, with cause and cure where it failed. `where`: what not to rely on then, this run or some levels.
    """

    name: str
    state: State
    words: str
    where: str = THIS_RUN


# What was not measured -----------------------------------------------------------------------------------------------


def not_measured(metrics: Metrics, manifest: Manifest) -> tuple[str, ...]:
    """What this run does not tell, each with the reason."""
    found: list[str] = []
    absent: dict[str, list[str]] = {}
    for cell in cells_of(metrics):
        if cell.figures.composed:
            found += [
                f"{cell.name} at {one.concurrency}: {clean(one.reason)}" for one in cell.figures.composed if one.reason
            ]
        elif not cell.levels:
            absent.setdefault(cell.status, []).append(cell.name)
        elif missing := sorted(set(manifest.levels) - {level.concurrency for level in cell.levels if level.n_requests}):
            found.append(f"{cell.name}: no data at concurrency {', '.join(map(str, missing))}")
    found += [f"{listed(names)}: {why}" for why, names in absent.items()]
    found += _without_verdict(metrics.comparisons)
    if metrics.simulated:
        found.append("Real GPUs, real weights and right answers: the engines were simulated")
    return tuple(found)


def _without_verdict(rows: tuple[Comparison, ...]) -> list[str]:
    kinds = Counter((row.verdict, clean(row.reason)) for row in rows if row.verdict in ("too few samples", "not comparable"))
    return [f"{n} comparison{'' if n == 1 else 's'}: {verdict}: {why}" for (verdict, why), n in kinds.items()]


# Gates ---------------------------------------------------------------------------------------------------------------


def gate_checks(metrics: Metrics, manifest: Manifest, engines: Mapping[str, EngineFacts] = NO_ENGINES) -> tuple[Check, ...]:
    """The gates of the run: load generator, client against server, completeness, who counted the tokens where the server
    did not, equal work where it failed, the way to a server that is not direct or not verified, servers that took turns, and
    the contract where an engine told its settings."""
    levels = by_level(cells_of(metrics))
    return (
        _verified(_level_check("Load generator", metrics.health.client, levels, _client_health, _kept_up), manifest),
        _level_check("Client against server", metrics.health.reconciliation, levels, _reconciliation, _agree),
        _completeness(metrics, manifest),
        *_token_check(levels),
        *_equal_work_check(levels),
        *_way_check(metrics),
        *_replica_check(levels),
        *_sampling_check(manifest),
        *(_contract_check(engines) if manifest.imported is None else (_CONTRACT_NOT_TOLD,)),
    )


_CONTRACT_NOT_TOLD = Check("Contract", "unknown", "not told: no two imported runs are known to have asked alike")

Levels = Sequence[tuple[ShownCell, LevelFigures]]


def _client_health(level: LevelFigures) -> ClientHealth:
    return level.client_health


def _reconciliation(level: LevelFigures) -> Reconciliation:
    return level.reconciliation


def _level_check(
    name: str,
    status: GateStatus,
    levels: Levels,
    gate: Callable[[LevelFigures], ClientHealth | Reconciliation],
    good: Callable[[Levels], str],
) -> Check:
    """A gate that each level passes or fails."""
    if status == "not_applicable":
        return Check(name, "none", "none ran: simulated in virtual time")
    if status == "pass":
        return Check(name, "pass", good(levels))
    found = [(cell, level) for cell, level in levels if gate(level).status == status]
    reasons = list(dict.fromkeys(clean(reason) for _, level in found for reason in gate(level).reasons))
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    if status == "not_checked":
        return Check(name, "unknown", f"not checked: {reasons[0]}{more}" if reasons else "not checked")
    return Check(name, "fail", f"{reasons[0]}{more}" if reasons else "a check failed", _where(found, levels))


def _where(found: Levels, levels: Levels) -> str:
    """What not to rely on where these levels of all failed."""
    return level_places(found) if found and len(found) < len(levels) else THIS_RUN


_WATCHED = {  # what a passed check of the load generator held, in the reader's words
    "first_token_bound": "times to the first token",
    "gap_bound": "arrivals by the kernel's clock",
    "simulated_clock": "times against the simulator's own",
    "loop_lag_mean": "lag",
    "cpu": "CPU",
    "gc": "garbage collection",
    "late_starts": "late starts",
}


def _kept_up(levels: Levels) -> str:
    names = {check.name for _, level in levels for check in level.client_health.checks}
    watched = [words for name, words in _WATCHED.items() if name in names]
    return f"{listed(watched)} are within the limits at every level"


def _agree(levels: Levels) -> str:
    """What was compared, in how many passes: a server need not tell every total, nor its times to the first token."""
    passes = [one for _, level in levels for one in level.reconciliation.passes]
    told = {
        "requests": [one.server_requests for one in passes],
        "prompt tokens": [one.server_prompt_tokens for one in passes],
        "output tokens": [one.server_output_tokens for one in passes],
    }
    totals = [name for name, values in told.items() if values and None not in values]
    n = sum(one.ttft is not None and one.ttft.status == "pass" for one in passes)
    times = f"TTFT agrees in {n} of {len(passes)} passes" if n else "TTFT was not compared"
    return f"{listed(totals) or 'totals'} agree; {times}"


def _verified(check: Check, manifest: Manifest) -> Check:
    """The load generator's check, with what the instrument was worth on this machine if that was verified."""
    if manifest.instrument is None:
        return check
    return replace(check, words=f"{check.words}; verified before this run: {instrument_words(manifest.instrument)}")


def _completeness(metrics: Metrics, manifest: Manifest) -> Check:
    if metrics.complete and manifest.imported is not None:
        words = f"not told by {clean(manifest.tool)}: what was asked for, and which requests were cut off at the end"
        return Check("Completeness", "unknown", f"{words}{_failures(metrics)}")
    if metrics.complete:
        empty = sum(not cell.levels for cell in metrics.cells)
        gone = f"; {empty} of {len(metrics.cells)} cells were not measured" if empty else ""
        return Check("Completeness", "pass", f"each level that began has ended{gone}{_failures(metrics)}")
    levels = [level for cell in metrics.cells for level in cell.levels]
    torn = "some records are torn" if any(level.torn_lines for level in levels) else ""
    damaged = "records are missing, or not as they were written" if manifest.complete else "the run ended early"
    why = manifest.incomplete_reason or torn or damaged
    cure = "--resume measures what is missing" if manifest.levels else "measure again"
    return Check("Completeness", "fail", f"incomplete: {clean(why)}; {cure}")


def _failures(metrics: Metrics) -> str:
    """How many of all requests failed, in words; empty where none did."""
    shares = [(level.failed_share.value, level.n_requests) for cell in metrics.cells for level in cell.levels]
    counted = [(share * n, n) for share, n in shares if share is not None]
    failed, asked = sum(failed for failed, _ in counted), sum(n for _, n in counted)
    return f", but {failed:.0f} of {asked} requests failed" if failed else ""


def _token_check(levels: Levels) -> tuple[Check, ...]:
    """Who counted the tokens, where that was not the server; and where the server's count cannot be right."""
    name = "Token counts"
    doubted = [(cell, level) for cell, level in levels if level.token_counts.reasons]
    if doubted:
        n = sum(level.token_counts.n_too_few + level.token_counts.n_too_many for _, level in doubted)
        words = f"of {count(n)} request(s) the text contradicts the server's count; give --tokenizer, or mend the server"
        return (Check(name, "fail", words, _where(doubted, levels)),)
    counts = sum((Counter(level.token_count_sources) for _, level in levels), Counter[TokenCountSource]())
    of = f"of {count(counts.total())} requests"
    if counts["chunks"]:
        words = f"the server gave none for {count(counts['chunks'])} {of}: there each chunk of text counts as one token"
        return (Check(name, "unknown", f"{words}; give --tokenizer to count them"),)
    if counts["tool"]:
        words = "by the tool that measured: the server's count, or what the tool takes in its place"
        return (Check(name, "unknown", f"{count(counts['tool'])} {of} {words}"),)
    if counts["tokenizer"]:
        return (Check(name, "pass", f"{count(counts['tokenizer'])} {of} by a local tokenizer: the server gave none"),)
    return ()


def _equal_work_check(levels: Levels) -> tuple[Check, ...]:
    """Outputs that are not as long as they were forced, prompts that are not as long as they were made; that both are as
    asked, where prompts were made so; else nothing."""
    found = [(cell, level) for cell, level in levels if level.equal_work.status == "fail"]
    if not found:
        exact = sum(level.equal_work.n_prompts for _, level in levels)
        said = f"{count(exact)} prompts and their outputs had the lengths asked for, by the server's count"
        return (Check("Equal work", "pass", said),) if exact else ()
    words = f"{clean(found[0][1].equal_work.reasons[0])}; has the engine ignored min_tokens or ignore_eos?"
    return (Check("Equal work", "fail", words, _where(found, levels)),)


def _way_check(metrics: Metrics) -> tuple[Check, ...]:
    """What stood between us and a server, and whose certificate nobody verified; nothing where neither is so."""
    found = [f"{cell.id}: through the proxy {clean(cell.figures.proxy)}: its time is in every figure"
             for cell in cells_of(metrics) if cell.figures.proxy is not None]  # fmt: skip
    found += [f"{cell.id}: its certificate was not verified (--insecure)"
              for cell in cells_of(metrics) if cell.figures.insecure]  # fmt: skip
    return (Check("Way to the server", "unknown", "; ".join(found)),) if found else ()


def _replica_check(levels: Levels) -> tuple[Check, ...]:
    """Whether every server that took turns answered; nothing where there is one."""
    if not any(one.asked for _, level in levels for one in level.server.replicas):
        return ()
    found = [(cell, level) for cell, level in levels if dead_replicas(level)]
    if not found:
        return (Check("Replicas", "pass", "every server that took turns answered"),)
    words = "; ".join(dict.fromkeys(clean(one) for _, level in found for one in dead_replicas(level)))
    return (Check("Replicas", "fail", f"{words}; start it, or leave it out", _where(found, levels)),)


def _sampling_check(manifest: Manifest) -> tuple[Check, ...]:
    """Sampling that is not as recommended; nothing where it is, or where this release does not know the contract."""
    try:
        warnings = from_table(manifest.contract).warnings
    except UsageError:
        return ()
    return (Check("Sampling", "unknown", f"not as recommended: {'; '.join(warnings)}"),) if warnings else ()


def _contract_check(engines: Mapping[str, EngineFacts]) -> tuple[Check, ...]:
    """Does anything that the engines tell of their settings contradict the contract; nothing where none tells any."""
    told = {name: engine.contract for name, engine in engines.items() if engine.contract is not None}
    if not told:
        return ()
    wrong = {clean(name): violated_keys(contract) for name, contract in told.items() if contract.violations}
    if wrong:
        keys = "; ".join(f"{name} {', '.join(keys)}" for name, keys in wrong.items())
        cure = "start it as asked, or put what it runs with into [contract]"
        return (Check("Contract", "fail", f"not the requested settings: {keys}; {cure}"),)
    visible = {name: visible_settings(contract) for name, contract in told.items()}
    if all(seen == asked > 0 for seen, asked in visible.values()):
        return (Check("Contract", "pass", "every engine runs with the requested settings, all of them visible"),)
    words = [f"{seen} of {asked} settings visible" for seen, asked in visible.values()]
    said = words[0] if len(set(words)) == 1 else "; ".join(f"{clean(n)}: {w}" for n, w in zip(visible, words, strict=True))
    known = any(seen for seen, _ in visible.values())
    return (Check("Contract", "pass" if known else "unknown", f"nothing contradicts it; {said}"),)


def visible_settings(contract: ContractFacts) -> tuple[int, int]:
    """How many of the settings that were asked for the engine tells, and how many were asked for."""
    asked = {key for key, value in contract.requested.items() if value is not None and key != "in_its_words"}
    return len(asked & contract.effective.keys()), len(asked)


def violated_keys(contract: ContractFacts) -> tuple[str, ...]:
    """Keys of the contract that an engine does not keep to: each violation begins with its key."""
    return tuple(clean(violation).partition(":")[0] for violation in contract.violations)


# Doubts --------------------------------------------------------------------------------------------------------------


def health_reasons(metrics: Metrics) -> tuple[str, ...]:
    """Why not to rely on the run: every reason once, with all the places that it was given for."""
    of_levels = doubts(metrics.cells)
    said = {str(one) for one in of_levels}
    return (*_grouped(of_levels, metrics), *(clean(reason) for reason in metrics.health.reasons if reason not in said))


def window_reasons(metrics: Metrics) -> tuple[str, ...]:
    """Doubts about the steady windows, likewise; these fail no gate."""
    return _grouped(window_doubts(metrics.cells), metrics)


def _grouped(found: Iterable[Doubt], metrics: Metrics) -> tuple[str, ...]:
    """`CELL at concurrency 1, 2, 4: the fast clock ...`"""
    cells = {cell.figures.id: cell for cell in cells_of(metrics)}
    places: dict[tuple[str, str], list[int]] = {}
    for doubt in found:
        places.setdefault((doubt.cell, doubt.reason), []).append(doubt.concurrency)
    return tuple(
        clean(f"{name} at {cells[name].all_at(dict.fromkeys(at))}: {reason}") for (name, reason), at in places.items()
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
            lines.append(f"FAILED: {failed}, {cell.id} at {cell.at(level.concurrency)} ({kinds})")
    return lines
