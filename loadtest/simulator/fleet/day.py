"""A fleet over a stretch of time: traffic through a router to replicas, to the end of every request. No clock, no I/O.

Time goes forward in slices in which no follow-up can come of a request that ends in the same slice, so that each slice's
arrivals are known when it begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from loadtest.errors import UsageError
from loadtest.simulator.core.engine import EngineConfig
from loadtest.simulator.fleet.arrivals import Traffic
from loadtest.simulator.fleet.replicas import Replicas
from loadtest.simulator.fleet.requests import Ids, Requests, Times
from loadtest.simulator.fleet.routers import LOOKS, Router, Rows, router
from loadtest.simulator.fleet.speed import Speed

_SLICE_ARRIVALS = 64  # of a replica, in a slice that nothing else cuts short


@dataclass(frozen=True, slots=True, eq=False)
class Fleet:
    """Equal replicas of one engine behind a router."""

    config: EngineConfig
    speed: Speed
    replicas: int
    router: str
    max_tokens: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.replicas <= 100_000:
            raise UsageError(f"replicas of a fleet: expected from 1 to 100,000, got {self.replicas}")


@dataclass(frozen=True, slots=True)
class Loss:
    """So many replicas are gone from `at_s` on. What they had in flight is sent again, from its beginning, to the others."""

    at_s: float
    replicas: int


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What became of the traffic: waits in `requests` (nan: not reached by the end), how often replicas preempted, how many
    requests were sent again, and whether it was stopped as hopeless."""

    requests: Requests
    preemptions: int
    resent: int
    hopeless: bool


def _never(now_s: float) -> bool:
    return False


def simulate_fleet(
    fleet: Fleet,
    traffic: Traffic,
    *,
    until_s: float = math.inf,
    loss: Loss | None = None,
    seed: int = 0,
    hopeless: Callable[[float], bool] = _never,
) -> Outcome:
    """Send the traffic through the fleet, up to a time, to the end of all requests, or until it is `hopeless` at a time.

    Waits are written to its requests.
    """
    if loss is not None and not 0 < loss.replicas < fleet.replicas:
        raise UsageError(f"lost replicas: expected from 1 to {fleet.replicas - 1}, got {loss.replicas}")
    return _Day(fleet, traffic, loss, seed).run(until_s, hopeless)


class _Day:
    def __init__(self, fleet: Fleet, traffic: Traffic, loss: Loss | None, seed: int) -> None:
        self.traffic, self.requests, self.loss = traffic, traffic.requests, loss
        self.replicas = Replicas(fleet.config, fleet.speed, traffic.requests, fleet.replicas, fleet.max_tokens)
        if len(traffic.running):
            self.replicas.begin(traffic.running)
        self.router: Router = router(fleet.router, fleet.replicas, seed)
        self.now_s = 0.0
        self._opened = 0  # of `traffic.opening`
        self._coming: Ids = np.zeros(0, np.int64)  # follow-ups whose time is known
        self._resent: Ids = np.zeros(0, np.int64)
        self._lag_s = np.zeros(0)
        self._slice_s = min(traffic.floor_s, self._usual_slice_s(fleet.replicas))

    def _usual_slice_s(self, replicas: int) -> float:
        starts = self.traffic.starts_s
        if not len(starts):
            return math.inf
        return _SLICE_ARRIVALS * replicas * max(float(starts[-1] - starts[0]), 1.0) / len(starts)

    def run(self, until_s: float, hopeless: Callable[[float], bool]) -> Outcome:
        loss_s = math.inf if self.loss is None else self.loss.at_s
        stopped = False
        while not stopped and self.now_s < until_s and (next_s := self._next_s()) < until_s:
            end_s = min(max(self.now_s, next_s) + self._slice_s, until_s)
            if self.now_s < loss_s < end_s:
                end_s = loss_s
            self._route(self._due(end_s))
            self.replicas.advance(end_s)
            self.now_s = end_s
            if end_s == loss_s:
                self._lose()
            self._follow_up()
            stopped = hopeless(self.now_s)
        self.requests.ttft_s[self._resent] += self._lag_s
        self.requests.final_s[self._resent] += self._lag_s
        return Outcome(self.requests, self.replicas.preemptions, len(self._resent), stopped)

    def _next_s(self) -> float:
        """When something happens next; inf where all is done."""
        times = [float(self.replicas.next_s.min())]
        if self._opened < len(self.traffic.opening):
            times.append(float(self.traffic.starts_s[self._opened]))
        if len(self._coming):
            times.append(float(self.requests.arrival_s[self._coming].min()))
        return min(times)

    def _due(self, end_s: float) -> Ids:
        """The requests that come before this time, in order."""
        arrival, opening = self.requests.arrival_s, self.traffic.opening
        upto = self._opened + int(np.searchsorted(self.traffic.starts_s[self._opened :], end_s))
        due, self._opened = opening[self._opened : upto], upto
        if len(self._coming):
            now = arrival[self._coming] < end_s
            due = np.concatenate([due, self._coming[now]])
            self._coming = self._coming[~now]
            due = due[np.argsort(arrival[due], kind="stable")]
        return due

    def _route(self, due: Ids) -> None:
        """Send arrivals to replicas, in batches of the router; within a batch it sees predicted ends of requests."""
        replicas, batch, arrival = self.replicas, self.router.batch, self.requests.arrival_s
        if batch is None:
            if len(due):
                replicas.enqueue(self.router.choose(len(due), replicas.load()), due)
            return
        look = max(1, batch // LOOKS)
        for begin in range(0, len(due), batch):
            ids = due[begin : begin + batch]
            times = arrival[ids]
            replicas.advance(float(times[0]))
            if len(ids) == 1:
                replicas.enqueue(self.router.choose(1, replicas.load()), ids)
                continue
            load, (ends_s, ending) = replicas.load(), replicas.ending(float(times[-1]))
            to = []
            for first in range(0, len(ids), look):
                gone, ends_s, ending = _split(ends_s, ending, float(times[first]))
                load[gone] -= 1
                to.append(self.router.choose(len(times[first : first + look]), load))
                np.add.at(load, to[-1], 1)
            replicas.enqueue(np.concatenate(to), ids)

    def _follow_up(self) -> None:
        """Users whose request has ended think, and ask again."""
        ended = self.replicas.take_finished()
        if not len(self.traffic.think_s):
            return
        again = ended[ended + 1 < self.requests.count] + 1
        again = again[self.traffic.follows[again]]
        requests = self.requests
        requests.arrival_s[again] = requests.arrival_s[again - 1] + requests.final_s[again - 1] + self.traffic.think_s[again]
        self._coming = np.concatenate([self._coming, again])

    def _lose(self) -> None:
        assert self.loss is not None
        count = self.replicas.count
        lost = self.replicas.lose(np.arange(count - self.loss.replicas, count))
        self.router.keep(np.arange(count - self.loss.replicas))
        self._resent, self._lag_s = lost, self.now_s - self.requests.arrival_s[lost]
        self.requests.arrival_s[lost] = self.now_s
        self.requests.ttft_s[lost] = np.nan
        self._route(lost)


def _split(times_s: Times, rows: Rows, at_s: float) -> tuple[Rows, Times, Rows]:
    """The rows up to a time, and the times and rows after it."""
    upto = int(np.searchsorted(times_s, at_s))
    return rows[:upto], times_s[upto:], rows[upto:]
