"""Renew the finished examples beside this file: `python reports/examples/make.py [demo] [cpu] [damaged]`.

Run it from the top of the checkout, with the Python that loadtest is installed for. Each run is kept in `runs/example-NAME`:
while it is there, only its page is made again; remove it to measure again. `cpu` needs `make engines` first.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

EXAMPLES = Path("reports/examples")
LOADTEST = (sys.executable, "-m", "loadtest")
# By their paths in the checkout: a page that is passed on names no folder of the machine it was made on. On one core: the
# processes of an engine that compute would keep the load generator off the other.
ENGINES = {
    "LOADTEST_VLLM": "taskset --cpu-list 0 env VLLM_CPU_KVCACHE_SPACE=1 HF_HUB_OFFLINE=1 .engines/vllm/bin/vllm",
    "LOADTEST_SGLANG": "taskset --cpu-list 0 env SGLANG_USE_CPU_ENGINE=1 OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 "
    ".engines/sglang/bin/python -m sglang.launch_server",
}
STARTS_S, FROZEN_S = 1.5, 2.0


def demo(run: Path) -> None:
    """The demo."""
    subprocess.run([*LOADTEST, "demo", "--out", str(run)], check=True)


def cpu(run: Path) -> None:
    """Both real engines on a CPU, with the tiny model."""
    study = "tests/engines/study.toml"
    subprocess.run([*LOADTEST, "run", study, "--out", str(run)], check=True, env={**os.environ, **ENGINES})


def damaged(run: Path) -> None:
    """The faults of `damaged.toml`, a load generator that is frozen for a while, and Ctrl-C before the end."""
    with subprocess.Popen([*LOADTEST, "run", str(EXAMPLES / "damaged.toml"), "--out", str(run)]) as study:
        generator = _load_generator(study, "sglang-sim_qwq-32b-awq_tp1", users=4)
        generator.suspend()
        time.sleep(FROZEN_S)
        generator.resume()
        _load_generator(study, "vllm-sim_qwq-32b-awq_tp2", users=2)
        study.terminate()
    assert study.returncode == 130, f"expected an interrupted run (130), got {study.returncode}"


def _load_generator(study: subprocess.Popen[bytes], cell: str, users: int) -> psutil.Process:
    """The process that drives this level, once it is under way."""
    while study.poll() is None:
        for child in psutil.Process(study.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if f"--users {users}" in (line := " ".join(child.cmdline())) and f"--cell {cell}" in line:
                    time.sleep(STARTS_S)
                    return child
        time.sleep(0.05)
    raise AssertionError(f"{cell}: expected concurrency {users} to begin, but the run has ended")


def make(name: str) -> Path:
    """Measure one example unless its run is there, draw its page, and put the page beside this file."""
    run = Path("runs") / f"example-{name}"
    if not (run / "manifest.json").exists():
        {"demo": demo, "cpu": cpu, "damaged": damaged}[name](run)
    for step in ("analyze", "report"):
        subprocess.run([*LOADTEST, step, str(run)], check=True, stdout=subprocess.DEVNULL)
    page = EXAMPLES / name / "report.html"
    page.parent.mkdir(exist_ok=True)
    shutil.copyfile(run / "report.html", page)
    return page


if __name__ == "__main__":
    for asked in sys.argv[1:] or ("demo", "cpu", "damaged"):
        print(make(asked))
