"""Equal replicas in virtual time, from event to event: numpy across replicas, no step per token. No clock, no I/O.

The same engine as `loadtest.simulator.core.engine`, with unique prompts. Between two events every stream of a replica gains
one token a step, so m steps from N streams of K tokens of context take

    m (decode_s[N] + context_s (K + N)) + context_s N m (m - 1) / 2

An event is the end of a step at which a request ends, a request that has arrived can be admitted, a chunk of a prompt is
computed, or the KV cache is full. A request ends at a number of decoding steps that is known when its first token comes.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from loadtest.errors import UsageError
from loadtest.simulator.core.behaviour import (
    RESERVE_CLIP_TOKENS,
    RESERVE_DECAY_STEPS,
    RESERVE_RATIO_LOW,
    RESERVE_RATIO_START,
    RETRACT_AHEAD_STEPS,
)
from loadtest.simulator.core.engine import EngineConfig
from loadtest.simulator.fleet.requests import NOBODY, Ids, Requests, Times
from loadtest.simulator.fleet.speed import Speed

Rows: TypeAlias = npt.NDArray[np.intp]
Column: TypeAlias = npt.NDArray[Any]

NEVER = np.iinfo(np.int64).max // 4
_CLOSE_TOKENS = 8192  # with less room than this, pages are counted one by one
_DECAY = (RESERVE_RATIO_START - RESERVE_RATIO_LOW) / RESERVE_DECAY_STEPS


class Replicas:
    """`count` replicas with a queue each. `enqueue` requests in order of arrival, then `advance` to a time up to which all
    arrivals are known; `finished` collects the ids of what has ended since it was last taken.

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
        self._admitted = 0
        self._kept: dict[int, tuple[int, int]] = {}  # of a preempted request: tokens computed, and `released` with them
        self._ended: list[Ids] = []

    # -- from outside ------------------------------------------------------------------------------------------------

    def load(self) -> npt.NDArray[np.int64]:
        """Requests in flight at each replica, running and waiting."""
        return self.queued + self.decoding + (self.part >= 0)

    def ending(self, until_s: float) -> tuple[Times, Rows]:
        """Where the next event is the end of a request, not after this time: when, sorted, and which replicas."""
        rows = np.flatnonzero((self.next_s <= until_s) & (self.ends == self.steps + self.next_steps))
        order = np.argsort(self.next_s[rows])
        return self.next_s[rows][order], rows[order]

    def take_finished(self) -> Ids:
        """Ids of the requests that have ended since the last call."""
        ended, self._ended = self._ended, []
        return np.concatenate(ended) if ended else np.zeros(0, np.int64)

    def enqueue(self, to: Rows, ids: Ids) -> None:
        """Queue requests, sorted by arrival, at these replicas."""
        if len(ids) == 1:
            self._enqueue_one(to, int(ids[0]))
            return
        order = np.argsort(to, kind="stable")
        to, ids = to[order], ids[order]
        begins = np.empty(len(to), bool)
        begins[0], begins[1:] = True, to[1:] != to[:-1]
        ends = np.append(begins[1:], True)
        self.requests.after[ids[:-1][~ends[:-1]]] = ids[1:][~begins[1:]]
        self.requests.after[ids[ends]] = NOBODY
        rows, firsts = to[begins], ids[begins]
        empty = self.head[rows] == NOBODY
        self.head[rows[empty]] = firsts[empty]
        self.requests.after[self.tail[rows[~empty]]] = firsts[~empty]
        self.tail[rows] = ids[ends]
        self.queued[rows] += np.diff(np.append(np.flatnonzero(begins), len(to)))
        if empty.any():
            self._plan(rows[empty])

    def _enqueue_one(self, to: Rows, name: int) -> None:
        row = int(to[0])
        self.requests.after[name] = NOBODY
        self.queued[row] += 1
        empty = self.head[row] == NOBODY
        if empty:
            self.head[row] = name
        else:
            self.requests.after[self.tail[row]] = name
        self.tail[row] = name
        if empty:
            self._plan(to)

    def advance(self, until_s: float) -> None:
        """Run every event up to this time."""
        while len(rows := np.flatnonzero(self.next_s <= until_s)):
            self._leap(rows)
            ending = self.ends[rows] == self.steps[rows]
            if ending.any():
                self._finish(rows[ending])
            self._schedule(rows)
            self._plan(rows)

    def lose(self, rows: Rows) -> Ids:
        """These replicas are gone: ids of the requests that they had in flight, in order of id."""
        lost = [self.part[rows][self.part[rows] >= 0]]
        for row in rows.tolist():
            lost.append(self.request[row, : self.decoding[row]].copy())
            waiting = self.head[row]
            while waiting != NOBODY:
                lost.append(np.array([waiting]))
                waiting = self.requests.after[waiting]
        self.part[rows], self.decoding[rows], self.queued[rows], self.head[rows] = NOBODY, 0, 0, NOBODY
        self.next_s[rows] = np.inf
        return np.sort(np.concatenate(lost))

    # -- one event ---------------------------------------------------------------------------------------------------

    def _leap(self, rows: Rows) -> None:
        """To the end of the last step before the event."""
        steps = self.next_steps[rows]
        self.time_s[rows] = self.next_s[rows]
        self.steps[rows] += steps
        self.context[rows] += self.decoding[rows] * steps
        if self.reserves:
            self.ratio[rows] = np.maximum(self.ratio[rows] - _DECAY * steps, RESERVE_RATIO_LOW)
            self.blocked[rows[steps >= self.recheck[rows]]] = False

    def _finish(self, rows: Rows) -> None:
        """One request that ends, at each of these replicas."""
        requests, at = self.requests, self.ends_at[rows]
        ids = self.request[rows, at]
        requests.final_s[ids] = self.time_s[rows] - requests.arrival_s[ids]
        self._ended.append(ids)
        self._vacate(rows, at, requests.prompt_tokens[ids].astype(np.int64) + requests.output_tokens[ids] - 1)

    def _vacate(self, rows: Rows, at: Column, tokens: Column) -> None:
        """Give up places with so many tokens computed; the last stream of each replica moves into the gap."""
        self.context[rows] -= tokens
        self.released[rows] += self._paged(tokens)
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

    def _schedule(self, rows: Rows) -> None:
        """What the next step is where it is no plain decoding: prompts to compute, or a stream to preempt."""
        rows = rows[self.ends[rows] > self.steps[rows]]
        full = (self._room(rows, 1) < 0) & ((self.decoding[rows] > 1) | (self.part[rows] >= 0))
        if full.any():
            for row in rows[full].tolist():
                self._preempt(row)
            rows = rows[~full]
        head = self.head[rows]
        waits = (head >= 0) & ~self.blocked[rows] & (self.requests.arrival_s[head] <= self.time_s[rows])
        rows = rows[(waits & self._has_seat(rows)) | (self.part[rows] >= 0)]
        if len(rows):
            self._prefill(rows)

    def _has_seat(self, rows: Rows) -> Column:
        return self.decoding[rows] + (self.part[rows] >= 0) < self.seats

    def _room(self, rows: Rows, steps: int) -> Column:
        """Tokens that the KV cache can take in whole pages once the streams have grown by so many steps; below 0: too few.

        Far from full every last page is taken to be full; close to it pages are counted.
        """
        streams = self.decoding[rows]
        free = self.kv_tokens - self._paged(self.part_done[rows])
        room: Column = free - self.context[rows] - streams * (self.page - 1 + steps)
        close = np.flatnonzero((room < _CLOSE_TOKENS) & (self.page > 1))
        if len(close):
            at = rows[close]
            width = max(1, int(self.decoding[at].max()))
            used = np.arange(width) < self.decoding[at][:, None]
            tokens = self.offset[:, :width].take(at, axis=0) + self.steps[at][:, None] + steps
            room[close] = free[close] - (self._paged(tokens) * used).sum(axis=1)
        return room

    def _paged(self, tokens: Column) -> Column:
        """Tokens of the whole pages that hold these."""
        return -(-tokens // self.page) * self.page

    # -- prompts -----------------------------------------------------------------------------------------------------

    def _prefill(self, rows: Rows) -> None:
        """One step that computes prompts: the unfinished one, then waiting ones while budget, seats and room last."""
        streams = self.decoding[rows] if self.mixed else np.zeros(len(rows), np.int64)
        context = (self.context[rows] + streams) * self.mixed
        step = _Step(rows, self.budget - streams, self._room(rows, int(self.mixed)))
        self._continue(step)
        waiting = np.arange(len(rows))
        while len(waiting):
            waiting = self._admit(step, waiting)
        busy = step.tokens > 0
        seconds = self.speed.step_s(step.tokens, step.pairs, streams, context)
        self.time_s[rows] += np.where(busy, seconds, 0.0)
        if self.mixed:
            self.steps[rows] += busy
            self.context[rows] += np.where(busy, streams, 0)
        self._tell_first_tokens(step)

    def _continue(self, step: _Step) -> None:
        """The next chunk of prompts that are computed in part; one that finds no room goes back to its queue."""
        at = np.flatnonzero(self.part[step.rows] >= 0)
        if not len(at):
            return
        rows = step.rows[at]
        tokens = np.minimum(self.part_left[rows], step.budget[at])
        done = self.part_done[rows]
        pages = self._paged(done + tokens) - self._paged(done)
        fits = pages <= step.room[at]
        for row in rows[~fits].tolist():
            self._preempt(row)
        at, rows, tokens, done, pages = at[fits], rows[fits], tokens[fits], done[fits], pages[fits]
        step.take(at, tokens, done, pages)
        self.part_done[rows] += tokens
        self.part_left[rows] -= tokens
        over = self.part_left[rows] == 0
        at, rows = at[over], rows[over]
        ids = self.part[rows]
        self.part[rows], self.part_done[rows] = NOBODY, 0
        self._seat(step, at, rows, ids)

    def _admit(self, step: _Step, at: Rows) -> Rows:
        """Take in the head of each queue that may start in this step; the places where another one may follow."""
        rows = step.rows[at]
        ids = self.head[rows]
        may = (ids >= 0) & (step.budget[at] > 0) & ~self.blocked[rows] & self._has_seat(rows) & (self.part[rows] == NOBODY)
        may &= self.requests.arrival_s[ids] <= self.time_s[rows]
        at, rows, ids = at[may], rows[may], ids[may]
        if not len(at):
            return at
        known = self.requests.prompt_tokens[ids].astype(np.int64)
        cached = self._cached(step, at, ids, known)
        tokens = np.minimum(known - cached, step.budget[at])
        pages = self._paged(cached + tokens)
        fits = self._fits_reserve(step, at, rows, ids) if self.reserves else pages <= step.room[at]
        self.blocked[rows[~fits]] = True
        at, rows, ids, known, tokens, cached, pages = (c[fits] for c in (at, rows, ids, known, tokens, cached, pages))
        self.head[rows] = self.requests.after[ids]
        self.queued[rows] -= 1
        if self._kept:
            for name in ids.tolist():
                self._kept.pop(name, None)
        step.take(at, tokens, cached, pages)
        whole = tokens + cached == known
        self._seat(step, at[whole], rows[whole], ids[whole])
        part = rows[~whole]
        self.part[part] = ids[~whole]
        self.part_done[part] = (tokens + cached)[~whole]
        self.part_left[part] = (known - tokens - cached)[~whole]
        return at[self.head[rows] >= 0]

    def _cached(self, step: _Step, at: Rows, ids: Ids, known: Column) -> Column:
        """Tokens of preempted requests that are still in the KV cache: room that nobody gave back after them."""
        cached = np.zeros(len(ids), np.int64)
        for place, name in enumerate(ids.tolist() if self._kept else ()):
            if name in self._kept:
                computed, released = self._kept[name]
                still = int(step.room[at[place]]) - int(self.released[step.rows[at[place]]]) + released
                cached[place] = max(0, min(still, computed, int(known[place]) - 1)) // self.page * self.page
        return cached

    def _fits_reserve(self, step: _Step, at: Rows, rows: Rows, ids: Ids) -> Column:
        """Does the newcomer leave running streams the share of their output that is held back for them?"""
        known, output = self.requests.prompt_tokens[ids], self.requests.output_tokens[ids]
        own = np.minimum(np.maximum(self.max_tokens, output), RESERVE_CLIP_TOKENS)
        streams = self.decoding[rows]
        reserved = self._reserved(rows)
        ratio = self.ratio[rows]
        missing = known + own + reserved * ratio + streams - step.room[at]
        fits: Column = (missing <= 0) | (streams == 0)
        gain = np.where(ratio > RESERVE_RATIO_LOW, reserved * _DECAY, 0.0) - streams
        wait = np.ceil(missing / np.where(gain > 0, gain, 1.0))
        self.recheck[rows] = np.where(fits | (gain <= 0), NEVER, np.maximum(wait, 1)).astype(np.int64)
        return fits

    def _reserved(self, rows: Rows) -> Column:
        """Tokens of output still allowed to the streams of each replica, as far as admission counts them."""
        width = max(1, int(self.decoding[rows].max()))
        used = np.arange(width) < self.decoding[rows][:, None]
        generated = self.steps[rows][:, None] - self.began[rows, :width] + 1
        left = self.max_tokens - generated if self.max_tokens else self.end[rows, :width] - self.steps[rows][:, None]
        reserved: Column = (np.clip(left, 0, RESERVE_CLIP_TOKENS) * used).sum(axis=1)
        return reserved

    def _seat(self, step: _Step, at: Rows, rows: Rows, ids: Ids) -> None:
        """A prompt is computed with this step: its stream decodes from the next one on."""
        if not len(ids):
            return
        place = self.decoding[rows]
        if int(place.max()) >= self.end.shape[1]:
            self._widen()
        began = self.steps[rows] + self.mixed
        end = began + self.requests.output_tokens[ids] - 1
        self.end[rows, place], self.began[rows, place], self.request[rows, place] = end, began, ids
        self.offset[rows, place] = self.requests.prompt_tokens[ids] - began
        self.rank[rows, place] = self._admitted
        self._admitted += 1
        self.decoding[rows] = place + 1
        self.context[rows] += self.requests.prompt_tokens[ids]
        sooner = end < self.ends[rows]
        self.ends[rows[sooner]], self.ends_at[rows[sooner]] = end[sooner], place[sooner]
        step.first_at.append(at)
        step.first_ids.append(ids)

    def _widen(self) -> None:
        more = self.end.shape[1] // 2
        self.end = np.pad(self.end, ((0, 0), (0, more)), constant_values=NEVER)
        self.began = np.pad(self.began, ((0, 0), (0, more)))
        self.request = np.pad(self.request, ((0, 0), (0, more)), constant_values=NOBODY)
        self.offset = np.pad(self.offset, ((0, 0), (0, more)))
        self.rank = np.pad(self.rank, ((0, 0), (0, more)))

    def _tell_first_tokens(self, step: _Step) -> None:
        for at, ids in zip(step.first_at, step.first_ids, strict=True):
            new = np.isnan(self.requests.ttft_s[ids])
            at, ids = at[new], ids[new]
            self.requests.ttft_s[ids] = self.time_s[step.rows[at]] - self.requests.arrival_s[ids]

    # -- want of room ------------------------------------------------------------------------------------------------

    def _preempt(self, row: int) -> None:
        """Make room as the engine does: the newest stream to the head of the queue, or the least advanced one to its end."""
        if self.part[row] >= 0:
            self.released[row] += self._paged(self.part_done[row])
            self._requeue(row, int(self.part[row]), 0, int(self.part_done[row]))
            self.part[row], self.part_done[row], self.part_left[row] = NOBODY, 0, 0
            self.blocked[row] = self.mixed
            return
        here = np.array([row])
        while self.decoding[row] > 1:
            self._give_up(row, self._victim(row))
            if self._room(here, 1 if self.mixed else RETRACT_AHEAD_STEPS)[0] >= 0:
                break
        self.blocked[row] = self.mixed
        if self.reserves:
            streams = int(self.decoding[row])
            generated = int((self.steps[row] - self.began[row, :streams] + 1).sum()) + RETRACT_AHEAD_STEPS * streams
            allowed = self.max_tokens * streams or int(self.requests.output_tokens[self.request[row, :streams]].sum())
            self.ratio[row] = min(1.0, generated / max(allowed, 1))

    def _victim(self, row: int) -> int:
        """The stream admitted last; or, of those with the least output, the one with the longest prompt."""
        streams = self.decoding[row]
        if self.mixed:
            return int(self.rank[row, :streams].argmax())
        began = self.began[row, :streams]
        prompts = self.requests.prompt_tokens[self.request[row, :streams]]
        return int(np.where(began == began.max(), prompts, 0).argmax())

    def _give_up(self, row: int, at: int) -> None:
        name = int(self.request[row, at])
        generated = int(self.steps[row] - self.began[row, at]) + 1
        computed = int(self.requests.prompt_tokens[name]) + generated - 1
        self._vacate(np.array([row]), np.array([at]), np.array([computed]))
        self._requeue(row, name, generated, computed)

    def _requeue(self, row: int, name: int, generated: int, computed: int) -> None:
        """Its output so far is kept, and computed again with the prompt."""
        requests = self.requests
        self.preemptions += 1
        requests.prompt_tokens[name] += generated
        requests.output_tokens[name] -= generated
        if self.caches:
            self._kept[name] = (computed, int(self.released[row]))
        self.queued[row] += 1
        if self.head[row] == NOBODY:
            self.head[row] = self.tail[row] = name
            requests.after[name] = NOBODY
        elif self.mixed:
            requests.after[name] = self.head[row]
            self.head[row] = name
        else:
            requests.after[self.tail[row]] = name
            requests.after[name] = NOBODY
            self.tail[row] = name

    # -- the next event ----------------------------------------------------------------------------------------------

    def _plan(self, rows: Rows) -> None:
        """When the next event of each replica is, and how many decoding steps it is away."""
        speed, streams = self.speed, self.decoding[rows]
        now, head = self.time_s[rows], self.head[rows]
        first = speed.decode_s(streams) + speed.context_s * (self.context[rows] + streams)
        more = speed.context_s * streams
        arrives = np.where(head >= 0, self.requests.arrival_s[head], np.inf)
        wait = np.where(self.blocked[rows] | ~self._has_seat(rows), np.inf, np.maximum(arrives - now, 0.0))
        steps = np.minimum(self.ends[rows] - self.steps[rows], _steps_of(wait, first, more))
        spare = self.kv_tokens - self.context[rows] - streams * (self.page - 1)
        filled = np.maximum(spare // np.maximum(streams, 1), 0)
        tight = np.flatnonzero((filled == 0) & (streams > 1) & (self.page > 1))
        if len(tight):
            filled[tight] = self._room(rows[tight], 1) >= 0
        steps = np.minimum(steps, np.where(streams > 1, filled, NEVER))
        if self.reserves:
            steps = np.minimum(steps, np.where(self.blocked[rows], self.recheck[rows], NEVER))
        busy = self.part[rows] >= 0
        steps = np.where(busy | (streams == 0), 0, steps)
        later = now + steps * first + more * (steps * (steps - 1) * 0.5)
        self.next_steps[rows] = steps
        self.next_s[rows] = np.where((streams == 0) & ~busy, np.maximum(now, arrives), later)


class _Step:
    """A step with prompts in it, one column a replica: what it computes, and what budget and room are left."""

    __slots__ = ("budget", "first_at", "first_ids", "pairs", "room", "rows", "tokens")

    def __init__(self, rows: Rows, budget: Column, room: Column) -> None:
        self.rows, self.budget, self.room = rows, budget, room
        self.tokens, self.pairs = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
        self.first_at: list[Rows] = []  # whose first token ends this step: places in `rows`, and ids
        self.first_ids: list[Ids] = []

    def take(self, at: Rows, tokens: Column, computed: Column, pages: Column) -> None:
        """Compute these prompt tokens after those computed before, into pages of so many tokens."""
        self.budget[at] -= tokens
        self.room[at] -= pages
        self.tokens[at] += tokens
        self.pairs[at] += tokens * computed + tokens * (tokens + 1) // 2


def _steps_of(wait_s: Column, first_s: Column, more_s: Column) -> Column:
    """The fewest steps that last at least `wait_s`, the first of them `first_s` and each next one `more_s` longer."""
    half = first_s - more_s / 2
    finite = np.where(np.isfinite(wait_s), wait_s, 0.0)
    root = half + np.sqrt(half * half + 2 * more_s * finite)
    steps = np.ceil(2 * finite / np.where(root > 0, root, 1.0) - 1e-9)
    return np.where(np.isfinite(wait_s), steps, NEVER).astype(np.int64)
