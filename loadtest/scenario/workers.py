"""The workers of a Locust master: which are still there, and what each reports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import msgspec
from locust.runners import STATE_MISSING, MasterRunner

from loadtest.records.pass_facts import Failure, LevelSummary

FINISH, FINAL, DONE, FAILED = "loadtest_finish", "loadtest_final", "loadtest_done", "loadtest_failed"

WATCH_INTERVAL_S = 0.5

FINAL_WAIT_S = 60.0


class Workers:
    """The workers at the start of the test. `failed` is called when one is lost or reports a failure."""

    def __init__(self, runner: MasterRunner, failed: Callable[[Failure], None]) -> None:
        self._runner: Any = runner
        self._failed = failed
        clients = self._runner.clients
        self.names: list[str] = sorted(one.id for one in clients.ready + clients.running + clients.spawning)
        self.summaries: dict[str, LevelSummary] = {}
        self.finishing = False
        self._done: set[str] = set()
        self._ended: set[str] = set()

    @property
    def done(self) -> bool:
        """Whether all measured requests of all workers have ended."""
        return self._done >= set(self.names)

    def watch(self) -> None:
        """Look after the workers until they finish."""
        while not self.finishing:
            gevent.sleep(WATCH_INTERVAL_S)
            for worker in [] if self.finishing else self._lost():
                why = f"worker {worker} was lost during the run, which is incomplete; read the log on its host"
                self._failed(Failure(kind="workers", message=why))

    def _lost(self) -> list[str]:
        clients = self._runner.clients
        return [name for name in self.names if name not in clients or clients[name].state == STATE_MISSING]

    def finish(self, timeout_s: float) -> None:
        """Tell all workers to finish and wait for their summaries."""
        gone = set(self._lost())
        self.finishing = True
        self._runner.send_message(FINISH)
        with gevent.Timeout(timeout_s + FINAL_WAIT_S, False):
            while set(self.names) - gone - self._ended:
                gevent.sleep(0.02)

    def hear(self, kind: str, data: dict[str, Any], sender: str) -> None:
        """Handle a message of a worker of this level."""
        if sender not in self.names:
            return
        if kind == FINAL:
            self._ended.add(sender)
            if data:
                self.summaries[sender] = msgspec.convert(data, LevelSummary)
        elif kind == DONE:
            self._done.add(sender)
        elif kind == FAILED:
            failure = msgspec.convert(data, Failure)
            self._failed(msgspec.structs.replace(failure, message=f"worker {sender}: {failure.message}"))

    def problems(self) -> list[str]:
        """Why their records are incomplete; empty if they are not."""
        return [
            f"worker {name} never reported what it recorded; its records, if any, are on its host"
            for name in self.names
            if name not in self._ended
        ]
