"""One pass over one level in one process: sends items, keeps their records, watches its own health. Knows no Locust."""

from __future__ import annotations

import math
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gevent.event
from gevent.event import AsyncResult
from gevent.queue import Queue
from gevent.threadpool import ThreadPool

from loadtest.client import reply, thinking
from loadtest.client.exchange import Exchange, Transport
from loadtest.client.recorder import attempt, cut, encoded, forget
from loadtest.client.self_health import Telemetry
from loadtest.clock import Clock
from loadtest.errors import RecordError
from loadtest.grading import answers
from loadtest.records.folder import level_path, request_id, requests_stem
from loadtest.records.schema import ANSWER_LIMIT_BYTES, HealthSample, RequestRecord
from loadtest.records.write import JsonlWriter, write_json
from loadtest.workload.contract import Contract
from loadtest.workload.script import Item, Script, indices
from loadtest.workload.workload import Workload

START_SPREAD_S = 0.02  # wall: about a token's time, over which users start

START_GAP_S = 0.00025  # wall: the least between two starts; one costs about half of it

SWITCH_INTERVAL_S = 0.0001  # wall: the longest that the writing thread may keep Python from the loop

GIVE_WAY_S = 0.005  # wall: the longest that a slice waits for the sockets

BACKLOG_REPLIES = 64  # or one a user, where there are more of them: the most that wait to be decoded

GIVE_UP_AFTER_S = 15.0  # wall: with nothing but connection errors for so long, the server has gone


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What one pass is: resolved options, the same in every worker."""

    run: Path
    run_id: str
    cell: str
    engine: str
    model: str
    url: str
    concurrency: int
    repeat: int
    requests: int | None
    warmup_requests: int
    seed: int
    clock_speed: float
    contract: Contract

    @property
    def folder(self) -> Path:
        return level_path(self.run, self.cell, self.concurrency, self.repeat)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A second server, and what it is asked: the same sequence in bodies of its own, for its model is another one.

    `opened`: its prompts end inside the thinking, as those of a reasoning model do.
    """

    name: str
    transport: Transport
    script: Script
    opened: bool


class Level:
    """Runs this process's share of a pass.

    `slots` are the numbers of its users. `kept` is called with every record that is on disk, `failed` once, when the
    measurement itself cannot go on. `count_tokens` counts for servers that never tell. `turns`: requests of one task, where
    they depend on each other. `second`: another endpoint, which requests may be sent to instead.
    """

    def __init__(
        self,
        settings: Settings,
        workload: Workload,
        slots: Sequence[int],
        *,
        transport: Transport,
        kept: Callable[[RequestRecord], None],
        failed: Callable[[str], None],
        count_tokens: Callable[[str], int] | None = None,
        turns: int = 1,
        second: Endpoint | None = None,
    ) -> None:
        self._count_tokens = count_tokens
        self.settings = settings
        self.clock = Clock.start(settings.clock_speed)
        self.script = Script(workload, settings.contract, model=settings.model, engine=settings.engine, seed=settings.seed)
        self.second = second
        self.turns = turns
        self._slots = tuple(slots)
        n = None if settings.requests is None else math.ceil(settings.requests / turns)
        self._indices: Iterator[int] = indices(slots, settings.concurrency, n)
        self.quota = None if n is None else turns * sum(1 for _ in indices(slots, settings.concurrency, n))
        self._transport = transport
        self._kept = kept
        self._failed = failed
        self._opened = opens_in_prompt(settings.contract, settings.model)
        self.worker = requests_stem().removeprefix("requests-")
        self._writer = JsonlWriter(settings.folder, requests_stem())
        self._health_writer = JsonlWriter(settings.folder, "client_health")
        self._pool = ThreadPool(1)
        self._queue: Queue[Any] = Queue()
        self._room = gevent.event.Event()
        self._room.set()
        self._clerk = gevent.spawn(self._keep_books)
        self._clerk.link_exception(lambda clerk: self.fail(f"a bug: records can no longer be kept: {clerk.exception!r}"))
        self.telemetry = Telemetry(self._keep_sample, self.clock, self.worker, lambda: self.in_flight)
        self.in_flight = self.users = self.started = self.written = self.measured = 0
        self.connected_wall_s = 0.0
        self.failure: str | None = None
        self.closed = False
        self._next_start = 0.0
        self._trouble_since: float | None = None
        self._trouble = 0
        self._seq: dict[int, int] = {}

    def open(self) -> None:
        """Open the connections, then start the watch over this process. To be called before any user starts."""
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self.connected_wall_s = self._transport.open(len(self._slots))
        if self.second is not None:
            self.connected_wall_s += self.second.transport.open(len(self._slots))
        self.telemetry.start()

    def join(self) -> int:
        """Number a new user: this process's slots first, then (a ramp beyond the level) numbers that nobody else has."""
        ordinal, self.users = self.users, self.users + 1
        if ordinal < len(self._slots):
            return self._slots[ordinal]
        base = self._slots[-1] if self._slots else 0
        return base + self.settings.concurrency * (ordinal - len(self._slots) + 1)

    def stagger(self) -> None:
        """Let this user's greenlet start a moment after the one before it, so that no two send at once."""
        gap_s = max(START_GAP_S, START_SPREAD_S / max(1, self.settings.concurrency))
        now = time.monotonic()
        start = max(now, self._next_start)
        self._next_start = start + gap_s
        gevent.sleep(start - now)

    def next_item(self) -> Item | None:
        """The next measured item of this process; null when there is none left."""
        index = next(self._indices, None)
        return None if index is None else self.script.measured(index)

    @property
    def finished(self) -> bool:
        """Whether every measured request of this process has ended."""
        return self.quota is not None and self.measured >= self.quota

    def send(self, item: Item, user: int, scheduled_s: float, endpoint: Endpoint | None = None) -> Exchange:
        """Send one request and wait for its end; also when this greenlet is killed meanwhile, what came is kept.

        The clerk decodes and writes it: the user's next request does not wait for that.
        """
        return self._perform(item, user, scheduled_s, endpoint, None)

    def converse(self, item: Item, user: int, scheduled_s: float) -> tuple[Exchange, reply.Reply]:
        """The same, and wait for the clerk to decode it: for a next request that depends on the answer."""
        told: AsyncResult[reply.Reply] = AsyncResult()
        exchange = self._perform(item, user, scheduled_s, None, told)
        return exchange, told.get()

    def abandon(self, requests: int) -> None:
        """Measured requests that will not be sent, for what they depend on failed."""
        if self.quota is not None:
            self.quota -= requests

    def _perform(
        self, item: Item, user: int, scheduled_s: float, endpoint: Endpoint | None, told: AsyncResult[reply.Reply] | None
    ) -> Exchange:
        self._room.wait()
        exchange = Exchange(body=item.prepared.body, request_id=self._request_id(item))
        self.started += 1
        self.in_flight += 1
        try:
            (endpoint.transport if endpoint else self._transport).perform(exchange)
        finally:
            self.in_flight -= 1
            self._queue.put((item, user, scheduled_s, exchange, endpoint, told))
            if self._behind:
                self._room.clear()
        return exchange

    def _request_id(self, item: Item) -> str:
        settings = self.settings
        return request_id(settings.run_id, settings.cell, settings.concurrency, settings.repeat, item.phase, item.seq)

    def _keep_books(self) -> None:
        """The clerk: one reply at a time, in slices, so that between two of them every socket is read."""
        for item, user, scheduled_s, exchange, endpoint, told in self._queue:
            if not self._behind:
                self._room.set()
            got = self._decoded(item, exchange, opened=endpoint.opened if endpoint else self._opened)
            if told is not None:
                told.set(got)
            record = self._record(item, user, scheduled_s, exchange, got)
            if endpoint is not None:
                record = replace(record, endpoint=endpoint.name)
            line = encoded(record, self._give_way)
            error = self._pool.apply(attempt, (self._writer, line))  # a disk may take tens of ms
            if error is not None:
                self.fail(str(error))
                continue
            self.written += 1
            self.measured += record.phase == "measure"
            if record.sent_s is not None:
                self.telemetry.note_start((record.sent_s - scheduled_s - (record.connect_s or 0.0)) / self.clock.speed)
            self._watch_server(record)
            self._kept(record)
            forget(exchange, self._give_way)

    def _give_way(self) -> None:
        if not self._behind:
            give_way()

    @property
    def _behind(self) -> bool:
        """Whether so many replies wait for the clerk that memory goes before time: a server at full speed can do that.

        The clerk gives way no more then, and no request is sent. Health tells: late starts, a full core.
        """
        return bool(self._queue.qsize() >= max(BACKLOG_REPLIES, len(self._slots)))

    def close(self) -> None:
        """End: the last health sample, the files, and `level-*.json` with what this process did."""
        self.closed = True
        self._queue.put(StopIteration)
        self._clerk.join()
        self.telemetry.stop()
        self._transport.close()
        if self.second is not None:
            self.second.transport.close()
        self._pool.kill()
        self._writer.close()
        self._health_writer.close()
        try:
            write_json(self.settings.folder / f"level-{self.worker}.json", self.summary())
        except RecordError as error:
            self.fail(str(error))

    def summary(self) -> dict[str, object]:
        """What this process did: counts of requests started and records written, and the connecting before the start."""
        return {
            "worker": self.worker,
            "host": socket.gethostname(),
            "file": self._writer.path.name,
            "users": self.users,
            "connections_opened": len(self._slots),
            "connections_wall_s": round(self.connected_wall_s, 6),
            "started": self.started,
            "written": self.written,
            "failure": self.failure,
        }

    def fail(self, message: str) -> None:
        """End the measurement: something of ours, or the server for good, does not work."""
        if self.failure is None:
            self.failure = message
            self._failed(message)

    def _decoded(self, item: Item, exchange: Exchange, *, opened: bool) -> reply.Reply:
        return reply.read(
            exchange,
            self.clock,
            opened=opened,
            forced_tokens=item.prepared.forced_tokens,
            count_tokens=self._count_tokens,
            pause=self._give_way,
        )

    def _record(self, item: Item, user: int, scheduled_s: float, exchange: Exchange, got: reply.Reply) -> RequestRecord:
        settings, clock, prepared = self.settings, self.clock, item.prepared
        answer = cut(got.answer, ANSWER_LIMIT_BYTES)
        return RequestRecord(
            run_id=settings.run_id,
            cell=settings.cell,
            concurrency=settings.concurrency,
            repeat=settings.repeat,
            phase=item.phase,
            worker=self.worker,
            user=user,
            seq=item.seq,
            prompt_id=prepared.prompt.id,
            scheduled_s=round(scheduled_s, 7),
            sent_s=self._offset_s(exchange.sent),
            headers_s=self._offset_s(exchange.headers_at),
            chunk_s=got.chunk_s,
            chunk_tokens=got.chunk_tokens,
            first_answer_chunk=got.first_answer_chunk,
            ended_s=round(clock.offset_s(exchange.ended), 7),
            prompt_tokens=got.prompt_tokens,
            completion_tokens=got.completion_tokens,
            reasoning_tokens=got.reasoning_tokens,
            cached_tokens=got.cached_tokens,
            token_count_source=got.token_count_source,
            finish_reason=got.finish_reason,
            outcome=got.outcome,
            error=got.error,
            answer=answer,
            answer_correct=self._check(got.answer, item) if got.outcome == "ok" else None,
            request_sha256=prepared.sha256,
            clock_anchor_unix_s=clock.anchor_unix_s,
            clock_speed=clock.speed,
            connect_s=round(exchange.connect_wall_s * clock.speed, 7),
            thinking_field=got.thinking_field,
            think_closed=got.think_closed,
            resends=exchange.resends,
            output_end=None if got.outcome == "ok" and answer == got.answer else got.output_end,
            forced_tokens=prepared.forced_tokens,
            prompt_chars=prepared.prompt.chars,
            task=None if item.turn is None else item.index,
            turn=item.turn,
            task_turns=None if item.turn is None else item.turns,
        )

    def _check(self, answer: str | None, item: Item) -> bool | None:
        """Is it right? Not asked where the contract leaves the form of answers free."""
        if not answer or self.settings.contract.output_format == "free":
            return None
        return answers.check(answer, item.prepared.prompt)

    def _offset_s(self, monotonic_s: float | None) -> float | None:
        return None if monotonic_s is None else round(self.clock.offset_s(monotonic_s), 7)

    def _watch_server(self, record: RequestRecord) -> None:
        """Give up when nothing but connection errors has come back for a while: the server has gone."""
        if record.outcome != "connection_error":
            self._trouble, self._trouble_since = 0, None
            return
        now = time.monotonic()
        self._trouble += 1
        self._trouble_since = self._trouble_since or now
        if now - self._trouble_since > GIVE_UP_AFTER_S:
            reason = record.error.message if record.error else "no reason given"
            self.fail(
                f"{self.settings.url}: the last {self._trouble} requests, over {now - self._trouble_since:.0f} s, all met a"
                f" connection error ({reason}); is the server still there?"
            )

    def _keep_sample(self, sample: HealthSample) -> None:
        error = self._pool.apply(attempt, (self._health_writer, sample))
        if error is not None:
            self.fail(str(error))


def opens_in_prompt(contract: Contract, model: str) -> bool:
    """Whether the prompt ends inside the thinking, so that the output closes what it never opened."""
    return contract.thinking_prelude == "template" and thinking.opens_in_prompt(model)


def give_way() -> None:
    """Go on when every socket that is ready has been read, or after a few ms where there are always some.

    `gevent.sleep(0)` would not do: it comes back up to 50 times before the loop looks at its sockets again.
    """
    hub = gevent.get_hub()
    with gevent.Timeout(GIVE_WAY_S, False):
        hub.wait(hub.loop.idle())
