"""One streamed request at a time under gevent, over libcurl's multi interface driven by the gevent loop.

Every read of a response is stamped (`time.monotonic()`) in the callback that libcurl calls with it, in the hub, before
any other Python runs for it; the bytes are kept as they came and decoded after the stream has ended (`loadtest.reply`).
The user's greenlet sleeps from the write of the request to the end of the response.

`sent` is stamped by libcurl's pre-request callback: connected (TCP and TLS), the request about to be written. Waiting
for a connection is therefore never part of a latency; it is kept apart as `connect_wall_s`.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

import certifi
import gevent
import gevent.event
import pycurl

from loadtest.errors import LoadtestError, UsageError
from loadtest.records import Outcome, RequestError

CHECK_INTERVAL_S = 0.1  # wall: how often some of the streams are held against their limits (each time wakes the loop),
CHECK_STREAMS = 128  # and how many at a time, so that tokens never wait for it by more than about 0.1 ms
MAX_ERROR_BODY_BYTES = 65536
_TEXT = re.compile(rb'"(?:content|reasoning|reasoning_content|text)"\s*:\s*"[^"]')


@dataclass(frozen=True, slots=True)
class Limits:
    """When to give a request up, each limit apart; the defaults let a model think for an hour and more.

    `connect_s` is wall time; the others are seconds of the run. `silence_s` is the longest gap between two pieces of
    text (comments and empty chunks do not count). `size_bytes` bounds what one response may hold in memory.
    """

    connect_s: float = 30.0
    first_token_s: float = 600.0
    silence_s: float = 300.0
    total_s: float = 7200.0
    size_bytes: int = 256 * 2**20

    def __post_init__(self) -> None:
        for name in ("connect_s", "first_token_s", "silence_s", "total_s", "size_bytes"):
            if not getattr(self, name) > 0:
                raise UsageError(f"limit {name}: expected a number above 0, got {getattr(self, name)}")


@dataclass(slots=True, eq=False)
class Exchange:
    """A request and what came back, raw: readings of `time.monotonic()` (wall s) and the bytes of each read.

    `outcome` and `error` say how the transport failed; both are null where the response came to its end by itself.
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
    connect_wall_s: float = 0.0
    outcome: Outcome | None = None
    error: RequestError | None = None
    done: gevent.event.Event = field(default_factory=gevent.event.Event)
    # What the periodic check of the limits knows so far:
    seen_pieces: int = 0
    text_at: float | None = None

    @property
    def refused(self) -> bool:
        """Whether nothing but a failure came back at once; whoever asks again should wait a little."""
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


class CurlTransport:
    """Streams requests to one URL, each on a connection of its own (HTTP/1.1), kept open for the next.

    No redirect is followed, nothing is compressed, cookies and proxies are not used for `http://`; `https://` is
    verified against certifi's roots, or those of the file in `SSL_CERT_FILE`, and honours `https_proxy`. `speed` turns
    the limits' seconds into wall seconds.
    """

    def __init__(self, url: str, *, api_key: str | None = None, limits: Limits | None = None, speed: float = 1.0) -> None:
        self.url = url
        self.limits = limits or Limits()
        self._speed = speed
        self._server = _Server.of(url)
        self._headers = ["Content-Type: application/json", "Accept: text/event-stream", "Expect:"]
        if api_key:
            self._headers.append(f"Authorization: Bearer {api_key}")
        self._ready: list[socket.socket] = []
        self._handed: list[socket.socket] = []  # libcurl works on duplicates of these
        self._idle: list[Any] = []
        self._active: dict[Any, Exchange] = {}
        self._unchecked: list[Any] = []
        self._engine = _Engine(self._finish)
        self._watch = gevent.get_hub().loop.timer(CHECK_INTERVAL_S, CHECK_INTERVAL_S, ref=False)
        self._watch.start(self._check_limits)

    @property
    def in_flight(self) -> int:
        return len(self._active)

    def open(self, connections: int) -> float:
        """Connect (TCP) so many sockets for the first requests to take; wall seconds. A refusal is left to the requests."""
        began = time.monotonic()
        if self._server.direct:
            pool = [gevent.spawn(self._server.connect, self.limits.connect_s) for _ in range(connections)]
            gevent.joinall(pool)
            self._ready.extend(opened for opened in (job.value for job in pool) if opened is not None)
        return time.monotonic() - began

    def perform(self, exchange: Exchange) -> None:
        easy = self._idle.pop() if self._idle else self._new_easy()
        self._aim(easy, exchange)
        exchange.began = time.monotonic()
        self._active[easy] = exchange
        try:
            self._engine.add(easy)
            exchange.done.wait()
        finally:
            if self._active.pop(easy, None) is not None:  # killed while it ran
                exchange.ended = time.monotonic()
                exchange.outcome = "cut_off"
                self._engine.remove(easy)
            if easy.getinfo(pycurl.NUM_CONNECTS):
                exchange.connect_wall_s = (exchange.sent or exchange.ended) - exchange.began
            self._idle.append(easy)
            while self._handed:
                self._handed.pop().close()

    def close(self) -> None:
        self._watch.stop()
        self._watch.close()
        for easy in list(self._active):
            self._give_up(easy, "cut_off", "closed", "the client was closed")
        for opened in self._ready:
            opened.close()
        self._ready.clear()
        for easy in self._idle:
            easy.close()
        self._idle.clear()
        self._engine.close()

    def _new_easy(self) -> Any:
        easy = pycurl.Curl()
        options = {
            pycurl.URL: self.url,
            pycurl.POST: 1,
            pycurl.HTTPHEADER: self._headers,
            pycurl.USERAGENT: "loadtest",
            pycurl.HTTP_VERSION: pycurl.CURL_HTTP_VERSION_1_1,
            pycurl.CAINFO: os.environ.get("SSL_CERT_FILE") or certifi.where(),
            pycurl.NOSIGNAL: 1,
            pycurl.TCP_NODELAY: 1,
            pycurl.TCP_KEEPALIVE: 1,
            pycurl.FOLLOWLOCATION: 0,
            pycurl.CONNECTTIMEOUT_MS: int(self.limits.connect_s * 1000),
            pycurl.MAXFILESIZE_LARGE: self.limits.size_bytes,
            pycurl.MAXAGE_CONN: 3600,
        }
        for option, value in options.items():
            easy.setopt(option, value)
        if self._server.direct:
            easy.setopt(pycurl.PROXY, "")
            easy.setopt(pycurl.RESOLVE, [self._server.pin])
            easy.setopt(pycurl.OPENSOCKETFUNCTION, self._take_socket)
            easy.setopt(pycurl.SOCKOPTFUNCTION, _is_connected)
        return easy

    def _aim(self, easy: Any, exchange: Exchange) -> None:
        if exchange.request_id:
            easy.setopt(pycurl.HTTPHEADER, [*self._headers, f"x-request-id: {exchange.request_id}"])
        easy.setopt(pycurl.POSTFIELDSIZE_LARGE, len(exchange.body))
        easy.setopt(pycurl.POSTFIELDS, exchange.body)
        easy.setopt(pycurl.WRITEFUNCTION, _reader(exchange.reads, exchange.pieces))
        easy.setopt(pycurl.HEADERFUNCTION, _header_reader(exchange))
        easy.setopt(pycurl.PREREQFUNCTION, _sent_stamper(exchange))

    def _take_socket(self, purpose: int, address: Any) -> socket.socket:
        fresh = not self._ready
        opened = socket.socket(address.family, address.socktype, address.protocol) if fresh else self._ready.pop()
        self._handed.append(opened)
        return opened

    def _finish(self, easy: Any, code: int, message: str) -> None:
        exchange = self._active.pop(easy, None)
        if exchange is None:
            return
        exchange.ended = time.monotonic()
        if code:
            outcome, kind, text = explain(code, message, self.limits, received=bool(exchange.reads))
            exchange.fail(outcome, kind, f"{text} ({self._server.where})")
        exchange.done.set()

    def _give_up(self, easy: Any, outcome: Outcome, kind: str, message: str) -> None:
        exchange = self._active.pop(easy)
        exchange.ended = time.monotonic()
        exchange.fail(outcome, kind, message)
        self._engine.remove(easy)
        exchange.done.set()

    def _check_limits(self) -> None:
        if not self._unchecked:
            self._unchecked = list(self._active)
        some, self._unchecked = self._unchecked[:CHECK_STREAMS], self._unchecked[CHECK_STREAMS:]
        now = time.monotonic()
        for easy in some:
            exchange = self._active.get(easy)
            broken = exchange and overdue(exchange, now, self.limits, self._speed)
            if broken:
                self._give_up(easy, *broken)


def overdue(exchange: Exchange, now: float, limits: Limits, speed: float = 1.0) -> tuple[Outcome, str, str] | None:
    """Which limit a running exchange has passed at `now` (monotonic wall s): outcome, kind, message; or null."""
    if exchange.sent is None:
        return None  # connecting: libcurl's own limit
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
        if _TEXT.search(pieces[index]):
            exchange.text_at = exchange.reads[index]
            break
    exchange.seen_pieces = len(pieces)


def explain(code: int, message: str, limits: Limits, *, received: bool) -> tuple[Outcome, str, str]:
    """What a libcurl error means for a request: outcome, stable kind, sentence."""
    if code == pycurl.E_OPERATION_TIMEDOUT:
        return "connection_error", "connect_timeout", f"not connected within {limits.connect_s:g} s"
    if code == pycurl.E_FILESIZE_EXCEEDED:
        return "protocol_error", "too_large", f"the response passed {limits.size_bytes} bytes"
    lowered = message.lower()
    if (
        code in (pycurl.E_UNSUPPORTED_PROTOCOL, pycurl.E_FTP_WEIRD_SERVER_REPLY)
        or "encoding" in lowered
        or "chunk" in lowered
    ):
        return "protocol_error", "not_http", f"the server's bytes are not HTTP: {message}"
    kind = _CONNECTION_KINDS.get(code, "connection")
    when = "in the middle of the stream" if received else "before any of the response"
    return "connection_error", kind, message if kind in ("refused", "unknown_host", "tls") else f"{message}, {when}"


_CONNECTION_KINDS = {
    pycurl.E_COULDNT_CONNECT: "refused",
    pycurl.E_COULDNT_RESOLVE_HOST: "unknown_host",
    pycurl.E_SSL_CONNECT_ERROR: "tls",
    pycurl.E_PEER_FAILED_VERIFICATION: "tls",
    pycurl.E_SSL_CACERT_BADFILE: "tls",
    pycurl.E_GOT_NOTHING: "closed",
    pycurl.E_PARTIAL_FILE: "closed",
    pycurl.E_RECV_ERROR: "reset",
    pycurl.E_SEND_ERROR: "reset",
}


def _reader(reads: list[float], pieces: list[bytes]) -> Callable[[bytes], None]:
    stamp, keep, now = reads.append, pieces.append, time.monotonic

    def read(data: bytes) -> None:
        stamp(now())
        keep(data)

    return read


def _sent_stamper(exchange: Exchange) -> Callable[..., int]:
    def stamp(*_address: object) -> int:
        exchange.sent = time.monotonic()
        return int(pycurl.PREREQFUNC_OK)

    return stamp


def _header_reader(exchange: Exchange) -> Callable[[bytes], None]:
    def read(line: bytes) -> None:
        if line.startswith(b"HTTP/"):
            parts = line.split(None, 2)
            exchange.status = int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else None
            exchange.headers_at = time.monotonic()
        elif line[:13].lower() == b"content-type:":
            exchange.content_type = line[13:].strip().decode("latin-1").lower()

    return read


def _is_connected(opened: Any, purpose: int) -> int:
    """Tell libcurl whether the socket that it was given is connected already."""
    fd = opened if isinstance(opened, int) else opened.fileno()
    probe = socket.socket(fileno=os.dup(fd))
    try:
        probe.getpeername()
        return int(pycurl.SOCKOPT_ALREADY_CONNECTED)
    except OSError:
        return int(pycurl.SOCKOPT_OK)
    finally:
        probe.close()


@dataclass(frozen=True, slots=True)
class _Server:
    """Where the connections go: resolved once, so that no request waits for a name."""

    host: str
    port: int
    address: str
    family: int
    direct: bool  # false: through a proxy, libcurl connects

    @classmethod
    def of(cls, url: str) -> _Server:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"URL: expected http://HOST:PORT or https://HOST, got {url!r}")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        if parts.scheme == "https" and (os.environ.get("https_proxy") or os.environ.get("HTTPS_PROXY")):
            return cls(parts.hostname, port, parts.hostname, 0, direct=False)
        try:
            found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise LoadtestError(f"{parts.hostname}: cannot find this host: {error}; check the URL") from error
        family, _, _, _, sockaddr = _reachable(found)
        return cls(parts.hostname, port, str(sockaddr[0]), family, direct=True)

    @property
    def where(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def pin(self) -> str:
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.host}:{self.port}:{address}"

    def connect(self, timeout_s: float) -> socket.socket | None:
        opened = socket.socket(self.family, socket.SOCK_STREAM)
        try:
            opened.settimeout(timeout_s)
            opened.connect((self.address, self.port))
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            opened.setblocking(False)
        except OSError:
            opened.close()
            return None
        return opened


def _reachable(found: list[Any]) -> Any:
    """The first of a host's addresses that takes a connection (`localhost` may mean ::1 or 127.0.0.1), else the first."""
    for candidate in found if len(found) > 1 else ():
        with socket.socket(candidate[0], socket.SOCK_STREAM) as probe:
            probe.settimeout(3)
            try:
                probe.connect(candidate[4])
            except OSError:
                continue
            return candidate
    return found[0]


class _Engine:
    """libcurl's multi handle on the gevent loop: its sockets and its one timer are watchers of the hub."""

    def __init__(self, finished: Callable[[Any, int, str], None]) -> None:
        self._finished = finished
        self._loop = gevent.get_hub().loop
        self._watchers: dict[int, Any] = {}
        self._timer: Any = None
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._on_socket)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._on_timer)
        self._multi.setopt(pycurl.M_MAXCONNECTS, 65536)
        self._multi.setopt(pycurl.M_PIPELINING, 0)
        self._act = self._multi.socket_action

    def add(self, easy: Any) -> None:
        self._multi.add_handle(easy)
        self._wake()

    def remove(self, easy: Any) -> None:
        self._multi.remove_handle(easy)

    def close(self) -> None:
        self._stop_timer()
        for watcher in self._watchers.values():
            watcher.stop()
            watcher.close()
        self._watchers.clear()
        self._multi.close()

    def _wake(self) -> None:
        """Let libcurl do what is due by the clock: start a transfer, give a connection attempt up."""
        self._act(pycurl.SOCKET_TIMEOUT, 0)
        self._collect()

    def _collect(self) -> None:
        more = 1
        while more:
            more, good, bad = self._multi.info_read()
            for easy in good:
                self._drop(easy, 0, "")
            for easy, code, message in bad:
                self._drop(easy, code, message)

    def _drop(self, easy: Any, code: int, message: str) -> None:
        self.remove(easy)
        self._finished(easy, code, message)

    def _on_socket(self, what: int, fd: int, multi: Any, data: Any) -> None:
        old = self._watchers.pop(fd, None)
        if old is not None:
            old.stop()
            old.close()
        if what == pycurl.POLL_REMOVE:  # also what every transfer ends with
            self._loop.run_callback(self._collect)
            return
        # POLL_IN, POLL_OUT and POLL_INOUT have the values of libev's READ, WRITE and both, and of CSELECT_IN and _OUT.
        # For a token, libcurl's own function is the callback: no Python between the loop and the read.
        watcher = self._loop.io(fd, what)
        watcher.start(self._act, fd, what if what != pycurl.POLL_INOUT else 0)
        self._watchers[fd] = watcher

    def _on_timer(self, timeout_ms: int) -> None:
        self._stop_timer()
        if timeout_ms >= 0:
            self._timer = self._loop.timer(timeout_ms / 1000)
            self._timer.start(self._wake)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None
