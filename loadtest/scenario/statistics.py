"""Rows of Locust's own statistics: a few for each request, after it has ended."""

from __future__ import annotations

from typing import Any

import gevent
from locust.env import Environment
from locust.stats import CSV_STATS_INTERVAL_SEC

from loadtest import credentials
from loadtest.records.schema import RequestRecord

_REASONS = {
    "cut_off": "still running when the level ended",
    "truncated": "ended by the limit on its length",
    "no_answer": "stopped by itself without an answer",
}


def add_rows(environment: Environment, record: RequestRecord) -> None:
    """Add the rows of a request that has ended: TTFT, first answer, final answer, in ms of the run.

    Every outcome but `ok`, `cut_off` among them, is a failure of the final answer.
    """
    fire: Any = environment.events.request.fire

    def row(name: str, at_s: float, exception: Exception | None = None) -> None:
        fire(
            request_type="stream",
            name=name,
            response_time=max(0.0, at_s) * 1000,
            response_length=record.completion_tokens or 0,
            exception=exception,
            context={},
        )

    sent_s = record.scheduled_s if record.sent_s is None else record.sent_s
    if record.chunk_s:
        row("TTFT", record.chunk_s[0] - sent_s)
    if record.first_answer_chunk is not None:
        row("first answer", record.chunk_s[record.first_answer_chunk] - sent_s)
    if record.outcome == "ok":
        row("final answer", record.chunk_s[-1] - sent_s)
    else:
        why = f"{record.error.kind}: {record.error.message}" if record.error else _REASONS.get(record.outcome, "")
        row("final answer", record.ended_s - sent_s, RuntimeError(credentials.redacted(f"{record.outcome}: {why}")))


def finish_csv(environment: Environment) -> None:
    """Let Locust write its `--csv` files once more: it does so every second, and at the end closes them as they are."""
    if getattr(environment.parsed_options, "csv_prefix", None):
        gevent.sleep(CSV_STATS_INTERVAL_SEC + 0.1)
