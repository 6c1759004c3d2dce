"""A task of several requests, each built from the answer before it: of a `DialogueUser`, or a conversation to repeat."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from loadtest.client.level import Level
from loadtest.client.reply import Reply
from loadtest.client.thinking import CLOSE, OPEN
from loadtest.scenario.session import session_of
from loadtest.workload.contract import History
from loadtest.workload.script import Item

if TYPE_CHECKING:
    from loadtest.scenario.user import ReasoningUser

Messages = list[dict[str, str]]
Following = Callable[[Messages, str, int], Messages]  # the next request's, after the answer to request `turn` (from 0)


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
            messages = following(messages, said(got, level.options.contract.history), turn)
            user.wait()  # type: ignore[no-untyped-call]
    if level.finished:
        session_of(user.environment).done()


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
