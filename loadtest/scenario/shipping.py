"""A worker ships its records to its master, beside the measurement and after it."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from typing import Any

import gevent
import gevent.event
import msgspec
from gevent.threadpool import ThreadPool
from locust.exception import RPCError, RPCSendError
from locust.runners import WorkerRunner

from loadtest.records.shipping import LARGEST_BATCH_BYTES, Batch, FileEnd, Kept, Outbox

BATCH, KEPT = "loadtest_batch", "loadtest_kept"

INTERVAL_S = 1.0  # between two looks at what is new

ANSWER_WAIT_S = 5.0  # then a batch is sent again

QUICK_S, SLOW_S = 0.1, 0.5  # of an answer: the next batch is twice, or half as large; heartbeats share the line

SMALLEST_BATCH_BYTES = 8 * 1024

QUIT_PATIENCE_S = 10.0  # without any answer, where this worker is the one that ends

_POLITENESS = 10  # nice value of the thread that packs: it never keeps the loop from its core

logger = logging.getLogger("loadtest")


class Shipper:
    """Sends one batch at a time, each as large as the line carries soon. What is not sent yet lies on this host's disk."""

    def __init__(self, runner: WorkerRunner, outbox: Outbox) -> None:
        self._runner: Any = runner
        self._outbox = outbox
        self._most_bytes = SMALLEST_BATCH_BYTES
        self._answered = gevent.event.Event()
        self._closed = gevent.event.Event()
        self._heard_s = time.monotonic()
        self._pool = ThreadPool(1)
        self._greenlet = gevent.spawn(self._work)

    def hear(self, data: Any) -> None:
        """The master has answered."""
        if self._outbox.acknowledge(msgspec.convert(data, Kept)):
            self._heard_s = time.monotonic()
            self._answered.set()

    def close(self) -> tuple[FileEnd, ...]:
        """The files are closed: go on until the master has all; returns what is in them."""
        self._closed.set()
        return self._outbox.ends()

    def wait(self) -> None:
        """Return when the master has all, or has not answered for a while."""
        self._heard_s = time.monotonic()
        while not self._greenlet.ready() and time.monotonic() - self._heard_s < QUIT_PATIENCE_S:
            self._greenlet.join(0.2)

    def stop(self) -> int:
        """Ship no more; how many bytes the master does not have."""
        self._greenlet.kill()
        self._pool.kill()
        return self._outbox.left_bytes

    def _work(self) -> None:
        while True:
            closed = self._closed.is_set()
            batch = self._pool.apply(self._packed)
            if batch is not None:
                self._send(batch)
            elif closed:
                return
            else:
                self._closed.wait(INTERVAL_S)

    def _packed(self) -> Batch | None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _POLITENESS)
        return self._outbox.next_batch(self._most_bytes)

    def _send(self, batch: Batch) -> None:
        """Send one, and wait for its answer; the size of the next follows from how long that took."""
        self._answered.clear()
        began_s = time.monotonic()
        with contextlib.suppress(RPCError, RPCSendError):  # Locust mends the connection; the batch is sent again
            self._runner.send_message(BATCH, msgspec.to_builtins(batch, builtin_types=(bytes,)))
        self._answered.wait(ANSWER_WAIT_S)
        took_s = time.monotonic() - began_s
        if took_s < QUICK_S:
            self._most_bytes = min(LARGEST_BATCH_BYTES, self._most_bytes * 2)
        elif took_s > SLOW_S:
            self._most_bytes = max(SMALLEST_BATCH_BYTES, self._most_bytes // 2)
