"""One pass over one level in one process: sends items, counts their ends, watches its own health. Knows no Locust."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Iterator, Sequence

import gevent
from gevent.event import AsyncResult

from loadtest.client.exchange import Endpoint, Exchange
from loadtest.client.in_flight import InFlight
from loadtest.client.pass_options import PassOptions
from loadtest.client.record_builder import RecordBuilder
from loadtest.client.recorder import Ended, Recorder
from loadtest.client.reply import CountTokens, Reply
from loadtest.client.self_health import Telemetry
from loadtest.clock import Clock
from loadtest.errors import RecordError
from loadtest.records.folder import own_stem, request_id
from loadtest.records.pass_facts import Failure, LevelSummary
from loadtest.records.schema import RequestRecord
from loadtest.records.write import write_json
from loadtest.workload.script import Item, indices

START_SPREAD_S = 0.02  # wall: about a token's time, over which users start

START_GAP_S = 0.00025  # wall: the least between two starts; one costs about half of it

GIVE_UP_AFTER_S = 15.0  # wall: with nothing but connection errors for so long, the server has gone


class Level:
    """Runs this process's share of a pass.

    `slots` are the numbers of its users, `endpoints` the servers, `second` another one, which requests may be sent to
    instead. Where there are several servers, items take turns at them: a conversation stays with one, whose cache knows its
    past, and what goes where depends on the workload alone.
    `kept` is called with every record that is on disk, `failed` once, when the measurement itself cannot go on.
    `count_tokens` counts for servers that never tell. `turns`: requests of one task, where they depend on each other; the
    conversations of a workload have turns of their own.
    """

    def __init__(
        self,
        options: PassOptions,
        slots: Sequence[int],
        *endpoints: Endpoint,
        kept: Callable[[RequestRecord], None],
        failed: Callable[[Failure], None],
        count_tokens: CountTokens | None = None,
        turns: int = 1,
        second: Endpoint | None = None,
    ) -> None:
        self.options = options
        self.clock = Clock.start(options.clock_speed)
        self.servers, self.second, self.script = endpoints, second, endpoints[0].script
        self._conversations = turns == 1 and self.script.most_turns > 1
        self.turns = self.script.most_turns if self._conversations else turns
        self._slots = tuple(slots)
        n = None if options.requests is None else self._tasks(options.requests)
        self._indices: Iterator[int] = indices(slots, options.concurrency, n)
        self.quota = None if n is None else sum(map(self._turns_of, indices(slots, options.concurrency, n)))
        self._kept = kept
        self._failed = failed
        self.worker = own_stem("requests").removeprefix("requests-")
        self.recorder = Recorder(
            options.folder,
            self._builder(),
            self.clock,
            backlog=len(self._slots),
            kept=self._on_record,
            failed=self.fail,
            count_tokens=count_tokens,
        )
        self._running = InFlight()
        self.telemetry = Telemetry(
            self.recorder.write_sample, self.clock, self.worker, self._running.__len__, self._running.take
        )
        self.users = self.started = self.measured = 0
        self.connected_wall_s = 0.0
        self.failure: Failure | None = None
        self.closed = False
        self._next_start = 0.0
        self._trouble_since: float | None = None
        self._trouble = 0

    def _tasks(self, requests: int) -> int:
        """Items of the sequence, over all processes, that make so many requests."""
        return self.script.tasks(requests) if self._conversations else math.ceil(requests / self.turns)

    def _turns_of(self, index: int) -> int:
        return self.script.turns(index) if self._conversations else self.turns

    def _builder(self) -> RecordBuilder:
        options = self.options
        return RecordBuilder(
            run_id=options.run_id,
            cell=options.cell,
            concurrency=options.concurrency,
            repeat=options.repeat,
            worker=self.worker,
            clock_anchor_unix_s=self.clock.anchor_unix_s,
            clock_speed=self.clock.speed,
            judges=options.contract.output_format != "free",
        )

    def open(self) -> None:
        """Open the connections, then start the watch over this process. To be called before any user starts."""
        self.connected_wall_s = sum(one.transport.open(self._share) for one in self.servers)
        if self.second is not None:
            self.connected_wall_s += self.second.transport.open(len(self._slots))
        self.telemetry.start()

    @property
    def _share(self) -> int:
        """Connections to each server that are opened ahead; more are opened as they are needed."""
        return math.ceil(len(self._slots) / len(self.servers))

    @property
    def _endpoints(self) -> list[Endpoint]:
        return [*self.servers, *([] if self.second is None else [self.second])]

    def _server_of(self, item: Item) -> Endpoint:
        return self.servers[item.index % len(self.servers)]

    def join(self) -> int:
        """Number a new user: this process's slots first, then (a ramp beyond the level) numbers that nobody else has."""
        ordinal, self.users = self.users, self.users + 1
        if ordinal < len(self._slots):
            return self._slots[ordinal]
        base = self._slots[-1] if self._slots else 0
        return base + self.options.concurrency * (ordinal - len(self._slots) + 1)

    def stagger(self) -> None:
        """Let this user's greenlet start a moment after the one before it, so that no two send at once."""
        gap_s = max(START_GAP_S, START_SPREAD_S / max(1, self.options.concurrency))
        now = time.monotonic()
        start = max(now, self._next_start)
        self._next_start = start + gap_s
        gevent.sleep(start - now)

    @property
    def streams(self) -> int:
        """Users of this process: all of them, unless processes share the load."""
        return len(self._slots)

    def expect(self, requests: int) -> None:
        """End after so many measured requests of this process, where a scenario decides how many there are."""
        self.quota = requests

    def next_item(self) -> Item | None:
        """The next measured item of this process; None when there is none left."""
        index = next(self._indices, None)
        return None if index is None else self.script.measured(index)

    @property
    def in_flight(self) -> int:
        return len(self._running)

    @property
    def finished(self) -> bool:
        """Whether every measured request of this process has ended."""
        return self.quota is not None and self.measured >= self.quota

    def send(self, item: Item, user: int, scheduled_s: float, endpoint: Endpoint | None = None) -> Exchange:
        """Send one request and wait for its end; also when this greenlet is killed meanwhile, what came is kept.

        The recorder decodes and writes it: the user's next request does not wait for that.
        """
        return self._perform(item, user, scheduled_s, endpoint or self._server_of(item), None)

    def converse(self, item: Item, user: int, scheduled_s: float) -> tuple[Exchange, Reply]:
        """The same, and wait for the recorder to decode it: for a next request that depends on the answer."""
        told: AsyncResult[Reply] = AsyncResult()
        exchange = self._perform(item, user, scheduled_s, self._server_of(item), told)
        return exchange, told.get()

    def abandon(self, requests: int) -> None:
        """Reduce the quota by measured requests that cannot be sent, because an earlier request of their task failed."""
        if self.quota is not None:
            self.quota -= requests

    def _perform(
        self, item: Item, user: int, scheduled_s: float, endpoint: Endpoint, told: AsyncResult[Reply] | None
    ) -> Exchange:
        self.recorder.wait_for_room()
        exchange = Exchange(body=item.prepared.body, request_id=self._request_id(item))
        self.started += 1
        self._running.begin(exchange)
        try:
            endpoint.transport.perform(exchange)
        finally:
            self._running.end(exchange)
            self.recorder.take(Ended(item, user, scheduled_s, exchange, endpoint, told))
        return exchange

    def _request_id(self, item: Item) -> str:
        options = self.options
        return request_id(options.run_id, options.cell, options.name, item.phase, item.seq)

    def _on_record(self, record: RequestRecord) -> None:
        self.measured += record.phase == "measure"
        if record.sent_s is not None:
            late_s = record.sent_s - record.scheduled_s - (record.connect_s or 0.0)
            self.telemetry.note_start(late_s / self.clock.speed)
        self._watch_server(record)
        self._kept(record)

    def close(self) -> None:
        """End: the last health sample, the files, and `level-*.json` with what this process did."""
        self.closed = True
        self.recorder.finish()
        self.telemetry.stop()
        for endpoint in self._endpoints:
            endpoint.transport.close()
        self.recorder.close()
        try:
            write_json(self.options.folder / f"level-{self.worker}.json", self.summary())
        except RecordError as error:
            self.fail(Failure(kind="records", message=str(error)))

    def summary(self) -> LevelSummary:
        """What this process did so far."""
        return LevelSummary(
            worker=self.worker,
            host=socket.gethostname(),
            file=self.recorder.file,
            users=self.users,
            connections_opened=self._share * len(self.servers),
            connections_wall_s=round(self.connected_wall_s, 6),
            started=self.started,
            written=self.recorder.written,
            failure=self.failure.message if self.failure else None,
            failure_kind=self.failure.kind if self.failure else None,
        )

    def fail(self, failure: Failure) -> None:
        """End the measurement: we or the server cannot go on."""
        if self.failure is None:
            self.failure = failure
            self._failed(failure)

    def _watch_server(self, record: RequestRecord) -> None:
        """Give up when all requests have met connection errors for a while: the server has gone."""
        if record.outcome != "connection_error":
            self._trouble, self._trouble_since = 0, None
            return
        now = time.monotonic()
        self._trouble += 1
        self._trouble_since = self._trouble_since or now
        if now - self._trouble_since > GIVE_UP_AFTER_S:
            reason = record.error.message if record.error else "no reason given"
            where = ", ".join(self.options.request_urls)
            message = (
                f"{where}: the last {self._trouble} requests, over {now - self._trouble_since:.0f} s, all"
                f" met a connection error ({reason}); is the server still there?"
            )
            self.fail(Failure(kind="server", message=message))
