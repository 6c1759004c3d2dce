"""One HTTP/1.1 connection of the simulated server: h11 reads requests, answers and streams are written."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable
from http import HTTPStatus

import h11

from loadtest.simulator.http import frames

BODY_LIMIT_BYTES = 64 * 2**20
BUFFER_LIMIT_BYTES = 8 * 2**20  # a client that reads so slowly that this much piles up is cut off
_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}


class ServedConnection(asyncio.Protocol):
    """One HTTP/1.1 connection, read by h11; the chunks of a stream are framed beforehand and written as they are.

    It stands in `connections` while it is open. `on_lost`: what ends the stream that it carries, None while it carries none.
    """

    def __init__(
        self, connections: set[ServedConnection], answer: Callable[[ServedConnection, h11.Request, bytes], None]
    ) -> None:
        self.connections = connections
        self.transport: asyncio.Transport
        self.on_lost: Callable[[], None] | None = None
        self.read_s = 0.0  # when the last bytes came (s of the loop's clock)
        self._answer = answer
        self._loop = asyncio.get_running_loop()
        self._http = h11.Connection(h11.SERVER)
        self._request: h11.Request | None = None
        self._body = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=BUFFER_LIMIT_BYTES)
        self.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)
        if self.on_lost is not None:
            self.on_lost()
            self.on_lost = None

    def pause_writing(self) -> None:
        """The client of a stream does not read: cut it off rather than let the memory grow, as a whole answer (the truth of
        100,000 requests) does not."""  # fmt: skip
        if self.on_lost is not None:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        self.read_s = self._loop.time()
        self._http.receive_data(data)
        self._read()

    def _read(self) -> None:
        try:
            while True:
                event = self._http.next_event()
                if isinstance(event, h11.Request):
                    self._request = event
                    self._body.clear()
                    if self._http.they_are_waiting_for_100_continue:
                        go_on = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
                        self.transport.write(self._http.send(go_on) or b"")
                elif isinstance(event, h11.Data):
                    self._body += event.data
                    if len(self._body) > BODY_LIMIT_BYTES:
                        self.json({"error": "request body too large"}, 413, close=True)
                        return
                elif isinstance(event, h11.EndOfMessage):
                    assert self._request is not None
                    self._answer(self, self._request, bytes(self._body))
                else:
                    return
        except h11.RemoteProtocolError as error:
            if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                self.json({"error": str(error)}, error.error_status_hint, close=True)
            else:
                self.transport.abort()

    # -- answers -----------------------------------------------------------------------------------------------------

    def whole(self, body: bytes, status: int = 200, kind: str = "application/json", *, close: bool = False) -> None:
        """A complete answer."""
        headers = [*_headers(), ("content-length", str(len(body)))]
        if body or kind != "application/json":
            headers.append(("content-type", kind))
        if close:
            headers.append(("connection", "close"))
        head = self._http.send(h11.Response(status_code=status, headers=headers, reason=_REASONS[status])) or b""
        data = self._http.send(h11.Data(data=body)) or b""
        self.transport.write(head + data + (self._http.send(h11.EndOfMessage()) or b""))
        self._next(close)

    def json(self, value: object, status: int = 200, *, close: bool = False) -> None:
        """A complete JSON answer."""
        self.whole(frames.dumps(value), status, close=close)

    def begin(self) -> None:
        """The head of an event stream."""
        headers = [*_headers(), ("content-type", "text/event-stream; charset=utf-8"), ("transfer-encoding", "chunked")]
        self.transport.write(self._http.send(h11.Response(status_code=200, headers=headers, reason=_REASONS[200])) or b"")

    def chunk(self, body: bytes) -> None:
        """One event of the stream, in one write."""
        self.transport.write(b"%x\r\n%b\r\n" % (len(body), body))

    def end(self, body: bytes) -> None:
        """The last events of the stream, and its end."""
        self.on_lost = None
        last = self._http.send(h11.EndOfMessage()) or b""
        self.transport.write((frames.chunked(body) if body else b"") + last)
        self._next(False)

    def reset(self) -> None:
        """Drop the connection with a reset instead of an end."""
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _next(self, close: bool) -> None:
        if close or self._http.our_state is h11.MUST_CLOSE:
            self.transport.close()
        elif self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            self._loop.call_soon(self._read)


def _headers() -> list[tuple[str, str]]:
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
    return [("date", date), ("server", "loadtest-simulator"), ("vary", "Origin")]
