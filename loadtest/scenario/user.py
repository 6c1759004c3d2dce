"""The user class of our scenarios: one streamed request at a time.

A concrete user imported into a scenario would run as well, so the bases here are abstract. What is measured goes to
record files (`loadtest.client.level`); Locust's own statistics get a few rows per request, after it has ended.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import gevent
from locust import User, task
from locust.exception import StopUser

from loadtest.client.exchange import Endpoint, Exchange
from loadtest.client.level import Level
from loadtest.client.pass_options import PassOptions
from loadtest.client.reply import Reply
from loadtest.client.thinking import CLOSE, OPEN
from loadtest.grading import forms
from loadtest.records.folder import PassKind
from loadtest.scenario.session import current_level, session_of
from loadtest.workload.contract import History
from loadtest.workload.forms.history import after_call
from loadtest.workload.prompts import Message, Prompt
from loadtest.workload.script import Item
from loadtest.workload.workload import Workload

logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log each reading of /metrics, in the server's words

BACKOFF_FIRST_S, BACKOFF_MOST_S = 0.1, 5.0


class ReasoningUser(User):
    """One request at a time, the next as soon as the last has ended: a closed loop of concurrency `-u`.

    Override `due_s` for another rhythm; Locust's `wait_time` is think time between two requests.
    """

    abstract = True
    turns = 1  # requests of one task, where they depend on each other
    kind: PassKind = "level"

    @classmethod
    def second_endpoint(cls, options: Any, asked: PassOptions, workload: Workload) -> Endpoint | None:
        """Another server that some requests go to; none unless a scenario has one."""
        return None

    @classmethod
    def check_options(cls, options: Any, workload: Workload) -> None:
        """Raise `UsageError` if an option of the scenario is wrong, before anything is sent."""

    def on_start(self) -> None:
        self.level = current_level(self.environment)
        if self.level is None:
            return
        self.number = self.level.join()
        self.refusals = 0
        self.level.stagger()
        warmup = self.level.options.warmup_requests
        for k in range(warmup):
            self.request(self.level, self.level.script.warmup(self.number * warmup + k), self.level.clock.now_s())

    @task
    def ask(self) -> None:
        if self.level is None:
            raise StopUser
        self.take_turn(self.level)

    def take_turn(self, level: Level) -> None:
        """Send what is next, or raise `StopUser`. Override this, not `ask`: Locust runs the tasks of base classes too."""
        item = level.next_item()
        if item is None:
            raise StopUser
        self.carry_out(level, item)

    def carry_out(self, level: Level, item: Item) -> None:
        """Carry out one item of the sequence: one request, or a task in some scenarios; or all turns of a conversation that
        the workload has."""
        prompt = item.prepared.prompt
        if prompt.turns == 1 or level.turns == 1:
            self.request(level, item, self.due_s(level, item))
        else:
            converse(self, level, item, prompt.turns, partial(next_turn, prompt, level.options.contract.history))

    def due_s(self, level: Level, item: Item) -> float:
        """When this request should be sent (offset, s); sleep here until then. Closed loop: now."""
        return level.clock.now_s()

    def request(self, level: Level, item: Item, scheduled_s: float, endpoint: Endpoint | None = None) -> None:
        """Send one item and wait for its end. After a refusal the user waits a little, each time longer."""
        self.back_off(level.send(item, self.number, scheduled_s, endpoint))

    def back_off(self, exchange: Exchange) -> None:
        self.refusals = self.refusals + 1 if exchange.refused else 0
        if self.refusals:
            gevent.sleep(min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2 ** (self.refusals - 1)))


# Tasks of several requests, each built from the answer before it ---------------------------------------------------------

Messages = list[Message]
Following = Callable[[Messages, Reply, int], Messages]  # the next request's, after the reply to request `turn` (from 0)


def converse(user: ReasoningUser, level: Level, item: Item, turns: int, following: Following) -> None:
    """Carry out one task. A request that fails ends it: nothing can be asked of an answer that never came."""
    messages: Messages = list(item.prepared.prompt.messages)
    for turn in range(turns):
        asked = level.script.turn(item, messages, turn, turns, level.turns)
        due_s = level.clock.now_s() if turn else user.due_s(level, item)
        exchange, got = level.converse(asked, user.number, due_s)
        user.back_off(exchange)
        if got.outcome != "ok":
            level.abandon(turns - turn - 1)
            break
        if turn + 1 < turns:
            messages = following(messages, got, turn)
            user.wait()  # type: ignore[no-untyped-call]
    if level.finished:
        session_of(user.environment).done()


def next_turn(prompt: Prompt, history: History, messages: Messages, got: Reply, turn: int) -> Messages:
    """The messages of the next request of a conversation that the workload has."""
    if not prompt.steps:
        return answered(messages, said(got, history), prompt.following[turn])
    first = got.tool_calls[:1]
    call = first[0] if first and forms.has_form(prompt, first, None) else None
    return after_call(messages, said(got, history), call, prompt.steps[turn])


def said(got: Reply, history: History) -> str:
    """What the history keeps of a reply: its answer; with "everything", the thinking before it as the model wrote it.

    >>> said(Reply(outcome="ok", error=None, thinking="2, no: 4", answer="4"), "everything")
    '<think>\\n2, no: 4\\n</think>\\n\\n4'
    """
    answer = got.answer or ""
    return f"{OPEN}\n{got.thinking}\n{CLOSE}\n\n{answer}" if history == "everything" and got.thinking else answer


def answered(messages: Messages, answer: str, question: str) -> Messages:
    """The messages so far, the answer without its thinking, and the next question.

    >>> [m["role"] for m in answered([{"role": "user", "content": "a"}], "b", "c")]
    ['user', 'assistant', 'user']
    """
    return [*messages, {"role": "assistant", "content": answer}, {"role": "user", "content": question}]
