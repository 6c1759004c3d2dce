"""After every module of tests: no process, listening socket, shared memory or temporary file of its own is left."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pytest
from hypothesis import settings

MARK = "LOADTEST_TESTS"
PATIENCE_S = 30.0  # for what was told to end and is ending
THEIRS = ("org.chromium", ".org.chromium")  # what the browser leaves of its own

# A shell ignores Ctrl-C for what it puts into the background, nohup a lost terminal, and whatever they start inherits it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Without a process, a socket or a clock: what fails here fails again.
PURE = {"analysis", "decision", "docs", "grading", "intervals", "metrics", "perfmodel", "workload"}
IN_ORDER = {"images", "newcomer"}  # built once, or one document after another in one folder: a second try begins elsewhere
TRIES = 2  # beyond the first, for the others: a starved machine fails a test of real time that is right

settings.register_profile("house", deadline=None)  # a busy machine is no failure of the code
settings.load_profile("house")


def pytest_collection_modifyitems(items):
    for item in items:
        if not (PURE | IN_ORDER).intersection(item.path.parts) and item.path.name != "test_architecture.py":
            item.add_marker(pytest.mark.flaky(reruns=TRIES))


@pytest.fixture(scope="session", autouse=True)
def temporary(tmp_path_factory):
    """A place of its own for temporary files, and a mark that every process started by these tests inherits."""
    folder = tmp_path_factory.mktemp("temporary")
    before = {name: os.environ.get(name) for name in (MARK, "TMPDIR")}
    os.environ.update({MARK: uuid.uuid4().hex, "TMPDIR": str(folder)})
    tempfile.tempdir = None
    yield folder
    tempfile.tempdir = None
    for name, value in before.items():
        os.environ.pop(name)
        if value is not None:
            os.environ[name] = value


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_left(temporary, request):
    files, ports = entries(temporary), listening()
    yield
    end_s = time.monotonic() + PATIENCE_S
    while (left := marked()) and time.monotonic() < end_s:
        time.sleep(0.1)
    assert left == [], f"{request.node.name} left processes"
    assert listening() - ports == set(), f"{request.node.name} left listening sockets"
    if "engines" not in request.path.parts:  # the real runtimes leave files of their own, SGLang in /dev/shm at every end
        assert entries(temporary) - files == set(), f"{request.node.name} left temporary files"


def listening():
    """Inodes of the TCP sockets on which this process listens."""
    ours = set()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            ours.add(os.readlink(path))
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/self/net/{name}").read_text().splitlines()[1:]
    ]
    return {fields[9] for fields in lines if fields[3] == "0A" and f"socket:[{fields[9]}]" in ours}


@pytest.fixture(scope="module")
def known_time_port(_nothing_is_left):
    """The port of a server whose replies are 8 tokens long, 4 of them thinking, 2 ms each."""
    argv = [
        sys.executable,
        "-m",
        "loadtest.simulator.known_times",
        "--port",
        "0",
        "--tokens",
        "8",
        "--thinking",
        "4",
        "--first",
        "0.01",
        "--gap",
        "0.002",
    ]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert process.stdout is not None
    yield int(process.stdout.readline())
    process.kill()
    process.communicate()


def entries(folder):
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return {name for name in names if not name.startswith(THEIRS)}


def marked():
    """Processes that carry the mark of these tests, but for this one: whoever their parent is by now."""
    mark = f"{MARK}={os.environ[MARK]}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if process.name != str(os.getpid()) and mark in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found
