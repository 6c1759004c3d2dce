"""Rows of Locust's own statistics, added after each request has ended. A request is one final answer.

Its parts have rows of their own that Locust's totals leave out. Tokens count as requests do, each in the second in which it
came, so that the row's RPS is tokens/s: in the web page, `--html` and `--csv` alike.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

import gevent
from locust.env import Environment
from locust.stats import CSV_STATS_INTERVAL_SEC, RequestStats, StatsEntry

from loadtest import credentials
from loadtest.records.schema import RequestRecord

TTFT, FIRST_ANSWER, FINAL_ANSWER = "TTFT", "first answer", "final answer"
TIME_PER_TOKEN, CUT_OFF = "time per token", "cut off at the end"
PARTS = frozenset({TTFT, FIRST_ANSWER, TIME_PER_TOKEN, CUT_OFF})
TOKENS = ("output tokens (RPS = tokens/s)", "tokens")  # name and type of the row

_REASONS = {
    "truncated": "ended by the limit on its length",
    "no_answer": "stopped by itself without an answer",
}


def count_final_answers(stats: RequestStats) -> None:
    """Have Locust's totals count final answers, and whatever else a locustfile sends, but not the parts of our requests."""
    log: Any = stats.log_request

    def log_request(method: str, name: str, response_time: int, content_length: int) -> None:
        if name in PARTS:
            stats.entries[name, method].log(response_time, content_length)
        else:
            log(method, name, response_time, content_length)

    vars(stats)["log_request"] = log_request


def add_rows(environment: Environment, record: RequestRecord) -> None:
    """Add the rows of a request that has ended, in ms of the run: TTFT, time per token, first and final answer; its tokens.

    A request that was still running when the level ended has no final answer and has not failed: it is in a row of its own.
    Every other outcome but `ok` is a failure of the final answer.
    """
    fire: Any = environment.events.request.fire

    def row(name: str, s: float, exception: Exception | None = None) -> None:
        fire(
            request_type="stream",
            name=name,
            response_time=max(0.0, s) * 1000,
            response_length=record.completion_tokens or 0,
            exception=exception,
            context={},
        )

    sent_s = record.scheduled_s if record.sent_s is None else record.sent_s
    tokens = record.chunk_tokens or (1,) * len(record.chunk_s)
    if record.chunk_s:
        row(TTFT, record.chunk_s[0] - sent_s)
        _add_tokens(environment.stats.entries[TOKENS], record, tokens)
    if sum(tokens[1:]):
        row(TIME_PER_TOKEN, (record.chunk_s[-1] - record.chunk_s[0]) / sum(tokens[1:]))
    if record.first_answer_chunk is not None:
        row(FIRST_ANSWER, record.chunk_s[record.first_answer_chunk] - sent_s)
    if record.outcome == "ok":
        row(FINAL_ANSWER, record.chunk_s[-1] - sent_s)
    elif record.outcome == "cut_off":
        row(CUT_OFF, record.ended_s - sent_s)
    else:
        why = f"{record.error.kind}: {record.error.message}" if record.error else _REASONS.get(record.outcome, "")
        row(FINAL_ANSWER, record.ended_s - sent_s, RuntimeError(credentials.redacted(f"{record.outcome}: {why}")))


def _add_tokens(entry: StatsEntry, record: RequestRecord, tokens: tuple[int, ...]) -> None:
    """Count the tokens of a request, which have no response time, in the seconds of the wall clock in which they came."""
    for second, n in _by_second(record, tokens):
        entry.num_reqs_per_sec[second] += n
        entry.num_requests += n
        entry.num_none_requests += n
    last_unix_s = record.clock_anchor_unix_s + record.chunk_s[-1] / record.clock_speed
    entry.last_request_timestamp = max(last_unix_s, entry.last_request_timestamp or 0.0)


def _by_second(record: RequestRecord, tokens: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Each second (Unix) in which chunks came, and their tokens."""
    anchor, speed, at = record.clock_anchor_unix_s, record.clock_speed, 0
    while at < len(record.chunk_s):
        second = int(anchor + record.chunk_s[at] / speed)
        end = max(at + 1, bisect_left(record.chunk_s, (second + 1 - anchor) * speed, at))
        yield second, sum(tokens[at:end])
        at = end


def finish_csv(environment: Environment) -> None:
    """Let Locust write its `--csv` files once more: it does so every second, and at the end closes them as they are."""
    if getattr(environment.parsed_options, "csv_prefix", None):
        gevent.sleep(CSV_STATS_INTERVAL_SEC + 0.1)
