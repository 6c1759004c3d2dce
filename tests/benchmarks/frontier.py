"""What one core can measure: at how many streams, and tokens/s each, the p99 error passes 1, 5 and 20 ms.

    python tests/benchmarks/frontier.py                                       # table; a quarter of an hour
    python tests/benchmarks/frontier.py --rates 1,30 --clients ours --chart docs/frontier.svg

The streams double until the error passes 20 ms, a stream is lost, or the server of known times no longer keeps its plan
(server and client have a core each). The error is the larger of two: p99 over requests of TTFT, and p99 over tokens of the
gap before them, in ms; what the client says against what the server did. `ours-2` is `--processes 2`, which shares the
server's core on a machine of two.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import harness as h

from loadtest.study import locust_pass

LIMITS_MS = (1.0, 5.0, 20.0)
FIRST_S, LONG_S = 0.5, 8.0  # TTFT; how long a stream lasts
KEPT = 0.9  # of the tokens/s that were planned: a slower server is measured, not a client
LABELS = {"ours": "1 process", "ours-2": "2 processes"}
STYLES = {"ours": ("#1f77b4", "o"), "ours-2": ("#2ca02c", "s")}


@dataclass(frozen=True)
class Point:
    client: str
    streams: int
    rate: float  # tokens/s of a stream
    tokens_per_s: float  # of all, as the server sent them
    ttft_p99_ms: float
    gap_p99_ms: float
    n_lost: int
    cpu_us: float

    @property
    def error_ms(self):
        return max(self.ttft_p99_ms, self.gap_p99_ms)


def seen_by(client, port, streams):
    """What a client saw, and its CPU seconds."""
    root = h.scratch()
    extra = locust_pass.shared(2) if client == "ours-2" else []
    drive = h.locust(
        port, streams, root / "run", "--requests", str(streams), "--warmup-requests", "0", *extra, pin=not extra
    )
    seen = h.measured(root / "run")
    shutil.rmtree(root)
    return seen, drive.cpu_s


def point(client, streams, rate):
    tokens = max(5, round(LONG_S * rate))
    options = {"tokens": tokens, "thinking": tokens // 4, "first": FIRST_S, "gap": 1 / rate, "out_of_step": True}
    with h.known_time_server(**options) as port:
        seen, cpu_s = seen_by(client, port, streams)
        log = h.get(port, "/log")["requests"]
    e = h.errors(seen, log)
    took_s = max((x["before"][-1] for x in log), default=1.0) - min((x["before"][0] for x in log), default=0.0)
    sent = sum(len(x["before"]) for x in log)
    whole = len(e.ttft)
    gaps = [abs(gap) for gap in e.gap]
    ttft_ms, gap_ms = h.quantile([abs(x) for x in e.ttft], 0.99), h.quantile(gaps, 0.99)
    return Point(client, streams, rate, sent / took_s, ttft_ms, gap_ms, streams - whole, cpu_s / max(1, sent) * 1e6)


def best(client, streams, rate, passes):
    """The pass of the smallest error: what else runs on the machine is not what is measured. One within 1 ms is enough."""
    found = point(client, streams, rate)
    for _ in range(passes - 1):
        if found.error_ms <= LIMITS_MS[0]:
            break
        found = min(found, point(client, streams, rate), key=lambda one: (one.n_lost, one.error_ms))
    return found


def planned(streams, rate):
    """Tokens/s over the time from the first token to the last, with streams that begin within a share of it."""
    spread_s = max(0.02, streams * 0.00025) + 1 / rate
    return streams * max(5, round(LONG_S * rate)) / (LONG_S + spread_s)


def climb(client, rate, first, most, passes):
    """Points of one client at one rate, the streams doubling."""
    found, streams = [], first
    while streams <= most:
        one = best(client, streams, rate, passes)
        short = one.tokens_per_s < KEPT * planned(streams, rate)
        print(
            f"{client:7} {streams:7} {rate:6g} {one.tokens_per_s:9.0f} | {one.ttft_p99_ms:8.3f} {one.gap_p99_ms:8.3f} |"
            f" {one.n_lost:5} {one.cpu_us:8.1f}{'  the server is late' if short else ''}",
            flush=True,
        )
        if short:
            break
        found.append(one)
        if one.error_ms > LIMITS_MS[-1] or one.n_lost:
            break
        streams *= 2
    return found


def frontier(points, limit_ms):
    """Of each rate the point of most streams up to which the error is within the limit, and whether more were too much."""
    found = []
    for rate in sorted({one.rate for one in points}):
        climbed = sorted((one for one in points if one.rate == rate), key=lambda one: one.streams)
        within = []
        for one in climbed:
            if one.error_ms > limit_ms or one.n_lost:
                break
            within.append(one)
        if within:
            found.append((within[-1], len(within) < len(climbed)))
    return found


def draw(points, path):
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "loadtest"
    figure, axes = pyplot.subplots(1, len(LIMITS_MS), figsize=(10, 3.6), sharex=True, sharey=True, layout="constrained")
    for axis, limit_ms in zip(axes, LIMITS_MS, strict=True):
        for client in dict.fromkeys(one.client for one in points):
            reached = frontier([one for one in points if one.client == client], limit_ms)
            colour, marker = STYLES[client]
            axis.plot(
                [p.streams for p, _ in reached], [p.tokens_per_s for p, _ in reached], color=colour, label=LABELS[client]
            )
            for one, is_limit in reached:
                axis.plot(one.streams, one.tokens_per_s, marker, color=colour, mfc=colour if is_limit else "white")
                axis.annotate(f"{one.rate:g}/s", (one.streams, one.tokens_per_s), fontsize=7, xytext=(4, 4),
                              textcoords="offset points")  # fmt: skip
        axis.set(title=f"p99 error within {limit_ms:g} ms", xlabel="streams", xscale="log", yscale="log")
    axes[0].set_xticks([100, 300, 1000, 3000, 10000], ["100", "300", "1,000", "3,000", "10,000"], minor=False)
    axes[0].xaxis.set_minor_locator(pyplot.NullLocator())
    axes[0].set_ylabel("tokens/s of all streams")
    axes[0].legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", default="1,10,30,100", help="tokens/s of a stream")
    parser.add_argument("--clients", default="ours,ours-2")
    parser.add_argument("--first", type=float, default=2000, help="tokens/s of the first pass")
    parser.add_argument("--most", type=int, default=16000, help="streams")
    parser.add_argument("--passes", type=int, default=3, help="at most, of each point; the best is taken")
    parser.add_argument("--out", type=Path, help="keep the points as JSON")
    parser.add_argument("--chart", type=Path, help="draw the frontier (SVG)")
    args = parser.parse_args()
    points = []
    print("client  streams  tok/s   all, t/s | TTFT p99  gap p99 |  lost us/token")
    for client in args.clients.split(","):
        for rate in map(float, args.rates.split(",")):
            points += climb(client, rate, max(1, round(args.first / rate)), args.most, args.passes)
    for client in args.clients.split(","):
        for limit_ms in LIMITS_MS:
            reached = frontier([one for one in points if one.client == client], limit_ms)
            said = (f"{one.streams} x {one.rate:g}{'' if is_limit else ' or more'}" for one, is_limit in reached)
            print(f"{client}, p99 error within {limit_ms:g} ms: {', '.join(said) or 'none'}")
    if args.out:
        args.out.write_text(json.dumps([asdict(one) for one in points], indent=1))
    if args.chart:
        draw(points, args.chart)


if __name__ == "__main__":
    main()
