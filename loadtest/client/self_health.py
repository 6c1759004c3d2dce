"""The load generator's own health, once a second: did it have the time to stamp what arrived?

Also keeps Python's garbage collector off the token path: set-up is frozen, and while a level runs young generations are
collected a few objects at a time, sampled like everything else.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import gevent
import gevent.event

from loadtest.client.in_flight import Arrived
from loadtest.client.priority import Precedence
from loadtest.clock import Clock
from loadtest.records.schema import HealthSample

LAG_INTERVAL_S = 0.05  # wall time between two looks at how late the loop wakes
SAMPLE_INTERVAL_S = 1.0
LATE_START_S = 0.010  # a request sent more than this (wall) after its schedule started late
YOUNG, MIDDLE, OLD = 400, 2, 10**9  # new objects to a collection (about 0.2 ms), collections to one of the next generation
_PAGE_BYTES = resource.getpagesize()
_MONOTONIC, _NONBLOCK_CLOEXEC, _ABSOLUTE = 1, 0o2004000, 1  # of timerfd_create(2) and timerfd_settime(2)


class LoopLag:
    """By how much (wall s) the event loop comes late to a descriptor that the kernel makes readable at a known time.

    The same way a token comes in. A timer of the loop itself would add its own error: it is rounded up to a millisecond.
    Counted only while requests are in flight: with none, there is nothing to stamp late.
    """

    def __init__(self, in_flight: Callable[[], int], interval_s: float = LAG_INTERVAL_S) -> None:
        self._in_flight = in_flight
        self._interval_s = interval_s
        self._due = 0.0
        self._sum_s = 0.0
        self._max_s = 0.0
        self._n = 0
        loop = gevent.get_hub().loop
        self._descriptor = _descriptor()
        self._watcher = loop.timer(interval_s, interval_s, ref=False) if self._descriptor is None else loop.io(
            self._descriptor, 1, ref=False
        )  # fmt: skip

    def start(self) -> None:
        self._due = time.monotonic() + self._interval_s
        if self._descriptor is not None:
            _arm(self._descriptor, self._due, self._interval_s)
        self._watcher.start(self._tick)

    def stop(self) -> None:
        self._watcher.stop()
        self._watcher.close()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def take(self) -> tuple[float, float]:
        """Mean and worst lag since the last call; a wake-up that is overdue right now counts."""
        overdue_s = max(0.0, time.monotonic() - self._due) if self._in_flight() else 0.0
        mean_s = self._sum_s / self._n if self._n else overdue_s
        worst_s = max(self._max_s, overdue_s)
        self._sum_s = self._max_s = 0.0
        self._n = 0
        return mean_s, worst_s

    def _tick(self) -> None:
        now = time.monotonic()
        lag_s = max(0.0, now - self._due) if self._in_flight() else 0.0
        self._sum_s += lag_s
        self._max_s = max(self._max_s, lag_s)
        self._n += 1
        if self._descriptor is None:
            self._due = now + self._interval_s
        else:  # as many periods on as have passed
            self._due += self._interval_s * int.from_bytes(os.read(self._descriptor, 8), sys.byteorder)


def _descriptor() -> int | None:
    """A timer as a file descriptor (Linux); None elsewhere."""
    if sys.platform != "linux":
        return None
    made: int = ctypes.CDLL(None, use_errno=True).timerfd_create(_MONOTONIC, _NONBLOCK_CLOEXEC)
    return made if made >= 0 else None


def _arm(descriptor: int, first_s: float, interval_s: float) -> None:
    """Make it readable at `first_s` of the monotonic clock, and every `interval_s` from then on."""
    parts = [int(part) for value in (interval_s, first_s) for part in divmod(value * 1e9, 1e9)]
    ctypes.CDLL(None).timerfd_settime(descriptor, _ABSOLUTE, (ctypes.c_long * 4)(*parts), None)


class Collections:
    """Counts Python's garbage collections and the wall time they took."""

    def __init__(self) -> None:
        self._began = 0.0
        self._n = 0
        self._pause_s = 0.0
        self._thresholds = gc.get_threshold()

    def start(self) -> None:
        """Freeze what set-up left, collect little at a time, and listen."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(YOUNG, MIDDLE, OLD)
        gc.callbacks.append(self._on_collection)

    def stop(self) -> None:
        if self._on_collection in gc.callbacks:
            gc.callbacks.remove(self._on_collection)
        gc.set_threshold(*self._thresholds)
        gc.unfreeze()

    def take(self) -> tuple[int, float]:
        """Collections since the last call, and the wall seconds spent in them."""
        taken = self._n, self._pause_s
        self._n, self._pause_s = 0, 0.0
        return taken

    def _on_collection(self, phase: str, info: Mapping[str, int]) -> None:
        if phase == "start":
            self._began = time.monotonic()
        else:
            self._n += 1
            self._pause_s += time.monotonic() - self._began


class Telemetry:
    """Hands one `HealthSample` a second to `write`, from `start` to `stop`; `in_flight` tells how many requests run now,
    `arrived` what came of them since it was last asked."""

    def __init__(
        self,
        write: Callable[[HealthSample], None],
        clock: Clock,
        worker: str,
        in_flight: Callable[[], int],
        arrived: Callable[[], Arrived],
    ) -> None:
        self._write = write
        self._clock = clock
        self._worker = worker
        self._in_flight, self._arrived = in_flight, arrived
        self._lag = LoopLag(in_flight)
        self._collections = Collections()
        self._precedence = Precedence()
        self._late_starts = 0
        self._stopping = gevent.event.Event()
        self._greenlet: Any = None

    def start(self) -> None:
        self._collections.start()
        self._precedence.take()
        self._lag.start()
        self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """Write the last, shorter sample and let the collector run again."""
        self._stopping.set()
        if self._greenlet is not None:
            self._greenlet.join()
            self._lag.stop()
            self._precedence.drop()
            self._collections.stop()
            self._greenlet = None

    def note_start(self, late_wall_s: float) -> None:
        """Count a request that was sent so much (wall s) after its schedule."""
        self._late_starts += late_wall_s > LATE_START_S

    def _run(self) -> None:
        wall, cpu = time.monotonic(), time.process_time()
        stopped = False
        while not stopped:
            stopped = self._stopping.wait(SAMPLE_INTERVAL_S)
            now, used = time.monotonic(), time.process_time()
            interval_s = max(now - wall, 1e-9)
            self._write(self._sample(used - cpu, interval_s))
            self._precedence.hold_to((used - cpu) / interval_s)
            wall, cpu = now, used

    def _sample(self, cpu_s: float, interval_s: float) -> HealthSample:
        lag_mean_s, lag_max_s = self._lag.take()
        collections, pause_s = self._collections.take()
        late, self._late_starts = self._late_starts, 0
        reads, ttft_wall_s = self._arrived()
        return HealthSample(
            t_s=round(self._clock.now_s(), 6),
            clock_anchor_unix_s=self._clock.anchor_unix_s,
            clock_speed=self._clock.speed,
            worker=self._worker,
            loop_lag_mean_s=round(lag_mean_s, 7),
            loop_lag_max_s=round(lag_max_s, 7),
            cpu_share=round(cpu_s / interval_s, 4),
            interval_s=round(interval_s, 4),
            rss_bytes=rss_bytes(),
            gc_collections=collections,
            gc_pause_s=round(pause_s, 7),
            late_starts=late,
            in_flight=self._in_flight(),
            reads=reads,
            ttft_s=None if ttft_wall_s is None else round(ttft_wall_s * self._clock.speed, 6),
            priority=self._precedence.held,
        )


def rss_bytes() -> int:
    """Memory of this process that is in RAM now (bytes)."""
    try:
        with open("/proc/self/statm", "rb") as stream:
            return int(stream.read().split()[1]) * _PAGE_BYTES
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if os.uname().sysname == "Darwin" else 1024)
