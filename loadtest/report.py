"""The page: one HTML file that a mail attachment can carry, built from `metrics.json`, `manifest.json` and `engine.json`.

Everything that came from a model, a server or a file is escaped by the template and cleaned of invisible characters;
the page's own policy (CSP) lets it neither fetch nor run anything but the one script whose hash it names.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from loadtest import plots, resources, verdict, view
from loadtest.canvas import VARIABLES, Drawing, Key, Table
from loadtest.errors import RecordError
from loadtest.view import Cell, Json


@dataclass(frozen=True, slots=True)
class Command:
    """One exact command line, and what it did."""

    title: str
    text: str
    note: str = ""


GROUPS = (
    ("speed", "How fast", ("tokens-per-s-total", "tokens-per-s-per-user", "ttft", "time-to-final-answer")),
    ("comparison", "One runtime against the other", ("ratios", "pareto", "roofline")),
    ("time", "Where the time goes", ("where-the-time-goes", "survival", "token-gaps")),
    ("inside", "What happened inside", ("server", "timeline")),
)

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


def build(metrics: Json, manifest: Json, engines: Mapping[str, Json]) -> str:
    """The page as one string of HTML. Pure: same input, same page."""
    return _page(metrics, manifest, engines, plots.draw_all(metrics))


def write(metrics: Json, manifest: Json, engines: Mapping[str, Json], out_html: Path, plots_dir: Path) -> None:
    """Write the page, and each figure as SVG and PNG into `plots_dir`. Raises `RecordError` where the disk refuses."""
    drawings = plots.draw_all(metrics)
    page = _page(metrics, manifest, engines, drawings)
    try:
        out_html.parent.mkdir(parents=True, exist_ok=True)
        plots_dir.mkdir(parents=True, exist_ok=True)
        for drawing in drawings:
            (plots_dir / f"{drawing.figure.name}.svg").write_bytes(drawing.svg)
            (plots_dir / f"{drawing.figure.name}.png").write_bytes(drawing.png)
        out_html.write_text(page, encoding="utf-8")
    except OSError as error:
        raise RecordError(f"{error.filename or out_html}: cannot write the report: {error.strerror}") from error


def _page(metrics: Json, manifest: Json, engines: Mapping[str, Json], drawings: tuple[Drawing, ...]) -> str:
    folder = resources.path("reports/page.html.j2").parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["swatch"] = swatch
    script = (folder / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html.j2").render(
        style=Markup((folder / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=digest,
        **_first_screen(metrics, manifest),
        **_sections(metrics, manifest, engines, {drawing.figure.name: drawing for drawing in drawings}),
    )


def _first_screen(metrics: Json, manifest: Json) -> dict[str, Any]:
    simulated = verdict.simulated(metrics)
    run = view.section(metrics, "run")
    checks = verdict.checks(metrics, manifest)
    question = verdict.question(metrics, manifest)
    return {
        "simulated": simulated,
        "title": f"{'Simulated: ' if simulated else ''}{question}",
        "question": question,
        "facts": _facts(metrics, manifest, run),
        "lines": verdict.lines(metrics, manifest),
        "not_measured": verdict.not_measured(metrics, manifest),
        "checks": checks,
        "sound": all(check.state in ("pass", "none") for check in checks),
        "failed": any(check.state == "fail" for check in checks),
        "health_reasons": verdict.health_reasons(metrics),
        "clock_speed": view.finite(run.get("clock_speed")) or 1.0,
        "clock_error": _clock_error(run.get("clock_error")),
    }


def _facts(metrics: Json, manifest: Json, run: Json) -> tuple[str, ...]:
    workload = run.get("workload") or manifest.get("workload") or ""
    name = workload.get("source") or workload.get("name") if isinstance(workload, Mapping) else workload
    mode = run.get("mode") or manifest.get("mode")
    facts = (
        view.clean(run.get("name") or manifest.get("name") or ""),
        f"run {view.clean(metrics.get('run_id') or run.get('id') or '?')}",
        _when(manifest.get("started_unix_s")),
        f"workload {view.clean(name)}" if name else "",
        f"{view.clean(mode)} mode" if mode else "",
    )
    return tuple(fact for fact in facts if fact)


def _clock_error(error: Json | None) -> str:
    """What the fast clock of a simulation cost, in words; empty where it was not measured."""
    if not error:
        return ""
    names = {"ttft_s": "time to first token", "tpot_s": "time per token", "time_to_final_answer_s": "time to final answer"}
    shares = [f"{name} {error[key]:+.1%}" for key, name in names.items() if view.finite(error.get(key)) is not None]
    return f"{', '.join(shares)} (means over {error['n']} requests)"


def _when(unix_s: Any) -> str:
    seconds = view.finite(unix_s)
    if seconds is None or not 0 < seconds < 4e9:
        return ""
    return datetime.fromtimestamp(seconds, tz=timezone.utc).strftime("%-d %B %Y, %H:%M UTC")


def _sections(metrics: Json, manifest: Json, engines: Mapping[str, Json], drawings: dict[str, Drawing]) -> dict[str, Any]:
    cells = view.cells(metrics)
    groups = [(anchor, title, [_shown(drawings[n]) for n in names if n in drawings]) for anchor, title, names in GROUPS]
    return {
        "groups": [
            (anchor, title if anchor != "comparison" or "ratios" in drawings else "Trade-offs", shown)
            for anchor, title, shown in groups
            if shown
        ],
        "findings": _findings(metrics),
        "why": _why(metrics),
        "summary": _summary(cells, metrics, manifest),
        "levels": _levels(cells),
        "troubles": _troubles(cells),
        "cells": _cells(cells, engines),
        "fits": _fits(cells),
        "contract": _plain(view.section(manifest, "contract")),
        "environment": _plain({**view.section(manifest, "environment"), **_workload(manifest)}),
        "commands": _commands(manifest, engines),
        "definitions": DEFINITIONS,
    }


def _shown(drawing: Drawing) -> dict[str, Any]:
    """What the template needs of a figure; the drawing is ours, so it alone goes in unescaped."""
    return {
        "figure": drawing.figure,
        "inner": Markup(drawing.inner),
        "boxes": drawing.boxes,
        "kind": _kind(drawing),
    }


def _kind(drawing: Drawing) -> str:
    """How the panels are laid out: one, two or three columns where the screen is wide enough."""
    columns = min(drawing.figure.columns, len(drawing.boxes))
    return {1: "one", 2: "two"}.get(columns, "three")


def swatch(key: Key) -> Markup:
    """The sample before a legend's words, as a small SVG."""
    colour = f"var({VARIABLES[key.look.colour]})"
    if key.kind == "box":
        body = Markup('<rect x="3" y="2" width="22" height="10" rx="1" fill="{}" fill-opacity="{}"/>').format(
            colour, key.look.share
        )
        return _SWATCH.format(body)
    dashes = {"-": "", "--": "5 3", ":": "2 2"}.get(key.look.dash)
    line = Markup("")
    if dashes is not None:
        line = Markup('<path d="M1 7H27" stroke="{}" stroke-width="2" stroke-dasharray="{}"/>').format(colour, dashes)
    fill = "var(--card)" if key.hollow else colour
    mark = Markup('<path d="{}" fill="{}" stroke="{}" stroke-width="1.4"/>').format(
        _SHAPES.get(key.look.marker, ""), fill, colour
    )
    return _SWATCH.format(line + mark)


_SWATCH = Markup('<svg class="swatch" viewBox="0 0 28 14" width="28" height="14" aria-hidden="true">{}</svg>')
_SHAPES = {
    "o": "M14 3.4a3.6 3.6 0 1 0 .01 0z",
    "s": "M10.6 3.6h6.8v6.8h-6.8z",
    "^": "M14 3l4 7.4h-8z",
    "D": "M14 2.4l4.4 4.6-4.4 4.6-4.4-4.6z",
    "v": "M14 11l4-7.4h-8z",
    "P": "M12.6 3h2.8v2.6h2.6v2.8h-2.6V11h-2.8V8.4H10V5.6h2.6z",
    "X": "M11 3l3 2.6L17 3l1.4 1.6L15.8 7l2.6 2.4L17 11l-3-2.6L11 11 9.6 9.4 12.2 7 9.6 4.6z",
    "*": "M14 2.4l1.3 3 3.3.3-2.5 2.1.8 3.2L14 9.3 11.1 11l.8-3.2-2.5-2.1 3.3-.3z",
}


# Tables --------------------------------------------------------------------------------------------------------------


def _findings(metrics: Json) -> list[dict[str, str]]:
    found = []
    for row in view.rows(metrics, "findings"):
        word = view.clean(row.get("verdict") or "not_measured")
        found.append(
            {
                "claim": view.clean(row.get("claim") or row.get("id") or "?"),
                "expected": view.clean(row.get("expected") or view.DASH),
                "measured": _measured(row.get("measured")),
                "interval": view.span(view.estimate({"it": {"value": 1, "ci95": row.get("ci95")}}, "it")) or view.DASH,
                "verdict": word.replace("_", " "),
                "state": {"reproduced": "good", "predicted": "good", "contradicted": "bad", "not_predicted": "bad"}.get(
                    word, "none"
                ),
                "reason": view.clean(row.get("reason") or ""),
            }
        )
    return found


def _measured(value: Any) -> str:
    found = view.finite(value)
    return view.DASH if value is None else view.number(found) if found is not None else view.clean(value)


WHY = (
    ("difference_s", "difference, s"),
    ("waiting_s", "waiting"),
    ("seconds_per_token_s", "time per token"),
    ("tokens_thought_s", "tokens thought"),
    ("tokens_answered_s", "tokens answered"),
)


def _why(metrics: Json) -> Table | None:
    """What each difference of mean times to final answer is made of, as `compare.why` splits it."""
    by_id = {cell.id: cell for cell in view.cells(metrics)}
    lines, pairs = [], set()
    for row in view.rows(metrics, "comparisons"):
        parts = view.section(row, "why")
        a, b = (by_id.get(view.clean(row.get(side))) for side in ("a", "b"))
        if a is None or b is None or view.finite(parts.get("difference_s")) is None:
            continue
        pairs.add(f"{a.short} − {b.short}")
        figures = [view.signed(view.finite(parts.get(key))) for key, _ in WHY]
        lines.append((a.deployment, view.count(row.get("concurrency")), *figures))
    head = (", ".join(sorted(pairs)), "users", *(title for _, title in WHY))
    return Table(head, tuple(lines)) if lines else None


def _summary(cells: tuple[Cell, ...], metrics: Json, manifest: Json) -> Table | None:
    """Each cell against the SLOs and the price: how many users, at what cost."""
    wanted, (price, currency) = verdict.slos(metrics, manifest), verdict.price(manifest)
    measured = [cell for cell in cells if cell.levels]
    if not measured or (not wanted and price is None):
        return None
    head = ["cell"]
    if wanted:
        head += ["users within the SLO", "for certain", "KV cache holds", "levels tried"]
    if price is not None:
        head += [f"lowest cost of 1000 answers, {currency}".rstrip(", "), "95 % interval", "at"]
    lines = []
    for cell in measured:
        line = [cell.name]
        if wanted:
            sure = verdict.sure(cell) if cell.maximum.get("ci95") else None
            line += [view.count(n) for n in (cell.maximum.get("by_slo"), sure, cell.maximum.get("by_kv_cache"))]
            line.append(_tried(cell))
        if price is not None:
            line += _cheapest(cell, price)
        lines.append(tuple(line))
    notes = tuple(f"SLO: {one}. For certain: met with the whole 95 % interval; 0: at no level." for one in wanted)
    return Table(tuple(head), tuple(lines), notes)


def _tried(cell: Cell) -> str:
    return ", ".join(str(level["concurrency"]) for level in cell.levels)


def _cheapest(cell: Cell, price: float) -> list[str]:
    costs = [(verdict.cost_per_1000_answers(cell, level, price), level) for level in cell.levels]
    known = [row for row in costs if row[0].known]
    if not known:
        return [view.DASH, view.DASH, view.DASH]
    found, level = min(known, key=lambda row: row[0].value or 0.0)
    return [view.number(found.value), view.span(found) or view.DASH, view.users(int(level["concurrency"]))]


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


def _columns(cells: tuple[Cell, ...]) -> list[tuple[str, str, str]]:
    """The columns with their statistic: the median where every level has one, else the mean."""
    found = []
    for key, which, title in LEVEL_COLUMNS:
        chosen = view.typical(cells, key) if which == "typical" else which
        found.append((key, chosen, f"{title}, {'mean' if chosen == 'mean' else 'median'}" if which == "typical" else title))
    return found


def _levels(cells: tuple[Cell, ...]) -> Table:
    columns = _columns(cells)
    head = ("cell", "users", "n", *(title for _, _, title in columns))
    lines = []
    for cell in cells:
        for level in cell.levels:
            figures = [_figure_text(level, key, which) for key, which, _ in columns]
            name = cell.name
            lines.append((name, view.count(level.get("concurrency")), view.count(level.get("n_requests")), *figures))
    return Table(head, tuple(lines), ("— : no figure can be given from so few requests, or it does not apply.",))


def _figure_text(level: Json, key: str, which: str) -> str:
    """A figure, and on a second line its interval or the n that it needs."""
    found = view.estimate(level, key, which)
    if found.value is None:
        return f"{view.DASH}\nneeds n ≥ {found.n_needed}" if found.n_needed else view.DASH
    return f"{view.number(found.value)}\n{view.span(found)}".rstrip()


def _troubles(cells: tuple[Cell, ...]) -> Table:
    """Counts of each outcome and trouble by level; kinds that never occurred are named in a note instead."""
    levels = [(cell, level) for cell in cells for level in cell.levels]
    counts = [{**view.section(level, "troubles"), **view.section(level, "outcomes")} for _, level in levels]
    kinds = list(dict.fromkeys(["ok", *(name for one in counts for name in one)]))
    seen = [name for name in kinds if name == "ok" or any(view.finite(one.get(name)) for one in counts)]
    head = ("cell", "users", *(view.clean(name).replace("_", " ") for name in seen), "load generator", "token totals")
    lines = []
    for (cell, level), one in zip(levels, counts, strict=True):
        gates = [_gate(level.get("client_health")), _gate(level.get("reconciliation"))]
        lines.append((cell.name, view.count(level.get("concurrency")), *(view.count(one.get(k, 0)) for k in seen), *gates))
    absent = [view.clean(name).replace("_", " ") for name in kinds if name not in seen]
    return Table(head, tuple(lines), (f"Looked for and never seen: {', '.join(absent)}.",) if absent else ())


def _gate(value: Any) -> str:
    state = value.get("status", value.get("verdict")) if isinstance(value, Mapping) else value
    return {"pass": "pass", "fail": "FAIL", "not_applicable": "none ran"}.get(str(state), "not checked")


def _cells(cells: tuple[Cell, ...], engines: Mapping[str, Json]) -> Table:
    head = ("cell", "version", "GPU", "status", "levels", "ready after, s", "exit code")
    lines = []
    for cell in cells:
        engine = engines.get(cell.id, {})
        started, ready = view.finite(engine.get("started_unix_s")), view.finite(engine.get("ready_unix_s"))
        waited = None if started is None or ready is None else ready - started
        status = f"{cell.status}: {cell.reason}" if cell.reason else cell.status
        version = cell.version or view.clean(engine.get("engine_version") or view.DASH)
        lines.append(
            (
                cell.name,
                version,
                cell.gpu or view.DASH,
                status,
                _tried(cell) or view.DASH,
                view.number(waited),
                view.count(engine.get("exit_code")),
            )
        )
    return Table(head, tuple(lines))


def _fits(cells: tuple[Cell, ...]) -> list[tuple[str, tuple[str, ...]]]:
    """The fit arithmetic, once for all cells that share it."""
    found: dict[tuple[str, ...], list[str]] = {}
    for cell in cells:
        if lines := _fit_lines(cell):
            found.setdefault(lines, []).append(cell.name)
    return [(", ".join(names), lines) for lines, names in found.items()]


def _fit_lines(cell: Cell) -> tuple[str, ...]:
    lines = cell.fit.get("lines")
    return tuple(view.clean(line) for line in lines) if isinstance(lines, (list, tuple)) else ()


def _plain(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(view.clean(key).replace("_", " "), _value(value)) for key, value in values.items()]


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{view.clean(k)} {_value(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(one) for one in value)
    return view.DASH if value is None else view.clean(value)


def _workload(manifest: Json) -> dict[str, Any]:
    workload = manifest.get("workload")
    return {"workload": workload, "scenario": manifest.get("scenario")} if workload else {}


def _commands(manifest: Json, engines: Mapping[str, Json]) -> list[Command]:
    given = manifest.get("commands")
    found = [Command("This run", _line(one)) for one in given] if isinstance(given, (list, tuple)) else []
    for name, engine in engines.items():
        command = engine.get("command")
        if command:
            variables = [f"{view.clean(k)}={shlex.quote(view.clean(v))}" for k, v in view.section(engine, "env").items()]
            found.append(Command(view.clean(name), " ".join([*variables, _line(command)])))
    return found


def _line(command: Any) -> str:
    if isinstance(command, (list, tuple)):
        return " ".join(shlex.quote(view.clean(part)) for part in command)
    return view.clean(command)


# Terminal ------------------------------------------------------------------------------------------------------------


TERMINAL_COLUMNS = 110


def terminal_table(metrics: Json, manifest: Json | None = None) -> str:
    """The decision as plain text for the end of a run: a line for each level, then the verdict and what is missing."""
    manifest = manifest or {}
    cells = view.cells(metrics)
    keys = _columns(cells)[:4]
    short = ("tokens/s", "per user", "TTFT s", "answer s")
    head = (
        "cell",
        "users",
        "n",
        *(f"{t}{' mean' if which == 'mean' else ''}" for t, (_, which, _) in zip(short, keys, strict=True)),
    )
    body: list[tuple[str, ...]] = [head]
    for cell in cells:
        for level in cell.levels:
            figures = [view.number(view.estimate(level, key, which).value) for key, which, _ in keys]
            body.append((cell.id, view.count(level.get("concurrency")), view.count(level.get("n_requests")), *figures))
        if not cell.levels:
            body.append((cell.id, view.DASH, "0", cell.status, "", "", ""))
    failed = [check for check in verdict.checks(metrics, manifest) if check.state == "fail"]
    text = ["SIMULATED: these figures are predictions"] if verdict.simulated(metrics) else []
    cost = _clock_error((metrics.get("run") or {}).get("clock_error"))
    text += [f"What the fast clock costs, measured: {cost}"] if cost else []
    text += [f"DO NOT RELY ON THIS RUN. {check.name} FAIL: {check.words}" for check in failed]
    text += [""] if text else []
    text += _aligned(body)
    said = [line for line in verdict.lines(metrics, manifest) if manifest or line.asks != "What it costs"]
    decision = [f"{line.asks}: {line.answer}. {line.because}" for line in said]
    decision += [f"Not measured: {one}" for one in verdict.not_measured(metrics, manifest)]
    text += ["", *(textwrap.fill(line, TERMINAL_COLUMNS, subsequent_indent="  ") for line in decision)]
    return "\n".join(text)


def _aligned(body: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in body) for i in range(len(body[0]))]
    return [
        "  ".join(t.ljust(w) if i == 0 else t.rjust(w) for i, (t, w) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in body
    ]
