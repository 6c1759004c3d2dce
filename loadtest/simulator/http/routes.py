"""The endpoints of the simulated server: which path answers what, and listening on 127.0.0.1 and nothing else."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h11

from loadtest.simulator.core import chat as chats
from loadtest.simulator.core.chat import Refusal
from loadtest.simulator.core.requests import PATHS
from loadtest.simulator.http import exposition, frames
from loadtest.simulator.http.connection import ServedConnection
from loadtest.simulator.http.server import Simulator

HOST = "127.0.0.1"


class Face:
    """The endpoints: which path answers what."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.served = simulator.served
        self.sglang = not simulator.served.behaviour.knows_its_models
        self.created = int(time.time())
        self._routes: dict[tuple[str, str], Callable[[ServedConnection], None]] = {
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

    def answer(self, connection: ServedConnection, request: h11.Request, body: bytes) -> None:
        """Answer one request, now or when the engine is done with it."""
        path = request.target.split(b"?")[0].decode("latin-1")
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers}
        if not self._allowed(path, headers.get("authorization", "")):
            connection.json({"error": "Unauthorized"}, 401)
        elif path in PATHS and request.method == b"POST":
            self._chat(connection, body, headers.get("x-request-id"), PATHS[path])
        else:
            route = self._routes.get((request.method.decode("latin-1"), path))
            if route is None:
                connection.json({"detail": "Not Found"}, 404)
            else:
                route(connection)

    def _allowed(self, path: str, authorization: str) -> bool:
        """Both engines leave health and metrics open."""
        key = self.simulator.api_key
        if key is None or path.startswith(("/health", "/metrics", "/version")):
            return True
        return hmac.compare_digest(authorization.encode(), f"Bearer {key}".encode())

    def _chat(self, connection: ServedConnection, body: bytes, request_id: str | None, api: str) -> None:
        try:
            chat = chats.parse(body, self.served, api)
        except Refusal as error:
            connection.json(frames.refusal(error, self.served.behaviour), error.status)
            return
        try:
            stream = self.simulator.start(chat, request_id, connection, connection.read_s)
        except Refusal as error:
            self._refuse_full(connection, error, chat.stream)
            return
        connection.on_lost = partial(self.simulator.abort, stream)
        if chat.stream:
            connection.begin()
            if stream.fault.kind == "early-role":
                connection.chunk(stream.framer.role())

    def _refuse_full(self, connection: ServedConnection, error: Refusal, stream: bool) -> None:
        """A full queue: 503, but to a stream both engines answer 200 with an error event."""
        if not stream:
            connection.json(frames.refusal(error, self.served.behaviour), error.status)
            return
        connection.begin()
        connection.end(frames.stream_error(error, self.served.behaviour) + frames.DONE)

    def _metrics(self, connection: ServedConnection) -> None:
        self.simulator.pump()
        page = exposition.render(self.simulator.engine, self.simulator.seen, self.served.model)
        connection.whole(page.encode(), kind="text/plain; version=0.0.4; charset=utf-8")

    def _flush(self, connection: ServedConnection) -> None:
        engine = self.simulator.engine
        if self.sglang and (engine.running or engine.waiting):
            connection.whole(b"Flush cache failed: requests are running or waiting.\n", 400, "text/plain; charset=utf-8")
            return
        engine.cache.flush()
        connection.whole(b"Cache flushed.\n" if self.sglang else b"", kind="text/plain; charset=utf-8")

    def _health_generate(self, connection: ServedConnection) -> None:
        body = b'{"messages":[{"role":"user","content":"health"}],"max_tokens":1}'
        try:
            stream = self.simulator.start(chats.parse(body, self.served), "health", connection, connection.read_s)
        except Refusal:
            connection.whole(b"", 503)
            return
        connection.on_lost = partial(self.simulator.abort, stream)
        stream.on_end = lambda: connection.whole(b"")

    def identity(self) -> dict[str, Any]:
        """What `/version` says: what is simulated, and that it is."""
        identity = self.simulator.identity
        return {
            "version": self.served.behaviour.version,
            "simulated": True,
            "engine": self.served.behaviour.name,
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
        engine, behaviour = self.simulator.engine, self.served.behaviour
        return {
            "model_path": self.served.model,
            "served_model_name": self.served.model,
            "tp_size": self.simulator.identity.tp,
            "context_length": self.served.context_tokens,
            "max_total_num_tokens": engine.cache.capacity_tokens,
            "chunked_prefill_size": engine.prefill_budget_tokens,
            "max_running_requests": engine.max_running,
            "max_queued_requests": engine.config.max_queued,
            "enable_mixed_chunk": behaviour.mixed_batches,
            "page_size": engine.cache.page_tokens,
            "disable_radix_cache": not engine.config.prefix_cache,
            "schedule_policy": "fcfs",
            "random_seed": self.served.seed,
            "reasoning_parser": "qwen3" if self.served.separates else None,
            **self.identity(),
        }


async def serve(
    simulator: Simulator, port: int, ready: Callable[[int], None], stop: asyncio.Event, file: Path | None = None
) -> None:
    """Listen until `stop` is set; `ready` is told the port (0 asks for a free one). `file`: on a Unix socket instead."""
    face = Face(simulator)
    loop = asyncio.get_running_loop()

    def served() -> ServedConnection:
        return ServedConnection(simulator.connections, face.answer)

    if file is None:
        server = await loop.create_server(served, HOST, port, backlog=4096)
    else:
        server = await loop.create_unix_server(served, str(file), backlog=4096)
    ready(server.sockets[0].getsockname()[1] if file is None else 0)
    try:
        await stop.wait()
    finally:
        server.close()
        simulator.close()
