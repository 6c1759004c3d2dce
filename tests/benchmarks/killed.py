"""What each tool says of a run in the middle of which the server died: its exit code, and the results that it leaves.

    python tests/benchmarks/killed.py
    python tests/benchmarks/killed.py --only evalscope,aiperf

8 streams, 64 requests of 400 tokens at 20 ms: the server dies with 16 answered (and a tool's own trial, if it sends one) and
8 under way, a quarter of their tokens sent.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import time

import harness as h
import peers

ANSWERED = 16
LOOK_S = 0.2
LIMIT_S = 180
TOKENS, GAP_S = 400, 0.02


def is_time(port):
    """Are enough requests answered, and others in mid-stream?"""
    sent = [len(entry["before"]) for entry in h.get(port, "/log")["requests"]]
    return sum(n == TOKENS for n in sent) >= ANSWERED and any(TOKENS // 4 <= n < TOKENS for n in sent)


def outcome(tool):
    out = h.scratch()
    with peers.server(tool, TOKENS, GAP_S) as port:
        process = peers.start(tool, peers.Load(f"http://127.0.0.1:{port}", 8, 64, TOKENS, out / "run"))
        while process.poll() is None and not is_time(port):
            time.sleep(LOOK_S)
        died = time.monotonic()
        with contextlib.suppress(OSError):
            h.get(port, "/die")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LIMIT_S)
        ended = "did not end" if process.poll() is None else f"exit {process.returncode}"
        waited_s = time.monotonic() - died
        peers.end(process)
    try:
        left = f"reports a mean of {tool.said(out / 'run').e2e_mean_s:.1f} s end to end"
    except Exception as error:  # whatever it left is not what it leaves after a whole run
        left = f"no result: {type(error).__name__}"
    shutil.rmtree(out)
    return f"{ended}, {waited_s:.0f} s after the death of the server; {left}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names, with commas between them")
    args = parser.parse_args()
    for name in args.only.split(",") if args.only else list(peers.TOOLS):
        installed = peers.TOOLS[name].program.exists()
        print(f"{name}: {outcome(peers.TOOLS[name]) if installed else 'not installed: make peers'}", flush=True)


if __name__ == "__main__":
    main()
