"""One streamed request at a time under gevent: written to a socket of its own, read as the gevent loop finds it readable.

Every read has the time at which its bytes arrived (`loadtest.client.arrival`); its body is kept as it came and decoded
after the stream has ended (`loadtest.client.reply`). The user's greenlet sleeps from the write of the request to the end of
the response.

`sent` is when the request left by the kernel's clock, the connection standing (TCP and TLS); where the kernel does not tell,
right before the first byte is written. Waiting for a connection is therefore never part of a latency; it is kept apart as
`connect_wall_s`.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

import gevent.socket

from loadtest.client.arrival import Wakefulness
from loadtest.client.connection import ConnectError, Connection, Destination
from loadtest.client.exchange import Exchange, Limits, overdue
from loadtest.client.http1 import NotHttp, Response
from loadtest.records.schema import Outcome

CHECK_INTERVAL_S = 0.1  # wall: how often some of the streams are held against their limits (each time wakes the loop),

CHECK_STREAMS = 128  # and how many at a time, so that tokens never wait for it by more than about 0.1 ms

GAPS = 8  # of a stream, by whose mean looks at the sockets are spaced

HELD_BYTES = 128  # for each read beside its bytes: a float, an object's head, two places in lists

READABLE = 1  # of libev

LATE_S = 0.001  # wall: bytes that lay unread for longer are noted

# Wall: a kept connection that ends so soon after the request (or within two round trips) was closed before it came.
AT_ONCE_S = 0.1


class SocketTransport:
    """Streams requests to one URL, each on a connection of its own (HTTP/1.1), kept open for the next.

    No redirect is followed, no compression is asked for or undone, and no cookies are kept. The way to the server is the one
    that is taken when this is made (`loadtest.servers.route`). `speed` turns the limits' seconds into wall seconds.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
        limits: Limits | None = None,
        speed: float = 1.0,
    ) -> None:
        self.limits = limits or Limits()
        self._speed = speed
        self._destination = Destination.of(url)
        self._head = _head(self._destination, api_key, headers)
        self._idle: list[Connection] = []
        self._active: dict[Exchange, _Stream] = {}
        self._unchecked: list[Exchange] = []
        self._watch = gevent.get_hub().loop.timer(CHECK_INTERVAL_S, CHECK_INTERVAL_S, ref=False)
        self._watch.start(self._check_limits)
        self._wakefulness = Wakefulness()

    @property
    def in_flight(self) -> int:
        return len(self._active)

    def open(self, connections: int) -> float:
        """Open so many connections for the first requests to take; wall seconds. A refusal is left to the requests."""
        began = time.monotonic()
        pool = [gevent.spawn(self._try_to_connect) for _ in range(connections)]
        gevent.joinall(pool)
        self._idle.extend(job.value for job in pool if job.value is not None)
        return time.monotonic() - began

    def perform(self, exchange: Exchange) -> None:
        exchange.began = time.monotonic()
        try:
            kept = self._alive()
            self._stream(exchange, kept or self._connect(exchange))
            if kept and exchange.closed_unread and exchange.wall_s <= max(AT_ONCE_S, 2 * kept.round_trip_s):
                self._resend(exchange)
        except ConnectError as error:
            exchange.fail("connection_error", error.kind, f"{error} ({self._destination.where})")
        except gevent.GreenletExit:
            exchange.outcome = "cut_off"
            raise
        finally:
            exchange.ended = exchange.ended or time.monotonic()

    def _resend(self, exchange: Exchange) -> None:
        """Once more, on a new connection: the kept one was closed while idle, as a server may at any time, and nobody has
        read the request. `sent` stays as it is, because the user has waited since then."""
        exchange.outcome = exchange.error = None
        exchange.resends += 1
        self._stream(exchange, self._connected())

    def close(self) -> None:
        self._watch.stop()
        self._watch.close()
        self._wakefulness.stop()
        for stream in list(self._active.values()):
            stream.give_up("cut_off", "closed", "the client was closed")
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def _alive(self) -> Connection | None:
        """A connection that was kept, if one is still open."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_alive():
                return connection
            connection.close()
        return None

    def _connect(self, exchange: Exchange) -> Connection:
        began = time.monotonic()
        try:
            return self._connected()
        finally:
            exchange.connect_wall_s = time.monotonic() - began

    def _try_to_connect(self) -> Connection | None:
        try:
            return self._connected()
        except ConnectError:
            return None

    def _connected(self) -> Connection:
        limit_s = self.limits.connect_s
        with gevent.Timeout(limit_s, ConnectError("connect_timeout", f"not connected within {limit_s:g} s")):
            return self._destination.connect(limit_s)

    def _stream(self, exchange: Exchange, connection: Connection) -> None:
        """Write the request and sleep until its response has ended, well or badly."""
        stream = _Stream(exchange, connection, self._wakefulness, self._destination.where, self.limits.size_bytes)
        self._active[exchange] = stream
        reusable = False
        try:
            stream.write(self._request(exchange))
            exchange.done.wait()
            reusable = stream.reusable
        finally:
            del self._active[exchange]
            stream.stop()
            if reusable:
                self._idle.append(connection)
            else:
                connection.close()

    def _request(self, exchange: Exchange) -> bytes:
        name = b"x-request-id: %b\r\n" % exchange.request_id.encode() if exchange.request_id else b""
        return b"%b%bContent-Length: %d\r\n\r\n%b" % (self._head, name, len(exchange.body), exchange.body)

    def _check_limits(self) -> None:
        if not self._unchecked:
            self._unchecked = list(self._active)
        some, self._unchecked = self._unchecked[:CHECK_STREAMS], self._unchecked[CHECK_STREAMS:]
        if gaps_s := [gap_s for one in some if (gap_s := _gap_s(one)) is not None]:
            self._wakefulness.spacing.follow(min(gaps_s), len(self._active))
        now = time.monotonic()
        for exchange in some:
            stream = None if exchange.done.is_set() else self._active.get(exchange)
            broken = stream and overdue(exchange, now, self.limits, self._speed)
            if stream and broken:
                stream.give_up(*broken)


def _gap_s(exchange: Exchange) -> float | None:
    """Mean time between the last reads of a stream (wall s); None before there are so many, 0 where one had no stamp."""
    reads = exchange.reads
    if exchange.unstamped:
        return 0.0
    return (reads[-1] - reads[-GAPS - 1]) / GAPS if len(reads) > GAPS else None


class _Stream:
    """One exchange on its connection, from the write of the request to the end of the response."""

    def __init__(
        self, exchange: Exchange, connection: Connection, wakefulness: Wakefulness, where: str, size_bytes: int
    ) -> None:
        self._exchange = exchange
        self._connection = connection
        self._wakefulness = wakefulness
        self._where = where
        self._left_bytes = size_bytes
        self._response = Response()
        self._watcher = gevent.get_hub().loop.io(connection.fd, READABLE)
        exchange.done.clear()

    @property
    def reusable(self) -> bool:
        return self._response.done and self._response.reusable and self._exchange.outcome is None

    def write(self, request: bytes) -> None:
        """Send the request. An answer may come before all of it is sent (a refusal), and is read meanwhile."""
        exchange = self._exchange
        self._watcher.start(self._reader())
        left = memoryview(request)
        began = time.monotonic()
        if exchange.sent is None:
            exchange.sent = began
        try:
            left = left[self._connection.send_first(left) :]
            if exchange.sent == began:
                exchange.write_s = time.monotonic() - began
                self._note_departure()
            while left and not exchange.done.is_set():
                with contextlib.suppress(TimeoutError):  # to look whether the limits have ended the exchange meanwhile
                    gevent.socket.wait_write(self._connection.fd, CHECK_INTERVAL_S)
                left = left[self._connection.send(left) :]
        except (BrokenPipeError, ConnectionResetError):
            return  # the server reads no more: what it said before comes to the reader, and then the end
        except OSError as error:
            self._broken(error)

    def _reader(self) -> Callable[[], None]:
        """What the loop calls for each read; its first lines are the path of a token."""
        receive, whole_chunk = self._connection.receive, self._response.whole_chunk
        stamp, keep = self._exchange.reads.append, self._exchange.pieces.append

        def read() -> None:
            try:
                data, at, unread_s = receive()
            except BlockingIOError:
                self._note_departure()  # or its stamp, come late, would wake the loop for ever
                return
            except OSError as error:
                self._broken(error)
                return
            body = whole_chunk(data)
            if not unread_s <= LATE_S:
                self._note_wait(unread_s)
            if body is None:
                self._take(at, data)
                return
            stamp(at)
            keep(body)
            self._left_bytes -= len(body) + HELD_BYTES
            if self._left_bytes < 0:
                self._too_large()

        return read

    def _note_departure(self) -> None:
        """When the request left, where the kernel tells; else it is known within `write_s`."""
        exchange, left_s = self._exchange, self._connection.departed_s()
        if exchange.sent is not None and exchange.sent <= left_s <= exchange.sent + exchange.write_s:
            exchange.sent, exchange.write_s = left_s, 0.0

    def _note_wait(self, unread_s: float) -> None:
        if math.isnan(unread_s):
            self._exchange.unstamped += 1
        elif unread_s > max(LATE_S, self._exchange.unread_s):
            self._exchange.unread_s = unread_s

    def _take(self, at: float, data: bytes) -> None:
        """A read that is not just one chunk: the head, several chunks, a part of one, the end."""
        exchange, response = self._exchange, self._response
        if not data:
            self._closed()
            return
        try:
            body = response.feed(data)
        except NotHttp as error:
            self.give_up("protocol_error", "not_http", f"the server's bytes are not HTTP: {error}")
            return
        if exchange.headers_at is None and response.head_done:
            exchange.headers_at = at
            exchange.status, exchange.content_type = response.status, response.content_type
            if response.encoding not in ("", "identity"):
                self.give_up("protocol_error", "compressed", f"the response is compressed ({response.encoding}), unasked")
                return
        if body:
            before_s = exchange.reads[-1] if exchange.reads else exchange.sent or at
            exchange.earliest_s[len(exchange.reads)] = max(before_s, min(at, self._wakefulness.look()))
            exchange.reads.append(at)
            exchange.pieces.append(body)
        self._left_bytes -= len(data) + 2 * HELD_BYTES  # framing too, or a server could send nothing but that for hours
        if self._left_bytes < 0:
            self._too_large()
        elif response.done:
            self._end()

    def _closed(self) -> None:
        if self._response.end_of_connection():
            self._end()
        else:
            self.give_up("connection_error", "closed", f"the server closed the connection {self._when}")

    def _broken(self, error: OSError) -> None:
        reset = isinstance(error, (ConnectionResetError, BrokenPipeError))
        kind, why = ("reset", "connection reset") if reset else ("connection", error.strerror or str(error))
        self.give_up("connection_error", kind, f"{why} {self._when}")

    def _too_large(self) -> None:
        self.give_up("protocol_error", "too_large", "the response passed the limit on its size")

    @property
    def _when(self) -> str:
        return "in the middle of the stream" if self._exchange.reads else "before any of the response"

    def give_up(self, outcome: Outcome, kind: str, message: str) -> None:
        self._exchange.fail(outcome, kind, f"{message} ({self._where})")
        self._end()

    def _end(self) -> None:
        self._watcher.stop()
        self._exchange.ended = time.monotonic()
        self._exchange.done.set()

    def stop(self) -> None:
        self._watcher.stop()
        self._watcher.close()


def _head(destination: Destination, api_key: str | None, headers: Mapping[str, str]) -> bytes:
    """What the head of every request begins with; a header that is asked for takes the place of ours."""
    fields = [
        f"POST {destination.target} HTTP/1.1",
        f"Host: {destination.authority}",
        "User-Agent: loadtest",
        "Content-Type: application/json",
        "Accept: text/event-stream",
        "Accept-Encoding: identity",
        *destination.proxy_fields,
    ]
    if api_key:
        fields.append(f"Authorization: Bearer {api_key}")
    given = {name.lower() for name in headers}
    fields = [field for field in fields if field.partition(":")[0].lower() not in given]
    fields += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*fields, ""]).encode()
