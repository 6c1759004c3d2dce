"""A run folder made of the results of another tool, so that every command that reads a run reads it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from loadtest.errors import UsageError
from loadtest.records.engine_facts import EngineFacts
from loadtest.records.folder import level_name, level_path
from loadtest.records.imported import Imported, ImportedPass, NotTold
from loadtest.records.manifest import IMPORTED, Manifest, ManifestCell
from loadtest.records.peers.catalogue import Told
from loadtest.records.peers.request import Place, record_of
from loadtest.records.peers.result import PeerArrivals, PeerPass, PeerRequest
from loadtest.records.schema import EngineName, LengthMode
from loadtest.records.write import JsonlWriter, write_manifest, write_sealed

MOST_CONCURRENCY = 1_000_000
_FORCED = "That every output was as long as it was forced to be is what `--mode equal-work` said."

_MODEL_CHARS = 300

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What only the user knows of what was measured; None: what the files tell."""

    engine: EngineName | None = None
    model: str | None = None
    tp: int | None = None
    gpu: str | None = None
    concurrency: int | None = None
    mode: LengthMode | None = None


@dataclass(frozen=True, slots=True)
class _Pass:
    """One pass with its place in the run."""

    told: Told
    of: PeerPass
    concurrency: int
    repeat: int


def write_imported_run(out: Path, tolds: Sequence[Told], said: Said, command: str) -> Manifest:
    """Write the run: one cell, a level for each concurrency, a repeat for each file of it. Nothing is started or sent.

    Raises `UsageError`: the files are of two tools, models or rates, or tell no concurrency and nobody does.
    """
    if (out / "manifest.json").exists():
        raise UsageError(f"{out}: expected a new folder, got one with a run; name another --out")
    tool = _common("tool", [(one.file.path, one.reader.tool) for one in tolds])
    passes = _placed(tolds, said)
    arrivals = _arrivals(passes)
    facts = _engine(tolds, said)
    imported = Imported(
        tool=tool,
        version=_common("version", [(one.file.path, one.result.version) for one in tolds]),
        passes=tuple(map(_described, passes)),
        not_told=tuple(_not_told([request for one in passes for request in one.of.requests])),
        notes=(*tolds[0].reader.notes, *([_FORCED] if said.mode == "equal-work" else [])),
    )
    kept = [one for one in passes if one.of.requests]
    for one in kept:
        _write_requests(out, facts.id, one, re.sub(r"\W+", "-", tool.lower()))
    write_sealed(out / "cells" / facts.id / "engine.json", facts)
    manifest = Manifest(
        run_id=out.resolve().name,
        complete=True,
        driven=IMPORTED,
        mode=said.mode,
        commands=(command,),
        scenario_options=None if arrivals is None else {"arrivals": arrivals.kind, "rate": arrivals.rate},
        levels=tuple(sorted({one.concurrency for one in kept})),
        repeats=max((one.repeat for one in kept), default=0),
        passes=tuple(sorted(f"{facts.id}/{level_name(one.concurrency, one.repeat)}" for one in kept)),
        imported=imported,
        cells=(ManifestCell(id=facts.id, engine=facts.engine, model=facts.model, tp=facts.tp, gpu=facts.gpu),),
    )
    write_manifest(out, manifest)
    return manifest


def _common(what: str, found: Sequence[tuple[Path, _T]]) -> _T:
    """What all files say alike."""
    (first, value), *others = found
    for path, other in others:
        if other != value:
            expected = f"expected {_short(value)}, as in {first}, got {_short(other)}"
            raise UsageError(f"{path}: {what}: {expected}; import it as a run of its own")
    return value


def _short(value: object) -> str:
    """As Python shows it, at most 60 characters: a name in a file may be anything.

    >>> _short("qwq-32b"), _short(None)
    ("'qwq-32b'", 'None')
    """
    return repr(value)[:60]


def _placed(tolds: Sequence[Told], said: Said) -> list[_Pass]:
    repeats = Counter[int]()
    found = []
    for told in tolds:
        for told_pass in told.result.passes:
            one = _forced(told_pass) if said.mode == "equal-work" else told_pass
            concurrency = one.concurrency or said.concurrency
            if concurrency is None:
                raise UsageError(f"{told.file.path}: expected the concurrency in it, got none; say it with --concurrency C")
            if not 1 <= concurrency <= MOST_CONCURRENCY:
                raise UsageError(f"{told.file.path}: concurrency: expected 1 to {MOST_CONCURRENCY}, got {concurrency}")
            repeats[concurrency] += 1
            found.append(_Pass(told, one, concurrency, repeats[concurrency]))
    return found


def _forced(one: PeerPass) -> PeerPass:
    """The pass, where the user says that the tool forced every length: a response that ended is then whole."""
    return replace(one, requests=tuple(replace(request, forced=True) for request in one.requests))


def _arrivals(passes: Sequence[_Pass]) -> PeerArrivals | None:
    return _common("arrivals", [(one.told.file.path, one.of.arrivals) for one in passes])


def _engine(tolds: Sequence[Told], said: Said) -> EngineFacts:
    model = said.model or _common("model", [(one.file.path, one.result.model) for one in tolds])
    told = tolds[0].result
    engine = said.engine or told.engine or "other"
    tp = said.tp or told.tp
    model = None if model is None else model[:_MODEL_CHARS]
    name = re.sub(r"[^a-z0-9.-]+", "-", (model or "").rstrip("/").rsplit("/", 1)[-1].lower()).strip("-.") or "model"
    return EngineFacts(
        id="_".join([engine, name[:100], *([] if tp is None else [f"tp{tp}"])]),
        engine=engine,
        engine_version=None if told.engine_version is None else told.engine_version[:100],
        model=model,
        tp=tp,
        gpu=said.gpu,
        simulated=engine.endswith("-sim"),
        imported=True,
    )


def _described(one: _Pass) -> ImportedPass:
    return ImportedPass(
        file=one.told.file.path.name,
        sha256=one.told.file.sha256,
        concurrency=one.concurrency,
        repeat=one.repeat,
        n_requests=len(one.of.requests),
        date=one.of.date,
        figures=one.of.figures,
    )


def _write_requests(out: Path, cell: str, one: _Pass, worker: str) -> None:
    starts = [request.start_s for request in one.of.requests if request.start_s is not None]
    zero_s = min(starts, default=0.0)
    place = Place(out.resolve().name, cell, one.concurrency, one.repeat, worker, one.told.file.path.name, zero_s)
    records = [record_of(request, seq, place) for seq, request in enumerate(one.of.requests)]
    writer = JsonlWriter(level_path(out, cell, one.concurrency, one.repeat), "requests-imported")
    try:
        for record in records:
            writer.write(record)
    finally:
        writer.close()


def _not_told(requests: Sequence[PeerRequest]) -> Iterator[NotTold]:
    """What the files do not hold, and what is unknown for it."""
    yield NotTold("the inference contract", "whether two runs asked alike: sampling, thinking, limits")
    yield NotTold("the prompts", "whether two runs had the same ones; whether answers are right")
    yield NotTold("its own health", "whether the load generator kept up")
    yield NotTold("the server's counters", "client against server, preemptions, cache hits")
    if not requests:
        yield NotTold("single requests", "every figure but the tool's own, and every interval")
        return
    alive = [one for one in requests if one.error is None]
    if any(one.ending is None and not one.forced for one in alive):
        yield NotTold(
            "how a response ended", "time to final answer, answers per hour; truncated, empty and cut-off responses"
        )
    if any(one.first_s is None and one.answer_s is not None for one in alive):
        yield NotTold("text before the answer", "time to first token, tokens/s per user")
    if all(one.answer_s is None for one in alive):
        yield NotTold("where thinking ends", "time to first answer text, thinking time, tokens thought")
    if any(one.start_s is None for one in requests):
        yield NotTold("when each request was sent", "total tokens/s, the steady window, the timeline")
    yield NotTold("when each request was due, and whose it was", "waiting in the load generator, the timeline")
    if any(one.prompt_id is None for one in requests):
        yield NotTold("which request had which prompt", "output lengths prompt by prompt")
    if any(one.gaps_s is None for one in alive):
        yield NotTold("when each token came", "gaps between tokens, total tokens/s of the steady window")
    else:
        yield NotTold("the tokens of each chunk", "gaps between tokens; those between chunks are known")
