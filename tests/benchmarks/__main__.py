"""All benchmarks of the instrument, or one of them with its own arguments. Half an hour on a quiet machine with two cores.

python -m tests.benchmarks
python -m tests.benchmarks required      # only what the requirements name: fidelity, cost, hosts, start-up; 20 minutes
python -m tests.benchmarks cost --streams 8 --rounds 1 --tokens 300

Each is headed by its command, and by how busy the machine was then (load averages of 1 and 5 minutes).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
MANY = ("--gap", "0.05", "--tokens", "100")
REQUIRED = (
    ("fidelity", "--all"),
    ("fidelity", "--streams", "256,1000", *MANY),
    ("fidelity", "--streams", "1000", "--processes", "2", *MANY),
    ("cost", "--passes", "3"),
    ("cost", "--streams", "8", "--rounds", "1", "--tokens", "300", "--passes", "3"),
    ("cost", "--streams", "8", "--gap", "0", "--tokens", "2000", "--rounds", "6", "--passes", "3"),
    ("distributed",),
    ("startup",),
)
OTHERS = (
    ("loop_work",),
    ("end_of_reply",),
    ("soak",),
    ("simulator_speed",),
    ("scheduler_replay",),
    ("analysis",),
    ("fleet",),
)
SETS = {"required": REQUIRED, "all": (*REQUIRED, *OTHERS)}


def main():
    asked = tuple(sys.argv[1:]) or ("all",)
    for name, *arguments in SETS.get(asked[0], (asked,)):
        one, five, _ = os.getloadavg()
        print(f"\n{' '.join((name, *arguments))} [load {one:.1f}, {five:.1f}]", flush=True)
        code = subprocess.run([sys.executable, str(HERE / f"{name}.py"), *arguments]).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
