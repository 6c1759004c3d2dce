"""The requests in flight, and once a second what came of them: for whoever watches a level while it runs.

It counts reads, neither bytes nor tokens, and looks for text in a few new pieces only, so that a second of a thousand
streams costs the loop less than 0.1 ms. Figures are computed from the records, never from this.
"""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

from loadtest.client.exchange import TEXT, Exchange

PIECES_AT_ONCE = 4  # of one request, in which its first text is looked for
REQUESTS_AT_ONCE = 32  # so many a second are looked at


class Arrived(NamedTuple):
    """What came since last asked: reads of responses, and the mean wall seconds from sending to the first text of the
    requests whose first text was found meanwhile (None: of none)."""

    reads: int
    ttft_wall_s: float | None


class InFlight:
    """Requests between `begin` and `end`; `take` tells what came since it was last called."""

    def __init__(self) -> None:
        self._running: set[Exchange] = set()
        self._silent: dict[Exchange, int] = {}  # no text found yet: the next piece to look at
        self._ended_reads = self._told_reads = 0
        self._ttfts: list[float] = []

    def __len__(self) -> int:
        return len(self._running)

    def begin(self, exchange: Exchange) -> None:
        self._running.add(exchange)
        self._silent[exchange] = 0

    def end(self, exchange: Exchange) -> None:
        self._running.discard(exchange)
        self._ended_reads += len(exchange.reads)
        if exchange in self._silent:
            self._look(exchange)
            self._silent.pop(exchange, None)

    def take(self) -> Arrived:
        reads = self._ended_reads + sum(len(one.reads) for one in self._running)
        spoken = (one for one, seen in self._silent.items() if len(one.pieces) > seen)
        for one in list(islice(spoken, REQUESTS_AT_ONCE)):
            self._look(one)
        came, self._told_reads = reads - self._told_reads, reads
        ttfts, self._ttfts = self._ttfts, []
        return Arrived(came, sum(ttfts) / len(ttfts) if ttfts else None)

    def _look(self, exchange: Exchange) -> None:
        """Look for the first text in the next few pieces of a request."""
        first = self._silent[exchange]
        for index in range(first, min(first + PIECES_AT_ONCE, len(exchange.pieces))):
            if TEXT.search(exchange.pieces[index]):
                del self._silent[exchange]
                if exchange.sent is not None:
                    self._ttfts.append(exchange.reads[index] - exchange.sent)
                return
            self._silent[exchange] = index + 1
