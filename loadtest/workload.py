"""What is sent: prompts with their checkable answers, from a generator or a file, in an order fixed by a seed."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from loadtest import formats, generators
from loadtest.errors import UsageError
from loadtest.prompts import Prompt, hint
from loadtest.records import RequestRecord, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Prompts in file order. `identity` is the SHA-256 of what `dump` writes of them: neither name nor source counts."""

    name: str
    prompts: tuple[Prompt, ...]
    identity: str
    source: str

    @property
    def checkable(self) -> int:
        """How many prompts have an answer that `answers.check` can judge."""
        return sum(p.answer is not None and p.answer_format in ("boxed", "json") for p in self.prompts)

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
    """Canonical content: one JSON line a prompt, keys sorted, what is null left out."""
    rows = ({key: value for key, value in msgspec.to_builtins(p).items() if value is not None} for p in prompts)
    return b"".join(msgspec.json.encode(row, order="sorted") + b"\n" for row in rows)


def load(spec: str) -> Workload:
    """The workload that `spec` names: a generator with its options (`math:n=64,seed=7`) or a file (see `formats`).

    Raises `UsageError` that names the file, the line, the key, and what was expected there.

    >>> len(load("math:n=3,seed=7").prompts)
    3
    """
    name = spec.partition(":")[0]
    if name in generators.GENERATORS:
        return make(name, generators.prompts(spec), spec)
    if not os.path.isfile(spec):  # also where it could name none: too long, or with a NUL
        known = ", ".join(generators.GENERATORS)
        raise UsageError(
            f"workload {spec!r}: expected a file or one of {known}; got neither{hint(name, generators.GENERATORS)}"
        )
    path = Path(spec)
    return make(path.stem, tuple(formats.read(path)), spec)


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


# --- replay


def from_run(run: Run, *, cell: str | None = None, concurrency: int | None = None) -> Workload:
    """The requests of one pass of a finished run, in order of arrival, with the lengths that came out: for replay.

    The pass is the first repeat of the lowest level (or of `concurrency`) of the first cell (or of `cell`) that finished
    any request. Population: measured requests that ended by themselves or by the limit, and whose tokens are known.
    `arrival_s` is the scheduled start, in seconds of the run after the first. A prompt asked again is named `ID#2`.
    Raises `UsageError` where the run's workload can no longer be read as it was, or nothing can be replayed.
    """
    original = of_run(run)
    requests = _replayable(run, cell, concurrency)
    prompts = {prompt.id: prompt for prompt in original.prompts}
    first_s = min((_started_s(request, requests[0]) for request in requests), default=0.0)
    counts: dict[str, int] = {}
    replayed = []
    for request in sorted(requests, key=lambda r: (_started_s(r, requests[0]), r.worker, r.user, r.seq)):
        counts[request.prompt_id] = count = counts.get(request.prompt_id, 0) + 1
        name = request.prompt_id if count == 1 else f"{request.prompt_id}#{count}"
        arrival_s = round(_started_s(request, requests[0]) - first_s, 6)
        thinking, answer = _lengths(request)
        replayed.append(
            replace(prompts[request.prompt_id], id=name, arrival_s=arrival_s, thinking_tokens=thinking, answer_tokens=answer)
        )
    return make(f"{original.name}-replay", tuple(replayed), str(run.path))


def of_run(run: Run) -> Workload:
    """The workload that a run was made with. Raises `UsageError` where it can no longer be read as it was."""
    described = run.manifest.get("workload") or {}
    original = load(str(described.get("source")))
    if original.identity != described.get("identity"):
        raise UsageError(
            f"{run.path}: workload: expected {described.get('identity')}, got {original.identity}:"
            f" {original.source} has changed; bring back the one that the run was made with"
        )
    return original


def _replayable(run: Run, cell: str | None, concurrency: int | None) -> list[RequestRecord]:
    for candidate in run.cells:
        for level in candidate.levels:
            if cell not in (None, candidate.id) or concurrency not in (None, level.concurrency):
                continue
            if found := [
                r for r in level.requests if r.phase == "measure" and r.outcome in _LENGTH_KNOWN and r.completion_tokens
            ]:
                return found
    wanted = ", ".join(f"{k} {v}" for k, v in (("cell", cell), ("concurrency", concurrency)) if v is not None) or "any cell"
    known = ", ".join(f"{c.id} at {sorted({v.concurrency for v in c.levels})}" for c in run.cells) or "none"
    raise UsageError(f"{run.path}: expected finished requests with known tokens in {wanted}, got none; cells: {known}")


_LENGTH_KNOWN = ("ok", "no_answer", "truncated")


def _started_s(request: RequestRecord, anchor: RequestRecord) -> float:
    """Scheduled start on the clock of `anchor`'s process (s)."""
    return request.scheduled_s + (request.clock_anchor_unix_s - anchor.clock_anchor_unix_s) * anchor.clock_speed


def _lengths(request: RequestRecord) -> tuple[int | None, int | None]:
    """Tokens of thinking and answer; the thinking is null where neither the server nor the chunks tell it."""
    total = request.completion_tokens or 0
    thinking = request.reasoning_tokens
    if not thinking and request.first_answer_chunk and request.chunk_tokens:
        thinking = sum(request.chunk_tokens[: request.first_answer_chunk])
    return (None, total) if thinking is None else (min(thinking, total), max(0, total - thinking))
