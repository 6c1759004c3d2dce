"""How large may one run be? 100,000 requests into one folder, then analysed and reported; time and memory of each step.

    python tests/benchmarks/large.py                    # about 7 minutes
    python tests/benchmarks/large.py --requests 5000    # a minute

Replies are short and the simulator's clock is fast: what is asked is whether records, analysis and page bear the number,
so no figure of the run itself means anything. Ends with exit code 1 where a record is missing or one is twice.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time

import harness as h

STUDY = """
name = "large"
workload = "math:n=2000,seed=1"
levels = [{streams}]
min_requests = {requests}
warmup_requests = 0
[[cells]]
engine = "vllm-sim"
model = "qwq-32b-awq"
gpu = "l20"
clock_speed = 200
args = ["--length-scale", "0.002"]
"""


def step(name, *argv):
    """One command of ours; how long it took and the memory of the largest process in it."""
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "loadtest", *argv], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    took_s = time.monotonic() - began
    print(f"{name}: exit {process.returncode}, {took_s:.0f} s, {usage.ru_maxrss / 1024:.0f} MiB at most", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--streams", type=int, default=64)
    args = parser.parse_args()
    root = h.scratch()
    (root / "study.toml").write_text(STUDY.format(requests=args.requests, streams=args.streams))
    run = root / "run"
    step("run, analysis and page", "run", str(root / "study.toml"), "--out", str(run))
    step("analyze again", "analyze", str(run))
    step("report again", "report", str(run))
    numbers = []
    for path in run.glob("cells/*/c*/requests-*.jsonl"):
        with path.open("rb") as stream:
            numbers += [json.loads(line)["seq"] for line in stream]
    metrics = json.loads((run / "metrics.json").read_bytes())
    counted = [level["n_requests"] for cell in metrics["cells"] for level in cell["levels"]]
    memory = [sample["rss_bytes"] / 2**20 for sample in h.health(run)]
    size_mb = sum(path.stat().st_size for path in run.rglob("*") if path.is_file()) / 1e6
    print(
        f"asked for {args.requests}, records {len(numbers)}, different {len(set(numbers))}, in metrics.json {counted}\n"
        f"memory of Locust (MiB): {memory[0]:.0f} at first, {memory[-1]:.0f} at the end; run folder {size_mb:.0f} MB,"
        f" page {(run / 'report.html').stat().st_size / 1e6:.1f} MB"
    )
    shutil.rmtree(root)
    return 0 if len(numbers) == len(set(numbers)) == args.requests and counted == [args.requests] else 1


if __name__ == "__main__":
    sys.exit(main())
