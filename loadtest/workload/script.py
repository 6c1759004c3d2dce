"""Which request comes next: prepared bodies, and the share of the sequence that falls to this process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

import msgspec

from loadtest.records.schema import Api, Phase
from loadtest.workload.contract import Contract
from loadtest.workload.prompts import Message, Prompt
from loadtest.workload.workload import Workload, schedule

WARMUP_SEED = 0x5EED  # added to the seed: warm-up asks in another order than the measured phase


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A prompt with the body that asks it, encoded and hashed before any clock runs."""

    prompt: Prompt
    body: bytes
    sha256: str
    forced_tokens: int | None


@dataclass(frozen=True, slots=True)
class Item:
    """One place of the sequence: `index` counts the measured phase over all users and workers, or all warm-ups.

    Of a task of dependent requests, `index` counts the tasks, and `turn` says which of its `turns` requests this is; no task
    of the level has more than `most_turns`.
    `burst`: which burst of the pass it belongs to, if any.
    """

    phase: Phase
    index: int
    prepared: Prepared
    turn: int | None = None
    turns: int = 1
    burst: int | None = None
    most_turns: int = 1

    @property
    def seq(self) -> int:
        """Its number among all requests of the phase.

        >>> Item("measure", 5, None, turn=2, turns=3, most_turns=3).seq
        17
        """
        return self.index * self.most_turns + (self.turn or 0)


@dataclass(frozen=True, slots=True)
class Rounds:
    """Whole rounds of one set: the first `prompts` of a workload's order, asked again and again by every level.

    `salt` is of one pass. With it goes each request (`cache_salt`), so that no round finds another's prompts in a prefix
    cache. `expected`: rounds whose bodies are encoded before any clock runs.
    """

    prompts: int
    salt: str
    expected: int = 1


SALTED = ("vllm", "sglang", "vllm-sim", "sglang-sim")  # engines that keep apart what has another `cache_salt`


def prepare(
    prompt: Prompt, contract: Contract, model: str, engine: str, salt: str | None = None, api: Api = "chat"
) -> Prepared:
    """Encode the request for one prompt."""
    asked = contract.body(prompt, model, engine=engine, api=api)
    body = msgspec.json.encode(asked if salt is None else asked | {"cache_salt": salt})
    digest = hashlib.sha256(body).hexdigest()
    return Prepared(prompt=prompt, body=body, sha256=digest, forced_tokens=contract.forced_tokens(prompt))


def slots_of(worker: int, workers: int, users: int) -> tuple[int, ...]:
    """The users (numbers 0 to `users` - 1) that worker number `worker` runs: dealt out in turn, as Locust does.

    >>> slots_of(0, 2, 5), slots_of(1, 2, 5)
    ((0, 2, 4), (1, 3))
    """
    return tuple(range(worker, users, workers))


def indices(slots: Sequence[int], users: int, n: int | None) -> Iterator[int]:
    """The measured items of the process that runs these users: all i below `n` (None: endless) with i mod users among them.

    The shares of all processes are disjoint and make up the whole.

    >>> list(indices((0, 2), 3, 8))
    [0, 2, 3, 5, 6]
    """
    if slots:
        ordered = sorted(slots)
        for row in count():
            for slot in ordered:
                index = row * users + slot
                if n is not None and index >= n:
                    return
                yield index


class Script:
    """Item i of the measured sequence, or of the warm-up: fixed by the seed and i alone."""

    def __init__(
        self,
        workload: Workload,
        contract: Contract,
        *,
        model: str,
        engine: str,
        seed: int,
        rounds: Rounds | None = None,
        api: Api = "chat",
    ) -> None:
        if rounds is not None:
            workload = replace(workload, prompts=schedule(workload, seed=seed, n=min(rounds.prompts, len(workload.prompts))))
        self.workload = workload
        self._contract, self._model, self._engine = contract, model, engine
        self._seed, self._rounds, self._api = seed, rounds, api
        self._salted: dict[tuple[int, int, str], Prepared] = {}
        self._prepared = {p.id: self._prepare(p) for p in workload.prompts}
        self.most_turns = max(prompt.turns for prompt in workload.prompts)  # of its longest conversation; 1: it has none
        self._passes: dict[tuple[int, int], tuple[Prompt, ...]] = {}
        self.arrivals_s = workload.arrivals_s
        self._recorded = [self._prepared[p.id] for p in workload.by_arrival] if self.arrivals_s else []
        for number in range(0 if rounds is None else rounds.expected):
            for prompt in workload.prompts:
                self._of_round(seed, number, prompt)

    def measured(self, index: int) -> Item:
        """Item `index`: as recorded where all prompts have an arrival time, else by the seed's permutation."""
        if self._recorded:
            return Item("measure", index, self._recorded[index % len(self._recorded)], most_turns=self.most_turns)
        return Item("measure", index, self._at(self._seed, index), most_turns=self.most_turns)

    def warmup(self, index: int) -> Item:
        return Item("warmup", index, self._at(self._seed + WARMUP_SEED, index))

    def turns(self, index: int) -> int:
        """Requests of measured item `index`."""
        return self.measured(index).prepared.prompt.turns

    def tasks(self, requests: int) -> int:
        """The fewest items, from the first on, that make so many requests."""
        left, n = requests, 0
        while left > 0:
            left, n = left - self.turns(n), n + 1
        return n

    def turn(self, task: Item, messages: Sequence[Message], turn: int, turns: int, most_turns: int) -> Item:
        """Request `turn` of a task, with these messages in place of the prompt's own."""
        prompt = task.prepared.prompt.at_turn(turn, messages)
        return Item(task.phase, task.index, self._prepare(prompt), turn, turns, None, most_turns)

    def _prepare(self, prompt: Prompt, salt: str | None = None) -> Prepared:
        return prepare(prompt, self._contract, self._model, self._engine, salt, self._api)

    def _at(self, seed: int, index: int) -> Prepared:
        size = len(self.workload.prompts)
        number, place = divmod(index, size)
        key = (seed, number)
        if key not in self._passes:
            self._passes[key] = schedule(self.workload, seed=seed, n=size, start=number * size)
        return self._of_round(seed, number, self._passes[key][place])

    def _of_round(self, seed: int, number: int, prompt: Prompt) -> Prepared:
        """The body of a prompt, in its round."""
        if self._rounds is None:
            return self._prepared[prompt.id]
        key = (seed, number, prompt.id)
        if key not in self._salted:
            salt = f"{self._rounds.salt}-{'' if seed == self._seed else 'w'}{number}"
            self._salted[key] = self._prepare(prompt, salt)
        return self._salted[key]
