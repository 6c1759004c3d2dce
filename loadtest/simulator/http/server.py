"""A simulated engine in real time: the engine steps in virtual time, and what it emits is sent when it is due.

Virtual time is wall time x clock speed since the start. A step of the engine ends at its planned instant whatever the
server was doing, so lateness never adds up; what is sent late is counted (`loadtest_sim:late_seconds_max`, wall seconds from
the plan to the last send of a step) and said in the log when the next step was already due.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections import deque
from dataclasses import replace
from typing import Any

from loadtest.simulator.core import counters
from loadtest.simulator.core.chat import Chat, Refusal, Served
from loadtest.simulator.core.engine import Engine
from loadtest.simulator.core.faults import NONE, Fault
from loadtest.simulator.core.sequence import QueueFull, Request
from loadtest.simulator.http import frames
from loadtest.simulator.http.connection import ServedConnection
from loadtest.simulator.http.other_frames import framer_of
from loadtest.simulator.http.stream import Identity, Stream

log = logging.getLogger("loadtest.simulator")

TRUTH_LIMIT = 100_000

_ENDLESS_TOKENS = 10**12


class Simulator:
    """Runs an engine in real time and hands what it emits to the connections."""

    def __init__(
        self,
        engine: Engine,
        served: Served,
        identity: Identity,
        *,
        faults: tuple[Fault, ...] = (),
        fault_every: int = 1,
        stream_interval: int = 1,
        api_key: str | None = None,
    ) -> None:
        self.engine, self.served, self.identity = engine, served, identity
        self.seen = counters.Observations(served.behaviour.knows_its_models)
        self.api_key = api_key
        self.truth: deque[dict[str, Any]] = deque(maxlen=TRUTH_LIMIT)
        self.connections: set[ServedConnection] = set()
        self._streams: dict[str, Stream] = {}
        self._fresh: set[str] = set()  # streams that wait for their first token
        self._faults, self._fault_every = faults, fault_every
        self._interval = stream_interval
        self._loop = asyncio.get_running_loop()
        self._origin_s = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._n_requests = 0
        self._gap_s, self._gaps = 0.0, 0
        self._complained_s = -60.0

    # -- time --------------------------------------------------------------------------------------------------------

    def now_s(self) -> float:
        """Virtual seconds since the start."""
        return (self._loop.time() - self._origin_s) * self.identity.clock_speed

    def pump(self) -> None:
        """Send what is due by now, and wake again when something is due next."""
        events = self.engine.advance(self.now_s())
        planned_s = events[0].time_s if events else 0.0
        if self._fresh:  # first tokens go out first: theirs is the shortest time, and lateness shows most in it
            events.sort(key=lambda event: event.request_id not in self._fresh)
        for time_s, number, n_tokens, kind in events:
            stream = self._streams.get(number)
            if stream is None or n_tokens == 0:
                continue
            if number not in self._fresh:
                self._gap(time_s - stream.last_s)
            else:
                self.seen.first_token(stream.sequence)
                self._fresh.discard(number)
            stream.last_s = time_s
            if stream.answer_at is not None and stream.n < stream.answer_at <= stream.n + n_tokens:
                stream.first_answer_s = time_s
            self.seen.sent_tokens += n_tokens
            self._send(stream, n_tokens, kind == "finished")
        if self._gaps:
            self._gap(-1.0)
        if events:
            self._judge_lateness(planned_s)
        self._arm()

    def _gap(self, gap_s: float) -> None:
        """Count equal gaps between tokens in one go: in a step that is all of them."""
        if gap_s == self._gap_s:
            self._gaps += 1
            return
        if self._gaps:
            self.seen.itl.observe(self._gap_s, self._gaps)
        self._gap_s, self._gaps = gap_s, int(gap_s >= 0)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        next_s = self.engine.next_time_s()
        if next_s is not None:
            self._timer = self._loop.call_at(self._origin_s + next_s / self.identity.clock_speed, self.pump)

    def _judge_lateness(self, planned_s: float) -> None:
        wall_s = self._loop.time() - self._origin_s
        late_s = wall_s - planned_s / self.identity.clock_speed
        self.seen.late.observe(late_s)
        self.seen.late_max_s = max(self.seen.late_max_s, late_s)
        next_s = self.engine.step_end_s
        if next_s is not None and next_s / self.identity.clock_speed < wall_s:
            self.seen.overruns += 1
            if late_s > 1e-3 and wall_s - self._complained_s > 10:
                self._complained_s = wall_s
                log.warning("fell behind: a step planned for %.3f s was sent %.1f ms late", planned_s, late_s * 1e3)

    # -- requests ----------------------------------------------------------------------------------------------------

    def start(self, chat: Chat, request_id: str | None, connection: ServedConnection | None, read_s: float) -> Stream:
        """Queue a request that was read at `read_s` of the loop's clock; raises `Refusal` where the queue is full.

        An idle engine starts at that instant, not after the parsing: the plan makes up for what the server takes.
        """
        self.pump()
        self._n_requests += 1
        vllm = self.served.behaviour.knows_its_models
        id_ = f"chatcmpl-{request_id or uuid.uuid4().hex[:16]}" if vllm else uuid.uuid4().hex
        fault = chat.fault or self._fault_of(self._n_requests)
        if fault.kind == "endless":
            chat = replace(chat, output=replace(chat.output, output_tokens=_ENDLESS_TOKENS))
        framer = framer_of(chat, self.served.behaviour, id_, int(time.time()), self._interval)
        framer.usage_factor = 2 if fault.kind == "lying-usage" else 1
        stream = Stream(str(self._n_requests), request_id or id_, chat, framer, connection)
        stream.fault = fault
        self._queue(stream, max(self.engine.now_s, (read_s - self._origin_s) * self.identity.clock_speed))
        return stream

    def _fault_of(self, number: int) -> Fault:
        turn, rest = divmod(number, self._fault_every)
        return self._faults[(turn - 1) % len(self._faults)] if self._faults and rest == 0 else NONE

    def _queue(self, stream: Stream, arrival_s: float) -> None:
        room = self.engine.cache.capacity_tokens - stream.chat.prompt_tokens
        tokens = min(stream.chat.output.output_tokens, room)
        request = Request(
            id=stream.number, prompt=stream.chat.prompt, output_tokens=max(1, tokens), max_tokens=stream.chat.max_tokens
        )
        try:
            self.engine.submit(request, arrival_s)
        except QueueFull as full:
            self.seen.rejected += 1
            raise Refusal(503, f"The request queue is full: {full}.", "ServiceUnavailableError") from None
        stream.sequence = self.engine.sequences[stream.number]
        self._streams[stream.number] = stream
        self._fresh.add(stream.number)
        self._loop.call_soon(self.pump)

    def abort(self, stream: Stream) -> None:
        """The client has gone, or a fault ended the stream."""
        self._fresh.discard(stream.number)
        if self._streams.pop(stream.number, None) is not None and self.engine.abort(stream.number):
            self.seen.end(stream.sequence, "abort")

    # -- sending -----------------------------------------------------------------------------------------------------

    def _send(self, stream: Stream, n_tokens: int, finished: bool) -> None:
        """Send the tokens of one step: those of a kind, thinking or answer, in one chunk."""
        before, stream.n = stream.n, stream.n + n_tokens
        connection = stream.connection
        if before == 0 and connection is not None and stream.chat.stream:
            stream.framer.cached_tokens = stream.sequence.cached_tokens
            if stream.fault.kind != "early-role":
                connection.chunk(stream.framer.role())
        if connection is not None and stream.chat.stream:
            body = b"".join(stream.framer.token(n, more=n < stream.n) for n in range(before + 1, stream.n + 1))
            if body:
                connection.chunk(body)
        if stream.fault is not NONE and before < stream.fault.at <= stream.n and self._break(stream):
            return
        if finished:
            self._finish(stream)

    def _finish(self, stream: Stream) -> None:
        del self._streams[stream.number]
        if stream.fault.kind == "endless":
            self._go_on(stream)
            return
        self.seen.end(stream.sequence, stream.chat.output.finish_reason)
        self.truth.append(_truth(stream))
        stream.finish()
        if stream.on_end is not None:
            stream.on_end()

    def _go_on(self, stream: Stream) -> None:
        """An endless stream asks the engine for more."""
        stream.number = f"{stream.number}+"
        try:
            self._queue(stream, self.now_s())
        except Refusal:  # the queue is full: even this stream has an end
            if stream.connection is not None:
                stream.connection.reset()

    def _break(self, stream: Stream) -> bool:
        """Commit the fault; true where the stream is over for the engine."""
        kind, connection = stream.fault.kind, stream.connection
        if kind == "die":
            os._exit(1)
        if connection is None or kind not in ("stall", "reset", "engine-error", "garbage", "invalid-utf8"):
            return False
        if kind == "garbage":
            connection.chunk(b"data: {this is not JSON\n\n")
            return False
        if kind == "invalid-utf8":
            connection.chunk(b'data: {"choices":[{"index":0,"delta":{"content":"\xff\xfe\xc3"}}]}\n\n')
            return False
        self.abort(stream)
        connection.on_lost = None
        if kind == "reset":
            connection.reset()
        elif kind == "engine-error":
            error = Refusal(500, "EngineCore encountered an issue.", "InternalServerError")
            connection.end(frames.stream_error(error, self.served.behaviour) + frames.DONE)
        return True

    def close(self) -> None:
        """Drop every connection and the timer."""
        if self._timer is not None:
            self._timer.cancel()
        for connection in list(self.connections):
            connection.transport.abort()


def _truth(stream: Stream) -> dict[str, Any]:
    sequence, output = stream.sequence, stream.chat.output
    return {
        "request_id": stream.id,
        "arrival_s": sequence.arrival_s,
        "first_token_s": sequence.first_token_s,
        "first_answer_s": stream.first_answer_s,
        "finished_s": sequence.last_token_s,
        "prompt_tokens": sequence.prompt_tokens,
        "cached_tokens": sequence.cached_tokens,
        "reasoning_tokens": output.thinking_tokens,
        "completion_tokens": stream.n,
        "finish_reason": output.finish_reason,
        "preemptions": sequence.preemptions,
    }
