"""What is sampled while a pass runs: the server's counters, the GPUs, and the machine's own clocks."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from loadtest.clock import Clock
from loadtest.errors import RecordError
from loadtest.servers import nvml, prometheus
from loadtest.study.locust_pass import Target

_JOIN_S = 30.0
_FIRST_READING_S = 10.0
CLOCK_LIMIT_S = 1.0  # what a clock may be off after a pass; NTP slews by less


@dataclass(frozen=True, slots=True)
class Moment:
    """One reading of three clocks (s): the wall, which may be set; the monotonic one, which stands still while the machine
    is suspended; and the time since boot, which does not."""

    wall_s: float
    monotonic_s: float
    boot_s: float

    @classmethod
    def now(cls) -> Moment:
        return cls(time.time(), time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME))


@dataclass(frozen=True, slots=True)
class ClockChanges:
    """What happened to the clocks between two moments: how long the machine was suspended, and how far the wall clock was
    set beside that (s, positive: forward)."""

    suspended_s: float
    wall_set_s: float

    @classmethod
    def between(cls, before: Moment, after: Moment) -> ClockChanges:
        """
        >>> ClockChanges.between(Moment(100.0, 10.0, 10.0), Moment(165.0, 40.0, 70.0))
        ClockChanges(suspended_s=30.0, wall_set_s=5.0)
        """
        boot_s = after.boot_s - before.boot_s
        suspended_s = boot_s - (after.monotonic_s - before.monotonic_s)
        return cls(round(suspended_s, 3), round(after.wall_s - before.wall_s - boot_s, 3))

    @property
    def suspended(self) -> str | None:
        """Why the times of this pass are not valid; None if they are."""
        if self.suspended_s <= CLOCK_LIMIT_S:
            return None
        return f"the machine was suspended for {self.suspended_s:.0f} s, so its times are not valid"

    @property
    def set_by(self) -> str | None:
        """What to tell of the wall clock; None where it kept its pace. The times of a pass do not depend on it."""
        if abs(self.wall_set_s) <= CLOCK_LIMIT_S:
            return None
        way = "forward" if self.wall_set_s > 0 else "back"
        return f"the wall clock was set {way} by {abs(self.wall_set_s):.0f} s; offsets are monotonic and not affected"


@contextlib.contextmanager
def sampling(target: Target, folder: Path, *, gpus: bool) -> Iterator[Callable[[], str | None]]:
    """Read the server's counters, and with `gpus` this machine's GPUs too, once before, once a second during, and once
    after what happens inside, which is handed a function that tells why one of them can no longer be written. The first
    reading is waited for: no request may come before it.

    Raises `RecordError` at the end for that reason.
    """
    stop = threading.Event()
    clock = Clock.start(target.clock_speed)
    failures: list[RecordError] = []
    begun = threading.Event()

    def keep(work: Callable[[], None]) -> None:
        try:
            work()
        except RecordError as error:
            failures.append(error)

    def counters() -> None:
        try:
            urls = target.metrics_urls or target.urls
            prometheus.scrape_forever(urls, folder, clock, stop, begun=begun, keyed=not target.metrics_urls)
        finally:
            begun.set()

    works: list[Callable[[], None]] = [counters]
    if gpus:
        works.append(lambda: nvml.sample_forever(folder, clock, stop))
    threads = [threading.Thread(target=keep, args=(work,), name="sampling", daemon=True) for work in works]
    for thread in threads:
        thread.start()
    begun.wait(_FIRST_READING_S)
    try:
        yield lambda: str(failures[0]) if failures else None
    finally:
        stop.set()
        for thread in threads:
            thread.join(_JOIN_S)
    if failures:
        raise failures[0]
