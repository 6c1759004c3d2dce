"""One request and what came back: limits, raw reads with their time stamps, and the transport interface."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Protocol

import gevent.socket

from loadtest.errors import UsageError
from loadtest.records.schema import Api, Outcome, RequestError
from loadtest.workload.script import Script

TEXT = re.compile(rb'"(?:content|reasoning|reasoning_content|text|thinking|delta|arguments|name)"\s*:\s*"[^"]')


@dataclass(frozen=True, slots=True)
class Limits:
    """When to give a request up, each limit apart; the defaults let a model think for an hour and more.

    `connect_s` is wall time; the others are seconds of the run. `silence_s` is the longest gap between two pieces of
    text (comments and empty chunks do not count). `size_bytes` bounds what one response may send and hold in memory; the
    longest reply of QwQ-32B, 131,072 tokens each with its usage, takes about 70 MB.
    """

    connect_s: float = 30.0
    first_token_s: float = 600.0
    silence_s: float = 300.0
    total_s: float = 7200.0
    size_bytes: int = 128 * 2**20

    def __post_init__(self) -> None:
        for name in ("connect_s", "first_token_s", "silence_s", "total_s", "size_bytes"):
            if not getattr(self, name) > 0:
                raise UsageError(f"limit {name}: expected a number above 0, got {getattr(self, name)}")


@dataclass(slots=True, eq=False)
class Exchange:
    """A request and what came back, raw: readings of `time.monotonic()` (wall s) and the bytes of each read.

    `reads` holds the arrival of the last byte of each read; `earliest_s`, by the index of a read that may hold several
    events, how early the first of them can have come. `outcome` and `error` say how the transport failed; both are None
    where the response came to its end by itself.
    """

    body: bytes
    request_id: str = ""  # sent as x-request-id, so that a server's log and ours can be laid side by side
    began: float = 0.0
    sent: float | None = None
    headers_at: float | None = None
    ended: float = 0.0
    status: int | None = None
    content_type: str = ""
    reads: list[float] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)
    earliest_s: dict[int, float] = field(default_factory=dict)
    unread_s: float = 0.0  # the longest that bytes lay unread, of waits above `transport.LATE_S`
    unstamped: int = 0  # reads without a stamp of the kernel
    write_s: float = 0.0  # how long the first write took: the request left within that time after `sent`
    connect_wall_s: float = 0.0
    resends: int = 0  # times that it was sent anew, its kept connection having been closed before it came
    outcome: Outcome | None = None
    error: RequestError | None = None
    done: gevent.event.Event = field(default_factory=gevent.event.Event)
    # What the periodic check of the limits knows so far:
    seen_pieces: int = 0
    text_at: float | None = None

    @property
    def closed_unread(self) -> bool:
        """Whether the connection ended before anything of the response came."""
        return self.error is not None and self.error.kind in ("closed", "reset") and self.headers_at is None

    @property
    def wall_s(self) -> float:
        """From the write of the request to its end."""
        return self.ended - (self.began if self.sent is None else self.sent)

    @property
    def refused(self) -> bool:
        """Whether the request failed at once, without any text; the user should wait a little before the next one."""
        if self.outcome == "cut_off" or len(self.pieces) > 2:
            return False
        return self.status != 200 or self.outcome is not None or b'"error"' in b"".join(self.pieces)

    def fail(self, outcome: Outcome, kind: str, message: str) -> None:
        """Note why the transport gave up; the first reason stays."""
        if self.outcome is None:
            self.outcome = outcome
            self.error = RequestError(kind=kind, message=message, http_status=self.status)


class Transport(Protocol):
    """What a user needs of a client; tests put one without sockets in its place."""

    def open(self, connections: int) -> float:
        """Open so many connections ahead of their use; wall seconds that it took."""

    def perform(self, exchange: Exchange) -> None:
        """Send and wait for the end. Fills `exchange` also when the waiting greenlet is killed in between."""

    def close(self) -> None:
        """Drop every connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A server, and what it is asked. `opened`: its prompts end inside the thinking, as those of a reasoning model do."""

    transport: Transport
    script: Script
    opened: bool
    api: Api = "chat"
    name: str | None = None  # of a second one: its requests are recorded under this name
    replica: str | None = None  # of one of several that take turns: likewise


def overdue(exchange: Exchange, now: float, limits: Limits, speed: float = 1.0) -> tuple[Outcome, str, str] | None:
    """Which limit a running exchange has passed at `now` (monotonic wall s): outcome, kind, message; or None."""
    if exchange.sent is None:
        return None  # connecting has a limit of its own
    elapsed_s = (now - exchange.sent) * speed
    if elapsed_s > limits.total_s:
        return "timeout", "total", f"still streaming after {limits.total_s:g} s; raise the limit on the total time"
    if (now - (exchange.text_at or exchange.sent)) * speed <= min(limits.first_token_s, limits.silence_s):
        return None
    _note_text(exchange)  # only now, for it costs more than all the rest
    if exchange.text_at is None:
        if elapsed_s > limits.first_token_s:
            return "timeout", "first_token", f"no text within {limits.first_token_s:g} s of sending"
    elif (now - exchange.text_at) * speed > limits.silence_s:
        return "stalled", "silence", f"no text for {limits.silence_s:g} s in the middle of the stream"
    return None


def _note_text(exchange: Exchange) -> None:
    """Find the newest read that carries text among those not looked at yet, from the end: mostly the first one tried."""
    pieces = exchange.pieces
    for index in range(len(pieces) - 1, exchange.seen_pieces - 1, -1):
        if TEXT.search(pieces[index]):
            exchange.text_at = exchange.reads[index]
            break
    exchange.seen_pieces = len(pieces)
