"""A pass of Poisson arrivals in virtual time: `scenario.open_loop` without Locust, sockets or a clock."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from loadtest.records.schema import RequestRecord
from loadtest.study.virtual_level import Plan, VirtualLevel, VirtualServer
from loadtest.workload.script import Item, Script


class VirtualArrivals(VirtualLevel):
    """Requests come at random times, however many are in flight; each is a user of its own."""

    def __init__(self, plan: Plan, script: Script, server: VirtualServer, rate_per_s: float, seed: int) -> None:
        super().__init__(plan, script, server)
        count = plan.requests or 0
        gaps_s = np.random.default_rng((seed, plan.concurrency, plan.repeat)).exponential(1 / rate_per_s, count)
        self._pauses = [(self.start_s + at_s, user) for user, at_s in enumerate(np.cumsum(gaps_s).tolist())]
        self._refusals = [0] * count

    def _next(self, user: int) -> Item | None:
        return self.script.measured(user)

    def _go_on(self, free: list[int]) -> Iterator[RequestRecord]:
        yield from ()

    def _back_off(self, user: int) -> None:
        """A refused request is not asked again."""
