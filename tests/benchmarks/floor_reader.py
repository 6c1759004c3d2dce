"""The floor: a bare epoll loop that streams requests and stamps its reads, with nothing else in its way.

python tests/benchmarks/floor_reader.py PORT STREAMS REQUESTS TOKENS
"""

from __future__ import annotations

import hashlib
import json
import resource
import select
import socket
import sys
import time


def request_body(i):
    content = f"{i} " + "x" * 400
    return json.dumps({"model": "known", "stream": True, "messages": [{"role": "user", "content": content}]}).encode()


def main():
    port, streams, requests, tokens = map(int, sys.argv[1:])
    bodies = [request_body(i) for i in range(requests)]
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    requests_left = [(body, head % len(body) + body) for body in bodies]
    poll = select.epoll()
    socks: dict[int, socket.socket] = {}
    for _ in range(streams):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        socks[sock.fileno()] = sock
        poll.register(sock.fileno(), select.EPOLLIN)
    seen: list[tuple[bytes, float, list[float], list[bytes]]] = []
    open_streams: dict[int, tuple[bytes, float, list[float], list[bytes]]] = {}
    waiting = list(socks)
    left, cpu_s = requests, time.process_time()
    wakes = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
    start = time.monotonic()
    while left or open_streams:
        while waiting and left and time.monotonic() >= start:
            fd = waiting.pop()
            start += 0.02 / streams
            body, data = requests_left.pop()
            open_streams[fd] = (body, time.monotonic(), [], [])
            socks[fd].send(data)
            left -= 1
        if waiting and left:  # to the microsecond: streams that start together are read together, and cost less
            select.select([poll.fileno()], [], [], max(0.0, start - time.monotonic()))
        for fd, _ in poll.poll(0 if waiting and left else -1):
            piece = socks[fd].recv(65536)
            _, _, reads, pieces = open_streams[fd]
            reads.append(time.monotonic())
            pieces.append(piece)
            if piece.endswith(b"0\r\n\r\n"):
                seen.append(open_streams.pop(fd))
                waiting.append(fd)
    cpu_s = time.process_time() - cpu_s
    wakes = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - wakes
    found = []
    for body, sent, reads, pieces in seen:
        first = next(i for i, piece in enumerate(pieces) if b'"role"' not in piece)
        found.append({"sha256": hashlib.sha256(body).hexdigest(), "sent": sent, "tokens": reads[first : first + tokens]})
    json.dump({"cpu_s": cpu_s, "wakes": wakes, "requests": found}, sys.stdout)


if __name__ == "__main__":
    main()
