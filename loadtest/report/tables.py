"""The tables of one run: findings, concurrency and cost, levels, failures, cells, contract, environment, commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from loadtest.metrics.catalogue import METRICS, QUANTILES, TERMS, Metric, Statistic
from loadtest.metrics.figures import Bounded, Distribution, Estimate
from loadtest.metrics.level_schema import DraftFigures, GateStatus, LevelFigures, ReplicaRequests
from loadtest.metrics.schema import ClaimResult, FindingVerdict, Metrics
from loadtest.records.engine_facts import EngineFacts
from loadtest.records.manifest import Manifest
from loadtest.report.cells import ShownCell, by_level, load_title, points, sound_cells, typical_statistic
from loadtest.report.checklist import violated_keys
from loadtest.report.decision import Price, cheapest_level, price, slos_in_words, surely_met
from loadtest.report.formatting import DASH, clean, count, listed, number, percent, span, value_or_need
from loadtest.report.plots.figure import Table


@dataclass(frozen=True, slots=True)
class Finding:
    """One published claim, and what this run says of it."""

    claim: str
    expected: str
    measured: str
    interval: str
    verdict: str
    state: Literal["good", "bad", "none"]
    reason: str


@dataclass(frozen=True, slots=True)
class Command:
    """One exact command line."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class ContractRow:
    """One key of the contract: what was asked for, and for each cell what its engine says and whether that violates it."""

    key: str
    asked: str
    told: tuple[tuple[str, bool], ...]
    differ: bool


@dataclass(frozen=True, slots=True)
class ContractTable:
    """The inference contract; `cells`: names of those whose engine told its settings."""

    cells: tuple[str, ...]
    rows: tuple[ContractRow, ...]


def definitions() -> tuple[tuple[str, str], ...]:
    """Every metric and term of the page with its definition."""
    return (*((_term(metric), metric.definition) for metric in METRICS.values()), *TERMS.items())


def _term(metric: Metric) -> str:
    told = metric.unit == "share" or metric.unit in metric.title.lower().split()
    return metric.full_title if told else f"{metric.full_title}, {metric.unit}"


# Findings ------------------------------------------------------------------------------------------------------------


def findings(metrics: Metrics) -> list[Finding]:
    return [_finding(row) for row in metrics.findings]


_GOOD: tuple[FindingVerdict, ...] = ("reproduced", "predicted")


def _finding(row: ClaimResult) -> Finding:
    return Finding(
        claim=clean(row.claim),
        expected=clean(row.expected),
        measured=_measured(row),
        interval=span(Bounded(None, row.ci95)) or DASH,
        verdict=row.verdict.replace("_", " "),
        state="none" if row.verdict == "not_measured" else "good" if row.verdict in _GOOD else "bad",
        reason=clean(row.reason),
    )


def _measured(row: ClaimResult) -> str:
    """The figure that answers a claim, with its unit; a word (`refused`) is left as it is."""
    value = row.measured
    if value is None or isinstance(value, str):
        return clean(value or DASH)
    if row.kind == "weights":
        return f"{number(value / 1e9)} GB"
    if row.kind == "maximum_concurrency":
        return count(value)
    if row.kind == "ahead":
        return f"{percent(value)} of the scenarios"
    unit = "times" if row.kind == "gain" else METRICS[row.metric].unit if row.metric in METRICS else ""
    return f"{number(value)} {unit}".rstrip()


# Concurrency and cost ------------------------------------------------------------------------------------------------


def capacity_table(cells: Sequence[ShownCell], metrics: Metrics, manifest: Manifest) -> Table | None:
    """Each cell against the SLOs and the price; None where neither was given."""
    wanted, paid = slos_in_words(metrics), price(manifest)
    measured = [cell for cell in cells if points(cell)]
    if not measured or not (wanted or paid.gpu_hour is not None):
        return None
    head = ["cell"]
    if wanted:
        head += [f"{load_title(measured)} within the SLOs", "for certain", "full contexts in the KV cache", _tried(measured)]
    if paid.gpu_hour is not None:
        head += [f"lowest cost of 1,000 answers, {paid.currency}".rstrip(", "), "95 % CI", f"at {load_title(measured)}"]
    rows = [(cell.name, *(_within_slos(cell) if wanted else ()), *_lowest_cost(cell, paid)) for cell in measured]
    note = f"SLOs: {'; '.join(wanted)}. For certain: met with the whole confidence intervals; 0: at no level."
    return Table(tuple(head), tuple(rows), (note,) if wanted else ())


def _tried(cells: Sequence[ShownCell]) -> str:
    title = load_title(cells)
    return f"{'concurrencies' if title == 'concurrency' else title} tried"


def _within_slos(cell: ShownCell) -> tuple[str, ...]:
    found = cell.figures.maximum_concurrency
    certain = None if found.ci95 is None else surely_met(cell)
    return count(found.by_slo), count(certain), count(found.by_kv_cache), cell.tried


def _lowest_cost(cell: ShownCell, paid: Price) -> tuple[str, ...]:
    if paid.gpu_hour is None:
        return ()
    best = cheapest_level(sound_cells((cell,)), paid.gpu_hour)
    if best is None:
        return DASH, DASH, DASH
    found, _, level = best
    return number(found.value), span(found) or DASH, cell.load(level.concurrency)


# Levels --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TableColumn:
    """One figure of every level."""

    metric: str
    statistic: Statistic
    title: str

    def text(self, level: LevelFigures) -> str:
        """The figure, and on a second line its interval; or the n that it needs."""
        found = level.estimate(self.metric, self.statistic)
        return f"{value_or_need(found)}\n{span(found)}".rstrip()


_COLUMNS: tuple[tuple[str, Statistic | None], ...] = (  # None: the median, or the mean where a level has no median
    ("output_tokens_per_s", "value"), ("tokens_per_s_per_user", None),
    *(("ttft_s", one) for one in QUANTILES), *(("time_to_final_answer_s", one) for one in QUANTILES),
    ("answers_per_hour", "value"), ("reasoning_tokens", "mean"), ("accuracy", "value"), ("failed_share", "value"),
)  # fmt: skip
_STATISTICS: Mapping[Statistic, str] = {"value": "", "p50": ", median", "mean": ", mean"}


def level_columns(cells: Sequence[ShownCell]) -> list[TableColumn]:
    """The columns with their statistic."""
    chosen = [(metric, statistic or typical_statistic(cells, metric)) for metric, statistic in _COLUMNS]
    return [TableColumn(metric, one, f"{METRICS[metric].short}{_STATISTICS.get(one, f', {one}')}") for metric, one in chosen]


def levels_table(cells: Sequence[ShownCell]) -> Table:
    levels, columns = by_level(cells), level_columns(cells)
    shown = [
        one
        for one in columns
        if any(value_or_need(level.estimate(one.metric, one.statistic)) != DASH for _, level in levels)
    ]
    rows = [
        (cell.name, cell.load(level.concurrency), count(level.n_requests), *(column.text(level) for column in shown))
        for cell, level in levels
    ]
    absent = [column.title for column in columns if column not in shown]
    notes = ["n ≥ N: the figure needs N requests. —: it does not apply, or the reason is among the failures."]
    notes += [population_note(levels)] if levels else []
    notes += [f"Known at no level: {'; '.join(absent)}."] if absent and levels else []
    return Table(
        ("cell", load_title(cells), "n", *(one.title for one in shown)),
        tuple(rows),
        (*notes, *level_notes(cells)),
    )


def population_note(levels: Sequence[tuple[ShownCell, LevelFigures]]) -> str:
    """For which prompts the intervals of these levels hold."""
    kinds = {level.population for _, level in levels}
    if len(kinds) == 1:
        return f"Intervals hold for {kinds.pop()}."
    again = {level.concurrency: cell for cell, level in levels if level.population == "these prompts"}
    at = f"{load_title(again.values())} {listed([again[level].load(level) for level in sorted(again)])}"
    return f"Intervals hold for these prompts at {at}, as some were asked again; else for prompts of this kind."


MANY_TOKENS = 1.5  # in a chunk: above it, chunks are not tokens


def level_notes(cells: Sequence[ShownCell]) -> list[str]:
    """What only some levels have to say."""
    return [*queued_notes(cells), *burst_notes(cells), *chunk_notes(cells), *form_notes(cells)]


def queued_notes(cells: Sequence[ShownCell]) -> list[str]:
    """Where requests waited in the load generator for more than 10 ms on average: an open loop with too few users."""
    waits = [
        f"{cell.name} at {cell.at(level.concurrency)}: {number(wait.value)} s {span(wait)}".rstrip()
        for cell, level in by_level(cells)
        if ((wait := level.queued_s.at("mean")).value or 0.0) > 0.01
    ]
    return [f"Mean wait in the load generator before sending (in no latency above): {'; '.join(waits)}."] if waits else []


def burst_notes(cells: Sequence[ShownCell]) -> list[str]:
    """Where tokens came in bursts: both rates. The figures rest on the rate over the whole answer."""
    seen = [
        f"{cell.name} at {cell.at(level.concurrency)}: {100 * (found.with_others_share or 0):.0f} % of the tokens came"
        f" with others, p99 {number(found.p99_tokens)} at once; {_middle(found.whole_answer_tokens_per_s)} tokens/s over the"
        f" whole answer, {_middle(found.between_arrivals_tokens_per_s)} between arrivals"
        for cell, level in by_level(cells)
        if (found := level.arrivals) is not None and found.bursty
    ]
    return [f"Tokens came in bursts, so tokens/s per user are over the whole answer: {'; '.join(seen)}."] if seen else []


def _middle(found: Distribution) -> str:
    """Its median; without one, its mean."""
    return number(found.mean if found.p50 is None else found.p50)


def chunk_notes(cells: Sequence[ShownCell]) -> list[str]:
    """Where text comes in chunks of several tokens, so that a user sees pauses that no gap between tokens tells."""
    seen = [
        f"{cell.name} at {cell.at(level.concurrency)}: {number(level.itl_s.n / level.chunk_gap_s.n, 2)} tokens every "
        f"{number(gap.value)} s {span(gap)}".rstrip()
        for cell, level in by_level(cells)
        if (gap := level.chunk_gap_s.at("p50")).known and level.itl_s.n > MANY_TOKENS * level.chunk_gap_s.n
    ]
    return [f"Text comes in chunks (median gap between two): {'; '.join(seen)}."] if seen else []


def form_notes(cells: Sequence[ShownCell]) -> list[str]:
    """Where tools were called, or JSON by a schema was asked for: how long a call took, and how many were valid."""
    calls = [
        f"{cell.name} at concurrency {level.concurrency}: complete after {_time_text(level)}"
        f", {_share_text(level.valid_call_share)}"
        for cell, level in by_level(cells)
        if level.tool_call_s.n or level.valid_call_share.known
    ]
    answers = [
        f"{cell.name} at concurrency {level.concurrency}: {_share_text(level.valid_json_share)}"
        for cell, level in by_level(cells)
        if level.valid_json_share.known
    ]
    notes = [f"Tool calls (median time to the complete call): {'; '.join(calls)}."] if calls else []
    return [*notes, *([f"JSON by a schema: {'; '.join(answers)}."] if answers else [])]


def _time_text(level: LevelFigures) -> str:
    found = level.tool_call_s.at("p50")
    return f"{value_or_need(found)} s {span(found)}".rstrip() if found.known else value_or_need(found)


def _share_text(found: Estimate) -> str:
    if not found.known:
        return "not judged"
    ends = f" [{percent(found.low)}, {percent(found.high)}]" if found.ci95 else ""
    return f"{percent(found.value)}{ends} of {count(found.n)} valid"


def caching_table(cells: Sequence[ShownCell]) -> Table | None:
    """Hits in the prefix cache, and what became of drafts, level by level; None where no server tells."""
    told = [
        (cell, level)
        for cell, level in by_level(cells)
        if level.server.speculation is not None or level.server.prefix_cache_hit_share is not None
    ]
    if not told:
        return None
    hits = ("cell", load_title(cells), "prefix-cache hits")
    head = (*hits, "drafts accepted", "tokens a step", "accepted by position", "tokens a chunk: thinking", "answer")
    rows = [(cell.name, cell.load(level.concurrency), percent(level.server.prefix_cache_hit_share)) for cell, level in told]
    if all(level.server.speculation is None for _, level in told):
        return Table(hits, tuple(rows))
    return Table(
        head,
        tuple((*row, *_drafts(level.server.speculation)) for row, (_, level) in zip(rows, told, strict=True)),
        ("Of the server's counters, warm-up included; intervals are over passes. A chunk is what one step gave, unless "
         "the server joins steps.",),
    )  # fmt: skip


def replicas_table(cells: Sequence[ShownCell]) -> Table | None:
    """What each of several servers did, level by level; None without several."""
    found = [(cell, level, one) for cell, level in by_level(cells) for one in level.server.replicas]
    asked = any(one.asked for *_, one in found)
    rows = [
        (cell.name, cell.load(level.concurrency), clean(one.source), *(_asked(one.asked) if asked else ()),
         count(one.n_requests), percent(one.request_share), percent(one.output_token_share),
         percent(one.prefix_cache_hit_share), percent(one.peak_kv_usage_share), count(one.peak_waiting_at_once))
        for cell, level, one in found
    ]  # fmt: skip
    head = ("cell", load_title(cells), "replica", *(_ASKED if asked else ()), "requests", "share of requests",
            "share of output tokens", "prefix-cache hits", "peak KV use", "peak queue")  # fmt: skip
    notes = (_TURNS,) if asked else ()
    return Table(head, tuple(rows), notes) if rows else None


_ASKED = ("asked", "failed", "TTFT p50, s", "tokens/s")
_TURNS = (
    "Sessions take turns at the servers; all requests of a session go to one. Asked to tokens/s: measured requests, by the "
    "client; the other columns: the servers' own counters, warm-up included."
)


def _asked(found: ReplicaRequests | None) -> tuple[str, ...]:
    if found is None:
        return (DASH,) * len(_ASKED)
    kinds = f" ({', '.join(map(clean, found.error_kinds))})" if found.error_kinds else ""
    failed = f"{percent(found.failed_share.value)}{kinds}"
    return count(found.n_requests), failed, value_or_need(found.ttft_s.at("p50")), number(found.run_tokens_per_s.value)


_POSITIONS = 8  # as many as a column holds


def _drafts(found: DraftFigures | None) -> tuple[str, ...]:
    if found is None:
        return (DASH,) * 5
    share, length = found.accepted_share, found.accepted_length
    positions = " ".join(f"{100 * one:.0f}" for one in found.accepted_share_by_position[:_POSITIONS])
    more = " …" if len(found.accepted_share_by_position) > _POSITIONS else ""
    return (
        f"{percent(share.value)}\n{percent(share.low)} to {percent(share.high)}" if share.ci95 else percent(share.value),
        f"{number(length.value)}\n{span(length)}".rstrip(),
        f"{positions}{more} %" if positions else DASH,
        number(found.thinking_tokens_per_chunk),
        number(found.answer_tokens_per_chunk),
    )


# Failures ------------------------------------------------------------------------------------------------------------


def failures_table(cells: Sequence[ShownCell]) -> Table:
    """Counts of each outcome and trouble by level; kinds that never occurred are named in a note instead."""
    return _outcomes(by_level(cells))


def failed_levels_table(cells: Sequence[ShownCell]) -> Table | None:
    """The same, of the levels with failed requests or a failed check alone; None where there is none."""
    failed = [(cell, level) for cell, level in by_level(cells) if _has_failed(level)]
    return _outcomes(failed) if failed else None


def _has_failed(level: LevelFigures) -> bool:
    return bool(level.failed_share.value) or "fail" in (level.client_health.status, level.reconciliation.status)


def _outcomes(levels: Sequence[tuple[ShownCell, LevelFigures]]) -> Table:
    counts = [_counts(level) for _, level in levels]
    kinds = list(dict.fromkeys(["ok", *(kind for one in counts for kind in one)]))
    seen = [kind for kind in kinds if kind == "ok" or any(one.get(kind) for one in counts)]
    rows = [
        (cell.name, cell.load(level.concurrency), *(count(one.get(kind, 0)) for kind in seen),
         _GATES[level.client_health.status], _GATES[level.reconciliation.status])
        for (cell, level), one in zip(levels, counts, strict=True)
    ]  # fmt: skip
    head = ("cell", load_title(cell for cell, _ in levels), *map(_words, seen), "load generator", "client against server")
    absent = [_words(kind) for kind in kinds if kind not in seen]
    looked = "Not told by the tool, or not seen" if any("ended" in one for one in counts) else "Looked for and not seen"
    return Table(head, tuple(rows), (f"{looked}: {', '.join(absent)}.",) if absent else ())


def _counts(level: LevelFigures) -> dict[str, float]:
    """Requests with each trouble and of each outcome, and resends; preemptions only where the server counts them."""
    preemptions = level.server.n_preemptions
    told = {} if preemptions is None else {"preemptions": preemptions}
    outcomes = {str(outcome): n for outcome, n in level.outcomes.items()}
    return {**msgspec.structs.asdict(level.troubles), "resends": level.n_resends, **told, **outcomes}


_GATES: Mapping[GateStatus, str] = {
    "pass": "pass", "fail": "FAIL", "not_checked": "not checked", "not_applicable": "none ran",
}  # fmt: skip


# Cells, contract, environment, commands ------------------------------------------------------------------------------


def cells_table(cells: Sequence[ShownCell], engines: Mapping[str, EngineFacts]) -> Table:
    head = ("cell", "version", "GPU", "status", "concurrencies", "ready after, s", "exit code")
    return Table(head, tuple(_cell_row(cell, engines.get(cell.figures.id)) for cell in cells))


def _cell_row(cell: ShownCell, engine: EngineFacts | None) -> tuple[str, ...]:
    engine = engine or EngineFacts(id=cell.figures.id)
    started, ready = engine.started_unix_s, engine.ready_unix_s
    waited = None if started is None or ready is None else ready - started
    version, gpu = clean(cell.figures.engine_version or DASH), clean(cell.figures.gpu or DASH)
    return cell.name, version, gpu, cell.status, cell.tried or DASH, number(waited), count(engine.exit_code)


def fit_texts(cells: Sequence[ShownCell]) -> list[tuple[str, tuple[str, ...]]]:
    """The fit arithmetic, once for all cells that share it."""
    found: dict[tuple[str, ...], list[str]] = {}
    for cell in cells:
        if (fit := cell.figures.fit) is not None and fit.lines:
            found.setdefault(tuple(map(clean, fit.lines)), []).append(cell.name)
    return [(", ".join(names), lines) for lines, names in found.items()]


def contract_table(manifest: Manifest, cells: Sequence[ShownCell], engines: Mapping[str, EngineFacts]) -> ContractTable:
    """What was asked for, and cell by cell what each engine says it runs with, where it says so."""
    asked = manifest.contract
    told = {
        cell.name: contract
        for cell in cells
        if (engine := engines.get(cell.figures.id)) is not None and (contract := engine.contract) is not None
    }
    rows = []
    for key in dict.fromkeys([*asked, *(key for one in told.values() for key in one.effective)]):
        values = [_value(one.effective[key]) if key in one.effective else "" for one in told.values()]
        broken = [key in violated_keys(one) for one in told.values()]
        differ = len({value for value in values if value}) > 1
        rows.append(ContractRow(_words(key), _value(asked.get(key)), tuple(zip(values, broken, strict=True)), differ))
    return ContractTable(tuple(told), tuple(rows))


def environment_rows(metrics: Metrics, manifest: Manifest) -> list[tuple[str, str]]:
    """What the load generator ran on, and what it sent."""
    workload = metrics.run.workload
    asked = {} if workload is None else {"workload": workload, "scenario": manifest.scenario}
    machine = {} if manifest.environment is None else msgspec.structs.asdict(manifest.environment)
    found: dict[str, Any] = msgspec.to_builtins({**machine, **asked})
    return [_pair(key, value) for key, value in found.items()]


def _pair(key: str, value: Any) -> tuple[str, str]:
    if key.endswith("_bytes") and isinstance(value, int | float):
        return _words(key.removesuffix("_bytes")), f"{number(value / 1e9)} GB"
    return _words(key), _value(value)


def _words(key: str) -> str:
    return clean(key).replace("_", " ")


def _value(value: Any) -> str:
    """A value of a contract or an environment, whose keys and kinds are open."""
    if isinstance(value, Mapping):
        return ", ".join(f"{clean(str(key))} {_value(one)}" for key, one in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return DASH if value is None else clean(str(value))


def command_lines(
    manifest: Manifest, engines: Mapping[str, EngineFacts], loads: Mapping[str, Sequence[str]]
) -> list[Command]:
    """What to type to repeat the run: its own command, then each engine's and that of the load on it (`loads`)."""
    found = [Command("This run", clean(command)) for command in manifest.commands]
    for name, engine in engines.items():
        if engine.command:
            variables = [f"{clean(key)}={shlex.quote(clean(value))}" for key, value in (engine.env or {}).items()]
            found.append(Command(f"{clean(name)}: engine", " ".join([*variables, _line(engine.command)])))
        if load := loads.get(name):
            title = f"{clean(name)}: load of the last pass (others differ in concurrency, requests and repeat)"
            found.append(Command(title, _line(load)))
    return found


def _line(command: Sequence[str]) -> str:
    return shlex.join(clean(word) for word in _portable(command))


def _portable(command: Sequence[str]) -> list[str]:
    """A command line without the folders of one machine: its program, and the scenarios that loadtest brings along.

    >>> _portable(["/usr/bin/python", "--locustfile", "/srv/lib/scenarios/chat.py", "/data/x"])
    ['python', '--locustfile', 'scenarios/chat.py', '/data/x']
    """
    program, *words = command
    return [program.rpartition("/")[2], *(re.sub(r"^/.*/(scenarios/\w+\.py)$", r"\1", word) for word in words)]
