"""A server of canned answers on 127.0.0.1, for tests: path to (status, body, headers); whatever else is 404."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer

Answer = tuple[int, object, Mapping[str, str]]


class _Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def do_GET(self):
        self.server.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        status, body, headers = self.server.answers.get(self.path, (404, {"detail": "Not Found"}, {}))
        content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content-length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.do_GET()

    def log_message(self, *arguments):
        return


class FakeServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, answers, file=None):
        self.address_family = socket.AF_INET if file is None else socket.AF_UNIX
        super().__init__(("127.0.0.1", 0) if file is None else str(file), _Handler)
        self.answers = dict(answers)
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.url = f"http://127.0.0.1:{self.server_port}" if file is None else f"unix://{file}"

    def server_bind(self):
        if self.address_family == socket.AF_INET:
            super().server_bind()
        else:
            TCPServer.server_bind(self)

    def get_request(self):
        connection, address = super().get_request()
        return connection, address or ("a Unix socket", 0)


@contextlib.contextmanager
def serving(answers, file=None):
    """A running server, on the Unix socket `file` where that is given; an answer that is not a
    (status, body, headers) is a body with status 200."""
    full = {path: answer if isinstance(answer, tuple) else (200, answer, {}) for path, answer in answers.items()}
    server = FakeServer(full, file)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
