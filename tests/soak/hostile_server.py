"""The known-time server, which misbehaves at every n-th request, each time in another way.

Honest requests are answered as by `loadtest.simulator.known_times`. A line of JSON for each request that was answered
whole, or misbehaved at, goes to `--log`: its body's SHA-256, its kind, and for an honest one its times (CLOCK_MONOTONIC, s).

    python -m tests.soak.hostile_server --log /tmp/log.jsonl --every 20 --gap 0.02 --tokens 8000
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import socket
import struct
import threading
import time
from pathlib import Path

from loadtest.simulator.http.frames import chunked
from loadtest.simulator.known_times import HEAD, KnownAnswer, KnownTimesServer, event, word

END = event({}, None, "stop") + chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n"
FAILED = frozenset({"protocol_error", "server_error", "connection_error", "http_error"})
WAITED = frozenset({"timeout", "stalled", "cut_off"})  # by the client's limits; a short soak ends before


def data(text):
    return chunked(b"data: " + text + b"\n\n")


def texts(n):
    return b"".join(event({"content": word(i)}) for i in range(n))


def usage(n):
    return data(json.dumps({"choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": n}}).encode())


def plain(content):
    """A misbehaviour that is all in what is sent at once."""

    def send(sock):
        sock.sendall(content)

    return send


def json_answer(status, body, *fields):
    lines = "".join(f"{one}\r\n" for one in (f"HTTP/1.1 {status}", *fields, f"content-length: {len(body)}"))
    return plain(lines.encode() + b"\r\n" + body)


def reset(sock):
    sock.sendall(HEAD + texts(100))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def silent(sock):
    sock.sendall(HEAD)
    sock.recv(1)  # until the client gives up


def stalled(sock):
    sock.sendall(HEAD + texts(50))
    sock.recv(1)


def drip(sock):
    """A byte at a time, and then the end in the middle of an event."""
    for byte in (HEAD + texts(3))[:300]:
        sock.sendall(bytes([byte]))
        time.sleep(0.01)


def endless(*, head, piece):
    """The same bytes until the client closes."""

    def send(sock):
        sock.sendall(head)
        while True:
            sock.sendall(piece)

    return send


CLOSED = "closed before the head"

# What it does, and the outcomes that are right.
KINDS = {
    "reset": (reset, FAILED),
    CLOSED: (plain(b""), {"ok", *FAILED}),  # a kept connection that closes at once: sent anew
    "closed in a chunk": (plain(HEAD + texts(20)[:-9]), FAILED),
    "not HTTP": (plain(b"\x16\x03\x01 hello\r\n\r\n" * 50), FAILED),
    "status 500 of 1 MB": (json_answer("500 no", b"x" * 2**20), FAILED),
    "status 429": (json_answer("429 later", b'{"error":{"message":"busy","code":"\xc2\xb2"}}', "retry-after: 1e9"), FAILED),
    "redirect": (json_answer("307 there", b"", "location: http://127.0.0.1:1/"), FAILED),
    "compressed": (json_answer("200 OK", b"\x1f\x8b" + b"\0" * 10**6, "content-encoding: gzip"), FAILED),
    "a page": (json_answer("200 OK", b"<html>" + b"x" * 10**5, "content-type: text/html"), FAILED),
    "no JSON": (plain(HEAD + texts(5) + data(b'{"choices":[{"delta') + END), FAILED),
    "no UTF-8": (plain(HEAD + texts(5) + data(b'{"choices":[{"delta":{"content":"\xff\xfe"}}]}') + END), FAILED),
    "brackets": (plain(HEAD + data(b"[" * 10**5) + END), FAILED),
    "an event of 2 MiB": (plain(HEAD + event({"content": "x" * 2**21}) + END), FAILED),
    "an error in the stream": (plain(HEAD + texts(40) + data(b'{"error":{"message":"gone","code":503}}') + END), FAILED),
    "gave up": (plain(HEAD + texts(40) + event({}, None, "content_filter") + END), FAILED),
    "no end": (plain(HEAD + texts(40) + b"0\r\n\r\n"), FAILED),
    "a billion tokens": (plain(HEAD + texts(40) + event({}, None, "stop") + usage(10**9) + END), FAILED),
    "minus one token": (plain(HEAD + texts(40) + usage(-1) + END), FAILED),
    "one token for all": (plain(HEAD + texts(200) + event({}, None, "stop") + usage(1) + END), {"ok", "no_answer"}),
    "all at once": (plain(HEAD + texts(20_000) + event({}, None, "stop") + usage(20_000) + END), {"ok", "no_answer"}),
    "headers without end": (endless(head=HEAD[:-2], piece=b"x-more: yes\r\n" * 100), FAILED),
    "extensions without end": (endless(head=HEAD + b"5;", piece=b"e" * 4096), FAILED),
    "text without end": (endless(head=HEAD, piece=texts(500)), FAILED),
    "comments without end": (endless(head=HEAD, piece=chunked(b": ping\n\n" * 4096)), FAILED),
    "drip": (drip, FAILED),
    "silent": (silent, WAITED),
    "stalled": (stalled, WAITED),
}


class HostileServer(KnownTimesServer):
    """`every`: of so many requests the last is misbehaved at; 0: none. `kinds`: in turn. `log`: a stream of lines."""

    def __init__(self, *server, every, kinds, log):
        super().__init__(*server)
        self.every, self.asked, self.told = every, 0, log
        self.kinds = itertools.cycle(kinds)

    def stream(self, fd, sock, body, arrived):
        self.asked += 1
        if not self.every or self.asked % self.every:
            super().stream(fd, sock, body, arrived)
            self.log.clear()
            return
        kind = next(self.kinds)
        self.tell(sha256=hashlib.sha256(body).hexdigest(), kind=kind)
        self.poll.unregister(fd)
        del self.streams[fd]
        sock.setblocking(True)
        threading.Thread(target=misbehave, args=(sock, kind), daemon=True).start()

    def send(self, due, serial, fd, entry):
        super().send(due, serial, fd, entry)
        sent = entry.before
        if len(sent) == len(self.plan.tokens):
            self.tell(sha256=entry.sha256, kind="honest", arrived=entry.arrived, first=sent[0], last=sent[-1])

    def tell(self, **said):
        self.told.write(json.dumps(said) + "\n")
        self.told.flush()


def misbehave(sock, kind):
    with contextlib.suppress(OSError), sock:
        KINDS[kind][0](sock)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--first", type=float, default=0.2)
    parser.add_argument("--gap", type=float, default=0.02)
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--only", nargs="*", choices=KINDS, help="these kinds of misbehaviour (default: all)")
    args = parser.parse_args()
    plan = KnownAnswer(args.tokens, args.tokens // 4, "reasoning", role_late=True, continuous_usage=False)
    with args.log.open("w") as log:
        server = HostileServer(
            "127.0.0.1", 0, plan, args.first, args.gap, True, every=args.every, log=log, kinds=args.only or KINDS
        )
        print(server.port, flush=True)
        server.run()


if __name__ == "__main__":
    main()
