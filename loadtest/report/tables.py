"""The tables of one run: findings, users and cost, levels, troubles, cells, contract, environment, commands, definitions."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loadtest.report import checklist, decision, formatting
from loadtest.report.cells import METRICS, Cell, typical
from loadtest.report.formatting import Json
from loadtest.report.plots.figure import Table


@dataclass(frozen=True, slots=True)
class Command:
    """One exact command line, and what it did."""

    title: str
    text: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class ContractRow:
    """One key of the contract: what was asked for, and for each cell what it says it does and whether that breaks it."""

    key: str
    asked: str
    told: tuple[tuple[str, bool], ...]
    differ: bool


@dataclass(frozen=True, slots=True)
class Contract:
    """The inference contract; `cells`: names of those whose runtime told its settings."""

    cells: tuple[str, ...]
    rows: tuple[ContractRow, ...]


DEFINITIONS = (
    (
        "Time to first token (TTFT)",
        "From sending to the first text of any kind; thinking counts, a role-only or empty chunk does not. Seconds.",
    ),
    ("Time to first answer text", "From sending to the first text of the answer, after the thinking. Seconds."),
    (
        "Time to final answer",
        "From sending to the last chunk of an answer that ended by itself. Cut-off and truncated requests are censored "
        "at their last chunk (Kaplan-Meier), never dropped. Seconds.",
    ),
    ("Thinking time", "From the first text of the reasoning to the first text of the answer. Seconds."),
    (
        "Gap between tokens (ITL)",
        "Time between consecutive tokens, weighted by token where a chunk carries several. Seconds.",
    ),
    (
        "Time per output token (TPOT)",
        "(Last chunk - first chunk) / (tokens after the first chunk), one value a request. Seconds.",
    ),
    ("Tokens/s per user", "1 / TPOT: what one stream delivers while it decodes."),
    (
        "Output tokens/s",
        "Tokens that arrived inside the steady window, in which all streams were in flight, divided by its length; "
        "tokens of unfinished requests included.",
    ),
    ("Answers per hour", "Finished answers, by the same window; within the SLOs: those that met every one."),
    (
        "Interval",
        "95 % confidence interval. A quantile whose interval cannot be bounded from n samples is left out (—) with the "
        "n it needs.",
    ),
    (
        "Ahead, faster, slower",
        "Said only of a difference that holds at 5 % after Holm's correction over the levels of a metric. "
        "Each interval is of its own ratio, uncorrected.",
    ),
    (
        "Simulated",
        "A runtime imitated by this suite from a performance model. Its figures predict; they measure no runtime and "
        "no card.",
    ),
)


def findings(metrics: Json) -> list[dict[str, str]]:
    found = []
    for row in formatting.rows(metrics, "findings"):
        word = formatting.clean(row.get("verdict") or "not_measured")
        found.append(
            {
                "claim": formatting.clean(row.get("claim") or row.get("id") or "?"),
                "expected": formatting.clean(row.get("expected") or formatting.DASH),
                "measured": _measured(row),
                "interval": formatting.span(formatting.estimate({"it": {"value": 1, "ci95": row.get("ci95")}}, "it"))
                or formatting.DASH,
                "verdict": word.replace("_", " "),
                "state": {"reproduced": "good", "predicted": "good", "contradicted": "bad", "not_predicted": "bad"}.get(
                    word, "none"
                ),
                "reason": formatting.clean(row.get("reason") or ""),
            }
        )
    return found


_CLAIMED = {"ahead": "of the scenarios", "maximum_concurrency": "users", "gain": "times"}


def _measured(row: Json) -> str:
    """The figure that answers a claim, with its unit; a word (`refused`) is left as it is."""
    value, kind = row.get("measured"), formatting.clean(row.get("kind"))
    found = formatting.finite(value)
    if found is None:
        return formatting.DASH if value is None else formatting.clean(value)
    if kind == "weights":
        return f"{formatting.number(found / 1e9)} GB"
    unit = _CLAIMED.get(kind) or METRICS.get(str(row.get("metric")), ("", ""))[1]
    text = formatting.count(found) if kind == "maximum_concurrency" else formatting.number(found)
    return f"{formatting.percent(found) if kind == 'ahead' else text} {unit}".rstrip()


def summary(cells: tuple[Cell, ...], metrics: Json, manifest: Json) -> Table | None:
    """Each cell against the SLOs and the price: how many users, at what cost."""
    wanted, (price, currency) = decision.slos(metrics, manifest), decision.price(manifest)
    measured = [cell for cell in cells if cell.levels]
    if not measured or (not wanted and price is None):
        return None
    head = ["cell"]
    if wanted:
        head += ["users within the SLO", "for certain", "full contexts in the KV cache", "levels tried"]
    if price is not None:
        head += [f"lowest cost of 1000 answers, {currency}".rstrip(", "), "95 % interval", "at"]
    lines = []
    for cell in measured:
        line = [cell.name]
        if wanted:
            sure = decision.sure(cell) if cell.maximum.get("ci95") else None
            line += [formatting.count(n) for n in (cell.maximum.get("by_slo"), sure, cell.maximum.get("by_kv_cache"))]
            line.append(tried(cell))
        if price is not None:
            line += _cheapest(cell, price)
        lines.append(tuple(line))
    note = f"SLO: {'; '.join(wanted)}. For certain: met with the whole 95 % interval; 0: at no level."
    return Table(tuple(head), tuple(lines), (note,) if wanted else ())


def tried(cell: Cell) -> str:
    return ", ".join(str(level["concurrency"]) for level in cell.levels)


def _cheapest(cell: Cell, price: float) -> list[str]:
    costs = [(decision.cost_per_1000_answers(cell, level, price), level) for level in cell.levels]
    known = [row for row in costs if row[0].known]
    if not known:
        return [formatting.DASH, formatting.DASH, formatting.DASH]
    found, level = min(known, key=lambda row: row[0].value or 0.0)
    return [
        formatting.number(found.value),
        formatting.span(found) or formatting.DASH,
        formatting.users(int(level["concurrency"])),
    ]


LEVEL_COLUMNS = (
    ("output_tokens_per_s", "value", "tokens/s, all"),
    ("tokens_per_s_per_user", "typical", "tokens/s per user"),
    ("ttft_s", "typical", "TTFT, s"),
    ("time_to_final_answer_s", "typical", "final answer, s"),
    ("time_to_final_answer_s", "p90", "final answer, s, p90"),
    ("answers_per_hour", "value", "answers/h"),
    ("reasoning_tokens", "mean", "tokens thought, mean"),
    ("accuracy", "value", "right answers"),
)


def columns(cells: tuple[Cell, ...]) -> list[tuple[str, str, str]]:
    """The columns with their statistic: the median where every level has one, else the mean."""
    found = []
    for key, which, title in LEVEL_COLUMNS:
        chosen = typical(cells, key) if which == "typical" else which
        found.append((key, chosen, f"{title}, {'mean' if chosen == 'mean' else 'median'}" if which == "typical" else title))
    return found


def levels(cells: tuple[Cell, ...]) -> Table:
    chosen = columns(cells)
    levels = [(cell, level) for cell in cells for level in cell.levels]
    kept = [one for one in chosen if any(formatting.estimate(level, one[0], one[1]).known for _, level in levels)]
    head = ("cell", "users", "n", *(title for _, _, title in kept))
    lines = [
        (
            cell.name,
            formatting.count(level.get("concurrency")),
            formatting.count(level.get("n_requests")),
            *(_figure_text(level, key, which) for key, which, _ in kept),
        )
        for cell, level in levels
    ]
    absent = [title for key, which, title in chosen if (key, which, title) not in kept]
    notes = ["—: no figure can be given from so few requests, or it does not apply."]
    notes += [f"At no level known: {'; '.join(absent)}."] if absent and levels else []
    return Table(head, tuple(lines), (*notes, *_queued(levels)))


def _queued(levels: list[tuple[Cell, Json]]) -> list[str]:
    """Where requests waited in the load generator for more than 10 ms in the mean: an open loop with too few users."""
    found = [(cell, level, formatting.estimate(level, "queued_s", "mean")) for cell, level in levels]
    waits = [
        f"{cell.name}, {formatting.count(level.get('concurrency'))} at once: "
        f"{formatting.number(one.value)} s {formatting.span(one)}".rstrip()
        for cell, level, one in found
        if (one.value or 0.0) > 0.01
    ]
    return (
        [f"Waited in the load generator before being sent, in the mean (in no latency above): {'; '.join(waits)}."]
        if waits
        else []
    )


def _figure_text(level: Json, key: str, which: str) -> str:
    """A figure, and on a second line its interval or the n that it needs."""
    found = formatting.estimate(level, key, which)
    if found.value is None:
        return f"{formatting.DASH}\nneeds n ≥ {found.n_needed}" if found.n and found.n_needed else formatting.DASH
    return f"{formatting.number(found.value)}\n{formatting.span(found)}".rstrip()


def troubles(cells: tuple[Cell, ...]) -> Table:
    """Counts of each outcome and trouble by level; kinds that never occurred are named in a note instead."""
    levels = [(cell, level) for cell in cells for level in cell.levels]
    counts = [
        {**formatting.section(level, "troubles"), **_preemptions(level), **formatting.section(level, "outcomes")}
        for _, level in levels
    ]
    kinds = list(dict.fromkeys(["ok", *(name for one in counts for name in one)]))
    seen = [name for name in kinds if name == "ok" or any(formatting.finite(one.get(name)) for one in counts)]
    head = (
        "cell",
        "users",
        *(formatting.clean(name).replace("_", " ") for name in seen),
        "load generator",
        "client against server",
    )
    lines = []
    for (cell, level), one in zip(levels, counts, strict=True):
        gates = [_gate(level.get("client_health")), _gate(level.get("reconciliation"))]
        lines.append(
            (cell.name, formatting.count(level.get("concurrency")), *(formatting.count(one.get(k, 0)) for k in seen), *gates)
        )
    absent = [formatting.clean(name).replace("_", " ") for name in kinds if name not in seen]
    return Table(head, tuple(lines), (f"Looked for and never seen: {', '.join(absent)}.",) if absent else ())


def _preemptions(level: Json) -> Json:
    """As one trouble more, where the server counts them."""
    count = formatting.section(level, "server").get("n_preemptions")
    return {} if count is None else {"preemptions": count}


def _gate(value: Any) -> str:
    state = value.get("status", value.get("verdict")) if isinstance(value, Mapping) else value
    return {"pass": "pass", "fail": "FAIL", "not_applicable": "none ran"}.get(str(state), "not checked")


def cells(cells: tuple[Cell, ...], engines: Mapping[str, Json]) -> Table:
    head = ("cell", "version", "GPU", "status", "levels", "ready after, s", "exit code")
    lines = []
    for cell in cells:
        engine = engines.get(cell.id, {})
        started, ready = formatting.finite(engine.get("started_unix_s")), formatting.finite(engine.get("ready_unix_s"))
        waited = None if started is None or ready is None else ready - started
        status = f"{cell.status}: {cell.reason}" if cell.reason else cell.status
        version = cell.version or formatting.clean(engine.get("engine_version") or formatting.DASH)
        lines.append(
            (
                cell.name,
                version,
                cell.gpu or formatting.DASH,
                status,
                tried(cell) or formatting.DASH,
                formatting.number(waited),
                formatting.count(engine.get("exit_code")),
            )
        )
    return Table(head, tuple(lines))


def fits(cells: tuple[Cell, ...]) -> list[tuple[str, tuple[str, ...]]]:
    """The fit arithmetic, once for all cells that share it."""
    found: dict[tuple[str, ...], list[str]] = {}
    for cell in cells:
        if lines := _fit_lines(cell):
            found.setdefault(lines, []).append(cell.name)
    return [(", ".join(names), lines) for lines, names in found.items()]


def _fit_lines(cell: Cell) -> tuple[str, ...]:
    lines = cell.fit.get("lines")
    return tuple(formatting.clean(line) for line in lines) if isinstance(lines, (list, tuple)) else ()


def contract(manifest: Json, of: tuple[Cell, ...], engines: Mapping[str, Json]) -> Contract:
    """What was asked for, and cell by cell what each runtime says it does, where it says so."""
    asked = formatting.section(manifest, "contract")
    told = {cell.name: formatting.section(engines.get(cell.id), "contract") for cell in of}
    told = {name: one for name, one in told.items() if one}
    sides = {name: formatting.section(one, "effective") for name, one in told.items()}
    keys = list(dict.fromkeys([*asked, *(key for one in sides.values() for key in one)]))
    rows = []
    for key in keys:
        broken = [key in checklist.violations(one) for one in told.values()]
        values = [_value(one[key]) if key in one else "" for one in sides.values()]
        differ = len({value for value in values if value}) > 1
        rows.append(ContractRow(_words(key), _value(asked.get(key)), tuple(zip(values, broken, strict=True)), differ))
    return Contract(tuple(told), tuple(rows))


def environment(manifest: Json) -> list[tuple[str, str]]:
    """What the load generator ran on, and what it sent."""
    workload = manifest.get("workload")
    asked = {"workload": workload, "scenario": manifest.get("scenario")} if workload else {}
    return [_pair(key, value) for key, value in {**formatting.section(manifest, "environment"), **asked}.items()]


def _pair(key: Any, value: Any) -> tuple[str, str]:
    bytes_of = formatting.finite(value) if str(key).endswith("_bytes") else None
    if bytes_of is None:
        return _words(key), _value(value)
    return _words(key).removesuffix(" bytes"), f"{formatting.number(bytes_of / 1e9)} GB"


def _words(key: Any) -> str:
    return formatting.clean(key).replace("_", " ")


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{formatting.clean(k)} {_value(v)}" for k, v in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(one) for one in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return formatting.DASH if value is None else formatting.clean(value)


def commands(manifest: Json, engines: Mapping[str, Json]) -> list[Command]:
    """What to type to repeat the run: its own command, then each runtime's and that of the load on it."""
    given = manifest.get("commands")
    found = [Command("This run", _line(one)) for one in given] if isinstance(given, (list, tuple)) else []
    for name, engine in engines.items():
        command = engine.get("command")
        if command:
            variables = [
                f"{formatting.clean(k)}={shlex.quote(formatting.clean(v))}"
                for k, v in formatting.section(engine, "env").items()
            ]
            found.append(Command(f"{formatting.clean(name)}, the server", " ".join([*variables, _line(_portable(command))])))
        if engine.get("load"):
            title = f"{formatting.clean(name)}, the load of its last pass (others differ in users, requests and repeat)"
            found.append(Command(title, _line(_portable(engine["load"]))))
    return found


def _portable(command: Any) -> Any:
    """A command line without the folders of one machine: its program, and the scenarios that loadtest brings along.

    >>> _portable(["/usr/bin/python", "--locustfile", "/srv/lib/scenarios/chat.py", "/data/x"])
    ['python', '--locustfile', 'scenarios/chat.py', '/data/x']
    """
    if not isinstance(command, (list, tuple)) or not command:
        return command
    program, *words = map(str, command)
    return [program.rpartition("/")[2], *(re.sub(r"^/.*/(scenarios/\w+\.py)$", r"\1", word) for word in words)]


def _line(command: Any) -> str:
    if isinstance(command, (list, tuple)):
        return " ".join(shlex.quote(formatting.clean(part)) for part in command)
    return formatting.clean(command)
