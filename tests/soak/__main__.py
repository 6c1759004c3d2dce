"""Does it hold for an hour beside servers that misbehave? 64 streams with replies of 8,000 tokens, of which 5 % go wrong.

    python -m tests.soak                                             # an hour, after six minutes without misbehaviour
    python -m tests.soak --duration 60 --streams 8 --tokens 200

Prints, and holds: every honest request ends well, and the client's figures of it are the server's (which keeps the times of
every send) as closely as in the first minutes, without misbehaviour; every misbehaviour is recorded as what it was; memory
grows by less than 1 MB per 100,000 tokens (the least squares line, without the first tenth). Exit code 1: something did not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import time
from bisect import bisect_right
from collections import Counter, defaultdict
from dataclasses import dataclass

import msgspec

from tests.benchmarks import harness as h
from tests.soak.hostile_server import KINDS

SETTLING = 0.1
GROWTH_LIMIT_MB = 1.0  # per 100,000 tokens
ERROR_LIMIT_MS = 1.0  # by which the median error of a time may be larger than without misbehaviour
RATE_LIMIT_PERCENT = 0.1


class Ended(msgspec.Struct):
    """What is needed of a record."""

    request_sha256: str
    outcome: str
    clock_anchor_unix_s: float
    sent_s: float | None
    chunk_s: list[float]
    ended_s: float
    resends: int


@contextlib.contextmanager
def hostile_server(log, *, pin, **options):
    argv = [sys.executable, "-m", "tests.soak.hostile_server", "--log", str(log)]
    for name, value in options.items():
        argv += [f"--{name}", *(value if isinstance(value, list) else [str(value)])]
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, cwd=h.ROOT, preexec_fn=lambda: h.favour(h.SERVER_CORE if pin else None)
    )
    with process:
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


@dataclass
class Soaked:
    """One run: what became of each kind of request, the errors of the honest ones, and the client's memory."""

    outcomes: dict
    lost: int
    ttft_ms: list
    total_ms: list
    rate_percent: list
    tokens: list  # at the end of each request, in the order of `ends`
    ends: list
    memory: list  # (s of the run, MB)
    wall_s: float
    exit_code: int
    output: str


def soak(folder, *length, streams, every, tokens, gap, only=(), pin=True):
    """Run it once, for so long as Locust's options in `length` say."""
    log, run = folder / "log.jsonl", folder / "run"
    folder.mkdir()
    with hostile_server(log, every=every, tokens=tokens, gap=gap, only=list(only), pin=pin) as port:
        drive = h.locust(port, streams, run, *length, "--warmup-requests", "0", pin=pin)
    return judged(run, log, drive)


def records(run):
    decode = msgspec.json.Decoder(Ended).decode
    for path in run.glob("cells/*/*/requests-*.jsonl"):
        with path.open("rb") as lines:
            yield from map(decode, lines)


def judged(run, log, drive):
    asked = defaultdict(list)
    with log.open() as lines:
        for line in lines:
            asked[(said := json.loads(line))["sha256"]].append(said)
    shift = time.monotonic() - time.time()
    found = Soaked(defaultdict(Counter), 0, [], [], [], [], [], [], drive.wall_s, drive.exit_code, drive.output)
    ended = []
    for record in records(run):
        ended.append((record.ended_s, len(record.chunk_s)))
        met = asked[record.request_sha256]
        if record.resends:
            del met[: record.resends]  # the server closed a kept connection at once, and met it again
        said = met.pop(0) if met else {"kind": "still running"}
        found.outcomes[said["kind"]][record.outcome] += 1
        if said["kind"] == "honest" and record.outcome == "ok":
            compare(found, said, record, record.clock_anchor_unix_s + shift)
    found.lost = sum(map(len, asked.values()))
    total = 0
    for at_s, n in sorted(ended):
        total += n
        found.ends.append(at_s)
        found.tokens.append(total)
    found.memory = [(s["t_s"], s["rss_bytes"] / 1e6) for s in h.health(run)]
    return found


def compare(found, said, record, origin):
    """The client's figures less the server's."""
    first, last = record.chunk_s[0], record.chunk_s[-1]
    found.ttft_ms.append(((first - record.sent_s) - (said["first"] - said["arrived"])) * 1e3)
    found.total_ms.append(((last - record.sent_s) - (said["last"] - said["arrived"])) * 1e3)
    found.rate_percent.append(((said["last"] - said["first"]) / (last - first) - 1) * 100)


def growth(soaked):
    """MB per 100,000 tokens that were read: the slope of the least squares line, without the first tenth."""
    start = SETTLING * soaked.ends[-1]
    kept = [(at_s, mb) for at_s, mb in soaked.memory if start < at_s < soaked.ends[-1]]
    read = [bisect_right(soaked.ends, at_s) for at_s, _ in kept]
    xs, ys = [float(soaked.tokens[i - 1]) if i else 0.0 for i in read], [mb for _, mb in kept]
    x, y = h.mean(xs), h.mean(ys)
    spread = sum((a - x) ** 2 for a in xs)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / spread * 1e5 if spread else 0.0


def hostile_failures(soaked):
    return sum(n for ended in soaked.outcomes.values() for outcome, n in ended.items() if outcome not in ("ok", "no_answer"))


def told(name, soaked):
    """Its figures in words."""
    honest = soaked.outcomes["honest"]
    hostile = sum(sum(ended.values()) for kind, ended in soaked.outcomes.items() if kind in KINDS)
    memory = [mb for _, mb in soaked.memory]
    yield (
        f"{name}: {soaked.wall_s:.0f} s, {soaked.tokens[-1]} tokens; {sum(honest.values())} honest requests"
        f" ({honest['ok']} ok), {hostile} misbehaviours of {sum(kind in KINDS for kind in soaked.outcomes)} kinds"
    )
    for what, values, unit in (
        ("TTFT", soaked.ttft_ms, "ms"),
        ("end to end", soaked.total_ms, "ms"),
        ("tokens/s", soaked.rate_percent, "%"),
    ):
        if values:
            middle, far = h.quantile(values, 0.5), h.quantile(values, 0.99)
            yield f"  error of {what}: median {middle:.3f}, mean {h.mean(values):.3f}, p99 {far:.3f} {unit}"
    yield f"  memory: {memory[0]:.1f} MB at first, {memory[-1]:.1f} at the end, {max(memory):.1f} at most"


def faults(calm, rough):
    """What did not hold."""
    for name, one in (("calm", calm), ("rough", rough)):
        ended = one.outcomes["honest"]
        if not ended["ok"] or ended["ok"] != sum(ended.values()):
            yield f"{name}: expected every honest request to end well, got {dict(ended)}"
        if one.lost:
            yield f"{name}: {one.lost} requests that the server ended are not on disk"
        if one.exit_code != (1 if one is rough and hostile_failures(one) else 0):  # Locust's: did a request fail
            yield f"{name}: exit code {one.exit_code}: {one.output[-1000:]}"
    for kind, ended in rough.outcomes.items():
        right = KINDS[kind][1] if kind in KINDS else None
        if right is not None and set(ended) - right - {"cut_off"}:
            yield f"{kind}: expected {', '.join(sorted(right))}, got {dict(ended)}"
    for what, before, after, limit in (
        ("TTFT", calm.ttft_ms, rough.ttft_ms, ERROR_LIMIT_MS),
        ("end to end", calm.total_ms, rough.total_ms, ERROR_LIMIT_MS),
        ("tokens/s", calm.rate_percent, rough.rate_percent, RATE_LIMIT_PERCENT),
    ):
        if abs(h.quantile(after, 0.5) - h.quantile(before, 0.5)) > limit:
            yield f"{what}: the median error moved by more than {limit}"
    if growth(rough) >= GROWTH_LIMIT_MB:
        yield f"memory: grows by {growth(rough):.2f} MB per 100,000 tokens, expected below {GROWTH_LIMIT_MB}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--duration", type=float, default=3600.0, help="seconds with misbehaviour")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=8000, help="of each honest reply")
    parser.add_argument("--gap", type=float, default=0.02, help="seconds between two tokens")
    parser.add_argument("--every", type=int, default=20, help="of so many requests one is misbehaved at")
    parser.add_argument("--only", nargs="*", default=[], choices=KINDS, help="these kinds of misbehaviour (default: all)")
    args = parser.parse_args()
    root = h.scratch()
    shape = {"streams": args.streams, "tokens": args.tokens, "gap": args.gap}
    calm = soak(root / "calm", "--requests", str(2 * args.streams), every=0, **shape)
    print(*told("calm", calm), sep="\n", flush=True)
    rough = soak(root / "rough", "--run-time", f"{args.duration:g}s", every=args.every, only=args.only, **shape)
    print(*told("rough", rough), f"  growth: {growth(rough):.3f} MB per 100,000 tokens (limit {GROWTH_LIMIT_MB})", sep="\n")
    for kind, ended in sorted(rough.outcomes.items()):
        print(f"    {kind}: {', '.join(f'{n} {outcome}' for outcome, n in sorted(ended.items()))}")
    found = list(faults(calm, rough))
    print(*(f"FAULT: {one}" for one in found), f"{len(found)} faults", sep="\n")
    shutil.rmtree(root)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
