"""One client of `cost.py`, in a process of its own: stream, then print CPU seconds and tokens as JSON.

python tests/benchmarks/stream_client.py transport|pycurl|geventhttpclient PORT STREAMS REQUESTS TOKENS
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import resource  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402

import gevent  # noqa: E402
import gevent.event  # noqa: E402

BODY = json.dumps({"model": "known", "stream": True, "messages": [{"role": "user", "content": "x" * 400}]}).encode()


def transport(port, streams):
    """Our client and its decoding, without Locust, records and telemetry."""
    from loadtest.client import reply
    from loadtest.client.exchange import Exchange
    from loadtest.client.recorder import give_way
    from loadtest.client.transport import SocketTransport
    from loadtest.clock import Clock

    client = SocketTransport(f"http://127.0.0.1:{port}/v1/chat/completions")
    client.open(streams)
    clock = Clock.start()

    def one():
        exchange = Exchange(body=BODY)
        client.perform(exchange)
        return len(reply.read_reply(exchange, clock, opened=True, pause=give_way).chunk_s)

    return one


def libcurl(port, streams):
    """pycurl on the gevent loop, its reads stamped in the callback of libcurl, each reply decoded at its end."""
    import pycurl

    multi, loop = pycurl.CurlMulti(), gevent.get_hub().loop
    watchers: dict[int, object] = {}
    waiting: dict[object, gevent.event.Event] = {}
    timer = loop.timer(0.001, 0.05)

    def collect():
        more = 1
        while more:
            more, good, bad = multi.info_read()
            assert not bad, bad
            for easy in good:
                multi.remove_handle(easy)
                waiting.pop(easy).set()

    def on_socket(what, fd, _multi, _data):
        if fd in watchers:
            watchers.pop(fd).stop()
        if what != pycurl.POLL_REMOVE:
            watchers[fd] = loop.io(fd, what)
            watchers[fd].start(multi.socket_action, fd, what if what != pycurl.POLL_INOUT else 0)
        else:
            loop.run_callback(collect)

    def on_time():
        multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
        collect()

    multi.setopt(pycurl.M_SOCKETFUNCTION, on_socket)
    timer.start(on_time)

    def one():
        easy, reads, pieces, done = pycurl.Curl(), [], [], gevent.event.Event()
        stamp, keep, now = reads.append, pieces.append, time.monotonic

        def read(data):
            stamp(now())
            keep(data)

        for option, value in (
            (pycurl.URL, f"http://127.0.0.1:{port}/v1/chat/completions"),
            (pycurl.POSTFIELDS, BODY),
            (pycurl.HTTPHEADER, ["Content-Type: application/json", "Expect:"]),
            (pycurl.WRITEFUNCTION, read),
            (pycurl.TCP_NODELAY, 1),
            (pycurl.PROXY, ""),
        ):
            easy.setopt(option, value)
        waiting[easy] = done
        multi.add_handle(easy)
        multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
        done.wait()
        easy.close()
        lines = [line for line in b"".join(pieces).split(b"\n") if line.startswith(b"data: {")]
        deltas = [choices[0]["delta"] for line in lines if (choices := json.loads(line[6:])["choices"])]
        return sum(bool(delta.get("content") or delta.get("reasoning")) for delta in deltas)

    return one


def geventhttpclient(port, streams):
    """Locust's own client, read by line, each line's text decoded as it comes."""
    from geventhttpclient import HTTPClient

    client = HTTPClient("127.0.0.1", port, concurrency=streams, connection_timeout=60, network_timeout=600)

    def one():
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


def main():
    kind = sys.argv[1]
    port, streams, requests, tokens = map(int, sys.argv[2:])
    one = {"transport": transport, "pycurl": libcurl, "geventhttpclient": geventhttpclient}[kind](port, streams)
    counts: list[int] = []

    def user(number):
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
