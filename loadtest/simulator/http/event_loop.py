"""An event loop that wakes on time: asyncio's epoll rounds every wait up to a whole millisecond, `select` does not."""

from __future__ import annotations

import asyncio
import select
import selectors
import sys
from typing import Any

_PR_SET_TIMERSLACK = 29


class PreciseSelector(selectors.EpollSelector):
    """Epoll, waited for with `select` and so to the microsecond. Create it early: its descriptor must be below 1024."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, Any]]:
        """Ready descriptors, after at most `timeout` seconds."""
        if timeout is not None and timeout > 0:
            select.select([self.fileno()], [], [], timeout)
            timeout = 0
        return super().select(timeout)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A loop on the precise selector where the system has epoll, else the system's own."""
    if not hasattr(selectors, "EpollSelector"):  # pragma: no cover - not Linux
        return asyncio.new_event_loop()
    return asyncio.SelectorEventLoop(PreciseSelector())


def tighten_timers() -> None:
    """Ask Linux to wake this process's timers when they are due, not up to 50 us later (its default slack)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
