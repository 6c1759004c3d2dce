"""In which order the requests of a level are judged while they come: by their sending, or short answers would come first."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator
from typing import Protocol, TypeAlias

from loadtest.metrics.request_arrays import Pass

Answers: TypeAlias = list[bool | None]  # of each SLO: is the request within it? None: not known

SETTLING = 8  # the first arrivals find an idle server: what comes before all of these have ended is left out
LATE_S = 1.0  # an arrival that waited longer for one of the most in flight is within no SLO


class SendingOrder(Protocol):
    """Requests of one level, pass after pass."""

    def add(self, columns: Pass, at: int, answers: Answers) -> None:
        """A request that has ended: its place in the columns, and whether it is within each SLO."""

    def ready(self) -> Iterator[Answers]:
        """The requests that may be judged now."""

    def rest(self) -> Iterator[Answers]:
        """Those that are left when a pass is over."""


class UsersOrder:
    """A closed loop: a request is judged when every user has ended one since it was sent."""

    def __init__(self, users: int) -> None:
        self._users = users
        self._waiting: list[tuple[float, int, Answers]] = []  # a heap, by the time of sending
        self._ends: dict[tuple[str, int], float] = {}
        self._ties = itertools.count()

    def add(self, columns: Pass, at: int, answers: Answers) -> None:
        record = columns.records[at]
        user = record.worker, record.user
        self._ends[user] = max(self._ends.get(user, -math.inf), float(columns.ended_s[at]))
        if record.phase == "measure":
            sent_s = float(columns.sent_s[at])
            place = sent_s if math.isfinite(sent_s) else float(columns.ended_s[at])
            heapq.heappush(self._waiting, (place, next(self._ties), answers))

    def ready(self) -> Iterator[Answers]:
        if len(self._ends) == self._users:
            yield from self._before(min(self._ends.values()))

    def rest(self) -> Iterator[Answers]:
        yield from self._before(math.inf)
        self._ends = {}

    def _before(self, until_s: float) -> Iterator[Answers]:
        while self._waiting and self._waiting[0][0] < until_s:
            yield heapq.heappop(self._waiting)[2]


class ArrivalsOrder:
    """An open loop: a request is judged in its turn, if it came to a server that had settled and ended while others still
    came. Of a pass in which none did, the load was too much for the time: what is outside an SLO even so counts, the rest
    is not known."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._waiting: dict[int, tuple[float, float, Answers]] = {}  # by number: arrival, end
        self._next = 0
        self._settled_s = self._last_arrival_s = -math.inf
        self._any = False
        self._passed: list[Answers] = []  # in order, those that were not judged

    def add(self, columns: Pass, at: int, answers: Answers) -> None:
        record = columns.records[at]
        if record.phase != "measure":
            return
        ended_s = float(columns.ended_s[at])
        arrived_s = ended_s - (record.ended_s - record.scheduled_s)
        late = record.sent_s is not None and record.sent_s - record.scheduled_s - (record.connect_s or 0.0) > LATE_S
        self._last_arrival_s = max(self._last_arrival_s, arrived_s)
        self._waiting[record.seq] = arrived_s, ended_s, [False] * len(answers) if late else answers

    def ready(self) -> Iterator[Answers]:
        while self._next in self._waiting and self._waiting[self._next][1] <= self._last_arrival_s:
            arrived_s, ended_s, answers = self._waiting.pop(self._next)
            if self._next < SETTLING:
                self._settled_s = max(self._settled_s, ended_s)
            self._next += 1
            if self._next > SETTLING and arrived_s >= self._settled_s:
                self._any = True
                yield answers
            else:
                self._passed.append(answers)

    def rest(self) -> Iterator[Answers]:
        yield from self.ready()
        left = [self._waiting[seq][2] for seq in sorted(self._waiting)]
        for answers in () if self._any else (*self._passed, *left):
            yield [False if one is False else None for one in answers]
        self._begin()
