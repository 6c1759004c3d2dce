"""The real engines on the CPU, as `make engines` installs them."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

from loadtest.servers import flags, preflight, supervisor

CHECKOUT = Path(__file__).parents[2]
MODEL = CHECKOUT / ".engines" / "tiny-qwq"
HERE = Path(__file__).parent
# vLLM's processes wait for each other by yielding in a loop. On Linux 6.18 that kept all other programs off both cores until
# the answers had ended, 5 s and more. On one core, vLLM leaves the others to the load generator and to these tests.
VLLM_CORE = min(os.sched_getaffinity(0))


def _environment():
    """The variables of environment.sh, read without a shell, and vLLM on one core."""
    variables = {}
    for line in (HERE / "environment.sh").read_text().splitlines():
        if line.startswith("export "):
            name, _, value = line.removeprefix("export ").partition("=")
            variables[name] = value.strip('"').replace("$PWD", str(CHECKOUT))
    variables["LOADTEST_VLLM"] = f"taskset --cpu-list {VLLM_CORE} {variables['LOADTEST_VLLM']}"
    return variables


class OneEngineEach(LoadScopeScheduling):
    """With `--numprocesses 2`, the tests of each engine in a process of their own; then, by files, what needs both."""

    def _split_scope(self, nodeid):
        return next((engine for engine in ("vllm", "sglang") if f"[{engine}" in nodeid), nodeid.partition("::")[0])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return OneEngineEach(config, log)


ENVIRONMENT = _environment()


@pytest.fixture(scope="session", autouse=True)
def installed():
    """Fail, rather than skip, where an engine is missing: these tests are run on purpose."""
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
    """What an engine needs on a CPU, with more after it."""
    return (*shlex.split(ENVIRONMENT[f"{engine.upper()}_CPU_ARGUMENTS"]), *extra)


@pytest.fixture(scope="session", params=["vllm", "sglang"])
def engine(request):
    return request.param


@pytest.fixture(scope="session")
def spec():
    """Make the spec of a real engine on a free port; extra arguments come after what the CPU needs."""

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


@contextlib.contextmanager
def beginning():
    """Starts `loadtest` as a process of its own, as a user has it; whatever a failed test leaves is interrupted."""
    started = []

    def start(*words):
        words = [sys.executable, "-m", "loadtest", *map(str, words)]
        process = subprocess.Popen(words, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in started:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.communicate(timeout=120)


@pytest.fixture
def begin():
    with beginning() as start:
        yield start


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


def favour(server):
    """Give a server's processes the machine before others where Linux permits that (to root, by session)."""
    for pid in wait_until(lambda: supervisor.descendants(server.pid), "the engine's process"):
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/autogroup").write_text("-20")


def left_over(pids):
    """Those of these processes that still run."""
    return [pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes()]


def assert_counts_agree(out):
    """The cells of a run that is complete: its page is there, and every count of the client is the server's own."""
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["complete"], manifest["simulated"]) == (True, False)
    assert (out / "report.html").stat().st_size > 10_000
    cells = json.loads((out / "metrics.json").read_text())["cells"]
    for told in (one for cell in cells for level in cell["levels"] for one in level["reconciliation"]["passes"]):
        for count in ("prompt_tokens", "output_tokens", "requests"):
            assert told[f"client_{count}"] == told[f"server_{count}"]
        ttft = told["ttft"]  # the load generator shares two cores with the engines: times may differ here, counts not
        assert ttft["status"] in ("pass", "fail")
        assert ttft["n_client"] == ttft["n_server"]
        assert ttft["client_mean_s"] > 0 < ttft["server_mean_s"]
    return cells
