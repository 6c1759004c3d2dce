"""The HTTP face of a simulated runtime: asyncio and h11, one process, bound to 127.0.0.1 and nothing else.

Virtual time is wall time x clock speed since the start. A step of the engine ends at its planned instant whatever the
server was doing, so lateness never adds up; what is sent late is counted (`loadtest_sim:late_seconds_max`, wall seconds from
the plan to the last send of a step) and said in the log when the next step was already due.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import socket
import struct
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any

import h11

from loadtest.simulator import chat as chats
from loadtest.simulator import exposition, frames
from loadtest.simulator.chat import Chat, Refusal, Served
from loadtest.simulator.engine import Engine, QueueFull, Request, Sequence
from loadtest.simulator.faults import NONE, Fault

log = logging.getLogger("loadtest.simulator")

HOST = "127.0.0.1"
BODY_LIMIT_BYTES = 64 * 2**20
BUFFER_LIMIT_BYTES = 8 * 2**20  # a client that reads so slowly that this much piles up is cut off
TRUTH_LIMIT = 100_000
_ENDLESS_TOKENS = 10**12
_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What the simulator says of itself."""

    tp: int
    gpu: str
    model: str  # the model that is simulated; requests name the served one
    clock_speed: float = 1.0


class Stream:
    """One request on its way: `n` tokens sent so far."""

    __slots__ = (
        "answer_at",
        "chat",
        "connection",
        "fault",
        "first_answer_s",
        "framer",
        "id",
        "last_s",
        "n",
        "number",
        "on_end",
        "sequence",
    )

    def __init__(self, number: str, id_: str, chat: Chat, framer: frames.Framer, connection: Connection | None) -> None:
        self.number, self.id, self.chat, self.framer, self.connection = number, id_, chat, framer, connection
        self.fault: Fault = NONE
        self.n = 0
        self.last_s = 0.0
        self.answer_at = chat.output.first_answer_token
        self.first_answer_s: float | None = None
        self.sequence: Sequence
        self.on_end: Callable[[], None] | None = None


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
        self.seen = exposition.Observations(served.runtime.knows_its_models)
        self.api_key = api_key
        self.truth: deque[dict[str, Any]] = deque(maxlen=TRUTH_LIMIT)
        self.connections: set[Connection] = set()
        self._streams: dict[str, Stream] = {}
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
        for time_s, number, n_tokens, kind in events:
            stream = self._streams.get(number)
            if stream is None or n_tokens == 0:
                continue
            if stream.n:
                self._gap(time_s - stream.last_s)
            else:
                self.seen.first_token(stream.sequence)
            stream.last_s = time_s
            if stream.n + 1 == stream.answer_at:
                stream.first_answer_s = time_s
            self._send(stream, kind == "finished")
        if self._gaps:
            self._gap(-1.0)
        if events:
            self.seen.sent_tokens += len(events)
            self._judge_lateness(events[-1].time_s)
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

    def start(self, chat: Chat, request_id: str | None, connection: Connection | None) -> Stream:
        """Queue a request; raises `Refusal` where the queue is full."""
        self.pump()
        self._n_requests += 1
        vllm = self.served.runtime.knows_its_models
        id_ = f"chatcmpl-{request_id or uuid.uuid4().hex[:16]}" if vllm else uuid.uuid4().hex
        fault = chat.fault or self._fault_of(self._n_requests)
        if fault.kind == "endless":
            chat = replace(chat, output=replace(chat.output, output_tokens=_ENDLESS_TOKENS))
        framer = frames.Framer(chat, self.served.runtime, id_, int(time.time()), interval=self._interval)
        framer.usage_factor = 2 if fault.kind == "lying-usage" else 1
        stream = Stream(str(self._n_requests), request_id or id_, chat, framer, connection)
        stream.fault = fault
        self._queue(stream)
        return stream

    def _fault_of(self, number: int) -> Fault:
        return self._faults[0] if self._faults and number % self._fault_every == 0 else NONE

    def _queue(self, stream: Stream) -> None:
        room = self.engine.cache.capacity_tokens - stream.chat.prompt_tokens
        tokens = min(stream.chat.output.output_tokens, room)
        request = Request(
            id=stream.number, prompt=stream.chat.prompt, output_tokens=max(1, tokens), max_tokens=stream.chat.max_tokens
        )
        try:
            self.engine.submit(request, self.now_s())
        except QueueFull as full:
            self.seen.rejected += 1
            raise Refusal(503, f"The request queue is full: {full}.", "ServiceUnavailableError") from None
        stream.sequence = self.engine.sequences[stream.number]
        self._streams[stream.number] = stream
        self._loop.call_soon(self.pump)

    def abort(self, stream: Stream) -> None:
        """The client has gone, or a fault ended the stream."""
        if self._streams.pop(stream.number, None) is not None and self.engine.abort(stream.number):
            self.seen.end(stream.sequence, "abort")

    # -- sending -----------------------------------------------------------------------------------------------------

    def _send(self, stream: Stream, finished: bool) -> None:
        stream.n = n = stream.n + 1
        connection = stream.connection
        if n == 1 and connection is not None and stream.chat.stream:
            stream.framer.cached_tokens = stream.sequence.cached_tokens
            if stream.fault.kind != "early-role":
                connection.chunk(stream.framer.role())
        if connection is not None and stream.chat.stream:
            body = stream.framer.token(n)
            if body:
                connection.chunk(body)
        if stream.fault is not NONE and n == stream.fault.at and self._break(stream):
            return
        if finished:
            self._finish(stream)

    def _finish(self, stream: Stream) -> None:
        del self._streams[stream.number]
        if stream.fault.kind == "endless":
            stream.number = f"{stream.number}+"
            self._queue(stream)
            return
        self.seen.end(stream.sequence, stream.chat.output.finish_reason)
        self.truth.append(_truth(stream))
        if stream.connection is not None:
            stream.connection.finish(stream)
        if stream.on_end is not None:
            stream.on_end()

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
        connection.stream = None
        if kind == "reset":
            connection.reset()
        elif kind == "engine-error":
            error = Refusal(500, "EngineCore encountered an issue.", "InternalServerError")
            connection.end(frames.stream_error(error, self.served.runtime) + frames.DONE)
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


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection, read by h11; the chunks of a stream are framed beforehand and written as they are."""

    def __init__(self, simulator: Simulator, answer: Callable[[Connection, h11.Request, bytes], None]) -> None:
        self.simulator = simulator
        self.transport: asyncio.Transport
        self.stream: Stream | None = None
        self._answer = answer
        self._http = h11.Connection(h11.SERVER)
        self._request: h11.Request | None = None
        self._body = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=BUFFER_LIMIT_BYTES)
        self.simulator.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.simulator.connections.discard(self)
        if self.stream is not None:
            self.simulator.abort(self.stream)
            self.stream = None

    def pause_writing(self) -> None:
        """The client does not read: cut it off rather than let the memory grow."""
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        self._http.receive_data(data)
        self._read()

    def _read(self) -> None:
        try:
            while True:
                event = self._http.next_event()
                if isinstance(event, h11.Request):
                    self._request = event
                    self._body.clear()
                elif isinstance(event, h11.Data):
                    self._body += event.data
                    if len(self._body) > BODY_LIMIT_BYTES:
                        self.json({"error": "request body too large"}, 413, close=True)
                        return
                elif isinstance(event, h11.EndOfMessage):
                    assert self._request is not None
                    self._answer(self, self._request, bytes(self._body))
                else:
                    return
        except h11.RemoteProtocolError as error:
            if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                self.json({"error": str(error)}, error.error_status_hint, close=True)
            else:
                self.transport.abort()

    # -- answers -----------------------------------------------------------------------------------------------------

    def whole(self, body: bytes, status: int = 200, kind: str = "application/json", *, close: bool = False) -> None:
        """A complete answer."""
        headers = [*_headers(), ("content-length", str(len(body)))]
        if body or kind != "application/json":
            headers.append(("content-type", kind))
        if close:
            headers.append(("connection", "close"))
        head = self._http.send(h11.Response(status_code=status, headers=headers, reason=_REASONS[status])) or b""
        data = self._http.send(h11.Data(data=body)) or b""
        self.transport.write(head + data + (self._http.send(h11.EndOfMessage()) or b""))
        self._next(close)

    def json(self, value: object, status: int = 200, *, close: bool = False) -> None:
        """A complete JSON answer."""
        self.whole(frames.dumps(value), status, close=close)

    def begin(self) -> None:
        """The head of an event stream."""
        headers = [*_headers(), ("content-type", "text/event-stream; charset=utf-8"), ("transfer-encoding", "chunked")]
        self.transport.write(self._http.send(h11.Response(status_code=200, headers=headers, reason=_REASONS[200])) or b"")

    def chunk(self, body: bytes) -> None:
        """One event of the stream, in one write."""
        self.transport.write(b"%x\r\n%b\r\n" % (len(body), body))

    def end(self, body: bytes) -> None:
        """The last events of the stream, and its end."""
        self.stream = None
        last = self._http.send(h11.EndOfMessage()) or b""
        self.transport.write((frames.chunked(body) if body else b"") + last)
        self._next(False)

    def finish(self, stream: Stream) -> None:
        """The engine has finished this connection's request."""
        self.stream = None
        framer = stream.framer
        if stream.chat.stream:
            self.end(framer.end(stream.n) + (b"" if stream.fault.kind == "no-done" else frames.DONE))
        elif stream.on_end is None:
            framer.cached_tokens = stream.sequence.cached_tokens
            self.whole(frames.whole(framer))

    def reset(self) -> None:
        """Drop the connection with a reset instead of an end."""
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _next(self, close: bool) -> None:
        if close or self._http.our_state is h11.MUST_CLOSE:
            self.transport.close()
        elif self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            asyncio.get_running_loop().call_soon(self._read)


def _headers() -> list[tuple[str, str]]:
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
    return [("date", date), ("server", "loadtest-simulator"), ("vary", "Origin")]


class Face:
    """The endpoints: which path answers what."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.served = simulator.served
        self.sglang = not simulator.served.runtime.knows_its_models
        self.created = int(time.time())
        self._routes: dict[tuple[str, str], Callable[[Connection], None]] = {
            ("GET", "/health"): lambda c: c.whole(b""),
            ("GET", "/version"): lambda c: c.json(self.identity()),
            ("GET", "/v1/models"): lambda c: c.json(self.models()),
            ("GET", "/metrics"): self._metrics,
            ("GET", "/loadtest/truth"): lambda c: c.json(list(simulator.truth)),
        }
        if self.sglang:
            self._routes |= {
                ("GET", "/health_generate"): self._health_generate,
                ("GET", "/server_info"): lambda c: c.json(self.server_info()),
                ("GET", "/get_server_info"): lambda c: c.json(self.server_info()),
                ("GET", "/model_info"): lambda c: c.json({"model_path": self.served.model, **self.identity()}),
                ("POST", "/flush_cache"): self._flush,
                ("GET", "/flush_cache"): self._flush,
            }
        else:
            self._routes[("POST", "/reset_prefix_cache")] = self._flush

    def answer(self, connection: Connection, request: h11.Request, body: bytes) -> None:
        """Answer one request, now or when the engine is done with it."""
        path = request.target.split(b"?")[0].decode("latin-1")
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers}
        if not self._allowed(path, headers.get("authorization", "")):
            connection.json({"error": "Unauthorized"}, 401)
        elif path == "/v1/chat/completions" and request.method == b"POST":
            self._chat(connection, body, headers.get("x-request-id"))
        else:
            route = self._routes.get((request.method.decode("latin-1"), path))
            if route is None:
                connection.json({"detail": "Not Found"}, 404)
            else:
                route(connection)

    def _allowed(self, path: str, authorization: str) -> bool:
        """Both runtimes leave health and metrics open."""
        key = self.simulator.api_key
        if key is None or path.startswith(("/health", "/metrics", "/version")):
            return True
        return hmac.compare_digest(authorization.encode(), f"Bearer {key}".encode())

    def _chat(self, connection: Connection, body: bytes, request_id: str | None) -> None:
        try:
            chat = chats.parse(body, self.served)
        except Refusal as error:
            connection.json(frames.refusal(error, self.served.runtime), error.status)
            return
        try:
            stream = self.simulator.start(chat, request_id, connection)
        except Refusal as error:
            self._refuse_full(connection, error, chat.stream)
            return
        connection.stream = stream
        if chat.stream:
            connection.begin()
            if stream.fault.kind == "early-role":
                connection.chunk(stream.framer.role())

    def _refuse_full(self, connection: Connection, error: Refusal, stream: bool) -> None:
        """A full queue: 503, but to a stream both runtimes answer 200 with an error event."""
        if not stream:
            connection.json(frames.refusal(error, self.served.runtime), error.status)
            return
        connection.begin()
        connection.end(frames.stream_error(error, self.served.runtime) + frames.DONE)

    def _metrics(self, connection: Connection) -> None:
        self.simulator.pump()
        page = exposition.render(self.simulator.engine, self.simulator.seen, self.served.model)
        connection.whole(page.encode(), kind="text/plain; version=0.0.4; charset=utf-8")

    def _flush(self, connection: Connection) -> None:
        engine = self.simulator.engine
        if self.sglang and (engine.running or engine.waiting):
            connection.whole(b"Flush cache failed: requests are running or waiting.\n", 400, "text/plain; charset=utf-8")
            return
        engine.cache.flush()
        connection.whole(b"Cache flushed.\n" if self.sglang else b"", kind="text/plain; charset=utf-8")

    def _health_generate(self, connection: Connection) -> None:
        body = b'{"messages":[{"role":"user","content":"health"}],"max_tokens":1}'
        try:
            stream = self.simulator.start(chats.parse(body, self.served), "health", connection)
        except Refusal:
            connection.whole(b"", 503)
            return
        connection.stream = stream
        stream.on_end = lambda: connection.whole(b"")

    def identity(self) -> dict[str, Any]:
        """What `/version` says: what is simulated, and that it is."""
        identity = self.simulator.identity
        return {
            "version": self.served.runtime.version,
            "simulated": True,
            "engine": self.served.runtime.name,
            "clock_speed": identity.clock_speed,
            "model": identity.model,
            "tp": identity.tp,
            "gpu": identity.gpu,
        }

    def models(self) -> dict[str, Any]:
        """The one model that is served."""
        owner = "sglang" if self.sglang else "vllm"
        row = {"id": self.served.model, "object": "model", "created": self.created, "owned_by": owner}
        row |= {"root": self.served.model, "parent": None, "max_model_len": self.served.context_tokens}
        if not self.sglang:
            allowed = ("sampling", "logprobs", "view")
            denied = ("create_engine", "search_indices", "fine_tuning")
            permission = {"id": "modelperm-simulated", "object": "model_permission", "created": self.created}
            permission |= {f"allow_{name}": name in allowed for name in (*allowed, *denied)}
            row["permission"] = [permission | {"organization": "*", "group": None, "is_blocking": False}]
        return {"object": "list", "data": [row]}

    def server_info(self) -> dict[str, Any]:
        """The facts that a client asks a SGLang server for, under its names."""
        engine, runtime = self.simulator.engine, self.served.runtime
        return {
            "model_path": self.served.model,
            "served_model_name": self.served.model,
            "tp_size": self.simulator.identity.tp,
            "context_length": self.served.context_tokens,
            "max_total_num_tokens": engine.cache.capacity_tokens,
            "chunked_prefill_size": engine.prefill_budget_tokens,
            "max_running_requests": engine.max_running,
            "max_queued_requests": engine.config.max_queued,
            "enable_mixed_chunk": runtime.mixed_batches,
            "page_size": engine.cache.page_tokens,
            "disable_radix_cache": not engine.config.prefix_cache,
            "schedule_policy": "fcfs",
            "random_seed": self.served.seed,
            "reasoning_parser": "qwen3" if self.served.separates else None,
            **self.identity(),
        }


async def serve(simulator: Simulator, port: int, ready: Callable[[int], None], stop: asyncio.Event) -> None:
    """Listen until `stop` is set; `ready` is told the port (0 asks for a free one)."""
    face = Face(simulator)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(simulator, face.answer), HOST, port, backlog=4096)
    ready(server.sockets[0].getsockname()[1])
    try:
        await stop.wait()
    finally:
        server.close()
        simulator.close()
