"""What is sent: prompts with their checkable answers, from a generator or a file, in an order fixed by a seed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from loadtest.errors import UsageError
from loadtest.records.manifest import RunWorkload
from loadtest.records.schema import LengthMode
from loadtest.workload import exact, generators, source
from loadtest.workload.forms import generator as formed
from loadtest.workload.prompts import CHECKED, Prompt, hint
from loadtest.workload.traces import trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Prompts in file order. `identity` is the SHA-256 of what `dump` writes of them: neither name nor source counts."""

    name: str
    prompts: tuple[Prompt, ...]
    identity: str
    source: str

    @property
    def facts(self) -> RunWorkload:
        """What the manifest says of it."""
        return RunWorkload(source=self.source, name=self.name, identity=self.identity, n_prompts=len(self.prompts))

    @property
    def checkable(self) -> int:
        """How many prompts have an answer that `answers.check` can judge."""
        return sum(p.answer is not None and p.answer_format in CHECKED for p in self.prompts)

    @property
    def has_steps(self) -> bool:
        """Has any of its tasks calls of tools before the answer?"""
        return any(prompt.steps for prompt in self.prompts)

    @property
    def by_arrival(self) -> tuple[Prompt, ...]:
        """The prompts as they arrived; those without a time first, all else in file order."""
        return tuple(sorted(self.prompts, key=lambda prompt: prompt.arrival_s or 0.0))

    @property
    def arrivals_s(self) -> tuple[float, ...]:
        """When each prompt arrived (s after the first), in that order; empty unless all of them say so."""
        times_s = [p.arrival_s for p in self.by_arrival if p.arrival_s is not None]
        return tuple(one - times_s[0] for one in times_s) if len(times_s) == len(self.prompts) else ()


def make(name: str, prompts: tuple[Prompt, ...], source: str) -> Workload:
    """A workload of these prompts, its identity computed.

    >>> prompts = (Prompt(id="a", messages=({"role": "user", "content": "Why?"},)),)
    >>> make("one", prompts, "").identity == make("another", prompts, "file.jsonl").identity
    True
    """
    if not prompts:
        raise UsageError(f"{source}: expected at least one prompt, got none; add one or name another workload")
    seen: dict[str, int] = {}
    for number, prompt in enumerate(prompts, start=1):
        first = seen.setdefault(prompt.id, number)
        if first != number:
            raise UsageError(f"{source}: id: prompt {number} is named {prompt.id!r} as prompt {first} is; make ids unique")
    return Workload(name=name, prompts=prompts, identity=_identity(prompts), source=source)


def _identity(prompts: tuple[Prompt, ...]) -> str:
    return hashlib.sha256(_lines(prompts)).hexdigest()


def _lines(prompts: tuple[Prompt, ...]) -> bytes:
    """Canonical content: one JSON line a prompt, keys sorted, what is None left out."""
    rows = ({key: value for key, value in msgspec.to_builtins(p).items() if value not in (None, ())} for p in prompts)
    return b"".join(msgspec.json.encode(row, order="sorted") + b"\n" for row in rows)


def load(spec: str) -> Workload:
    """The workload that `spec` names: a generator with its options (`math:n=64,seed=7`) or a file or data set (see
    `source`).

    Raises `UsageError` that names the file, the line, the key, and what was expected there.

    >>> len(load("math:n=3,seed=7").prompts)
    3
    """
    name = spec.partition(":")[0]
    if name in generators.GENERATORS:
        return make(name, generators.prompts(spec), spec)
    if name == trace.NAME:
        return make(Path(trace.trace_spec(spec).path).stem, trace.trace_prompts(spec), spec)
    found = source.find(spec)
    if found is None:
        known = ", ".join(generators.GENERATORS)
        raise UsageError(
            f"workload {spec!r}: expected a file or one of {known}; got neither{hint(name, generators.GENERATORS)}"
        )
    return make(found.name, tuple(source.read_prompts(found)), spec)


def usual_mode(spec: str) -> LengthMode:
    """How outputs end unless a mode is given: a workload of exact lengths forces them.

    >>> usual_mode("math:n=4"), usual_mode("synthetic:isl=64,osl=8")
    ('natural', 'equal-work')
    """
    return "equal-work" if exact.is_exact(spec) or formed.is_forced(spec) else "natural"


def schedule(workload: Workload, *, seed: int, n: int, start: int = 0) -> tuple[Prompt, ...]:
    """Items `start` to `start + n` of an endless sequence of passes over the workload, each pass a fresh permutation.

    Item i depends on the seed and on i alone: it is the same for any number of users and workers.

    >>> w = load("math:n=5")
    >>> schedule(w, seed=1, n=9)[4:] == schedule(w, seed=1, n=5, start=4)
    True
    """
    size = len(workload.prompts)
    orders: dict[int, list[int]] = {}
    items = []
    for i in range(start, start + n):
        number, place = divmod(i, size)
        if number not in orders:
            orders[number] = _permutation(seed, number, size)
        items.append(workload.prompts[orders[number][place]])
    return tuple(items)


def _permutation(seed: int, number: int, size: int) -> list[int]:
    """Order of pass `number`: indices by a hash, so that no version of Python's random module matters."""
    return sorted(range(size), key=lambda index: hashlib.sha256(f"{seed}/{number}/{index}".encode()).digest())


def dump(workload: Workload) -> bytes:
    """The workload as JSON Lines that `load` reads back with equal identity."""
    return _lines(workload.prompts)
