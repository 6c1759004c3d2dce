"""Precedence for the process that reads, so that requests leave and answers are read in time on a busy machine.

It uses a few per cent of a core. Real time (SCHED_RR, the lowest of its priorities) where the system permits it (root,
CAP_SYS_NICE, RLIMIT_RTPRIO), else a negative nice value where that is allowed. Threads and processes that are started
meanwhile do not inherit real time.
"""

from __future__ import annotations

import contextlib
import os

from loadtest.records.schema import Priority

NICE = -10
CPU_SHARE_LIMIT = 0.5  # of a core: a process that uses more would hold up what it measures


class Precedence:
    """Taken by `take`, given back by `drop`. `held` is what this thread runs with now."""

    def __init__(self) -> None:
        self._policy: tuple[int, os.sched_param] | None = None  # what to go back to
        self._nice: int | None = None

    @property
    def held(self) -> Priority:
        if os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK in (os.SCHED_RR, os.SCHED_FIFO):
            return "realtime"
        return "nice" if os.getpriority(os.PRIO_PROCESS, 0) < 0 else "normal"

    def take(self) -> None:
        """Take the best that is permitted; what was better already stays."""
        if self.held == "realtime":
            return
        before = os.sched_getscheduler(0), os.sched_getparam(0)
        try:
            os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
        except OSError:
            self._take_nice()
        else:
            self._policy = before

    def _take_nice(self) -> None:
        before = os.getpriority(os.PRIO_PROCESS, 0)
        if before > NICE:
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, 0, NICE)
                self._nice = before

    @classmethod
    def permitted(cls) -> Priority:
        """The best that this system permits."""
        precedence = cls()
        precedence.take()
        try:
            return precedence.held
        finally:
            precedence.drop()

    def drop(self) -> None:
        """Back to what was held before; nothing where nothing was taken."""
        with contextlib.suppress(OSError):
            if self._policy is not None:
                os.sched_setscheduler(0, *self._policy)
            if self._nice is not None:
                os.setpriority(os.PRIO_PROCESS, 0, self._nice)
        self._policy = self._nice = None

    def hold_to(self, cpu_share: float) -> None:
        """Give it up if this process used more than half of a core (CPU seconds per wall second)."""
        if cpu_share > CPU_SHARE_LIMIT:
            self.drop()
