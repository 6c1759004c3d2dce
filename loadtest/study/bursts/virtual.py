"""A pass of bursts in virtual time: `scenario.bursts` without Locust, sockets or a clock."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from loadtest.records.schema import RequestRecord
from loadtest.study.virtual_level import Plan, VirtualLevel, VirtualServer
from loadtest.workload.bursts import Burst
from loadtest.workload.script import Item, Script


class VirtualBursts(VirtualLevel):
    """All streams of a burst begin in the same instant, those of the next when every one of them has ended."""

    def __init__(self, plan: Plan, bursts: Sequence[Burst], script: Script, server: VirtualServer) -> None:
        super().__init__(plan, script, server)
        self._left = list(reversed(bursts))
        self._items: tuple[Item, ...] = ()
        self._begin()

    def _begin(self) -> None:
        """The next burst is due now, if there is one."""
        self._items = self._left.pop().items if self._left else ()
        self._pauses = [(self.now_s, user) for user in range(len(self._items))]

    def _next(self, user: int) -> Item | None:
        return self._items[user]

    def _go_on(self, free: list[int]) -> Iterator[RequestRecord]:
        if not self._live:
            self._begin()
        yield from ()

    def _back_off(self, user: int) -> None:
        """A refused stream is not asked again: the burst goes on without it."""
        if not self._live and not self._pauses:
            self._begin()
