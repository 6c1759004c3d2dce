"""Records of requests: decoded from what came back, encoded in slices, and written off the reading loop."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gevent
import gevent.event
import msgspec
from gevent.event import AsyncResult
from gevent.queue import Queue
from gevent.threadpool import ThreadPool

from loadtest.client import reply
from loadtest.client.exchange import Endpoint, Exchange
from loadtest.client.record_builder import RecordBuilder, Sending
from loadtest.clock import Clock
from loadtest.errors import RecordError
from loadtest.records.folder import own_stem
from loadtest.records.pass_facts import Failure
from loadtest.records.schema import RequestRecord
from loadtest.records.write import JsonlWriter
from loadtest.workload.script import Item

SLICE_TIMES = 1024  # encoded, or freed, at a time: about 0.05 ms

SWITCH_INTERVAL_S = 0.0001  # wall: the longest that the writing thread may keep Python from the loop

GIVE_WAY_S = 0.005  # wall: the longest that a slice waits for the sockets

BACKLOG_REPLIES = 64  # or one a user, where there are more of them: the most that wait to be decoded


@dataclass(frozen=True, slots=True)
class Ended:
    """A request that has ended. `told` gets the decoded reply, if the user waits for it."""

    item: Item
    user: int
    scheduled_s: float
    exchange: Exchange
    endpoint: Endpoint
    told: AsyncResult[reply.Reply] | None = None


class Recorder:
    """Decodes, encodes and writes one reply at a time, in slices, so that every socket is read between two of them.

    `backlog`: how many replies may wait for it. `kept` is called with every record that is on disk, `failed` once, when a
    record cannot be kept. `count_tokens` counts for servers that never tell.
    """

    def __init__(
        self,
        folder: Path,
        builder: RecordBuilder,
        clock: Clock,
        *,
        backlog: int,
        kept: Callable[[RequestRecord], None],
        failed: Callable[[Failure], None],
        count_tokens: reply.CountTokens | None = None,
    ) -> None:
        self.written = 0
        self._builder = builder
        self._clock = clock
        self._backlog = max(BACKLOG_REPLIES, backlog)
        self._kept = kept
        self._failed = failed
        self._count_tokens = count_tokens
        self._requests = JsonlWriter(folder, own_stem("requests"))
        self._health = JsonlWriter(folder, own_stem("client_health"))
        self._pool = ThreadPool(1)
        self._queue: Queue[Ended] = Queue()
        self._room = gevent.event.Event()
        self._room.set()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._clerk = gevent.spawn(self._work)
        self._clerk.link_exception(self._on_bug)

    @property
    def file(self) -> str:
        """Name of the file of requests."""
        return self._requests.path.name

    @property
    def files(self) -> tuple[str, str]:
        """Names of all its files."""
        return self.file, self._health.path.name

    def wait_for_room(self) -> None:
        """Return when few enough replies wait: a new request may be sent."""
        self._room.wait()

    def take(self, ended: Ended) -> None:
        """Queue a request that has ended; returns at once."""
        self._queue.put(ended)
        if self._behind:
            self._room.clear()

    def write_sample(self, sample: object) -> None:
        """Write a line about this process itself."""
        self._write(self._health, sample)

    def finish(self) -> None:
        """Return when all queued requests are on disk."""
        self._queue.put(StopIteration)
        self._clerk.join()

    def close(self) -> None:
        self._pool.kill()
        self._requests.close()
        self._health.close()

    def _work(self) -> None:
        for ended in self._queue:
            if not self._behind:
                self._room.set()
            record = self._record(ended)
            if not self._write(self._requests, encoded(record, self._give_way)):
                continue
            self.written += 1
            self._kept(record)
            forget(ended.exchange, self._give_way)
            if record.error is not None and record.error.kind == "too_large":
                del ended, record
                return_memory()

    def _record(self, ended: Ended) -> RequestRecord:
        item, exchange, endpoint, clock = ended.item, ended.exchange, ended.endpoint, self._clock
        got = reply.read_reply(
            exchange,
            clock,
            opened=endpoint.opened,
            forced_tokens=item.prepared.forced_tokens,
            count_tokens=self._count_tokens,
            pause=self._give_way,
            api=endpoint.api,
        )
        if ended.told is not None:
            ended.told.set(got)
        sent = Sending(
            scheduled_s=ended.scheduled_s,
            sent_s=None if exchange.sent is None else clock.offset_s(exchange.sent),
            headers_s=None if exchange.headers_at is None else clock.offset_s(exchange.headers_at),
            ended_s=clock.offset_s(exchange.ended),
            connect_s=exchange.connect_wall_s * clock.speed,
            resends=exchange.resends,
            stamped_by="process" if exchange.unstamped else "kernel",
            unread_s=None if exchange.unstamped else exchange.unread_s * clock.speed,
            write_s=exchange.write_s * clock.speed,
            endpoint=endpoint.name,
            replica=endpoint.replica,
        )
        return self._builder.build(item, ended.user, sent, got)

    def _write(self, writer: JsonlWriter, value: object) -> bool:
        """Whether a line was written, by the thread: a disk may take tens of ms."""
        error = self._pool.apply(attempt, (writer, value))
        if error is not None:
            self._failed(Failure(kind="records", message=str(error)))
        return error is None

    def _on_bug(self, clerk: gevent.Greenlet[..., None]) -> None:
        self._failed(Failure(kind="bug", message=f"a bug: records can no longer be kept: {clerk.exception!r}"))

    def _give_way(self) -> None:
        if not self._behind:
            give_way()

    @property
    def _behind(self) -> bool:
        """Whether too many replies wait, so that memory would run out: a server at full speed can do that.

        The recorder then stops giving way, and no request is sent. Health samples show it: late starts, a full core.
        """
        return bool(self._queue.qsize() >= self._backlog)


def attempt(writer: JsonlWriter, value: object) -> RecordError | None:
    """Write a value; the error where that fails, handed back and not raised: gevent prints what a thread raises before it
    hands it on, and where standard error is on the same full disk, it never does."""
    try:
        writer.write(value)
    except RecordError as error:
        return error
    return None


def encoded(record: RequestRecord, pause: Callable[[], None]) -> msgspec.Raw:
    """A record as JSON; its times (up to 100,000) are encoded in slices with `pause` between them."""
    if len(record.chunk_s) <= SLICE_TIMES:
        return msgspec.Raw(msgspec.json.encode(record))
    slices = []
    for start in range(0, len(record.chunk_s), SLICE_TIMES):
        slices.append(msgspec.json.encode(record.chunk_s[start : start + SLICE_TIMES])[1:-1])
        pause()
    times = msgspec.Raw(b"[" + b",".join(slices) + b"]")
    values = {name: getattr(record, name) for name in RequestRecord.__dataclass_fields__}
    return msgspec.Raw(msgspec.json.encode(values | {"chunk_s": times}))


def forget(exchange: Exchange, pause: Callable[[], None]) -> None:
    """Free the reads in slices: to free tens of thousands of objects takes a millisecond."""
    while exchange.pieces:
        del exchange.pieces[-SLICE_TIMES:], exchange.reads[-SLICE_TIMES:]
        pause()


def return_memory() -> None:
    """Return freed memory to the system, where the C library can: after a reply of 128 MiB it would keep most of it.

    It holds the loop for 10 ms then, so only what broke the limit on size is worth it.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def give_way() -> None:
    """Go on when every socket that is ready has been read, or after a few ms where there are always some.

    `gevent.sleep(0)` would not do: it comes back up to 50 times before the loop looks at its sockets again.
    """
    hub = gevent.get_hub()
    with gevent.Timeout(GIVE_WAY_S, False):
        hub.wait(hub.loop.idle())
