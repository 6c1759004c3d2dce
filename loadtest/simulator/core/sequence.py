"""Requests inside the simulated engine, and what is told about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from loadtest.errors import UsageError
from loadtest.simulator.core.behaviour import RESERVE_CLIP_TOKENS
from loadtest.simulator.core.cache import TOKEN_CHARS, Holding

Kind = Literal["token", "finished", "preempted"]


class Event(NamedTuple):
    """What happened to one request at the end of a step: tokens, its last tokens, or a preemption (no token).

    A step yields one token of a request, or several with speculative decoding.
    """

    time_s: float
    request_id: str
    n_tokens: int
    kind: Kind


class Leap(NamedTuple):
    """Many steps at once: the end of each (s), and the requests that each gained one token in every one of them."""

    times_s: list[float]
    request_ids: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as the engine sees it: `prompt` has four characters a token; it will emit exactly `output_tokens`."""

    id: str
    prompt: str
    output_tokens: int
    max_tokens: int = 0  # what the client allowed, for the engine that reserves by it; 0: the output itself

    def __post_init__(self) -> None:
        if not self.prompt or len(self.prompt) % TOKEN_CHARS:
            raise UsageError(f"prompt of {self.id}: expected a multiple of {TOKEN_CHARS} characters, got {len(self.prompt)}")
        if self.output_tokens < 1:
            raise UsageError(f"output_tokens of {self.id}: expected 1 or more, got {self.output_tokens}")

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt) // TOKEN_CHARS


class QueueFull(Exception):  # noqa: N818 - an answer to one request, not an error of ours
    """The queue is at its limit: this request is refused."""


class Sequence:
    """A request inside the engine. `generated` tokens are known, `computed` tokens are in the KV cache."""

    __slots__ = (
        "arrival_s",
        "cached_tokens",
        "computed",
        "first_token_s",
        "generated",
        "holding",
        "last_token_s",
        "planned",
        "preemptions",
        "prompt_tokens",
        "request",
        "scheduled_s",
        "state",
        "verified_steps",
    )

    def __init__(self, request: Request, arrival_s: float, holding: Holding) -> None:
        self.request = request
        self.prompt_tokens = request.prompt_tokens
        self.arrival_s = arrival_s
        self.holding = holding
        self.generated = 0
        self.computed = 0
        self.planned = 0  # tokens computed at the end of the step that runs
        self.cached_tokens = 0  # of the prompt, found in the prefix cache at first admission
        self.preemptions = 0
        self.verified_steps = 0  # steps that verified drafts for it
        self.scheduled_s: float | None = None
        self.first_token_s: float | None = None
        self.last_token_s = 0.0
        self.state: Literal["waiting", "running", "finished", "aborted"] = "waiting"

    @property
    def known(self) -> int:
        return self.prompt_tokens + self.generated

    def reserve_tokens(self) -> int:
        """Output still allowed to this request, as far as admission counts it."""
        allowed = self.request.max_tokens or self.request.output_tokens
        return min(max(allowed - self.generated, 0), RESERVE_CLIP_TOKENS)


@dataclass(slots=True)
class Totals:
    """What the engine counted since it started: tokens unless the name says otherwise."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
