"""Results of evalscope perf: `benchmark_data.db`, a table with each request, and what was asked and the totals beside it.

The bodies of responses in it are Python pickles: they are never read.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from typing import Any

from loadtest.errors import UsageError
from loadtest.records.peers.result import (
    PeerArrivals,
    PeerFile,
    PeerPass,
    PeerRequest,
    PeerResult,
    Reader,
    at,
    count_at,
    figures_of,
    is_number,
    text_at,
)

_COLUMNS = "success, start_time, first_chunk_latency, latency, inter_token_latencies, prompt_tokens, completion_tokens"
_MOST_ROWS = 1_000_000
_STEPS = 1000  # of the database's machine, after which it is asked whether to go on
_MOST_CALLS = 1_000_000


def _read(file: PeerFile) -> PeerResult:
    asked = file.beside("benchmark_args.json")
    rate = at(asked, "rate")
    open_loop = at(asked, "open_loop") is True and is_number(rate) and rate > 0
    one = PeerPass(
        concurrency=count_at(asked, "parallel"),
        requests=tuple(_request(row) for row in _rows(file)),
        figures=figures_of(file.beside("benchmark_summary.json"), frozenset({"Concurrency", "Request Rate (req/s)"})),
        arrivals=PeerArrivals("open loop", float(rate)) if open_loop else None,
    )
    return PeerResult(passes=(one,), model=text_at(asked, "model"))


def _rows(file: PeerFile) -> list[tuple[Any, ...]]:
    """The requests, in order of their start. A table alone is read: a view or a trigger may be made to have no end."""
    calls = iter(range(_MOST_CALLS))
    try:
        with contextlib.closing(sqlite3.connect(":memory:")) as database:
            database.set_progress_handler(lambda: int(next(calls, None) is None), _STEPS)
            database.deserialize(file.database)
            database.execute("PRAGMA trusted_schema = OFF")
            kinds = database.execute("SELECT type FROM sqlite_schema WHERE name = 'result'").fetchall()
            if kinds != [("table",)]:
                raise UsageError(
                    f"{file.path}: expected the table result of evalscope perf, got none; name benchmark_data.db"
                )
            return database.execute(f"SELECT {_COLUMNS} FROM result ORDER BY start_time LIMIT {_MOST_ROWS}").fetchall()
    except (sqlite3.Error, OverflowError, ValueError) as error:
        raise UsageError(
            f"{file.path}: expected a database of evalscope perf, got a damaged one ({str(error)[:80]!r})"
        ) from None


def _request(row: tuple[Any, ...]) -> PeerRequest:
    success, start, first, latency, gaps, prompt, output = row
    start_s, first_s, end_s = (float(one) if isinstance(one, int | float) else None for one in (start, first, latency))
    prompt_tokens, output_tokens = (one if isinstance(one, int) else None for one in (prompt, output))
    if success != 1:
        return PeerRequest(start_s=start_s, prompt_tokens=prompt_tokens, error="no reason told")
    return PeerRequest(
        start_s=start_s,
        first_s=first_s,
        end_s=end_s,
        gaps_s=tuple(_gaps(gaps)) or None,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
    )


def _gaps(text: Any) -> Iterator[float]:
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(text) if isinstance(text, str) else []
        if isinstance(found, list) and all(map(is_number, found)):
            yield from found


EVALSCOPE = Reader(
    tool="evalscope perf",
    written_by="evalscope perf: benchmark_data.db",
    keys=frozenset(),
    read=_read,
    notes=("Its gaps are between chunks; how many tokens each carried is not told, so gaps between tokens are unknown.",),
)
