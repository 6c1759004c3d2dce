"""Which workers a Locust master takes: those that prove that they run what it runs, and no more once a level has begun.

The port has neither a key nor encryption: this keeps out what is not ours, not who means harm.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import locust
import msgspec
import zmq
from locust.env import Environment
from locust.exception import RPCError, RPCReceiveError
from locust.rpc import Message, zmqrpc

from loadtest import __version__

PROOF, PROVE, REFUSED = "loadtest_proof", "loadtest_prove", "loadtest_refused"

LARGEST_MESSAGE_BYTES = 16 * 2**20  # a worker's batches and statistics are far smaller

REFUSALS_TOLD = 20

logger = logging.getLogger("loadtest")


def limit_messages() -> None:
    """Have ZeroMQ break the connection of whoever announces a larger message to a master, before it takes memory.

    To be called before Locust opens the port."""
    kind: Any = zmqrpc.BaseSocket
    make = kind.__init__

    def make_limited(self: Any, socket_type: int, ipv4_only: bool) -> None:
        make(self, socket_type, ipv4_only)
        if socket_type == zmq.ROUTER:
            self.socket.setsockopt(zmq.MAXMSGSIZE, LARGEST_MESSAGE_BYTES)

    kind.__init__ = make_limited


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
        self._refused: set[str] = set()
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
                except RPCError:  # the port itself
                    raise
                except Exception as error:  # whatever Locust's decoder raises at what is no message of Locust's
                    if isinstance(error, RPCReceiveError) and error.addr in self._runner.clients:
                        raise  # Locust has the worker connect anew
                    self._tell_refusal("somebody", f"no message of a worker ({error!r:.100})")
                    continue
                heard = self._heard(client, message)
                if heard is not None:
                    return client, heard

        server.recv_from_client = receive_admitted

    def _heard(self, client: str, message: Message) -> Message | None:
        """What the master is to hear of a message; None for nothing."""
        if message.node_id != client or not isinstance(message.type, str):
            self._tell_refusal(client, f"a message in the name of {message.node_id!r:.100}")
            return None
        if message.type == PROOF:
            return self._judged(client, message.data)
        if message.type == "client_ready" and (self._closed or client not in self._runner.clients):
            self._waiting.add(client)
            self._tell(client, "ack")
            self._tell(client, PROVE)
            return None
        if message.type == "locustfile" or client in self._runner.clients:
            return message
        if message.type.startswith("loadtest_"):
            self._tell_refusal(client, f"{message.type!r:.100}, though it is no worker of this run")
        return None

    def _tell_refusal(self, client: str, what: str) -> None:
        """Say so once of each sender, and not without end."""
        if client not in self._refused and len(self._refused) < REFUSALS_TOLD:
            self._refused.add(client)
            logger.warning("refused, from %s on the workers' port: %s", repr(client)[:100], what)

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
