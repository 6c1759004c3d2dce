"""A streaming chat-completions server whose every send time is planned, kept, and known to others: no engine, but what shows
how true a client's times are (`loadtest verify`, `tests/benchmarks`).

Each request is answered on a schedule fixed by its arrival: a role-only chunk at once (with `--role-late` in the write of
the first token, as vLLM and SGLang send it), then token i at `arrival + first + i * gap`; with `--out-of-step`, the k-th
request a share of a gap later (the fractional part of k times the golden ratio), so that no two streams send at once
whenever their clients start them; with `--burst N`, N tokens together, each a write of its own. One process, one loop; it
sleeps with microsecond precision and spins for the last bit.
`GET /log` returns, for every request, the readings of CLOCK_MONOTONIC (the same clock in every process of a host)
before and after the send of each token. `GET /reset` empties the log, `GET /die` ends the server as a crash would.

    python -m loadtest.simulator.known_times --port 9000 --first 0.2 --gap 0.02 --tokens 400 --thinking 100
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import heapq
import json
import os
import select
import socket
import time
from typing import Any

import msgspec

from loadtest.client.priority import Precedence
from loadtest.records.instrument import Sent
from loadtest.simulator.http.frames import chunked

SPIN_S = 0.0003
LETTERS = "abcdefghijklmnopqrstuvwxyz"
GOLDEN = 0.6180339887498949
HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: known-time\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def event(delta: dict[str, str], usage: dict[str, int] | None = None, finish: str | None = None) -> bytes:
    """One chunk of a chat completion."""
    chunk: dict[str, Any] = {
        "id": "chatcmpl-known",
        "object": "chat.completion.chunk",
        "created": 1795378320,
        "model": "known",
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
    }
    if usage is not None:
        chunk["usage"] = usage
    return chunked(b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n")


def word(i: int) -> str:
    """Text of the i-th token: a space and two letters, one token of the tiny model's tokenizer too."""
    return f" {LETTERS[i // 26 % 26]}{LETTERS[i % 26]}"


class KnownAnswer:
    """The bytes of one response, the same for every request: one piece of text a token, each a write of its own."""

    def __init__(self, tokens: int, thinking: int, field: str, role_late: bool, continuous_usage: bool) -> None:
        def usage(n: int) -> dict[str, int] | None:
            return {"prompt_tokens": 20, "completion_tokens": n, "total_tokens": 20 + n} if continuous_usage else None

        role = event({"role": "assistant", "content": ""})
        self.head = HEAD if role_late else HEAD + role
        self.tokens = [event({field if i < thinking else "content": word(i)}, usage(i + 1)) for i in range(tokens)]
        if role_late:
            self.tokens[0] = role + self.tokens[0]
        final = {"choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": tokens, "total_tokens": 20 + tokens}}
        self.tail = event({}, None, "stop") + chunked(b"data: " + json.dumps(final).encode() + b"\n\n")
        self.tail += chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class KnownTimesServer:
    """Answers every request by one plan, on its schedule."""

    def __init__(
        self, host: str, port: int, plan: KnownAnswer, first_s: float, gap_s: float, out_of_step: bool, burst: int = 1
    ) -> None:
        self.plan, self.first_s, self.gap_s, self.out_of_step, self.burst = plan, first_s, gap_s, out_of_step, burst
        self.listener = socket.create_server((host, port), backlog=4096)
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]
        self.poll = select.epoll()
        self.poll.register(self.listener.fileno(), select.EPOLLIN)
        self.streams: dict[int, tuple[socket.socket, bytearray]] = {}
        self.due: list[tuple[float, int, int, Sent]] = []
        self.log: list[Sent] = []
        self.serial = 0

    def run(self) -> None:
        """Serve for ever."""
        while True:
            now = time.monotonic()
            while self.due and self.due[0][0] <= now:
                self.send(*heapq.heappop(self.due))
                now = time.monotonic()
            wait_s = self.due[0][0] - now if self.due else 1.0
            if wait_s > SPIN_S:
                select.select([self.poll.fileno()], [], [], wait_s - SPIN_S)
            for fd, _ in self.poll.poll(0):
                self.receive(fd)

    def send(self, _: float, serial: int, fd: int, entry: Sent) -> None:
        if fd not in self.streams or entry.gone:
            return
        sock, i, plan = self.streams[fd][0], len(entry.before), self.plan
        last = i == len(plan.tokens) - 1
        data = plan.tokens[i] + plan.tail if last else plan.tokens[i]
        before = time.monotonic()
        try:
            sock.send(data)
        except OSError:
            entry.gone = True
            return
        entry.before.append(before)
        entry.after.append(time.monotonic())
        if not last:
            heapq.heappush(self.due, (self.due_s(entry, serial, i + 1), serial, fd, entry))

    def due_s(self, entry: Sent, serial: int, i: int) -> float:
        late = serial * GOLDEN % 1 * self.gap_s if self.out_of_step else 0.0
        return entry.arrived + self.first_s + i // self.burst * self.burst * self.gap_s + late

    def accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                sock, _ = self.listener.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.streams[sock.fileno()] = (sock, bytearray())
                self.poll.register(sock.fileno(), select.EPOLLIN)

    def receive(self, fd: int) -> None:
        if fd == self.listener.fileno():
            self.accept()
            return
        sock, buffer = self.streams[fd]
        try:
            data = sock.recv(65536)
        except OSError:
            data = b""
        arrived = time.monotonic()
        if not data:
            self.poll.unregister(fd)
            del self.streams[fd]
            sock.close()
            return
        buffer += data
        self.requests(fd, sock, buffer, arrived)

    def requests(self, fd: int, sock: socket.socket, buffer: bytearray, arrived: float) -> None:
        while (end := buffer.find(b"\r\n\r\n")) >= 0:
            head = bytes(buffer[:end]).lower()
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0]) if b"content-length:" in head else 0
            if len(buffer) < end + 4 + length:
                return
            body = bytes(buffer[end + 4 : end + 4 + length])
            del buffer[: end + 4 + length]
            if head.startswith(b"post "):
                self.stream(fd, sock, body, arrived)
            else:
                self.answer(sock, head.split()[1].decode())

    def stream(self, fd: int, sock: socket.socket, body: bytes, arrived: float) -> None:
        sock.send(self.plan.head)
        entry = Sent(hashlib.sha256(body).hexdigest(), arrived)
        self.log.append(entry)
        self.serial += 1
        heapq.heappush(self.due, (self.due_s(entry, self.serial, 0), self.serial, fd, entry))

    def answer(self, sock: socket.socket, path: str) -> None:
        status = b"200 OK"
        if path == "/v1/models":
            content: object = {"object": "list", "data": [{"id": "known", "object": "model"}]}
        elif path == "/log":
            requests = msgspec.to_builtins(self.log)
            content = {"first_s": self.first_s, "gap_s": self.gap_s, "cpu_s": time.process_time(), "requests": requests}
        elif path == "/reset":
            self.log, content = [], {}
        elif path == "/health":
            content = {}
        elif path == "/die":
            os._exit(1)
        else:
            status, content = b"404 Not Found", {"error": "no such path"}
        data = json.dumps(content).encode()
        sock.setblocking(True)
        sock.sendall(
            b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (status, len(data), data)
        )
        sock.setblocking(False)


def main() -> None:
    """Serve, after a line with the port."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument("--first", type=float, default=0.2, help="seconds from the arrival of a request to its first token")
    parser.add_argument("--gap", type=float, default=0.02, help="seconds between two tokens; 0: as fast as it goes")
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--thinking", type=int, default=100, help="how many of the tokens are thinking")
    parser.add_argument("--thinking-field", default="reasoning", help="vLLM's; SGLang's is reasoning_content")
    parser.add_argument("--role-late", action="store_true", help="send the role-only chunk with the first token")
    parser.add_argument("--out-of-step", action="store_true", help="spread the streams' sends over a gap")
    parser.add_argument("--burst", type=int, default=1, help="tokens that are sent at once")
    parser.add_argument("--continuous-usage", action="store_true", help="tell usage in every chunk")
    parser.add_argument("--core", type=int, help="run on this core only")
    args = parser.parse_args()
    if args.core is not None:
        os.sched_setaffinity(0, {args.core})
    plan = KnownAnswer(args.tokens, args.thinking, args.thinking_field, args.role_late, args.continuous_usage)
    server = KnownTimesServer(args.host, args.port, plan, args.first, args.gap, args.out_of_step, args.burst)
    print(server.port, flush=True)
    gc.disable()  # it keeps every send, and has no cycles: a full collection would stop its clock for 50 ms
    Precedence().take()
    server.run()


if __name__ == "__main__":
    main()
