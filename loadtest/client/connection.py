"""Connections to one server: where it is, resolved once; TCP or a Unix socket, TLS, a proxy; is one still alive.

Everything here may wait, and under gevent lets other streams run while it does. None of it is part of a latency: a
request is stamped as sent when its connection stands.
"""

from __future__ import annotations

import base64
import math
import os
import resource
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import certifi

from loadtest.client import arrival
from loadtest.client.tls import Tls
from loadtest.credentials import redacted
from loadtest.errors import LoadtestError, UsageError
from loadtest.servers import route

_OTHER_FILES = 128  # descriptors beside those of the connections


class ConnectError(Exception):
    """The connection failed: `kind` is stable, the text is a sentence."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Connection:
    """A socket that does not block, with what reads it and when its bytes arrived.

    `receive()` returns bytes, their arrival and their wait (`arrival.Read`); empty bytes where the server has
    closed. It raises BlockingIOError where there is nothing to read, and is called once for each token.
    """

    def __init__(self, sock: Any, tls: Tls | None = None, *, round_trip_s: float = 0.0) -> None:
        self.round_trip_s = round_trip_s  # wall: what the server, or its proxy, took to take the connection
        self.fd: int = sock.fileno()
        self._sock, self._bare, self._tls = sock, arrival.bare(sock), tls
        self._stamps = arrival.gives_stamps(self._bare)
        self._read = arrival.stamped_reader(self._bare) if self._stamps else arrival.unstamped_reader(self._bare)
        self.receive: Callable[[], arrival.Read] = self._read if tls is None else self._decrypted

    def _decrypted(self) -> arrival.Read:
        assert self._tls is not None
        data, last_s, unread_s = self._read()
        return self._tls.take(data), last_s, unread_s

    def send_first(self, data: bytes | memoryview) -> int:
        """As `send`; the kernel notes when it leaves, if it can (`departed_s`)."""
        return self._send(data, partial(arrival.stamped_send, self._bare) if self._stamps else self._bare.send)

    def send(self, data: bytes | memoryview) -> int:
        """Send what the system takes now; the number of bytes, 0 where it takes none."""
        return self._send(data, self._bare.send)

    def _send(self, data: bytes | memoryview, write: arrival.Send) -> int:
        try:
            return write(data) if self._tls is None else self._tls.send(data, write)
        except BlockingIOError:
            return 0

    def departed_s(self) -> float:
        """When what `send_first` sent left (reading of `time.monotonic()`); NaN: not told."""
        return arrival.departure(self._bare) if self._stamps else math.nan

    def is_alive(self) -> bool:
        """Whether an idle connection is still open: nothing may have come on it, not even its end."""
        try:
            self.receive()
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        self._sock.close()


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the connections go: resolved once, so that no request waits for a name."""

    host: str
    port: int
    path: str
    family: int
    address: Any
    context: ssl.SSLContext | None = None  # None: not encrypted
    proxy: route.Proxy | None = None  # `address` is then the proxy's

    @classmethod
    def of(cls, url: str) -> Destination:
        """The destination of a URL, by the way that is taken now (`servers.route`); of several addresses, the first that
        accepts a connection.

        Unless it is not to be verified, `https://` is: against certifi's roots, or those of the file in `SSL_CERT_FILE`.
        """
        file, parts = route.socket_file(url), urlsplit(route.http_url(url))
        if file is not None:
            return cls("localhost", 80, parts.path, socket.AF_UNIX, file)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"URL: expected http://HOST:PORT or https://HOST, got {url!r}")
        encrypted = parts.scheme == "https"
        port = parts.port or (443 if encrypted else 80)
        proxy = route.proxy_to(url)
        target = (proxy.host, proxy.port) if proxy else (parts.hostname, port)
        try:
            found = socket.getaddrinfo(*target, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise LoadtestError(f"{target[0]}: cannot find this host: {error}; check the URL") from error
        family, _, _, _, address = _reachable(found)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(parts.hostname, port, path, family, address, _context() if encrypted else None, proxy)

    @property
    def where(self) -> str:
        """The server, in messages."""
        through = f" through {self.proxy.url}" if self.proxy else ""
        return str(self.address) if self.is_local else f"{self.host}:{self.port}{through}"

    @property
    def is_local(self) -> bool:
        """Is it a Unix socket?"""
        return self.family == socket.AF_UNIX

    @property
    def authority(self) -> str:
        """The Host header's value."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.context else 80) else f"{host}:{self.port}"

    @property
    def target(self) -> str:
        """What a request asks for: its path; of a proxy without a tunnel, the whole URL (RFC 9112, 3.2.2)."""
        return f"http://{self.authority}{self.path}" if self.proxy and not self.context else self.path

    @property
    def proxy_fields(self) -> list[str]:
        """Headers for a proxy without a tunnel, which goes by those of the request."""
        return [] if self.context else self._login

    @property
    def _login(self) -> list[str]:
        if self.proxy is None or self.proxy.login is None:
            return []
        return [f"Proxy-Authorization: Basic {base64.b64encode(self.proxy.login.encode()).decode()}"]

    def connect(self, timeout_s: float) -> Connection:
        """A new connection, ready for a request. Raises `ConnectError`."""
        sock = socket.socket(self.family, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout_s)
            began = time.monotonic()
            sock.connect(self.address)
            round_trip_s = time.monotonic() - began
            if not self.is_local:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self.proxy is not None and self.context is not None:
                self._tunnel(sock, self.proxy)
            tls = None if self.context is None else Tls(sock, self.context, self.host)
            if tls is not None:
                tls.handshake()
            sock.setblocking(False)
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError):
                raise _explained(error, timeout_s) from error
            raise
        return Connection(sock, tls, round_trip_s=round_trip_s)

    def _tunnel(self, sock: socket.socket, proxy: route.Proxy) -> None:
        """Ask the proxy for a way through (RFC 9110, 9.3.6)."""
        target = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}", *self._login]
        sock.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):  # byte by byte: what follows is the server's
            byte = sock.recv(1)
            if not byte or len(answer) > arrival.READ_BYTES:
                raise ConnectError("proxy", f"the proxy {proxy.host} closed before it answered")
            answer += byte
        if answer.split(None, 2)[1:2] != [b"200"]:
            said = redacted(answer.splitlines()[0].decode("latin-1"))[:80]
            raise ConnectError("proxy", f"the proxy {proxy.host} refused: {said!r}")


def _context() -> ssl.SSLContext:
    file = os.environ.get("SSL_CERT_FILE") or certifi.where()
    try:
        context = ssl.create_default_context(cafile=file)
    except OSError as error:
        raise UsageError(f"SSL_CERT_FILE: expected a file of certificates, got {file}: {error}") from error
    if route.current().insecure:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context


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


def _explained(error: OSError, timeout_s: float) -> ConnectError:
    """Why a connection failed."""
    if isinstance(error, TimeoutError):
        return ConnectError("connect_timeout", f"not connected within {timeout_s:g} s")
    if isinstance(error, ssl.SSLCertVerificationError):
        return ConnectError("tls", f"the server's certificate is not trusted: {error.verify_message}")
    if isinstance(error, ssl.SSLError):
        return ConnectError("tls", f"no TLS with this server: {error.reason or error}")
    if isinstance(error, ConnectionRefusedError):
        return ConnectError("refused", "connection refused: no server listens there")
    return ConnectError("connection", f"cannot connect: {error.strerror or error}")


def allow_files(connections: int) -> None:
    """Raise the limit of open files as far as allowed. Raises `LoadtestError` if that is too low for these connections."""
    needed = connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise LoadtestError(
            f"open files: expected room for {needed} ({connections} connections and what Locust needs), got a limit of"
            f" {hard}; raise it (ulimit -n {needed}), or share the users out with --processes"
        )
