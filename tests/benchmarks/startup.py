"""How long does it take to start? Wall time and memory of `loadtest --help` and of runs of one request.

    python tests/benchmarks/startup.py

Under real-time priority where the system allows it, so that what else runs on the machine is left out. Beside two floors:
Python that does nothing, and Python that imports Locust. Memory is the most that all processes of the command held
together (RSS, looked at every 5 ms, so what they share counts once for each).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness as h

PAGE_BYTES = os.sysconf("SC_PAGESIZE")
LOOK_S = 0.005


def held_bytes(pid):
    """RSS of a process and all its descendants now."""
    try:
        own = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
        children = [int(c) for path in Path(f"/proc/{pid}/task").glob("*/children") for c in path.read_text().split()]
    except OSError:  # it has ended
        return 0
    return own + sum(map(held_bytes, children))


def timed(argv):
    """Wall seconds of a command, and the most that it held (MB)."""
    with tempfile.TemporaryFile() as output:
        began = time.monotonic()
        process = subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT)
        most = 0
        while True:
            try:
                process.wait(LOOK_S)
                break
            except subprocess.TimeoutExpired:
                most = max(most, held_bytes(process.pid))
        wall_s = time.monotonic() - began
        if process.returncode:
            output.seek(0)
            sys.exit(f"{' '.join(argv)}: exit {process.returncode}\n{output.read().decode()[-2000:]}")
    return wall_s, most / 1e6


def commands(port, out):
    url, one = f"http://127.0.0.1:{port}", ["--requests", "1", "--warmup-requests", "0"]
    plain = ["-m", "locust", "-f", str(h.SCENARIO), "--headless", "-u", "1", "--host", url, "--only-summary", *one]
    attach = ["-m", "loadtest", "attach", "--base-url", url, "--concurrency", "1", *one]
    found = {
        "floor: python": ["-c", "pass"],
        "floor: import locust": ["-c", "import locust"],
        "loadtest --help": ["-m", "loadtest", "--help"],
        "one request, locust": [*plain, "--engine", "other", "--out", str(out / "locust")],
        "one request, attach": [*attach, "--engine", "other", "--out", str(out / "attach")],
    }
    return {name: [sys.executable, *arguments] for name, arguments in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=7)
    args = parser.parse_args()
    seen: dict[str, list[tuple[float, float]]] = {}
    h.favour(None)
    with h.known_time_server(tokens=20, thinking=5, first=0.01, gap=0.002) as port:
        for _ in range(args.passes):
            out = h.scratch()
            for name, argv in commands(port, out).items():
                seen.setdefault(name, []).append(timed(argv))
            for path in (out / "locust", out / "attach"):
                lines = [line for file in path.glob("cells/*/*/requests-*.jsonl") for line in file.read_bytes().splitlines()]
                assert [json.loads(line)["outcome"] for line in lines] == ["ok"], path
            shutil.rmtree(out)
    print(f"{args.passes} passes    wall s: least  median    most | MB: median    most")
    for name, figures in seen.items():
        wall_s, mb = [s for s, _ in figures], [m for _, m in figures]
        print(
            f"{name:22} {min(wall_s):8.3f} {statistics.median(wall_s):7.3f} {max(wall_s):7.3f} |"
            f" {statistics.median(mb):10.1f} {max(mb):7.1f}"
        )


if __name__ == "__main__":
    main()
