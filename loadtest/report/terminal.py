"""The decision as plain text, for the end of a run: compact, aligned, no wider than the terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

from loadtest.report import cells as views
from loadtest.report import checklist, formatting, tables
from loadtest.report import decision as decisions
from loadtest.report.formatting import Json


def comparison_text(found: Json) -> str:
    """The verdicts as a table, and why each time to final answer differs."""
    text = [f"candidate {found['candidate']} / baseline {found['baseline']}"]
    if found["simulated"]:
        text.append("SIMULATED: these figures are predictions")
    if found["allowed"]:
        text.append(f"compared although they differ in {', '.join(found['allowed'])}")
    body = [("cell", "users", "metric", "ratio", "95 % interval", "verdict", "detectable")]
    for row in found["comparisons"]:
        name = row["a"] if row["a"] == row["b"] else f"{row['a']} / {row['b']}"
        least = row["smallest_detectable_ratio"]
        verdict = row["verdict"] if row["p_value"] is not None else f"{row['verdict']} ({row['reason']})"
        ends = row["ratio"]["ci95"]
        body.append(
            (name, str(row["concurrency"]), row["metric"], number_text(row["ratio"]["value"]),
             f"{ends[0]:.3g} to {ends[1]:.3g}" if ends else "-", verdict, "-" if least is None else f"{least - 1:+.1%}")
        )  # fmt: skip
    text += ["", *_left_aligned(body), ""]
    text += [_why(row) for row in found["comparisons"] if (row.get("why") or {}).get("difference_s") is not None]
    text += [f"not compared: {one}" for one in found["not_compared"]]
    return "\n".join(text).rstrip()


def _why(row: Json) -> str:
    why = row["why"]
    lost = f"; {why['reason']}" if why["reason"] else ""
    return (
        f"why, {row['a']} at {row['concurrency']} users: {_signed_s(why['difference_s'])} to the final answer ="
        f" {_signed_s(why['tokens_thought_s'])} tokens thought {_signed_s(why['tokens_answered_s'])} tokens answered"
        f" {_signed_s(why['seconds_per_token_s'])} time per token {_signed_s(why['waiting_s'])} waiting for the first{lost}"
        f"{_thinks_less(row)}"
    )


def _signed_s(seconds: float) -> str:
    """With its sign; what only rounding left of nothing is +0."""
    return f"{round(seconds, 9) + 0.0:+.3g} s"


def _thinks_less(row: Json) -> str:
    """Said where one side's outputs are shorter: then it is not the runtime alone that is slower or faster."""
    tokens = row.get("output_tokens") or {}
    if tokens.get("verdict") not in ("fewer", "more"):
        return ""
    (low, high), value = tokens["ratio"]["ci95"], tokens["ratio"]["value"]
    return f"; outputs of {tokens['verdict']} tokens: {value:.3g} of the baseline's ({low:.3g} to {high:.3g})"


def ratio_text(row: Json) -> str:
    low, high = row["ratio"]["ci95"]
    return f"{row['ratio']['value']:.3g} (95 % interval {low:.3g} to {high:.3g})"


def gate_text(found: Json) -> str:
    text = ["SIMULATED: these figures are predictions", ""] if found["simulated"] else []
    body = [("cell", "users", "required", "measured", "95 % interval", "result")]
    for row in found["rows"]:
        ends = row["ci95"]
        needs = f" (needs {row['n_needed']} requests)" if row["n_needed"] else ""
        body.append(
            (row["cell"], str(row["concurrency"]), row["slo"], number_text(row["value"]),
             f"{ends[0]:.4g} to {ends[1]:.4g}" if ends else "-", f"{row['result']}{needs}")
        )  # fmt: skip
    text += _left_aligned(body) if len(body) > 1 else []
    text += [f"not measured: {one}" for one in found["unmeasured"]]
    text += [f"DOUBTFUL: {one}" for one in found["unhealthy"]]
    return "\n".join(text)


_WORDS = {"slo": "SLO", "kv_cache": "KV cache", "not_reached": "none reached", None: "-"}


def options_text(found: Json) -> str:
    asked = f"{found['users']} users" if found["users"] else f"{found['answers_per_hour']:g} answers an hour"
    source = "PREDICTED" if found["source"] == "performance model" else "SIMULATED" if found["simulated"] else "measured"
    slos = ", ".join(found["slo"])
    text = [f"{asked} within {slos}, {found['headroom']:.0%} of each replica kept free; by {found['source']} ({source})"]
    if source == "PREDICTED":
        text.append("intervals hold the spread of the workload, not the error of the model (docs/performance-model.md)")
    body = [("", "cell", "streams", "replicas", "cards", "1,000 answers", "1M tokens", "J/answer", "limit")]
    for row in found["options"]:
        costs = [_span(row[f"cost_per_{key}"]) for key in ("1000_answers", "million_output_tokens")]
        limit = _WORDS[row["limit"]] + (f" {row['binds']}" if row["binds"] else "")
        word = source if source == "PREDICTED" else "SIMULATED" if row["simulated"] else "measured"
        holds = [_span(row[key]) for key in ("streams_per_replica", "replicas", "cards")]
        body.append((word, row["cell"], *holds, *costs, number_text(row["joules_per_answer"]["value"]), limit))
    text += ["", *_left_aligned(body), ""]
    text += [f"{row['cell']}: {row['reason']}" for row in found["options"] if row["reason"]]
    text += [f"DOUBTFUL: {one}" for one in found["doubts"]]
    return "\n".join(text).rstrip()


def _span(figure: Json) -> str:
    """A figure with its interval; an end that nothing bounds is a question mark."""
    if figure["value"] is None:
        return "-"
    low, high = figure["ci95"] or (None, None)
    ends = "" if low is None and high is None else f" [{_end(low)}, {_end(high)}]"
    return f"{number_text(figure['value'])}{ends}"


def _end(value: float | None) -> str:
    return "?" if value is None else number_text(value)


def number_text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


UNKNOWN_TERMINAL, WIDEST = (100, 24), 120


def decision(metrics: Json, manifest: Json, columns: int | None = None) -> str:
    """A line for each level, then the verdict and what is missing; `columns` wide (default: the terminal, at most 120)."""
    columns = min(columns or shutil.get_terminal_size(UNKNOWN_TERMINAL).columns, WIDEST)
    cells = views.cells(metrics)
    keys = tables.columns(cells)[:4]
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
            figures = [formatting.number(formatting.estimate(level, key, which).value) for key, which, _ in keys]
            body.append(
                (cell.id, formatting.count(level.get("concurrency")), formatting.count(level.get("n_requests")), *figures)
            )
        if not cell.levels:
            body.append((cell.id, formatting.DASH, "0", cell.status, "", "", ""))
    text = [*_warnings(metrics, manifest), *_aligned(body, columns), ""]
    text += [f"{line.asks}: {line.answer}. {line.because}" for line in decisions.lines(metrics, manifest)]
    text += [f"Not measured: {one}" for one in checklist.not_measured(metrics, manifest)]
    return "\n".join(_wrapped(line, columns) for line in text)


def _warnings(metrics: Json, manifest: Json) -> list[str]:
    checks = checklist.checks(metrics, manifest)
    text = ["SIMULATED: these figures are predictions"] if decisions.simulated(metrics) else []
    fast = formatting.section(metrics, "run").get("clock_speed") != 1
    of = "What the fast clock costs" if fast else "How far off the simulator's own times"
    cost = checklist.clock_error(metrics)
    text += [f"{of}, measured: {cost}"] if cost else []
    text += [f"DO NOT RELY ON THIS RUN. {check.name} FAIL: {check.words}" for check in checks if check.state == "fail"]
    text += [f"{check.name}: {check.words}" for check in checks if check.name == "Token counts"]
    text += _failures(metrics)
    return [*text, ""] if text else []


def _failures(metrics: Json) -> list[str]:
    """Each level of which requests failed: how many, of how many, and how; no time of theirs is in the figures."""
    return [line for cell in views.cells(metrics) for level in cell.levels if (line := _failure(cell.id, level))]


def _failure(cell: str, level: Json) -> str | None:
    share, n = (
        formatting.finite(formatting.section(level, "failed_share").get("value")),
        formatting.finite(level.get("n_requests")),
    )
    if not share or not n:
        return None
    kinds = ", ".join(
        f"{formatting.clean(kind)} {formatting.count(count)}"
        for kind, count in formatting.section(level, "error_kinds").items()
    )
    users = formatting.count(level.get("concurrency"))
    return f"FAILED: {share * n:.0f} of {n:.0f} requests, {cell} at {users} users ({kinds})"


def _wrapped(line: str, columns: int) -> str:
    return textwrap.fill(line, columns, subsequent_indent="  ") if len(line) > columns else line


def _left_aligned(body: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in body) for i in range(len(body[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in body]


def _aligned(body: Sequence[tuple[str, ...]], columns: int) -> list[str]:
    """The rows with their columns aligned; a first column that is too wide is cut in its middle."""
    widths = [max(len(row[i]) for row in body) for i in range(len(body[0]))]
    widths[0] = max(8, min(widths[0], columns - sum(width + 2 for width in widths[1:])))
    lines = []
    for first, *rest in body:
        cells = [_cut(first, widths[0]).ljust(widths[0]), *(t.rjust(w) for t, w in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines


def _cut(text: str, width: int) -> str:
    """
    >>> _cut("sglang_qwq-32b-awq_tp1", 12)
    'sglan…wq_tp1'
    """
    if len(text) <= width:
        return text
    return f"{text[: (width - 1) // 2]}…{text[len(text) - width // 2 :]}"
