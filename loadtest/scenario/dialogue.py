"""Tasks of several requests, each built from the previous answer: conversations and the loops of agents."""

from __future__ import annotations

from loadtest.client.level import Level
from loadtest.client.reply import Reply
from loadtest.scenario.user import Messages, ReasoningUser, converse, said
from loadtest.workload.script import Item


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
        """A task whose workload has the calls of tools follows these instead."""
        if item.prepared.prompt.steps:
            super().carry_out(level, item)
            return

        def following(messages: Messages, got: Reply, turn: int) -> Messages:
            return self.following(messages, said(got, level.options.contract.history), turn)

        converse(self, level, item, self.turns, following)
