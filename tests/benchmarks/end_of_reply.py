"""Does the end of a long reply hold up the other streams? How late the loop comes to a socket meanwhile.

    python tests/benchmarks/end_of_reply.py                 # a reply of 8,000 tokens
    python tests/benchmarks/end_of_reply.py --tokens 32000

The reply is decoded, encoded and written as in a run, by the same clerk. The floor is the same with nothing to do.
"""

from __future__ import annotations

import argparse
import gc
import json
import time

import gevent
import harness as h

from loadtest.client.exchange import Endpoint
from loadtest.client.level import Level
from loadtest.client.pass_options import PassOptions
from loadtest.client.self_health import LoopLag
from loadtest.workload.contract import Contract
from loadtest.workload.script import Script
from loadtest.workload.workload import load


class Canned:
    """A transport that has the whole reply already."""

    def __init__(self, tokens, field):
        def event(i):
            text = "</think>" if field == "content" and i == tokens // 2 else f" word{i}"
            delta = {"content": text} if i >= tokens // 2 or field == "content" else {field: text}
            usage = {"prompt_tokens": 9, "completion_tokens": i + 1}
            choice = {"index": 0, "delta": delta, "finish_reason": "stop" if i == tokens - 1 else None}
            return b"data: " + json.dumps({"id": "x", "choices": [choice], "usage": usage}).encode() + b"\n\n"

        self.events = [event(i) for i in range(tokens)]

    def open(self, connections):
        return 0.0

    def perform(self, exchange):
        exchange.status, exchange.content_type = 200, "text/event-stream"
        exchange.began = exchange.sent = time.monotonic()
        exchange.pieces += [bytes(bytearray(event)) for event in self.events]
        exchange.reads += [exchange.sent + i * 0.02 for i in range(len(self.events))]
        exchange.ended = exchange.reads[-1]

    def close(self):
        return


def lag(finished):
    """How late (ms) the loop came to a descriptor made ready every 0.3 ms, until `finished`: mean and worst."""
    probe = LoopLag(lambda: 1, interval_s=0.0003)
    probe.start()
    began = time.monotonic()
    while not finished():
        gevent.sleep(0.001)
    mean_s, worst_s = probe.take()
    probe.stop()
    return f"{mean_s * 1e3:8.3f} {worst_s * 1e3:8.3f} {(time.monotonic() - began) * 1e3:9.1f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--passes", type=int, default=5)
    args = parser.parse_args()
    h.favour(h.CLIENT_CORE)
    print(f"a reply of {args.tokens} tokens; ms late\n{'':22} {'mean':>8} {'worst':>8} {'took ms':>9}")
    for field in ("reasoning", "content"):
        options = PassOptions(
            out=str(h.scratch()), run_id="r", cell="c", engine="other", model="qwq", tp=1, url="http://x", concurrency=1,
            repeat=1, requests=None, warmup_requests=0, seed=0, clock_speed=1.0, workload="math:n=5", workload_identity="",
            contract=Contract(),
        )  # fmt: skip
        script = Script(load("math:n=5"), options.contract, model="qwq", engine="other", seed=0)
        endpoint = Endpoint(transport=Canned(args.tokens, field), script=script, opened=True)
        level = Level(options, (0,), endpoint, kept=lambda _: None, failed=print)
        level.open()
        for _ in range(args.passes):
            end = time.monotonic() + 0.2
            print(f"{'floor':22} {lag(lambda end=end: time.monotonic() > end)}")
            item = level.next_item()
            assert item is not None
            level.send(item, 0, 0.0)
            print(f"{'end of one, ' + field:22} {lag(lambda level=level: level.recorder.written == level.started)}")
            gc.collect()
        level.close()


if __name__ == "__main__":
    main()
