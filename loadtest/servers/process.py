"""A command under its guard, our side of `supervisor`: whichever ends first, no process of the command is left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from loadtest.errors import RecordError, UsageError
from loadtest.servers import supervisor

_KILL_S = 15.0  # how long the guard itself may take beyond the grace it gives
_ROOT = str(Path(__file__).resolve().parents[2])


def python(module: str) -> list[str]:
    """The command of a module of ours; by `-P`, no file of the current folder is taken for a module.

    Raises `UsageError` where loadtest is not installed and only the current folder has it.
    """
    safe = sys.path if sys.flags.safe_path else sys.path[1:]
    if _ROOT not in {str(Path(place).resolve()) for place in safe}:
        raise UsageError(f"loadtest: expected it installed, found it in {_ROOT} alone; python -m pip install -e {_ROOT}")
    return [sys.executable, "-P", "-m", module]


class Guarded:
    """One command, started at once. What it prints, on either stream, goes to `output`."""

    def __init__(self, argv: Sequence[str], output: IO[Any], *, grace_s: float, environment: Mapping[str, str]) -> None:
        self.exit_code: int | None = None
        self._grace_s = grace_s
        self._guard = subprocess.Popen(
            [sys.executable, "-P", supervisor.__file__, str(grace_s), *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            env={**environment, "PYTHONSAFEPATH": "1"},  # no file of the current folder is taken for a module
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The guard's process; the command and all it started are its descendants."""
        return self._guard.pid

    def poll(self) -> int | None:
        """Exit code of the command (negative: the signal that ended it), or None while it runs."""
        if self.exit_code is None and self._guard.poll() is not None:
            self._collect()
        return self.exit_code

    def stop(self) -> int:
        """SIGTERM, the grace, SIGKILL to whatever is left; the exit code. Safe to call twice."""
        if self.exit_code is None:
            left = supervisor.descendants(self._guard.pid)
            self._close_input()
            try:
                self._guard.wait(self._grace_s + _KILL_S)
            except subprocess.TimeoutExpired:
                _kill([self._guard.pid, *left])
            self._collect()
        assert self.exit_code is not None
        return self.exit_code

    def _collect(self) -> None:
        self._close_input()
        assert self._guard.stdout is not None
        with self._guard.stdout as said:
            words = said.read().split()
        code = self._guard.wait()
        self.exit_code = int(words[-1]) if words[:1] == [b"exit"] else code

    def _close_input(self) -> None:
        if self._guard.stdin is not None:
            self._guard.stdin.close()


def open_log(path: Path) -> IO[bytes]:
    """A file for what a command prints, appended to. Raises `RecordError` where the disk refuses."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab")
    except OSError as error:
        raise RecordError(f"{path}: cannot write this log: {error.strerror}") from error


def _kill(pids: Sequence[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, 9)
        except ProcessLookupError:
            continue
