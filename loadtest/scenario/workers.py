"""The workers of a Locust master: which are still there, and what each reports."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gevent
import msgspec
from locust.runners import STATE_MISSING, MasterRunner

from loadtest.errors import RecordError
from loadtest.records.pass_facts import Failure, LevelSummary
from loadtest.records.shipping import Batch, Inbox, RefusedError, WorkerEnd
from loadtest.scenario.shipping import BATCH, KEPT

FINISH, FINAL, DONE, FAILED = "loadtest_finish", "loadtest_final", "loadtest_done", "loadtest_failed"

WATCH_INTERVAL_S = 0.5

FINAL_WAIT_S = 60.0  # without a word of a worker

LOST_WAIT_S = 5.0  # the same of one whose heartbeats are missing

LONGEST_WAIT_S = 3600.0  # for what comes ever so slowly

PROGRESS_S = 5.0  # between two lines on what is still to come

logger = logging.getLogger("loadtest")


class Workers:
    """The workers at the start of the test, whose records come into `folder`, of the pass with this `token`.

    `failed` is called when one is lost or reports a failure."""

    def __init__(self, runner: MasterRunner, failed: Callable[[Failure], None], folder: Path, token: str) -> None:
        self._runner: Any = runner
        self._failed = failed
        clients = self._runner.clients
        self.names: list[str] = sorted(one.id for one in clients.ready + clients.running + clients.spawning)
        self.finishing = False
        self.hurried = False  # somebody asked to end now: what is still to come stays where it is
        self._inbox = Inbox(folder, token)
        self._done: set[str] = set()
        self._ended: set[str] = set()
        self._heard_s = dict.fromkeys(self.names, time.monotonic())
        self._refused: set[tuple[str, str]] = set()

    @property
    def done(self) -> bool:
        """Whether all measured requests of all workers have ended."""
        return self._done >= set(self.names)

    @property
    def summaries(self) -> Mapping[str, LevelSummary]:
        """What each worker did, as far as it has said."""
        return self._inbox.summaries()

    def watch(self) -> None:
        """Look after the workers until they finish."""
        while not self.finishing:
            gevent.sleep(WATCH_INTERVAL_S)
            for worker in [] if self.finishing else self._lost():
                why = f"worker {worker} was lost during the run, which is incomplete; read the log on its host"
                self._failed(Failure(kind="workers", message=why))

    def _lost(self) -> list[str]:
        return [name for name in self.names if self._is_gone(name) or self._is_missing(name)]

    def _is_gone(self, name: str) -> bool:
        return name not in self._runner.clients

    def _is_missing(self, name: str) -> bool:
        return not self._is_gone(name) and self._runner.clients[name].state == STATE_MISSING

    def finish(self, timeout_s: float) -> None:
        """Tell all workers to finish; wait for their summaries and their records, as long as some come."""
        self.finishing = True
        self._runner.send_message(FINISH)
        began_s = told_s = time.monotonic()
        while not self.hurried and (waiting := [name for name in self.names if self._is_awaited(name, began_s, timeout_s)]):
            if time.monotonic() - told_s > PROGRESS_S:
                told_s = time.monotonic()
                logger.info("%s", "; ".join(map(self._progress, waiting)))
            gevent.sleep(0.02)

    def _is_awaited(self, name: str, began_s: float, timeout_s: float) -> bool:
        """Is there something to come of this worker, and does it still talk?"""
        if self._is_gone(name) or (name in self._ended and not self._inbox.left_bytes(name)):
            return False
        if self._is_missing(name):
            return time.monotonic() - self._heard_s[name] < LOST_WAIT_S
        now_s = time.monotonic()
        return now_s - max(began_s + timeout_s, self._heard_s[name]) < FINAL_WAIT_S and now_s - began_s < LONGEST_WAIT_S

    def _progress(self, name: str) -> str:
        if name not in self._ended:
            return f"worker {name} finishes"
        return f"worker {name}: {self._inbox.left_bytes(name) / 1e6:.1f} MB of records to come"

    def hear(self, kind: str, data: Any, sender: str) -> None:
        """Handle a worker's message for this level. A malformed message is refused and reported once."""
        try:
            self._take(kind, data, sender)
        except (msgspec.ValidationError, RefusedError) as error:
            if (sender, kind) not in self._refused:
                self._refused.add((sender, kind))
                logger.warning("refused a message %s of worker %s: %s", kind, sender, error)
        except RecordError as error:
            self._failed(Failure(kind="records", message=str(error)))

    def _take(self, kind: str, data: Any, sender: str) -> None:
        if sender not in self.names:
            raise RefusedError("it has no part in this pass")
        self._heard_s[sender] = time.monotonic()
        if kind == BATCH:
            kept = self._inbox.take(sender, msgspec.convert(data, Batch))
            self._runner.send_message(KEPT, msgspec.to_builtins(kept), client_id=sender)
        elif kind == FINAL:
            self._inbox.end(sender, msgspec.convert(data, WorkerEnd))
            self._ended.add(sender)
        elif kind == DONE:
            self._done.add(sender)
        elif kind == FAILED:
            failure = msgspec.convert(data, Failure)
            self._failed(msgspec.structs.replace(failure, message=f"worker {sender}: {failure.message}"))

    def close(self) -> list[str]:
        """Close their files; why their records are incomplete, nothing if they are not."""
        differences = self._inbox.close()
        return differences + [
            f"worker {name} never reported what it recorded; what did not come is on its host"
            for name in self.names
            if name not in self._ended
        ]
