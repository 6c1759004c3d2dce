"""TLS over a socket that is read here, not by OpenSSL, so that encrypted bytes keep the kernel's time of their arrival."""

from __future__ import annotations

import contextlib
import ssl
from typing import Any

from loadtest.client.arrival import READ_BYTES, Send

_RECORD_BYTES = 16384  # of plain text, the most that one TLS record holds


class Tls:
    """One TLS session in memory. `take` decrypts what was read, `send` encrypts and writes."""

    def __init__(self, sock: Any, context: ssl.SSLContext, hostname: str) -> None:
        self._sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._session = context.wrap_bio(self._incoming, self._outgoing, server_hostname=hostname)
        self._unsent = b""  # encrypted, not yet taken by the system
        self._unsent_plain = 0  # bytes of plain text that it stands for

    def handshake(self) -> None:
        """Shake hands; waits. Raises OSError, of which `ssl.SSLError` is one."""
        while True:
            try:
                self._session.do_handshake()
            except ssl.SSLWantReadError:
                self._sock.sendall(self._outgoing.read())
                data = self._sock.recv(READ_BYTES)
                self._incoming.write(data) if data else self._incoming.write_eof()
                continue
            finally:
                if self._outgoing.pending:  # the last message, or why we refuse
                    with contextlib.suppress(OSError):
                        self._sock.sendall(self._outgoing.read())
            return

    def take(self, data: bytes) -> bytes:
        """The plain text in what was read; empty where the server has closed (`data` is empty, or its last message).

        Raises BlockingIOError where there is none yet: part of a record, or a message of the protocol itself.
        """
        self._incoming.write(data) if data else self._incoming.write_eof()
        plain = []
        try:
            while piece := self._session.read(READ_BYTES):
                plain.append(piece)
        except ssl.SSLWantReadError:
            if not plain:
                raise BlockingIOError from None
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            pass
        return b"".join(plain)

    def send(self, data: bytes | memoryview, write: Send) -> int:
        """Bytes of plain text that the system has taken now by `write`, encrypted; 0: call again with the same."""
        if not self._unsent:
            self._unsent_plain = self._session.write(data[:_RECORD_BYTES])
            self._unsent = self._outgoing.read()
        self._unsent = self._unsent[write(self._unsent) :]
        return 0 if self._unsent else self._unsent_plain
