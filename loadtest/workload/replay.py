"""A finished run as a workload that can be replayed."""

from __future__ import annotations

from dataclasses import replace

from loadtest.errors import UsageError
from loadtest.records.read import Run
from loadtest.records.schema import RequestRecord
from loadtest.workload.workload import Workload, load, make

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
    lengths = next((one.engine.prompt_lengths for one in run.cells if requests and one.id == requests[0].cell), None)
    original = original if lengths is None else load(lengths.workload)
    prompts = {prompt.id: prompt for prompt in original.prompts}
    first_s = min((_started_s(request, requests[0]) for request in requests), default=0.0)
    counts: dict[str, int] = {}
    replayed = []
    unknown = next((one.prompt_id for one in requests if one.prompt_id not in prompts), None)
    if unknown is not None:
        raise UsageError(f"{run.path}: prompt_id: expected one of workload {original.name}, got {unknown[:100]!r}")
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
    described = run.manifest.workload
    if described is None:
        raise UsageError(f"{run.path}: workload: expected one in manifest.json, found none; name a run of `loadtest run`")
    original = load(described.source)
    if original.identity != described.identity:
        raise UsageError(
            f"{run.path}: workload: expected {described.identity}, got {original.identity}:"
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
    """Tokens of thinking and answer; the thinking is None where neither the server nor the chunks tell it."""
    total = request.completion_tokens or 0
    thinking = request.reasoning_tokens
    if not thinking and request.first_answer_chunk and request.chunk_tokens:
        thinking = sum(request.chunk_tokens[: request.first_answer_chunk])
    return (None, total) if thinking is None else (min(thinking, total), max(0, total - thinking))
