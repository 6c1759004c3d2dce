"""The table of `loadtest accept` for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from loadtest.analysis.acceptance import AcceptanceRow
from loadtest.report.terminal import SIMULATED

_COLUMNS = 110


def acceptance_text(rows: Sequence[AcceptanceRow], *, simulated: bool, files: Sequence[str]) -> str:
    """The counts, then each row with what was expected and what was seen; last the files that prove it."""
    counts = ", ".join(f"{n} {result}" for result in ("pass", "fail", "not run") if (n := _count(rows, result)))
    text = [f"accepted: {counts}", *([SIMULATED] if simulated else []), ""]
    for row in rows:
        text.append(f"{row.result.upper():8} {row.check}, {row.of}")
        text.append(textwrap.fill(f"expected {row.expected}; got {row.got}", _COLUMNS, initial_indent=" " * 9,
                                  subsequent_indent=" " * 9))  # fmt: skip
    return "\n".join([*text, "", *(f"evidence: {one}" for one in files)])


def _count(rows: Sequence[AcceptanceRow], result: str) -> int:
    return sum(row.result == result for row in rows)
