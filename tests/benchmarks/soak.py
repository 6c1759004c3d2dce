"""Does memory stay flat? 64 streams at full speed under Locust; the memory of the client against the tokens it has read.

    python tests/benchmarks/soak.py                     # three minutes
    python tests/benchmarks/soak.py --duration 3600     # an hour

The first tenth of the run is left out: set-up, and buffers that grow to their size. Growth is the slope of the least squares
line of memory over tokens. There is no floor: the aim is 0. What is kept of a reply goes once its record is on disk.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import threading
from bisect import bisect_right
from itertools import pairwise

import harness as h

SETTLING = 0.1


def ended(run):
    """When each request ended (s of the run), the tokens read until then, and the requests that did not end well."""
    found, failed = [], 0
    for path in run.glob("cells/*/*/requests-*.jsonl"):
        with path.open("rb") as stream:
            for line in stream:  # one at a time: this file grows with every token
                record = json.loads(line)
                found.append((record["ended_s"], len(record["chunk_s"])))
                failed += record["outcome"] not in ("ok", "cut_off")
    found.sort()
    total, tokens = 0, []
    for _, n in found:
        total += n
        tokens.append(total)
    return [at_s for at_s, _ in found], tokens, failed


def slope(xs, ys):
    x, y = h.mean(xs), h.mean(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)


def thirds(xs, ys):
    """The run in three parts: a heap that fills up to its size grows in the first, a leak in each."""
    cuts = [len(xs) * i // 3 for i in range(4)]
    return [(xs[a:b], ys[a:b]) for a, b in pairwise(cuts)]


@contextlib.contextmanager
def forgetful(port, every_s=2.0):
    """Have the server empty its log meanwhile: its memory is not what is measured, and it would run out of it."""
    over = threading.Event()

    def forget():
        while not over.wait(every_s):
            h.get(port, "/reset")

    thread = threading.Thread(target=forget)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=2000, help="of each request")
    parser.add_argument("--gap", type=float, default=0.0)
    parser.add_argument("--duration", type=float, default=180.0)
    args = parser.parse_args()
    root = h.scratch()
    with (
        h.known_time_server(tokens=args.tokens, thinking=args.tokens // 4, first=0.01, gap=args.gap) as port,
        forgetful(port),
    ):
        drive = h.locust(port, args.streams, root, "--run-time", f"{args.duration:g}s", "--warmup-requests", "0")
    if drive.exit_code:
        print(drive.output[-2000:])
    ends, tokens, failed = ended(root)
    samples = [s for s in h.health(root) if SETTLING * args.duration < s["t_s"] < args.duration]
    read = [float(tokens[i - 1]) for i in (bisect_right(ends, s["t_s"]) for s in samples)]
    rss_mb = [s["rss_bytes"] / 1e6 for s in samples]
    print(
        f"{args.streams} streams, {drive.wall_s:.0f} s: {len(ends)} requests, {tokens[-1]} tokens, {failed} failed;"
        f" {tokens[-1] / args.streams / 50 / 3600:.2f} hours' worth at 50 tokens/s each\n"
        f"memory (MB): {rss_mb[0]:.1f} after {samples[0]['t_s']:.0f} s, {rss_mb[-1]:.1f} at the end,"
        f" {min(rss_mb):.1f} to {max(rss_mb):.1f} between\n"
        f"growth (MB per 100,000 tokens, aim: below 1): {slope(read, rss_mb) * 1e5:.3f} over all of it;"
        f" by thirds {', '.join(f'{slope(*third) * 1e5:.3f}' for third in thirds(read, rss_mb))}\n"
        f"loop lag (ms): {max(s['loop_lag_max_s'] for s in samples) * 1e3:.1f} at worst;"
        f" collections: {sum(s['gc_collections'] for s in samples)}, the longest second of them"
        f" {max(s['gc_pause_s'] for s in samples) * 1e3:.1f} ms"
    )
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
