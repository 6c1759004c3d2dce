"""What a streamed token costs the simulator, and how late it sends: `python tests/benchmarks/simulator_speed.py`.

Prints CPU microseconds per streamed token of the server process beside the floor of the same run (a bare `send` of as many
bytes on a loopback socket), and the server's own lateness in wall time, from plan to last send of a step.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import socket
import subprocess
import sys
import time
import urllib.request


def main():
    for streams, rate, tokens in ((8, 50, 500), (64, 50, 400), (1000, 20, 200)):
        measure(streams, rate, tokens)


def measure(streams, rate, tokens):
    argv = [sys.executable, "-m", "loadtest.simulator", "--engine", "vllm-sim", "--model", "qwq-32b-awq", "--port", "0"]
    argv += ["--kv-tokens", "4000000", "--max-running", "2000", "--step-time", str(1 / rate), "--prefill-budget", "100000"]
    server = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        match = re.search(r":(\d+),", server.stderr.readline().split("http://")[1])
        assert match
        port = int(match[1])
        before = cpu_s(server.pid)
        events = drain(port, streams, tokens)
        cpu = cpu_s(server.pid) - before
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            page = answer.read().decode()
    finally:
        server.terminate()
        rest = server.stderr.read()
        server.wait()
    seen = dict(re.findall(r"loadtest_sim:(\w+)(?:{[^}]*})? (\S+)", page))
    steps = max(float(seen["late_seconds_count"]), 1)
    mean_ms = float(seen["late_seconds_sum"]) / steps * 1e3
    within = {bound: float(n) / steps for bound, n in re.findall(r'late_seconds_bucket{.*le="(\S+)"} (\S+)', page)}
    sent = streams * tokens
    print(
        f"{streams:5} streams x {rate:g}/s: {cpu / sent * 1e6:6.1f} us CPU/token (floor {floor_us(streams, sent):5.1f}), "
        f"{events} events, late mean {mean_ms:.2f} ms, {within['0.001']:.1%} of steps within 1 ms, "
        f"max {float(seen['late_seconds_max']) * 1e3:.2f} ms, overruns {seen['overrun_steps_total']}"
        + (", log says it fell behind" if "fell behind" in rest else "")
    )


def cpu_s(pid):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def drain(port, streams, tokens):
    selector = selectors.EpollSelector()
    for number in range(streams):
        body = {"messages": [{"role": "user", "content": f"prompt {number}"}], "model": "qwq-32b-awq", "stream": True}
        body |= {
            "max_tokens": tokens,
            "ignore_eos": True,
            "loadtest_sim": {"thinking_tokens": tokens // 2, "answer_tokens": tokens},
        }
        body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
        text = json.dumps(body).encode()
        sock = socket.create_connection(("127.0.0.1", port))
        sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(text) + text)
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ)
    events, left = 0, streams
    while left:
        for key, _ in selector.select():
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            data = sock.recv(65536)
            events += data.count(b"data: ")
            if not data or b"[DONE]" in data:
                selector.unregister(sock)
                sock.close()
                left -= 1
    return events


def floor_us(streams, sends):
    """CPU microseconds of one bare send of 350 bytes, drained by the peer in the same process (peer's time left out)."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    pairs = []
    for _ in range(min(streams, 200)):
        client = socket.create_connection(listener.getsockname())
        pairs.append((listener.accept()[0], client))
    data, spent = b"x" * 350, 0.0
    for _ in range(max(1, min(sends, 20000) // len(pairs))):
        start = time.process_time()
        for server, _ in pairs:
            server.send(data)
        spent += time.process_time() - start
        for _, client in pairs:
            client.recv(65536)
    n = max(1, min(sends, 20000) // len(pairs)) * len(pairs)
    for server, client in pairs:
        server.close()
        client.close()
    listener.close()
    return spent / n * 1e6


if __name__ == "__main__":
    main()
