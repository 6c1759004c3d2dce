"""Equal replicas in virtual time, from event to event: numpy across replicas, no step per token. No clock, no I/O.

The same engine as `loadtest.simulator.core.engine`, with unique prompts. Between two events every stream of a replica gains
one token a step, so m steps from N streams of K tokens of context take

    m (decode_s[N] + context_s (K + N)) + context_s N m (m - 1) / 2

An event is the end of a step at which a request ends, a request that has arrived can be admitted, a chunk of a prompt is
computed, or the KV cache is full. A request ends at a number of decoding steps that is known when its first token comes.
"""

from __future__ import annotations

import numpy as np

from loadtest.simulator.core.behaviour import RESERVE_RATIO_LOW
from loadtest.simulator.fleet.columns import NEVER, RESERVE_DECAY, Column, Columns, Rows
from loadtest.simulator.fleet.preemption import preempt
from loadtest.simulator.fleet.prompts import prefill
from loadtest.simulator.fleet.requests import NOBODY, Ids, Times


class Replicas(Columns):
    """Replicas with a queue each. `enqueue` requests in order of arrival, then `advance` to a time up to which all arrivals
    are known; `take_finished` tells what has ended."""

    def ending(self, until_s: float) -> tuple[Times, Rows]:
        """Where the next event is the end of a request, not after this time: when, sorted, and which replicas."""
        rows = ((self.next_s <= until_s) & (self.ends == self.steps + self.next_steps)).nonzero()[0]
        order = np.argsort(self.next_s[rows])
        return self.next_s[rows][order], rows[order]

    def take_finished(self) -> Ids:
        """Ids of the requests that have ended since the last call."""
        ended, self.ended = self.ended, []
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
        self.queued[rows] += np.diff(np.append(begins.nonzero()[0], len(to)))
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

    def begin(self, ids: Ids) -> None:
        """Requests in the middle of their answers when time begins, spread evenly; what is computed is their prompt."""
        self.requests.ttft_s[ids] = 0.0
        for first in range(0, len(ids), self.count):
            layer = ids[first : first + self.count]
            rows = np.arange(len(layer))
            self.time_s[rows] = self.requests.arrival_s[layer]
            self.seat(rows, layer, self.steps[rows])
        self._plan(np.arange(min(len(ids), self.count)))

    def advance(self, until_s: float) -> None:
        """Run every event up to this time."""
        while len(rows := (self.next_s <= until_s).nonzero()[0]):
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

    def _leap(self, rows: Rows) -> None:
        """To the end of the last step before the event."""
        steps = self.next_steps[rows]
        self.time_s[rows] = self.next_s[rows]
        self.steps[rows] += steps
        self.context[rows] += self.decoding[rows] * steps
        if self.reserves:
            self.ratio[rows] = np.maximum(self.ratio[rows] - RESERVE_DECAY * steps, RESERVE_RATIO_LOW)
            self.blocked[rows[steps >= self.recheck[rows]]] = False

    def _finish(self, rows: Rows) -> None:
        """One request that ends, at each of these replicas."""
        requests, at = self.requests, self.ends_at[rows]
        ids = self.request[rows, at]
        requests.final_s[ids] = self.time_s[rows] - requests.arrival_s[ids]
        self.ended.append(ids)
        self.vacate(rows, at, requests.prompt_tokens[ids].astype(np.int64) + requests.output_tokens[ids] - 1)

    def _schedule(self, rows: Rows) -> None:
        """What the next step is where it is no plain decoding: prompts to compute, or a stream to preempt."""
        rows = rows[self.ends[rows] > self.steps[rows]]
        full = (self.room(rows, 1) < 0) & ((self.decoding[rows] > 1) | (self.part[rows] >= 0))
        if full.any():
            for row in rows[full].tolist():
                preempt(self, row)
            rows = rows[~full]
        head = self.head[rows]
        waits = (head >= 0) & ~self.blocked[rows] & (self.requests.arrival_s[head] <= self.time_s[rows])
        rows = rows[(waits & self.has_seat(rows)) | (self.part[rows] >= 0)]
        if len(rows):
            prefill(self, rows)

    def _plan(self, rows: Rows) -> None:
        """When the next event of each replica is, and how many decoding steps it is away."""
        speed, streams = self.speed, self.decoding[rows]
        now, head = self.time_s[rows], self.head[rows]
        first = speed.decode_s(streams) + speed.context_s * (self.context[rows] + streams)
        more = speed.context_s * streams
        arrives = np.where(head >= 0, self.requests.arrival_s[head], np.inf)
        steps = self.ends[rows] - self.steps[rows]
        admits = ((head >= 0) & (streams > 0) & ~self.blocked[rows] & self.has_seat(rows)).nonzero()[0]
        if len(admits):
            wait = np.maximum(arrives[admits] - now[admits], 0.0)
            steps[admits] = np.minimum(steps[admits], _steps_of(wait, first[admits], more[admits]))
        spare = self.kv_tokens - self.context[rows] - streams * (self.page - 1)
        fills = ((spare < streams * steps) & (streams > 1)).nonzero()[0]
        if len(fills):
            steps[fills] = np.minimum(steps[fills], self._steps_to_full(rows[fills], spare[fills]))
        if self.reserves:
            steps = np.minimum(steps, np.where(self.blocked[rows], self.recheck[rows], NEVER))
        busy = self.part[rows] >= 0
        steps = np.where(busy | (streams == 0), 0, steps)
        later = now + steps * first + more * (steps * (steps - 1) * 0.5)
        self.next_steps[rows] = steps
        self.next_s[rows] = np.where((streams == 0) & ~busy, np.maximum(now, arrives), later)

    def _steps_to_full(self, rows: Rows, spare: Column) -> Column:
        """Decoding steps that the KV cache has room for; `spare` counts every last page as full."""
        steps = np.maximum(spare // self.decoding[rows], 0)
        tight = ((steps == 0) & (self.page > 1)).nonzero()[0]
        if len(tight):
            steps[tight] = self.room(rows[tight], 1) >= 0
        return steps


def _steps_of(wait_s: Column, first_s: Column, more_s: Column) -> Column:
    """The fewest steps that last at least `wait_s`, the first of them `first_s` and each next one `more_s` longer."""
    half = first_s - more_s / 2
    root = half + np.sqrt(half * half + 2 * more_s * wait_s)
    steps: Column = np.ceil(2 * wait_s / np.where(root > 0, root, 1.0) - 1e-9).astype(np.int64)
    return steps
