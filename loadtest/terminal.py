"""The decision as plain text, for the end of a run: compact, aligned, no wider than the terminal."""

from __future__ import annotations

import shutil
import textwrap

from loadtest import tables, verdict, view
from loadtest.view import Json

UNKNOWN_TERMINAL, WIDEST = (100, 24), 120


def decision(metrics: Json, manifest: Json, columns: int | None = None) -> str:
    """A line for each level, then the verdict and what is missing; `columns` wide (default: the terminal, at most 120)."""
    columns = min(columns or shutil.get_terminal_size(UNKNOWN_TERMINAL).columns, WIDEST)
    cells = view.cells(metrics)
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
            figures = [view.number(view.estimate(level, key, which).value) for key, which, _ in keys]
            body.append((cell.id, view.count(level.get("concurrency")), view.count(level.get("n_requests")), *figures))
        if not cell.levels:
            body.append((cell.id, view.DASH, "0", cell.status, "", "", ""))
    text = [*_warnings(metrics, manifest), *_aligned(body, columns), ""]
    text += [f"{line.asks}: {line.answer}. {line.because}" for line in verdict.lines(metrics, manifest)]
    text += [f"Not measured: {one}" for one in verdict.not_measured(metrics, manifest)]
    return "\n".join(_wrapped(line, columns) for line in text)


def _warnings(metrics: Json, manifest: Json) -> list[str]:
    checks = verdict.checks(metrics, manifest)
    text = ["SIMULATED: these figures are predictions"] if verdict.simulated(metrics) else []
    fast = view.section(metrics, "run").get("clock_speed") != 1
    of = "What the fast clock costs" if fast else "How far off the simulator's own times"
    cost = verdict.clock_error(metrics)
    text += [f"{of}, measured: {cost}"] if cost else []
    text += [f"DO NOT RELY ON THIS RUN. {check.name} FAIL: {check.words}" for check in checks if check.state == "fail"]
    text += [f"{check.name}: {check.words}" for check in checks if check.name == "Token counts"]
    text += _failures(metrics)
    return [*text, ""] if text else []


def _failures(metrics: Json) -> list[str]:
    """Each level of which requests failed: how many, of how many, and how; no time of theirs is in the figures."""
    return [line for cell in view.cells(metrics) for level in cell.levels if (line := _failure(cell.id, level))]


def _failure(cell: str, level: Json) -> str | None:
    share, n = view.finite(view.section(level, "failed_share").get("value")), view.finite(level.get("n_requests"))
    if not share or not n:
        return None
    kinds = ", ".join(
        f"{view.clean(kind)} {view.count(count)}" for kind, count in view.section(level, "error_kinds").items()
    )
    return f"FAILED: {share * n:.0f} of {n:.0f} requests, {cell} at {view.count(level.get('concurrency'))} users ({kinds})"


def _wrapped(line: str, columns: int) -> str:
    return textwrap.fill(line, columns, subsequent_indent="  ") if len(line) > columns else line


def _aligned(body: list[tuple[str, ...]], columns: int) -> list[str]:
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
