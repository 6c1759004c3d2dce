"""An HTTP proxy on 127.0.0.1, for tests: ways through (CONNECT) and whole URLs; and certificates that nobody vouches for."""

from __future__ import annotations

import contextlib
import shutil
import socket
import socketserver
import ssl
import subprocess
import threading
from urllib.parse import urlsplit

import pytest


class Proxy(socketserver.ThreadingTCPServer):
    """Lets everybody through, or answers `refusal`; `seen` is what passed it, `heads` what it was asked itself."""

    daemon_threads = True

    def __init__(self, refusal=b""):
        super().__init__(("127.0.0.1", 0), None)
        self.refusal = refusal
        self.seen = b""
        self.heads: list[bytes] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def finish_request(self, request, _):
        head = b""
        while b"\r\n\r\n" not in head:
            data = request.recv(65536)
            if not data:
                return
            head += data
        self.seen += head
        self.heads.append(head)
        if self.refusal:
            request.sendall(self.refusal)
            return
        tunnel = head.startswith(b"CONNECT ")
        target = head.split()[1].decode()
        host, port = (target if tunnel else urlsplit(target).netloc).split(":")
        with socket.create_connection((host, int(port))) as server:
            if tunnel:
                request.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                server.sendall(head.replace(target.encode(), urlsplit(target).path.encode(), 1))
            back = threading.Thread(target=self.relay, args=(server, request))
            back.start()
            self.relay(request, server)
            back.join()

    def relay(self, source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.seen += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def proxying(refusal=b""):
    with Proxy(refusal) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def make_certificate(folder):
    """A certificate of 127.0.0.1 that nobody but itself vouches for (`cert`), and its key (`key`), in a folder."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"]
    argv += ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*argv, "-keyout", folder / "key", "-out", folder / "cert"], check=True, capture_output=True)
    return folder


def server_context(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert", certificate / "key")
    return context
