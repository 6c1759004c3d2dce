"""One client of `cost.py`, in a process of its own: stream, then print CPU seconds and tokens as JSON.

python tests/benchmarks/stream_client.py transport|geventhttpclient PORT STREAMS REQUESTS TOKENS
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import resource  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402

import gevent  # noqa: E402

BODY = json.dumps({"model": "known", "stream": True, "messages": [{"role": "user", "content": "x" * 400}]}).encode()


def transport(port: int, streams: int) -> Callable[[], int]:
    """Our client and its decoding, without Locust, records and telemetry."""
    from loadtest import reply
    from loadtest.client import CurlTransport, Exchange
    from loadtest.clock import Clock
    from loadtest.level import give_way

    client = CurlTransport(f"http://127.0.0.1:{port}/v1/chat/completions")
    client.open(streams)
    clock = Clock.start()

    def one() -> int:
        exchange = Exchange(body=BODY)
        client.perform(exchange)
        return len(reply.read(exchange, clock, opened=True, pause=give_way).chunk_s)

    return one


def geventhttpclient(port: int, streams: int) -> Callable[[], int]:
    """Locust's own client, read by line, each line's text decoded as it comes."""
    from geventhttpclient import HTTPClient

    client = HTTPClient("127.0.0.1", port, concurrency=streams, connection_timeout=60, network_timeout=600)

    def one() -> int:
        n = 0
        answer = client.post("/v1/chat/completions", BODY, headers={"content-type": "application/json"})
        while line := answer.readline(b"\n"):
            time.monotonic()
            if line.startswith(b"data: {"):
                choices = json.loads(line[6:])["choices"]
                n += bool(choices and (choices[0]["delta"].get("content") or choices[0]["delta"].get("reasoning")))
            if line.startswith(b"data: [DONE]"):
                break
        answer.read()
        return n

    return one


def main() -> None:
    kind = sys.argv[1]
    port, streams, requests, tokens = map(int, sys.argv[2:])
    one = {"transport": transport, "geventhttpclient": geventhttpclient}[kind](port, streams)
    counts: list[int] = []

    def user(number: int) -> None:
        gevent.sleep(number * 0.02 / streams)
        for _ in range(requests // streams):
            counts.append(one())

    wakes = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
    cpu_s, began = time.process_time(), time.monotonic()
    gevent.joinall([gevent.spawn(user, number) for number in range(streams)], raise_error=True)
    cpu_s, wall_s = time.process_time() - cpu_s, time.monotonic() - began
    assert set(counts) == {tokens}, set(counts)
    wakes = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - wakes
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    json.dump({"cpu_s": cpu_s, "wall_s": wall_s, "tokens": sum(counts), "wakes": wakes, "rss_bytes": rss}, sys.stdout)


if __name__ == "__main__":
    main()
