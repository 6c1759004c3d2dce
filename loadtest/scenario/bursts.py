"""Bursts under Locust: all users begin a request together, and the next one when every request has ended."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import gevent.event
from locust.exception import StopUser

from loadtest.client.level import Level
from loadtest.errors import UsageError
from loadtest.records.folder import PassKind
from loadtest.records.pass_facts import Failure
from loadtest.scenario.session import current_level
from loadtest.scenario.user import ReasoningUser
from loadtest.workload.bursts import CONTEXTS_TOKENS, OUTPUT_TOKENS, Burst, BurstPlan
from loadtest.workload.script import Item
from loadtest.workload.workload import Workload


class Gate:
    """Lets users go on when all of them have come."""

    def __init__(self, users: int) -> None:
        self._users, self._waiting = users, 0
        self._opened = gevent.event.Event()

    def wait(self) -> None:
        self._waiting += 1
        if self._waiting < self._users:
            self._opened.wait()
            return
        opened, self._opened, self._waiting = self._opened, gevent.event.Event(), 0
        opened.set()


@dataclass(slots=True)
class _Shared:
    """What all users of a pass have in common. `prompt_tokens`: the server's count of a warm-up prompt."""

    plan: BurstPlan
    make: Callable[..., tuple[Burst, ...]]
    gate: Gate
    bursts: tuple[Burst, ...]
    prompt_tokens: int | None = None

    def sized(self, place: int) -> tuple[Item, ...]:
        """The requests of a burst; those after the warm-up in tokens of the server."""
        if place == 1 and (each := self.plan.tokens_per_word(self.prompt_tokens)) != 1.0:
            self.bursts = self.make(tokens_per_word=each)
            self.prompt_tokens = None
        return self.bursts[place].items


class BurstUser(ReasoningUser):
    """One stream of each burst (`workload.bursts`). The pass ends by itself when the last burst has ended."""

    abstract = True
    kind: PassKind = "bursts"

    @classmethod
    def check_options(cls, options: Any, workload: Workload) -> None:
        _plan(options, concurrency=1, repeat=1, seed=0)
        if options.replica:
            raise UsageError(f"--replica {options.replica[0]}: expected none with bursts, which are of one server")

    def on_start(self) -> None:
        self.level = current_level(self.environment)
        if self.level is not None:
            self.number = self.level.join()

    def take_turn(self, level: Level) -> None:
        if level.failure is not None:
            raise StopUser
        shared = self._shared(level)
        for place in range(len(shared.bursts)):
            shared.gate.wait()
            items = shared.sized(place)
            if place == 0:
                _, reply = level.converse(items[self.number], self.number, level.clock.now_s())
                shared.prompt_tokens = reply.prompt_tokens
            elif self.number < len(items):
                level.send(items[self.number], self.number, level.clock.now_s())
        raise StopUser

    def _shared(self, level: Level) -> _Shared:
        """What all users of a pass have in common; made by the first of them."""
        if level not in _passes:
            asked = level.options
            if level.streams != asked.concurrency:
                expected = f"expected all {asked.concurrency} users in one process, got {level.streams}"
                message = f"bursts: {expected}; leave out --processes"
                level.fail(Failure(kind="start", message=message))
                raise StopUser
            plan = _plan(self.environment.parsed_options, asked.concurrency, asked.repeat, asked.seed)
            made = partial(plan.bursts, level.script.workload, asked.contract, model=asked.model, engine=asked.engine)
            _passes[level] = _Shared(plan, made, Gate(asked.concurrency), made())
            level.expect(plan.requests)
        return _passes[level]


_passes: WeakKeyDictionary[Level, _Shared] = WeakKeyDictionary()


def _plan(options: Any, concurrency: int, repeat: int, seed: int) -> BurstPlan:
    contexts = tuple(int(part) for part in options.contexts.split(","))
    return BurstPlan(
        concurrency=concurrency,
        round=repeat,
        contexts_tokens=contexts,
        output_tokens=options.burst_tokens,
        seed=seed,
    )


def add_burst_options(parser: Any) -> None:
    group = parser.add_argument_group("bursts")
    group.add_argument("--contexts", type=_contexts, default=_DEFAULT, help="tokens of each burst's prompts")
    group.add_argument("--burst-tokens", type=int, default=OUTPUT_TOKENS, help="tokens of each output, forced")


def _contexts(text: str) -> str:
    try:
        BurstPlan(concurrency=1, contexts_tokens=tuple(int(part) for part in text.split(",")))
    except (ValueError, UsageError):
        raise argparse.ArgumentTypeError(f"expected two or more numbers of tokens such as {_DEFAULT}") from None
    return text


_DEFAULT = ",".join(map(str, CONTEXTS_TOKENS))
