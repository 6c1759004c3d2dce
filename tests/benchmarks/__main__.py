"""All benchmarks of the instrument, or one of them with its own arguments. Half an hour on a quiet machine with two cores.

python -m tests.benchmarks
python -m tests.benchmarks cost --streams 8 --rounds 1 --tokens 300
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ALL = (
    ("fidelity",),
    ("fidelity", "--streams", "256,1000", "--gap", "0.05", "--tokens", "100"),
    ("cost",),
    ("cost", "--streams", "8", "--rounds", "1", "--tokens", "300"),
    ("cost", "--streams", "8", "--gap", "0", "--tokens", "2000", "--rounds", "6"),
    ("end_of_reply",),
    ("soak",),
    ("startup",),
    ("distributed",),
    ("simulator_speed",),
    ("analysis",),
)


def main() -> int:
    wanted = (tuple(sys.argv[1:]),) if len(sys.argv) > 1 else ALL
    for name, *arguments in wanted:
        print(f"\n{name} {' '.join(arguments)}", flush=True)
        code = subprocess.run([sys.executable, str(HERE / f"{name}.py"), *arguments]).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
