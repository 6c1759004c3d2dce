"""The real runtimes on the CPU, as `make engines` installs them."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loadtest.servers import flags, preflight

CHECKOUT = Path(__file__).parents[2]
MODEL = CHECKOUT / ".engines" / "tiny-qwq"
HERE = Path(__file__).parent


def _environment() -> dict[str, str]:
    """The variables of environment.sh, read without a shell."""
    variables = {}
    for line in (HERE / "environment.sh").read_text().splitlines():
        if line.startswith("export "):
            name, _, value = line.removeprefix("export ").partition("=")
            variables[name] = value.strip('"').replace("$PWD", str(CHECKOUT))
    return variables


ENVIRONMENT = _environment()


@pytest.fixture(scope="session", autouse=True)
def installed():
    """Fail, rather than skip, where a runtime is missing: these tests are run on purpose."""
    for path in (
        MODEL / "model.safetensors",
        CHECKOUT / ".engines/vllm/installed.txt",
        CHECKOUT / ".engines/sglang/installed.txt",
        CHECKOUT / ".engines/sglang-image/installed.txt",
    ):
        if not path.exists():
            pytest.fail(f"{path.relative_to(CHECKOUT)}: not there; run `make engines` first")
    os.environ.update(ENVIRONMENT)


def cpu_arguments(engine, *extra):
    """What a runtime needs on a CPU, with more after it."""
    return (*shlex.split(ENVIRONMENT[f"{engine.upper()}_CPU_ARGUMENTS"]), *extra)


@pytest.fixture(scope="session")
def spec():
    """Make the spec of a real runtime on a free port; extra arguments come after what the CPU needs."""

    def make(engine, *extra, **changes):
        settings = {
            "model": str(MODEL),
            "context_tokens": 8192,
            "memory_fraction": 0.3,
            "port": preflight.free_port(),
            "served_name": "tiny-qwq",
            **changes,
        }
        return flags.LaunchSpec(engine=engine, extra_args=cpu_arguments(engine, *extra), **settings)

    return make


def cell(engine, *extra, model=MODEL, **keys):
    """A cell of a study, as TOML."""
    keys = {"engine": engine, "model": str(model), "args": list(cpu_arguments(engine, *extra)), **keys}
    return "[[cells]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())


@pytest.fixture
def begin():
    """Start `loadtest` as a process of its own, as a user has it; whatever a failed test leaves is interrupted."""
    started = []

    def start(*words):
        words = [sys.executable, "-m", "loadtest", *map(str, words)]
        process = subprocess.Popen(words, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=120)


def ended(process, timeout_s=1200):
    """Exit code and what the user saw, standard error last; it stands in the test's own output too."""
    said, errors = process.communicate(timeout=timeout_s)
    print(said, errors, sep="\n")
    return process.returncode, said + errors


def wait_until(condition, what, timeout_s=900.0):
    """The first true value of `condition`; fails where it stays false."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)
    return found


def left_over(pids):
    """Those of these processes that still run."""
    return [pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes()]
