"""The guard: a small process between us and an engine, so that no orphan remains, whichever ends first.

`python -P supervisor.py GRACE_S COMMAND...` starts the command in a session of its own and waits. When the
command ends, or standard input closes (we asked to stop, or died, be it by SIGKILL), it ends whatever is left: SIGTERM to
the command, `GRACE_S` to go, then SIGKILL to every descendant; Python's resource tracker is given time to unlink the shared
memory that they leave. Being a subreaper, it is handed every descendant whose own parent has gone, those that left the
session included. At last it writes `exit CODE` (negative: a signal; 127: no such program) and ends.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.05
_KILL_S = 10.0
_CLEANING_S = 3.0


def children(pid: int) -> list[int]:
    """Direct children of a process, by /proc; empty where it has gone.

    >>> children(0)
    []
    """
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(word) for word in path.read_text().split()]
        except OSError:
            continue
    return found


def descendants(pid: int) -> list[int]:
    """All descendants of a process, parents first."""
    found: list[int] = []
    waiting = children(pid)
    while waiting:
        one = waiting.pop(0)
        found.append(one)
        waiting += children(one)
    return found


def _set(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _reap() -> None:
    """Collect descendants that were handed to us and have ended; the command itself is Popen's."""
    for pid in children(os.getpid()):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (OSError, IndexError):
            continue
        if state == "Z":
            os.waitpid(pid, os.WNOHANG)


def _cleans_up(pid: int) -> bool:
    """Is it Python's resource tracker? It unlinks the shared memory of processes that were killed, and then ends."""
    try:
        return b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _wait(server: subprocess.Popen[bytes]) -> None:
    """Until the command ends or standard input closes."""
    while server.poll() is None:
        readable, _, _ = select.select([0], [], [], _POLL_S)
        if readable and not os.read(0, 1024):
            return


def _stop(server: subprocess.Popen[bytes], grace_s: float) -> int:
    """End the command and whatever it left behind; its exit code."""
    if server.poll() is None:
        _signal(server.pid, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while server.poll() is None and time.monotonic() < deadline:
            time.sleep(_POLL_S)
    began = time.monotonic()
    while time.monotonic() < began + _KILL_S:
        left = descendants(os.getpid())
        if not left:
            break
        for pid in left:
            if time.monotonic() > began + _CLEANING_S or not _cleans_up(pid):
                _signal(pid, signal.SIGKILL)
        server.poll()
        time.sleep(_POLL_S / 5)
        if server.returncode is not None:
            _reap()
    return server.wait()


def main(arguments: list[str]) -> int:
    """Run the command in `arguments[1:]`, with `arguments[0]` seconds to end after SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # only the end of standard input, or of the command, ends us
    _set(_PR_SET_CHILD_SUBREAPER, 1)
    _set(_PR_SET_DUMPABLE, 0)  # the environment may hold a key for the command
    try:
        server = subprocess.Popen(
            arguments[1:],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            start_new_session=True,
            preexec_fn=lambda: _set(_PR_SET_PDEATHSIG, signal.SIGKILL),
        )
    except OSError as error:
        os.write(2, f"error: {arguments[1]}: cannot be run: {error.strerror}\n".encode())
        os.write(1, b"exit 127\n")
        return 0
    _wait(server)
    code = _stop(server, float(arguments[0]))
    os.write(1, f"exit {code}\n".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
