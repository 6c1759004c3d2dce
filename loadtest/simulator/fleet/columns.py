"""What is known of each replica at an instant, as columns: its clock, streams, queue and KV cache. No clock, no I/O."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from loadtest.errors import UsageError
from loadtest.simulator.core.behaviour import RESERVE_DECAY_STEPS, RESERVE_RATIO_LOW, RESERVE_RATIO_START
from loadtest.simulator.core.engine import EngineConfig
from loadtest.simulator.fleet.requests import NOBODY, Ids, Requests
from loadtest.simulator.fleet.speed import Speed

Rows: TypeAlias = npt.NDArray[np.intp]
Column: TypeAlias = npt.NDArray[Any]

NEVER = np.iinfo(np.int64).max // 4
RESERVE_DECAY = (RESERVE_RATIO_START - RESERVE_RATIO_LOW) / RESERVE_DECAY_STEPS  # of a share of output, each step
_CLOSE_TOKENS = 8192  # with less room than this, pages are counted one by one


class Columns:
    """The state of `count` equal replicas, one row each, and one place a stream where it is of streams.

    `max_tokens` is what a client allows a request (0: its own output), for the engine that reserves by it.
    """

    def __init__(self, config: EngineConfig, speed: Speed, requests: Requests, count: int, max_tokens: int = 0) -> None:
        behaviour = config.behaviour
        self.speed, self.requests, self.count = speed, requests, count
        self.mixed, self.reserves = behaviour.mixed_batches, behaviour.reserves_output
        self.caches = config.prefix_cache and behaviour.mixed_batches  # keeps what a preempted request had computed
        self.seats = min(config.max_running or behaviour.max_running, len(speed.streams_s) - 1)
        self.budget = min(
            config.prefill_budget_tokens or behaviour.prefill_budget_tokens, len(speed.batch_s) - len(speed.streams_s)
        )
        self.seats = min(self.seats, self.budget)  # a step with prompts has a token for every stream
        self.page, self.max_tokens = behaviour.page_tokens, max_tokens
        self.kv_tokens = config.kv_tokens // self.page * self.page
        longest = int((requests.prompt_tokens + requests.output_tokens).max()) if requests.count else 0
        if longest > self.kv_tokens:
            raise UsageError(f"a request of {longest} tokens does not fit the KV cache of {self.kv_tokens} tokens")
        self.time_s = np.zeros(count)
        self.steps = np.zeros(count, np.int64)  # decoding steps so far
        self.decoding = np.zeros(count, np.int64)  # streams that gain a token each step
        self.context = np.zeros(count, np.int64)  # tokens computed for those streams
        self.part = np.full(count, NOBODY, np.int64)  # the request whose prompt is computed in part
        self.part_left = np.zeros(count, np.int64)
        self.part_done = np.zeros(count, np.int64)
        self.head, self.tail = np.full(count, NOBODY, np.int64), np.full(count, NOBODY, np.int64)
        self.queued = np.zeros(count, np.int64)
        self.blocked = np.zeros(count, bool)  # the head of the queue had no room
        self.recheck = np.full(count, NEVER)  # steps after which it may have
        self.ratio = np.full(count, RESERVE_RATIO_START)
        self.released = np.zeros(count, np.int64)  # tokens of whole pages that requests have given back so far
        self.next_s = np.full(count, np.inf)
        self.next_steps = np.zeros(count, np.int64)
        self.ends = np.full(count, NEVER)  # the first of `end` of a replica, and its place
        self.ends_at = np.zeros(count, np.int64)
        self.end = np.full((count, 8), NEVER)  # decoding steps at which a stream ends; the first `decoding` places are used
        self.began = np.zeros((count, 8), np.int64)  # and at which its first token came
        self.request = np.full((count, 8), NOBODY, np.int64)
        self.offset = np.zeros((count, 8), np.int64)  # tokens computed for a stream, less the decoding steps so far
        self.rank = np.zeros((count, 8), np.int64)  # the order of admission
        self.preemptions = 0
        self.admitted = 0
        self.kept: dict[int, tuple[int, int]] = {}  # of a preempted request: tokens computed, and `released` with them
        self.ended: list[Ids] = []

    def load(self) -> npt.NDArray[np.int64]:
        """Requests in flight at each replica, running and waiting."""
        return self.queued + self.decoding + (self.part >= 0)

    def has_seat(self, rows: Rows) -> Column:
        return self.decoding[rows] + (self.part[rows] >= 0) < self.seats

    def paged(self, tokens: Column) -> Column:
        """Tokens of the whole pages that hold these."""
        return -(-tokens // self.page) * self.page

    def room(self, rows: Rows, steps: int) -> Column:
        """Tokens that the KV cache can take in whole pages once the streams have grown by so many steps; below 0: too few.

        Far from full every last page is taken to be full; close to it pages are counted.
        """
        streams = self.decoding[rows]
        free = self.kv_tokens - self.paged(self.part_done[rows])
        room: Column = free - self.context[rows] - streams * (self.page - 1 + steps)
        close = ((room < _CLOSE_TOKENS) & (self.page > 1)).nonzero()[0]
        if len(close):
            at = rows[close]
            width = max(1, int(self.decoding[at].max()))
            used = np.arange(width) < self.decoding[at][:, None]
            tokens = self.offset[:, :width].take(at, axis=0) + self.steps[at][:, None] + steps
            room[close] = free[close] - (self.paged(tokens) * used).sum(axis=1)
        return room

    def seat(self, rows: Rows, ids: Ids, began: Column) -> None:
        """Streams, one a replica, whose prompts are computed and whose first token comes with this decoding step."""
        place = self.decoding[rows]
        if int(place.max()) >= self.end.shape[1]:
            self.widen()
        end = began + self.requests.output_tokens[ids] - 1
        self.end[rows, place], self.began[rows, place], self.request[rows, place] = end, began, ids
        self.offset[rows, place] = self.requests.prompt_tokens[ids] - began
        self.rank[rows, place] = self.admitted
        self.admitted += 1
        self.decoding[rows] = place + 1
        self.context[rows] += self.requests.prompt_tokens[ids]
        sooner = end < self.ends[rows]
        self.ends[rows[sooner]], self.ends_at[rows[sooner]] = end[sooner], place[sooner]

    def vacate(self, rows: Rows, at: Column, tokens: Column) -> None:
        """Give up places with so many tokens computed; the last stream of each replica moves into the gap."""
        self.context[rows] -= tokens
        self.released[rows] += self.paged(tokens)
        last = self.decoding[rows] - 1
        for column in (self.end, self.began, self.request, self.offset, self.rank):
            column[rows, at] = column[rows, last]
        self.end[rows, last] = NEVER
        self.decoding[rows] = last
        self.blocked[rows] = False
        ends = self.end[:, : max(1, int(self.decoding.max()))].take(rows, axis=0)
        first = ends.argmin(axis=1)
        self.ends_at[rows] = first
        self.ends[rows] = ends[np.arange(len(rows)), first]

    def widen(self) -> None:
        more = self.end.shape[1] // 2
        self.end = np.pad(self.end, ((0, 0), (0, more)), constant_values=NEVER)
        self.began = np.pad(self.began, ((0, 0), (0, more)))
        self.request = np.pad(self.request, ((0, 0), (0, more)), constant_values=NOBODY)
        self.offset = np.pad(self.offset, ((0, 0), (0, more)))
        self.rank = np.pad(self.rank, ((0, 0), (0, more)))
