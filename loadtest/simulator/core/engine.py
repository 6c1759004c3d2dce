"""A serving engine in virtual time: continuous batching over a paged KV cache, one whole step at a time. No clock, no I/O.

A step takes the time that `step_time_s` gives for its work; every request in it then has computed its share, and those
whose known tokens are all computed emit one token at the end of the step, or several where drafts were accepted. Requests
that arrive during a step wait for the next. Between steps no time passes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

from loadtest.errors import UsageError
from loadtest.perfmodel.memory import Speculation
from loadtest.perfmodel.step_time import StepWork
from loadtest.simulator.core.acceptance import Acceptance, Drafts
from loadtest.simulator.core.behaviour import (
    LOG_STEPS,
    RESERVE_DECAY_STEPS,
    RESERVE_RATIO_LOW,
    RESERVE_RATIO_START,
    RETRACT_AHEAD_STEPS,
    Behaviour,
)
from loadtest.simulator.core.cache import BlockCache, KvCache, RadixCache
from loadtest.simulator.core.sequence import Event, Leap, QueueFull, Request, Sequence, Totals


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """An engine with the KV cache that its GPUs leave it, and its limits."""

    behaviour: Behaviour
    kv_tokens: int
    max_running: int | None = None  # None: the engine's own
    max_queued: int | None = None  # None: no limit
    prefill_budget_tokens: int | None = None  # None: the engine's own
    prefix_cache: bool = True
    speculation: Speculation | None = None

    def __post_init__(self) -> None:
        if self.kv_tokens < self.behaviour.page_tokens:
            raise UsageError(f"kv_tokens: expected at least one page of {self.behaviour.page_tokens}, got {self.kv_tokens}")

    def cache(self) -> KvCache:
        """An empty KV cache of this engine's kind."""
        if self.behaviour.radix:
            return RadixCache(self.kv_tokens, prefix_cache=self.prefix_cache)
        return BlockCache(self.kv_tokens, self.behaviour.page_tokens, prefix_cache=self.prefix_cache)


class Engine:
    """Steps batches in virtual time.

    >>> from loadtest.simulator.core.behaviour import behaviour
    >>> engine = Engine(EngineConfig(behaviour=behaviour("vllm-sim"), kv_tokens=1024), lambda work: 0.5)
    >>> engine.submit(Request(id="a", prompt="abcd" * 3, output_tokens=2), now_s=1.0)
    >>> [(event.time_s, event.kind) for event in engine.advance(10.0)]
    [(1.5, 'token'), (2.0, 'finished')]
    """

    def __init__(self, config: EngineConfig, step_time_s: Callable[[StepWork], float]) -> None:
        self.config = config
        self.cache = config.cache()
        self.totals = Totals()
        self.drafts = Drafts()
        self.now_s = 0.0
        self.sequences: dict[str, Sequence] = {}
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.step_end_s: float | None = None
        self.gen_tokens_per_s = 0.0  # of the last step
        self._step_time_s = step_time_s
        self._acceptance = None if config.speculation is None else Acceptance(config.speculation)
        self._batch: list[tuple[Sequence, int]] = []
        self._preempted: list[str] = []
        self._number = 0
        self._cache_was_full = False  # the last scheduling left somebody waiting for want of room
        self._reserve_ratio = RESERVE_RATIO_START
        self.prefill_budget_tokens = config.prefill_budget_tokens or config.behaviour.prefill_budget_tokens
        self.max_running = config.max_running or config.behaviour.max_running

    # -- from outside ------------------------------------------------------------------------------------------------

    def submit(self, request: Request, now_s: float) -> None:
        """Queue a request at this time, which is not before any time the engine has reached.

        Raises `QueueFull` where the queue is at its limit, `UsageError` where the request can never fit the cache.
        """
        if request.id in self.sequences:
            raise UsageError(f"request id: expected a new one, got {request.id!r} again")
        if request.prompt_tokens + request.output_tokens > self.cache.capacity_tokens:
            raise UsageError(
                f"{request.id}: {request.prompt_tokens} prompt and {request.output_tokens} output tokens do not fit the "
                f"KV cache of {self.cache.capacity_tokens} tokens"
            )
        if self.config.max_queued is not None and len(self.waiting) >= self.config.max_queued and not self._would_start():
            raise QueueFull(f"{len(self.waiting)} requests are waiting, the limit is {self.config.max_queued}")
        self._number += 1
        sequence = Sequence(request, now_s, self.cache.hold(request.prompt, self._number))
        self.sequences[request.id] = sequence
        self.waiting.append(sequence)

    def _would_start(self) -> bool:
        """Nothing runs and nothing waits: with a queue limit of 0 an idle engine still takes one request."""
        return not self.running and not self.waiting

    def abort(self, request_id: str) -> bool:
        """Drop a request that is not finished; its KV cache is free at once. False where it is not known."""
        sequence = self.sequences.pop(request_id, None)
        if sequence is None:
            return False
        if sequence.state == "running":
            self.running.remove(sequence)
            self.cache.release(sequence.holding, sequence.computed, keep=True)
        else:
            self.waiting.remove(sequence)
        sequence.state = "aborted"
        self._cache_was_full = False
        return True

    def next_time_s(self) -> float | None:
        """When something happens next: the end of the running step, or the arrival that an idle engine waits for."""
        if self.step_end_s is not None:
            return self.step_end_s
        if self.running:
            return self.now_s
        return max(self.now_s, self.waiting[0].arrival_s) if self.waiting else None

    def advance(self, until_s: float) -> list[Event]:
        """Step until this time; the events whose time is not after it, in order."""
        events: list[Event] = []
        while True:
            if self.step_end_s is None and not self._begin(until_s):
                return events
            if self.step_end_s is None or self.step_end_s > until_s:
                return events
            self._end(events)

    def step(self) -> list[Event]:
        """Run one whole step, whenever it is; nothing where there is no work."""
        next_s = self.next_time_s()
        if next_s is None or (self.step_end_s is None and not self._begin(next_s)):
            return []
        events: list[Event] = []
        self._end(events)
        return events

    def leap(self, until_s: float) -> Leap | None:
        """Run at once all steps, up to this time, in which every running request decodes one token and none ends.

        The same as that many calls of `step`, as long as the time of a step is linear in the context read, which is checked
        at the middle. None where the next step is not such a step; with speculation none is.
        """
        n = 0 if self._acceptance is not None else len(self.running)
        if self.step_end_s is not None or not n or (self.waiting and not self._waiting_is_stuck()):
            return None
        if not all(map(_decodes, self.running)):
            return None
        page = self.cache.page_tokens
        room = self.cache.available_tokens() // n - page
        steps = min(room, *(s.request.output_tokens - s.generated - 1 for s in self.running))
        times = self._leap_times(steps, n, until_s) if steps > 1 else []
        if not times:
            return None
        for sequence in self.running:
            self._leap_one(sequence, len(times), times[-1])
        self._decay_reserve(len(times))
        self.now_s = times[-1]
        self.totals.steps += len(times)
        self.totals.generation_tokens += n * len(times)
        return Leap(times, [s.request.id for s in self.running])

    def _waiting_is_stuck(self) -> bool:
        """Nobody can be admitted before somebody ends: no seat, or no room in a cache that only fills."""
        if self.waiting[0].arrival_s > self.now_s:
            return False
        return len(self.running) >= self.max_running or (self._cache_was_full and self.config.behaviour.mixed_batches)

    def _leap_times(self, steps: int, n: int, until_s: float) -> list[float]:
        """Ends of the next steps (s), not after `until_s`."""
        context = sum(s.computed for s in self.running) + n
        first = self._step_time_s(StepWork(0, 0, n, context))
        if first > 0 and (until_s - self.now_s) / first < steps:
            steps = int((until_s - self.now_s) / first) + 1
        if steps < 2:
            return []
        slope = (self._step_time_s(StepWork(0, 0, n, context + n * (steps - 1))) - first) / (steps - 1)
        middle = steps // 2
        if abs(self._step_time_s(StepWork(0, 0, n, context + n * middle)) - first - slope * middle) > 1e-9 * first:
            return []
        times = list(accumulate((first + slope * k for k in range(steps)), initial=self.now_s))[1:]
        return times[: bisect_right(times, until_s)]

    def _leap_one(self, sequence: Sequence, steps: int, end_s: float) -> None:
        grown = self.cache.grow(sequence.holding, sequence.computed + steps)
        assert grown
        sequence.computed += steps
        sequence.planned = sequence.computed
        sequence.generated += steps
        sequence.last_token_s = end_s
        self.cache.commit(sequence.holding, sequence.computed)

    # -- one step ----------------------------------------------------------------------------------------------------

    def _begin(self, until_s: float) -> bool:
        start_s = self.next_time_s()
        if start_s is None or start_s > until_s:
            return False
        self.now_s = start_s
        batch = self._schedule()
        if not batch:
            return False
        self._batch = batch
        if self._acceptance is not None:
            self._count_drafts(self._acceptance)
        for sequence, tokens in batch:
            sequence.planned = sequence.computed + tokens
        self.step_end_s = start_s + self._step_time_s(_work(batch))
        self.totals.steps += 1
        return True

    def _count_drafts(self, acceptance: Acceptance) -> None:
        decoding = [sequence for sequence, _ in self._batch if _decodes(sequence)]
        for sequence in decoding:
            sequence.verified_steps += 1
        if decoding:
            self.drafts.count([acceptance.draw(one.request.prompt, one.generated) - 1 for one in decoding], LOG_STEPS)

    def _end(self, events: list[Event]) -> None:
        started_s, now_s = self.now_s, self.step_end_s or 0.0
        self.now_s, self.step_end_s = now_s, None
        for request_id in self._preempted:
            events.append(Event(now_s, request_id, 0, "preempted"))
        self._preempted.clear()
        before = self.totals.generation_tokens
        for sequence, tokens in self._batch:
            if sequence.state == "running":
                sequence.computed = sequence.planned
                if sequence.computed % self.cache.page_tokens == 0 or tokens > 1:
                    self.cache.commit(sequence.holding, sequence.computed)
                gained = sequence.computed - sequence.prompt_tokens - sequence.generated + 1
                if gained > 0:
                    events.append(self._emit(sequence, gained, now_s))
        self._batch = []
        self.gen_tokens_per_s = (self.totals.generation_tokens - before) / max(now_s - started_s, 1e-9)

    def _emit(self, sequence: Sequence, n_tokens: int, now_s: float) -> Event:
        sequence.generated += n_tokens
        sequence.last_token_s = now_s
        self.totals.generation_tokens += n_tokens
        if sequence.first_token_s is None:
            sequence.first_token_s = now_s
            self.totals.prompt_tokens += sequence.prompt_tokens
        if sequence.generated < sequence.request.output_tokens:
            return Event(now_s, sequence.request.id, n_tokens, "token")
        sequence.state = "finished"
        self._cache_was_full = False
        self.running.remove(sequence)
        self.cache.release(sequence.holding, sequence.computed, keep=True)
        del self.sequences[sequence.request.id]
        return Event(now_s, sequence.request.id, n_tokens, "finished")

    # -- scheduling --------------------------------------------------------------------------------------------------

    def _gain(self, sequence: Sequence) -> int:
        """Tokens that a request which decodes computes in one step, and emits: one, and the drafts that are accepted."""
        if self._acceptance is None:
            return 1
        left = sequence.request.output_tokens - sequence.generated
        return min(left, self._acceptance.draw(sequence.request.prompt, sequence.generated))

    def _schedule(self) -> list[tuple[Sequence, int]]:
        if self.config.behaviour.mixed_batches:
            return self._schedule_mixed()
        return self._schedule_prefill() or self._schedule_decode()

    def _schedule_mixed(self) -> list[tuple[Sequence, int]]:
        """Running requests first, one token or the next chunk each; then waiting ones while budget, cache and seats last."""
        batch: list[tuple[Sequence, int]] = []
        budget, index = self.prefill_budget_tokens, 0
        preempted = False
        while index < len(self.running) and budget > 0:
            sequence = self.running[index]
            missing = sequence.prompt_tokens + sequence.generated - sequence.computed
            tokens = self._gain(sequence) if missing == 1 and sequence.generated else min(missing, budget)
            while not self.cache.grow(sequence.holding, sequence.computed + tokens):
                preempted = True
                victim = self.running.pop()
                self._preempt(victim)
                if victim is sequence:
                    break
            else:
                batch.append((sequence, tokens))
                budget -= tokens
                index += 1
        self._cache_was_full = preempted
        while not preempted and self.waiting and budget > 0 and len(self.running) < self.max_running:
            sequence = self.waiting[0]
            tokens = self._admit(sequence, budget)
            if tokens == 0:
                self._cache_was_full = True
                break
            batch.append((sequence, tokens))
            budget -= tokens
        return batch

    def _admit(self, sequence: Sequence, budget: int) -> int:
        """Move the head of the queue into the batch: tokens to compute in this step, 0 where the cache has no room."""
        sequence.computed = self.cache.match(sequence.holding, sequence.known)
        tokens = min(sequence.known - sequence.computed, budget)
        if not self.cache.grow(sequence.holding, sequence.computed + tokens):
            self.cache.release(sequence.holding, sequence.computed, keep=True)
            sequence.computed = 0
            return 0
        self.waiting.popleft()
        self.running.append(sequence)
        sequence.state = "running"
        if sequence.scheduled_s is None:
            sequence.scheduled_s = self.now_s
            sequence.cached_tokens = sequence.computed
            self.totals.prefix_query_tokens += sequence.prompt_tokens
            self.totals.prefix_hit_tokens += sequence.computed
        sequence.planned = sequence.computed + tokens
        return tokens

    def _schedule_prefill(self) -> list[tuple[Sequence, int]]:
        """A batch of prefill alone: the request whose chunk is unfinished, then waiting ones, oldest first."""
        batch: list[tuple[Sequence, int]] = []
        budget = self.prefill_budget_tokens
        for sequence in self.running:
            missing = sequence.known - sequence.computed
            if missing > 1 or sequence.generated == 0:
                tokens = min(missing, budget)
                if tokens > 0 and self.cache.grow(sequence.holding, sequence.computed + tokens):
                    batch.append((sequence, tokens))
                    budget -= tokens
        while self.waiting and budget > 0 and len(self.running) < self.max_running and self._has_room(self.waiting[0]):
            sequence = self.waiting[0]
            tokens = self._admit(sequence, budget)
            if tokens == 0:
                break
            batch.append((sequence, tokens))
            budget -= tokens
        return batch

    def _has_room(self, sequence: Sequence) -> bool:
        """Would the newcomer leave running requests the share of their output that is held back for them?"""
        if not self.running:
            return True
        held = sum(other.reserve_tokens() * self._reserve_ratio + other.known - other.planned for other in self.running)
        return sequence.known + sequence.reserve_tokens() <= self.cache.available_tokens() - held

    def _schedule_decode(self) -> list[tuple[Sequence, int]]:
        """One token for every request whose prefill is done, after making room by retraction where there is none."""
        ready = [(sequence, self._gain(sequence)) for sequence in self.running if _decodes(sequence)]
        if self.running and (not ready or self._missing_pages(sum(tokens for _, tokens in ready)) > 0):
            self._retract()
            return self._schedule_prefill() or [(s, 1) for s in self.running if self.cache.grow(s.holding, s.computed + 1)]
        self._decay_reserve(1)
        return [(one, tokens) for one, tokens in ready if self.cache.grow(one.holding, one.computed + tokens)]

    def _decay_reserve(self, steps: int) -> None:
        decay = (RESERVE_RATIO_START - RESERVE_RATIO_LOW) / RESERVE_DECAY_STEPS
        self._reserve_ratio = max(self._reserve_ratio - steps * decay, RESERVE_RATIO_LOW)

    def _missing_pages(self, tokens: int) -> int:
        return max(0, tokens - self.cache.available_tokens())

    def _retract(self) -> None:
        """Send back those with the least output (the longest prompt among equals) until the rest has 20 steps of room."""
        order = sorted(self.running, key=lambda s: (s.generated, -s.prompt_tokens), reverse=True)
        while len(order) > 1:
            victim = order.pop()
            self.running.remove(victim)
            self._preempt(victim)
            if self._missing_pages(len(order) * RETRACT_AHEAD_STEPS) == 0:
                break
        generated = sum(s.generated for s in order) + RETRACT_AHEAD_STEPS * len(order)
        allowed = sum(s.request.max_tokens or s.request.output_tokens for s in order)
        self._reserve_ratio = min(1.0, generated / max(allowed, 1))

    def _preempt(self, sequence: Sequence) -> None:
        """Give up the request's KV cache; it waits, its output kept, to be computed again."""
        mixed = self.config.behaviour.mixed_batches
        self.cache.release(sequence.holding, sequence.computed, keep=mixed)
        sequence.computed = sequence.planned = 0
        sequence.state = "waiting"
        sequence.preemptions += 1
        self.totals.preemptions += 1
        self._preempted.append(sequence.request.id)
        if mixed:
            self.waiting.appendleft(sequence)
        else:
            self.waiting.append(sequence)


def _decodes(sequence: Sequence) -> bool:
    """Is all computed but the last token, which was generated?"""
    return sequence.generated > 0 and sequence.prompt_tokens + sequence.generated - sequence.computed == 1


def _work(batch: list[tuple[Sequence, int]]) -> StepWork:
    prefill_tokens = prefill_pairs = decode_streams = kv_read_tokens = 0
    for sequence, tokens in batch:
        if sequence.generated and sequence.prompt_tokens + sequence.generated - sequence.computed == 1:  # as `_decodes`
            decode_streams += 1
            kv_read_tokens += sequence.computed + 1
        else:
            prefill_tokens += tokens
            prefill_pairs += tokens * sequence.computed + tokens * (tokens + 1) // 2
    return StepWork(prefill_tokens, prefill_pairs, decode_streams, kv_read_tokens)
