"""The table of `loadtest accept`: for a terminal, and as Markdown to paste into an issue."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from loadtest.analysis.acceptance import AcceptanceReport, AcceptanceRow
from loadtest.report.terminal import SIMULATED
from loadtest.report.text.gates import in_markdown

_COLUMNS = 80
_INDENT = " " * 9
_RESULTS = ("fail", "not run", "pass")


def acceptance_text(rows: Sequence[AcceptanceRow], *, simulated: bool, files: Sequence[str]) -> str:
    """The counts, then each row, what failed last; then the files that prove it. 80 columns."""
    text = [_counts(rows), *([SIMULATED] if simulated else []), ""]
    for row in sorted(rows, key=lambda row: _RESULTS.index(row.result), reverse=True):
        text.append(f"{row.result.upper():8} {row.check}, {row.of}")
        said = row.got if row.result != "fail" else f"expected {row.expected}; got {row.got}"
        text += textwrap.wrap(said, _COLUMNS, initial_indent=_INDENT, subsequent_indent=_INDENT)
    return "\n".join([*text, "", *(f"evidence: {one}" for one in files)])


def acceptance_markdown(report: AcceptanceReport, *, simulated: bool) -> str:
    """The same as a table, what failed first."""
    kinds = ", ".join(f"{report.gpus.count(kind)} x {kind}" for kind in dict.fromkeys(report.gpus)) or "no GPU"
    head = [f"### loadtest {report.loadtest} on {in_markdown(kinds)}: {_counts(report.rows)}", ""]
    head += [f"**{SIMULATED}**", ""] if simulated else []
    rows = sorted(report.rows, key=lambda row: _RESULTS.index(row.result))
    lines = [_markdown_row((row.result, row.check, row.of, row.expected, row.got)) for row in rows]
    return "\n".join([*head, "| | check | of | expected | got |", "|---|---|---|---|---|", *lines]) + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(in_markdown, cells))} |"


def _counts(rows: Sequence[AcceptanceRow]) -> str:
    """
    >>> _counts([AcceptanceRow("decision", "x", "a", "b", "pass")])
    '1 check: 1 pass'
    """
    counts = ", ".join(f"{n} {result}" for result in _RESULTS if (n := sum(row.result == result for row in rows)))
    return f"{len(rows)} check{'' if len(rows) == 1 else 's'}: {counts}"
