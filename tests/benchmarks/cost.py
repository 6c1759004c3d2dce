"""What does a streamed token cost the client? CPU per token of several clients beside a bare epoll loop.

    python tests/benchmarks/cost.py                             # 64 streams at 50 tokens/s, one token a read
    python tests/benchmarks/cost.py --streams 8
    python tests/benchmarks/cost.py --streams 8 --gap 0 --tokens 2000    # full speed: bursts

`floor` only reads; the others decode every token as well. `transport` is our client alone, `loadtest` the whole
of it under Locust while the level runs: records, statistics, telemetry. `locust` adds its start and its end.
Every pass is shown, the clients in turn within each, and the ratio to the floor of the same pass: the floor itself
moves by half with what else runs on the machine. `wakes` is how often a client was woken for each token. It must be
alike for a comparison: streams in step are read together, which costs half.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

import harness as h

CLIENTS = ("floor", "transport", "loadtest", "pycurl", "geventhttpclient")


def alone(kind, port, streams, requests, tokens):
    script = ["floor_reader.py"] if kind == "floor" else ["stream_client.py", kind]
    argv = [sys.executable, str(h.HERE / script[0]), *script[1:], str(port), str(streams), str(requests), str(tokens)]
    pin = lambda: h.favour(h.CLIENT_CORE)  # noqa: E731
    done = subprocess.run(argv, capture_output=True, text=True, check=True, preexec_fn=pin)
    seen = json.loads(done.stdout)
    return seen["cpu_s"] / (requests * tokens) * 1e6, seen["wakes"] / (requests * tokens)


def one(kind, port, streams, requests, tokens):
    """CPU us per token, and wake-ups per token where they are known."""
    if kind != "loadtest":
        return alone(kind, port, streams, requests, tokens)
    run = h.scratch() / "run"
    drive = h.locust(port, streams, run, "--requests", str(requests), "--warmup-requests", "0")
    read = sum(len(x.tokens) for x in h.measured(run))
    cpu_s = sum(s["cpu_share"] * s["interval_s"] for s in h.health(run))
    return cpu_s / read * 1e6, drive.wakes / read


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--gap", type=float, default=0.02)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--clients", default=",".join(CLIENTS))
    args = parser.parse_args()
    clients = args.clients.split(",")
    seen: dict[str, list[tuple[float, float | None]]] = {kind: [] for kind in clients}
    with h.known_time_server(tokens=args.tokens, thinking=args.tokens // 4, gap=args.gap, out_of_step=True) as port:
        for _ in range(args.passes):
            for kind in clients:
                seen[kind].append(one(kind, port, args.streams, args.streams * args.rounds, args.tokens))
    print(
        f"{args.streams} streams, {args.gap * 1e3:g} ms a token, {args.tokens} tokens; CPU us/token of {args.passes} passes"
    )
    print("client           least  median | every pass (of the floor of that pass, wakes per token)")
    for kind in clients:
        costs = [cost for cost, _ in seen[kind]]
        floors = [cost for cost, _ in seen.get("floor", seen[kind])]
        every = [
            f"{cost:.1f} ({cost / floors[i]:.2f}, {'-' if wakes is None else f'{wakes:.2f}'})"
            for i, (cost, wakes) in enumerate(seen[kind])
        ]
        print(f"{kind:16} {min(costs):5.1f}   {statistics.median(costs):5.1f} | {'  '.join(every)}")


if __name__ == "__main__":
    main()
