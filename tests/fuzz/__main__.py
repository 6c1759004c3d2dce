"""Fuzz the parsers of what a server, or a study, may say, by coverage (atheris, which is libFuzzer for Python).

    python -m tests.fuzz                      # a minute each
    python -m tests.fuzz --seconds 600 stream # ten minutes of one
    python -m tests.fuzz --input CRASH stream # once more what broke it

What was found interesting is kept in `.fuzz/TARGET/` and used again; what broke a promise is written to `.fuzz/`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

KEPT = Path(".fuzz")
LONGEST_BYTES = 8192
MEMORY_MB = 2048
LONGEST_INPUT_S = 10


def drive(target, *options):
    """Hand one target to libFuzzer, which ends this process itself."""
    import atheris

    with atheris.instrument_imports(include=["loadtest"]):
        from tests.fuzz import targets
    atheris.Setup([target, *options], targets.TARGETS[target])
    atheris.Fuzz()


def fuzzed(target, seconds):
    """Fuzz one target in a process of its own; its exit code."""
    from tests.fuzz import targets

    corpus = KEPT / target
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(targets.seeds(target)):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [f"-max_total_time={seconds}", f"-max_len={LONGEST_BYTES}", f"-rss_limit_mb={MEMORY_MB}"]
    options += [f"-timeout={LONGEST_INPUT_S}", f"-artifact_prefix={KEPT}/", "-print_final_stats=1", str(corpus)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--drive", target, *options], stderr=subprocess.PIPE, text=True
    )
    stats = [line.split()[-1] for line in done.stderr.splitlines() if "number_of_executed_units" in line]
    print(f"{target}: exit {done.returncode}, {stats[0] if stats else 'no'} inputs", flush=True)
    if done.returncode:
        print(done.stderr[-4000:])
    return done.returncode


def main():
    if sys.argv[1:2] == ["--drive"]:
        drive(sys.argv[2], *sys.argv[3:])
    from tests.fuzz import targets

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="*", choices=[[], *targets.TARGETS])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--input", type=Path)
    args = parser.parse_args()
    names = args.target or list(targets.TARGETS)
    if args.input is not None:
        for name in names:
            targets.TARGETS[name](args.input.read_bytes())
        return 0
    with ThreadPoolExecutor(os.cpu_count()) as each_core:
        return max(each_core.map(lambda name: fuzzed(name, args.seconds), names))


if __name__ == "__main__":
    sys.exit(main())
