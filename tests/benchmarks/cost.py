"""What does a streamed token cost the client? CPU per token of several clients beside a bare epoll loop.

    python tests/benchmarks/cost.py                             # 64 streams at 50 tokens/s, one token a read
    python tests/benchmarks/cost.py --streams 8
    python tests/benchmarks/cost.py --streams 8 --gap 0 --tokens 2000    # full speed: bursts

`floor` only reads; the others decode every token as well. `transport` is our client alone, `loadtest` the whole
of it under Locust while the level runs: records, statistics, telemetry. `locust` adds its start and its end.
The least of several passes is shown, interleaved, for what else runs on the machine adds and never takes away.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import harness as h

CLIENTS = ("floor", "transport", "loadtest", "geventhttpclient")


def alone(kind: str, port: int, streams: int, requests: int, tokens: int) -> float:
    argv = [sys.executable, str(h.HERE / "stream_client.py"), kind, str(port), str(streams), str(requests), str(tokens)]
    pin = lambda: h.favour(h.CLIENT_CORE)  # noqa: E731
    done = subprocess.run(argv, capture_output=True, text=True, check=True, preexec_fn=pin)
    seen = json.loads(done.stdout)
    return float(seen["cpu_s"] / seen["tokens"] * 1e6)


def one(kind: str, port: int, streams: int, requests: int, tokens: int) -> float:
    if kind == "floor":
        seen, cpu_s = h.floor(port, streams, requests, tokens)
        return cpu_s / sum(len(x.tokens) for x in seen) * 1e6
    if kind != "loadtest":
        return alone(kind, port, streams, requests, tokens)
    run = h.scratch() / "run"
    h.locust(port, streams, run, "--requests", str(requests), "--warmup-requests", "0")
    samples = h.health(run)
    ends = [0.0] + [s["t_s"] for s in samples]
    cpu_s = sum(s["cpu_share"] * (ends[i + 1] - ends[i]) for i, s in enumerate(samples))
    return cpu_s / sum(len(x.tokens) for x in h.measured(run)) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--gap", type=float, default=0.02)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--clients", default=",".join(CLIENTS))
    args = parser.parse_args()
    clients = args.clients.split(",")
    best = dict.fromkeys(clients, float("inf"))
    with h.known_time_server(tokens=args.tokens, thinking=args.tokens // 4, gap=args.gap) as port:
        for _ in range(args.passes):
            for kind in clients:
                cost = one(kind, port, args.streams, args.streams * args.rounds, args.tokens)
                best[kind] = min(best[kind], cost)
    print(f"{args.streams} streams, {args.gap * 1e3:g} ms a token, {args.tokens} tokens; least of {args.passes} passes")
    print("client             CPU us/token   of the floor")
    for kind in clients:
        print(f"{kind:18} {best[kind]:12.1f}   {best[kind] / best.get('floor', best[kind]):12.2f}")


if __name__ == "__main__":
    main()
