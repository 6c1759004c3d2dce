"""How long does it take to analyse 1,000 requests of 8,000 tokens each, and how much memory? (under 10 s and 1 GB)

    python tests/benchmarks/analysis.py [--requests 1000] [--tokens 8000]

Reads the records from disk and makes all of metrics.json, in a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support import builders

ANALYSE = """
import resource, sys, time
from pathlib import Path
from loadtest.analysis.run import analyze
from loadtest.records.read import read_run
start = time.process_time()
run = read_run(Path(sys.argv[1]))
read = time.process_time()
level = analyze(run).cells[0].levels[0]
done = time.process_time()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
used = f"{read - start:.1f} s of CPU to read, {done - read:.1f} s to analyse, peak {peak / 1e6:.0f} MB"
print(f"{level.itl_s.n} gaps: {used}")
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--passes", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        each = args.requests // args.passes
        made = [
            builders.level(builders.closed_loop(8, each, tokens=args.tokens, spread=0.0), concurrency=8, repeat=repeat)
            for repeat in range(1, args.passes + 1)
        ]
        builders.write(builders.run([builders.cell(made)]), Path(folder))
        subprocess.run([sys.executable, "-c", ANALYSE, folder], check=True)


if __name__ == "__main__":
    main()
