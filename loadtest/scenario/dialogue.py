"""Tasks of several requests, each built from the previous answer: conversations and the loops of agents."""

from __future__ import annotations

from loadtest.client.level import Level
from loadtest.client.reply import Reply
from loadtest.client.thinking import CLOSE, OPEN
from loadtest.scenario.session import session_of
from loadtest.scenario.user import ReasoningUser
from loadtest.workload.contract import History
from loadtest.workload.script import Item

Messages = list[dict[str, str]]


class DialogueUser(ReasoningUser):
    """One task at a time, of `turns` requests; the records name the task, so that the time to finish it can be told.

    The first request asks the workload's prompt; `following` makes the next one. History holds answers only, never the
    thinking, unless the contract says `history = "everything"`. A request that fails ends its task: nothing can be asked of
    an answer that never came. Locust's `wait_time` is think time between turns.
    """

    abstract = True
    turns = 3

    def following(self, messages: Messages, answer: str, turn: int) -> Messages:
        """The messages of the next request, after the answer to request `turn` (from 0)."""
        raise NotImplementedError

    def carry_out(self, level: Level, item: Item) -> None:
        messages: Messages = list(item.prepared.prompt.messages)
        for turn in range(self.turns):
            asked = level.script.turn(item, messages, turn, self.turns)
            exchange, got = level.converse(asked, self.number, level.clock.now_s())
            self.back_off(exchange)
            if got.outcome != "ok":
                level.abandon(self.turns - turn - 1)
                break
            if turn + 1 < self.turns:
                messages = self.following(messages, said(got, level.options.contract.history), turn)
                self.wait()  # type: ignore[no-untyped-call]
        if level.finished:
            session_of(self.environment).done()


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
