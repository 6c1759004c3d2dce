"""Which workers a Locust master takes: those that prove that they run what it runs, and no more once a level has begun."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import locust
import msgspec
from locust.env import Environment
from locust.exception import RPCReceiveError
from locust.rpc import Message

from loadtest import __version__

PROOF, PROVE, REFUSED = "loadtest_proof", "loadtest_prove", "loadtest_refused"

logger = logging.getLogger("loadtest")


class Proof(msgspec.Struct, frozen=True):
    """What a process runs. The workload follows with the level: the master names its SHA-256, each worker compares."""

    loadtest: str  # version
    locust: str  # version
    scenario: str  # SHA-256 of the locustfiles


def proof_of(environment: Environment) -> Proof:
    """What this process runs."""
    digest = hashlib.sha256()
    for name in environment.parsed_locustfiles or ():
        path = Path(name)
        digest.update(path.read_bytes() if path.is_file() else name.encode())
    return Proof(loadtest=__version__, locust=locust.__version__, scenario=digest.hexdigest())


class Admission:
    """Stands between a master and its port: Locust hears of a worker only after its proof, and of nobody else.

    While it is `closed`, as a level runs, a worker that has proved itself waits: it would get users of others.
    """

    def __init__(self, environment: Environment, runner: Any) -> None:  # a MasterRunner
        self._runner = runner
        self._ours = proof_of(environment)
        self._closed = False
        self._waiting: set[str] = set()  # who is connected, and not admitted
        self._guard()
        reset = self._runner.reset_connection

        def reset_and_guard() -> None:
            reset()
            self._guard()

        self._runner.reset_connection = reset_and_guard

    def _guard(self) -> None:
        """Stand between the master and its port, which Locust opens anew after an error."""
        server: Any = self._runner.server
        receive = server.recv_from_client

        def receive_admitted() -> tuple[str, Message]:
            while True:
                try:
                    client, message = receive()
                except (ValueError, TypeError, LookupError) as error:  # no message of Locust's
                    raise RPCReceiveError(f"not of a worker: {error}") from error
                heard = self._heard(client, message)
                if heard is not None:
                    return client, heard

        server.recv_from_client = receive_admitted

    def _heard(self, client: str, message: Message) -> Message | None:
        """What the master is to hear of a message; None for nothing."""
        if message.node_id != client:
            return None
        if message.type == PROOF:
            return self._judged(client, message.data)
        if message.type == "client_ready" and (self._closed or client not in self._runner.clients):
            self._waiting.add(client)
            self._tell(client, "ack")
            self._tell(client, PROVE)
            return None
        return message if message.type == "locustfile" or client in self._runner.clients else None

    def _judged(self, client: str, data: Any) -> Message | None:
        try:
            theirs = msgspec.convert(data, Proof)
        except msgspec.ValidationError:
            return None
        for name in Proof.__struct_fields__:
            expected, got = getattr(self._ours, name), getattr(theirs, name)
            if expected != got:
                why = f"worker {client}: {name}: expected the master's {expected}, got {got}; it gets no users"
                logger.error(why)
                self._tell(client, REFUSED, {"message": why})
                return None
        if client in self._runner.clients:
            return None
        if self._closed:
            logger.warning("worker %s came while a level runs; it waits for the next", client)
            return None
        self._waiting.discard(client)
        ready: Message = _message("client_ready", theirs.locust, client)
        return ready

    def close(self) -> None:
        """A level begins."""
        self._closed = True

    def open(self) -> None:
        """A level has ended: those who came meanwhile may prove themselves again."""
        self._closed = False
        for client in self._waiting:
            self._tell(client, PROVE)

    def dismiss(self) -> None:
        """The master ends: so do those who wait."""
        for client in self._waiting:
            self._tell(client, "quit")

    def _tell(self, client: str, kind: str, data: Any = None) -> None:
        self._runner.server.send_to_client(_message(kind, data, client))


_message: Any = Message  # Locust gives it no types
