"""How long does the reading loop work at a time? CPU time of each turn, from one look at the sockets to the next.

    python tests/benchmarks/loop_work.py                    # 64 streams at 50 tokens/s
    python tests/benchmarks/loop_work.py --streams 8 --tokens 2000

Everything counts that the loop does in a run while requests stream: reads, decoding, encoding, health samples, garbage
collection, Locust's own. A turn holds up whatever arrives meanwhile; stamps of the kernel do not suffer from it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

EDGES_MS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, float("inf"))
TURNS = "LOADTEST_BENCHMARK_TURNS"  # where the process that reads writes its turns


def watch(path):
    """Under Locust: note the CPU time of every turn between the start of the last user and the end."""
    import gevent
    from locust import events

    turns: list[int] = []
    last = time.thread_time_ns()

    def turn():
        nonlocal last
        now = time.thread_time_ns()
        turns.append(now - last)
        last = now

    def begin(**_):
        turn()
        turns.clear()
        watcher.start(turn)

    def end(**_):
        watcher.stop()
        Path(path).write_text(json.dumps(turns))

    watcher = gevent.get_hub().loop.check(ref=False)
    events.spawning_complete.add_listener(begin)
    events.test_stop.add_listener(end)


if TURNS in os.environ:
    watch(os.environ[TURNS])


def main():
    import harness as h

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--gap", type=float, default=0.02)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    place = h.scratch()
    os.environ[TURNS] = str(place / "turns.json")
    files = ["-f", f"{h.SCENARIO},{Path(__file__).resolve()}"]
    requests = ["--requests", str(args.streams * args.rounds), "--warmup-requests", "0"]
    with h.known_time_server(tokens=args.tokens, thinking=args.tokens // 4, gap=args.gap, out_of_step=True) as port:
        drive = h.locust(port, args.streams, place / "run", *files, *requests)
    if not (place / "turns.json").exists():
        raise SystemExit(drive.output[-2000:])
    turns = [ns / 1e6 for ns in json.loads((place / "turns.json").read_text())]
    print(f"{args.streams} streams, {args.gap * 1e3:g} ms a token: {len(turns)} turns, {sum(turns) / 1e3:.2f} s of CPU")
    print("longest ms      turns   share of turns   share of CPU")
    low = 0.0
    for high in EDGES_MS:
        some = [one for one in turns if low <= one < high]
        print(f"{low:5.2f} to {high:5.2f} {len(some):7} {len(some) / len(turns):16.3%} {sum(some) / sum(turns):14.1%}")
        low = high
    print(f"p99 {h.quantile(turns, 0.99):.3f} ms, worst {max(turns):.3f} ms")


if __name__ == "__main__":
    main()
