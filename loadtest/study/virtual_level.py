"""One pass over one level in virtual time: `loadtest.client.level` without Locust, sockets or a clock.

Uses the same script of requests and the same engine as the simulator's HTTP server. Records and samples are those that a
client and a scraper would have written, without the cost of transport.
"""

from __future__ import annotations

import heapq
import operator
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, islice
from typing import Any

from loadtest.client import thinking
from loadtest.client.record_builder import RecordBuilder, Sending
from loadtest.client.reply import Reply
from loadtest.errors import UsageError
from loadtest.records.schema import Outcome, RequestError, RequestRecord, ServerSample, ToolCall
from loadtest.simulator.core import chat as chats
from loadtest.simulator.core import lengths
from loadtest.simulator.core.chat import Chat, Refusal, Served
from loadtest.simulator.core.counters import Observations
from loadtest.simulator.core.engine import Engine
from loadtest.simulator.core.sequence import Event, QueueFull, Request, Sequence
from loadtest.workload.script import Item, Script

WORKER = "virtual-time"  # stands where a load generator's host and process would
SAMPLE_EVERY_S = 1.0
# As in `client.level` and `scenario.user`: users start over about a token's time, and wait after a refusal.
START_SPREAD_S, START_GAP_S = 0.02, 0.00025
BACKOFF_FIRST_S, BACKOFF_MOST_S = 0.1, 5.0


class VirtualServer:
    """One simulated engine from its start to its stop; passes follow one another on its virtual time."""

    def __init__(self, engine: Engine, served: Served) -> None:
        self.engine, self.served = engine, served
        self.seen = Observations(served.behaviour.knows_its_models)

    def settle(self) -> float:
        """End the running step and empty the prefix cache, as between two passes; returns the time (s)."""
        if self.engine.step_end_s is not None:
            self.engine.step()
        self.engine.cache.flush()
        return self.engine.now_s

    def sample(self, t_s: float, anchor_unix_s: float) -> ServerSample:
        """What a scrape of `/metrics` would have told: the vLLM-like counts tokens as they come, the SGLang-like at the
        end of each request."""
        engine, seen, totals = self.engine, self.seen, self.engine.totals
        prompt, generated = (
            (totals.prompt_tokens, totals.generation_tokens)
            if seen.vllm
            else (seen.finished_prompt_tokens, seen.finished_tokens)
        )
        return ServerSample(
            t_s=round(t_s, 7),  # as precise as the records: the last one ends at the same instant
            clock_anchor_unix_s=anchor_unix_s,
            clock_speed=1.0,
            running=len(engine.running),
            waiting=len(engine.waiting),
            kv_usage=engine.cache.used_tokens() / engine.cache.capacity_tokens,
            prompt_tokens_total=prompt,
            generation_tokens_total=generated,
            prefix_cache_hit_tokens_total=totals.prefix_hit_tokens,
            prefix_cache_query_tokens_total=totals.prefix_query_tokens if seen.vllm else prompt,
            preemptions_total=totals.preemptions,
            requests_finished_total=seen.finished["stop"] + seen.finished["length"],
            requests_aborted_total=seen.finished["abort"],
            ttft_sum_s=seen.ttft.sum,
            ttft_count=seen.ttft.count,
            ttft_buckets=seen.ttft.cumulative() if seen.vllm or seen.ttft.count else None,
            e2e_sum_s=seen.e2e.sum,
            e2e_count=seen.e2e.count,
            **self._drafts(generated),
        )

    def _drafts(self, generated: int) -> dict[str, Any]:
        """What became of drafts, as each engine tells it (`servers.prometheus`); nothing without speculation."""
        speculation, drafts, seen = self.engine.config.speculation, self.engine.drafts, self.seen
        if speculation is None:
            return {}
        if seen.vllm:
            positions = range(speculation.draft_tokens)
            return {
                "drafts_total": drafts.rows,
                "draft_tokens_total": drafts.rows * speculation.draft_tokens,
                "accepted_draft_tokens_total": drafts.accepted_tokens,
                "accepted_by_position_total": tuple(float(drafts.accepted_beyond(n)) for n in positions),
            }
        rows = seen.finished_verified_steps
        if not rows:
            return {}
        accepted = max(0, generated - sum(seen.finished.values()) - rows)
        told = {"drafts_total": rows, "accepted_draft_tokens_total": accepted}
        return told | ({"draft_tokens_total": rows * speculation.draft_tokens} if speculation.draft_tokens else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one pass is. It ends when `requests` measured requests have ended, or after `duration_s`.

    `opened`: the chat template ends the prompt in `<think>`. `judges`: answers are compared with the expected ones. Offsets
    count from the start of the pass, which is `anchor_unix_s`: the wall clock at which the run began, and the virtual
    seconds since.
    """

    run_id: str
    cell: str
    concurrency: int
    repeat: int
    requests: int | None
    duration_s: float | None
    warmup_requests: int
    opened: bool
    judges: bool
    anchor_unix_s: float

    def builder(self) -> RecordBuilder:
        return RecordBuilder(
            run_id=self.run_id,
            cell=self.cell,
            concurrency=self.concurrency,
            repeat=self.repeat,
            worker=WORKER,
            clock_anchor_unix_s=self.anchor_unix_s,
            clock_speed=1.0,
            judges=self.judges,
        )


@dataclass(slots=True)
class _Live:
    """A request in flight, with the virtual time of each token so far."""

    item: Item
    user: int
    chat: Chat
    sequence: Sequence
    token_s: list[float]


class VirtualLevel:
    """Keeps exactly C requests in flight, each user's next one sent in the instant its last one ends.

    The engine does not wait for it: with others running, the next step begins at that instant and the newcomer joins the
    one after, as behind any transport.
    """

    def __init__(self, plan: Plan, script: Script, server: VirtualServer) -> None:
        self.plan, self.script, self.server = plan, script, server
        self.engine = server.engine
        self._builder = plan.builder()
        self.start_s = server.settle()
        self.now_s = self.start_s  # how far the pass has come; its end, when `run` is over
        self.stopped = False  # set from outside: enough was seen
        self._until_s = float("inf") if plan.duration_s is None else self.start_s + plan.duration_s
        self._live: dict[str, _Live] = {}
        self._asked = [0] * plan.concurrency  # warm-ups of each user so far
        self._refusals = [0] * plan.concurrency
        self._sent = self._ended = 0  # measured requests
        gap_s = max(START_GAP_S, START_SPREAD_S / plan.concurrency)
        self._pauses = [(self.start_s + gap_s * user, user) for user in range(plan.concurrency)]  # a heap

    def run(self) -> Iterator[RequestRecord | ServerSample]:
        """Records in order of their end, samples of the server once a second, at the start and at the end."""
        yield self._sample()
        sample_s = self.start_s + SAMPLE_EVERY_S
        while (self._live or self._pauses) and self.now_s < self._until_s:
            until_s = min([sample_s, self._until_s, *(when_s for when_s, _ in self._pauses[:1])])
            yield from self._advance(until_s)
            if self._finished:
                break
            self.now_s = until_s
            while self._pauses and self._pauses[0][0] <= until_s:
                yield from self._ask(heapq.heappop(self._pauses)[1])
            if sample_s <= until_s:
                yield self._sample()
                sample_s += SAMPLE_EVERY_S
        yield from self._cut()
        yield self._sample()

    @property
    def _finished(self) -> bool:
        return self.stopped or (self.plan.requests is not None and self._ended >= self.plan.requests)

    def _sample(self) -> ServerSample:
        return self.server.sample(self.now_s - self.start_s, self.plan.anchor_unix_s)

    # -- the engine ----------------------------------------------------------------------------------------------------

    def _advance(self, until_s: float) -> Iterator[RequestRecord]:
        """Run the engine up to this time, or to the end of the last measured request."""
        engine, live = self.engine, self._live
        while not self._finished and (next_s := engine.next_time_s()) is not None and next_s <= until_s:
            if engine.step_end_s is not None:
                yield from self._take(engine.step())
            elif (leap := engine.leap(until_s)) is not None:
                for request_id in leap.request_ids:
                    live[request_id].token_s.extend(leap.times_s)
            else:
                engine.advance(next_s)  # begins the step, which is not over yet

    def _take(self, events: list[Event]) -> Iterator[RequestRecord]:
        """Give tokens to their requests. A user whose request ends asks again after the engine has begun its next step."""
        free = []
        for time_s, request_id, n_tokens, kind in events:
            self.now_s = time_s
            if n_tokens:
                one = self._live[request_id]
                one.token_s.extend([time_s] * n_tokens)
                if len(one.token_s) == n_tokens:
                    self.server.seen.first_token(one.sequence)
                if kind == "finished":
                    yield self._end(request_id)
                    free.append(one.user)
        if free and not self._finished:
            yield from self._go_on(free)

    def _go_on(self, free: list[int]) -> Iterator[RequestRecord]:
        """These users ask again."""
        self.engine.advance(self.now_s)
        for user in free:
            yield from self._ask(user)

    def _end(self, request_id: str) -> RequestRecord:
        one = self._live.pop(request_id)
        self._ended += one.item.phase == "measure"
        self._refusals[one.user] = 0
        self.server.seen.end(one.sequence, one.chat.output.finish_reason)
        return self._heard(one, finished=True)

    def _cut(self) -> Iterator[RequestRecord]:
        """End the requests that still run when the pass is over."""
        for request_id, one in self._live.items():
            self.engine.abort(request_id)
            self.server.seen.end(one.sequence, "abort")
            yield self._heard(one, finished=False)
        self._live.clear()

    # -- the users -----------------------------------------------------------------------------------------------------

    def _ask(self, user: int) -> Iterator[RequestRecord]:
        """A user sends its next request, if there is one left. After a refusal it waits a little, each time longer."""
        item = self._next(user)
        if item is None:
            return
        try:
            self._submit(item, user)
        except (Refusal, QueueFull) as refusal:
            self._ended += item.phase == "measure"
            self._back_off(user)
            yield self._record(item, user, self.now_s, _refused(refusal))

    def _back_off(self, user: int) -> None:
        self._refusals[user] += 1
        wait_s = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2 ** (self._refusals[user] - 1))
        heapq.heappush(self._pauses, (self.now_s + wait_s, user))

    def _next(self, user: int) -> Item | None:
        plan = self.plan
        if self._asked[user] < plan.warmup_requests:
            self._asked[user] += 1
            return self.script.warmup(user * plan.warmup_requests + self._asked[user] - 1)
        if plan.requests is not None and self._sent >= plan.requests:
            return None
        self._sent += 1
        return self.script.measured(self._sent - 1)

    def _submit(self, item: Item, user: int) -> None:
        asked = chats.parse(item.prepared.body, self.server.served)
        if asked.fault is not None:
            raise UsageError("contract: extra_body: loadtest_sim.fault needs a server; remove it, or use `loadtest run`")
        request_id = f"{item.phase}-{item.index}"
        request = Request(
            id=request_id, prompt=asked.prompt, output_tokens=asked.output.output_tokens, max_tokens=asked.max_tokens
        )
        self.engine.submit(request, self.now_s)
        self._live[request_id] = _Live(item, user, asked, self.engine.sequences[request_id], [])

    # -- the records ---------------------------------------------------------------------------------------------------

    def _heard(self, one: _Live, *, finished: bool) -> RequestRecord:
        reply = _reply(
            one.chat,
            [t - self.start_s for t in one.token_s],
            finished=finished,
            served=self.server.served,
            cached_tokens=one.sequence.cached_tokens,
            opened=self.plan.opened,
            forced_tokens=one.item.prepared.forced_tokens,
        )
        return self._record(one.item, one.user, one.sequence.arrival_s, reply)

    def _record(self, item: Item, user: int, sent_s: float, reply: Reply) -> RequestRecord:
        offset_s = sent_s - self.start_s
        sent = Sending(scheduled_s=offset_s, sent_s=offset_s, headers_s=offset_s, ended_s=self.now_s - self.start_s)
        return self._builder.build(item, user, sent, reply)


def _refused(refusal: Refusal | QueueFull) -> Reply:
    """A refused body is an HTTP error; a full queue answers a stream with HTTP 200 and an error event."""
    if isinstance(refusal, QueueFull):
        message = f"The request queue is full: {refusal}."
        return Reply(outcome="server_error", error=RequestError(kind="error_in_stream", message=message, http_status=503))
    kind, message = f"http_{refusal.status}", f"HTTP {refusal.status}: {refusal.message}"
    return Reply(outcome="http_error", error=RequestError(kind=kind, message=message, http_status=refusal.status))


def _reply(
    asked: Chat,
    token_s: list[float],
    *,
    finished: bool,
    served: Served,
    cached_tokens: int,
    opened: bool,
    forced_tokens: int | None,
) -> Reply:
    """What `reply.read_reply` makes of the stream that carries these tokens (s each, since the start of the pass).

    The closing `</think>`, where the server splits, and the end of text have no text: no chunk tells of them, and they
    count with the next chunk of text, or the last.
    """
    counts, texts = _chunks(asked, token_s)
    told = finished or (bool(counts) and asked.continuous_usage)
    total = len(token_s) if finished else counts[-1] if counts else 0
    tokens = _tokens_by_chunk(counts, total) if told and asked.continuous_usage else None
    calls = _calls(asked, texts)
    opened = opened and (asked.formed is None or asked.formed.tool is not None)  # as `reply` has it
    split = _split(asked, served.behaviour.thinking_field, texts, opened=opened)
    if calls:
        split = replace(split, first_answer_chunk=calls[0].first_chunk)
    return Reply(
        outcome=_outcome(asked, bool(split.answer or calls), forced_tokens) if finished else "cut_off",
        error=None,
        chunk_s=tuple([round(token_s[k - 1], 7) for k in counts]),
        chunk_tokens=tokens,
        first_answer_chunk=split.first_answer_chunk,
        prompt_tokens=asked.prompt_tokens if told else None,
        completion_tokens=total if told else len(counts),
        reasoning_tokens=_thinking_tokens(asked, split, tokens, total) if told else None,
        cached_tokens=None if served.behaviour.knows_its_models or not told else cached_tokens,
        token_count_source="server" if told else "chunks",
        finish_reason=asked.finish_reason(served.behaviour) if finished else None,
        answer=split.answer or None,
        thinking_field=split.field,
        think_closed=split.closed,
        tool_calls=calls,
    )


def _chunks(asked: Chat, token_s: list[float]) -> tuple[list[int], list[int]]:
    """For each chunk with text its last token (1 is the first), and how many of its tokens have text.

    Tokens of one step share a chunk, but thinking and answer never do.
    """
    silent = _silent(asked)
    if len(set(token_s)) == len(token_s):
        counts = [k for k in range(1, len(token_s) + 1) if k not in silent]
        return counts, [1] * len(counts)
    thoughts = asked.output.thinking_tokens
    steps = groupby(range(1, len(token_s) + 1), key=lambda k: (token_s[k - 1], k <= thoughts))
    groups = [list(tokens) for _, tokens in steps]
    told = [(group[-1], sum(k not in silent for k in group)) for group in groups]
    return [last for last, texts in told if texts], [texts for _, texts in told if texts]


def _silent(asked: Chat) -> set[int]:
    """Which tokens (1 is the first) carry no text."""
    output = asked.output
    closing = {output.thinking_tokens} if asked.separates and output.closes_thinking else set()
    return closing | ({output.output_tokens} if output.finish_reason == "stop" else set())


def _tokens_by_chunk(counts: list[int], total: int) -> tuple[int, ...]:
    """Tokens of each chunk of text from the running totals that came with them, adding up to `total`.

    >>> _tokens_by_chunk([1, 2, 4], 5)
    (1, 1, 3)
    """
    tokens = list(map(operator.sub, counts, [0, *counts]))
    if tokens:
        tokens[-1] += total - counts[-1]
    return tuple(tokens)


def _split(asked: Chat, field: str, texts: list[int], *, opened: bool) -> thinking.Split:
    """Thinking and answer told apart in chunks of so many tokens with text, by the same rules as on a stream."""
    output, n = asked.output, sum(texts)
    thoughts = output.thinking_tokens - output.closes_thinking
    if asked.separates and min(thoughts, n):
        answer = list(_answer(asked, n - thoughts))
        return thinking.split_fields(_joined([""] * min(thoughts, n) + answer, texts), field)
    words = [lengths.thinking_word(k) for k in range(1, thoughts + 1)]
    words += [thinking.CLOSE] * (output.closes_thinking and not asked.separates)
    words += list(_answer(asked, n - len(words)))
    return thinking.split_inline(_joined(words[:n], texts), opened=opened)


def _answer(asked: Chat, n: int) -> tuple[str, ...]:
    """The text of the first `n` tokens of the answer; of a call, nothing."""
    if asked.formed is None:
        return tuple(map(lengths.answer_word, range(n)))
    return asked.formed.words(n) if asked.formed.tool is None else ("",) * n


def _calls(asked: Chat, texts: list[int]) -> tuple[ToolCall, ...]:
    """The call so far, in chunks of so many tokens with text."""
    if asked.formed is None or asked.formed.tool is None:
        return ()
    before = asked.output.thinking_tokens - (asked.output.closes_thinking and asked.separates)
    ends = list(accumulate(texts))
    first, n = bisect_right(ends, before), sum(texts) - before
    if n < 1:
        return ()
    arguments = "".join(asked.formed.words(n))
    return (ToolCall(name=asked.formed.tool, arguments=arguments, first_chunk=first, last_chunk=len(texts) - 1),)


def _joined(words: list[str], texts: list[int]) -> list[str]:
    """The text of each chunk."""
    if len(words) == len(texts):
        return words
    left = iter(words)
    return ["".join(islice(left, n)) for n in texts]


def _outcome(asked: Chat, answered: bool, forced_tokens: int | None) -> Outcome:
    if asked.output.finish_reason == "length":
        return "truncated" if forced_tokens is None else "ok"
    return "ok" if answered else "no_answer"


def _thinking_tokens(asked: Chat, split: thinking.Split, tokens: tuple[int, ...] | None, total: int) -> int | None:
    """The server's count, unless it counts none though thinking came: then by chunks."""
    told = min(total, asked.output.thinking_tokens) if asked.counts_thinking else 0
    if told or split.field is None:
        return told
    if tokens is None:
        return None
    return sum(tokens if split.first_answer_chunk is None else tokens[: split.first_answer_chunk])
