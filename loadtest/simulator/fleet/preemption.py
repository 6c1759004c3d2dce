"""A full KV cache: which stream gives up its room, and where its request waits then. No clock, no I/O."""

from __future__ import annotations

import numpy as np

from loadtest.simulator.core.behaviour import RETRACT_AHEAD_STEPS
from loadtest.simulator.fleet.columns import Columns
from loadtest.simulator.fleet.requests import NOBODY


def preempt(state: Columns, row: int) -> None:
    """Make room as the engine does: the newest stream to the head of the queue, or the least advanced one to its end."""
    if state.part[row] >= 0:
        state.released[row] += state.paged(state.part_done[row])
        _requeue(state, row, int(state.part[row]), 0, int(state.part_done[row]))
        state.part[row], state.part_done[row], state.part_left[row] = NOBODY, 0, 0
        state.blocked[row] = state.mixed
        return
    here = np.array([row])
    while state.decoding[row] > 1:
        _give_up(state, row, _victim(state, row))
        if state.room(here, 1 if state.mixed else RETRACT_AHEAD_STEPS)[0] >= 0:
            break
    state.blocked[row] = state.mixed
    if state.reserves:
        streams = int(state.decoding[row])
        generated = int((state.steps[row] - state.began[row, :streams] + 1).sum()) + RETRACT_AHEAD_STEPS * streams
        allowed = state.max_tokens * streams or int(state.requests.output_tokens[state.request[row, :streams]].sum())
        state.ratio[row] = min(1.0, generated / max(allowed, 1))


def _victim(state: Columns, row: int) -> int:
    """The stream admitted last; or, of those with the least output, the one with the longest prompt."""
    streams = state.decoding[row]
    if state.mixed:
        return int(state.rank[row, :streams].argmax())
    began = state.began[row, :streams]
    prompts = state.requests.prompt_tokens[state.request[row, :streams]]
    return int(np.where(began == began.max(), prompts, 0).argmax())


def _give_up(state: Columns, row: int, at: int) -> None:
    name = int(state.request[row, at])
    generated = int(state.steps[row] - state.began[row, at]) + 1
    computed = int(state.requests.prompt_tokens[name]) + generated - 1
    state.vacate(np.array([row]), np.array([at]), np.array([computed]))
    _requeue(state, row, name, generated, computed)


def _requeue(state: Columns, row: int, name: int, generated: int, computed: int) -> None:
    """Its output so far is kept, and computed again with the prompt."""
    requests = state.requests
    state.preemptions += 1
    requests.prompt_tokens[name] += generated
    requests.output_tokens[name] -= generated
    if state.caches:
        state.kept[name] = (computed, int(state.released[row]))
    state.queued[row] += 1
    if state.head[row] == NOBODY:
        state.head[row] = state.tail[row] = name
        requests.after[name] = NOBODY
    elif state.mixed:
        requests.after[name] = state.head[row]
        state.head[row] = name
    else:
        requests.after[state.tail[row]] = name
        requests.after[name] = NOBODY
        state.tail[row] = name
