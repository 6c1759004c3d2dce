"""One reply of the simulator as a stream of server-sent events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from loadtest.simulator.core.chat import Chat
from loadtest.simulator.core.faults import NONE, Fault
from loadtest.simulator.core.sequence import Sequence
from loadtest.simulator.http import frames
from loadtest.simulator.http.connection import ServedConnection


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

    def __init__(
        self, number: str, id_: str, chat: Chat, framer: frames.Framer, connection: ServedConnection | None
    ) -> None:
        self.number, self.id, self.chat, self.framer, self.connection = number, id_, chat, framer, connection
        self.fault: Fault = NONE
        self.n = 0
        self.last_s = 0.0
        self.answer_at = chat.output.first_answer_token
        self.first_answer_s: float | None = None
        self.sequence: Sequence
        self.on_end: Callable[[], None] | None = None

    def finish(self) -> None:
        """The engine has finished this request: write the end of its answer, where a connection waits for it."""
        if self.connection is None:
            return
        self.connection.on_lost = None
        if self.chat.stream:
            self.connection.end(self.framer.end(self.n) + (b"" if self.fault.kind == "no-done" else self.framer.done))
        elif self.on_end is None:
            self.framer.cached_tokens = self.sequence.cached_tokens
            self.connection.whole(self.framer.whole())
