"""Steps that compute prompts: who is admitted, in which chunks, and which engine's rule keeps room. No clock, no I/O."""

from __future__ import annotations

import numpy as np

from loadtest.simulator.core.behaviour import RESERVE_CLIP_TOKENS, RESERVE_RATIO_LOW
from loadtest.simulator.fleet.columns import NEVER, RESERVE_DECAY, Column, Columns, Rows
from loadtest.simulator.fleet.preemption import preempt
from loadtest.simulator.fleet.requests import NOBODY, Ids


def prefill(state: Columns, rows: Rows) -> None:
    """One step that computes prompts: the unfinished one, then waiting ones while budget, seats and room last."""
    streams = state.decoding[rows] if state.mixed else np.zeros(len(rows), np.int64)
    context = (state.context[rows] + streams) * state.mixed
    step = _Step(rows, state.budget - streams, state.room(rows, int(state.mixed)))
    _continue(state, step)
    waiting = np.arange(len(rows))
    while len(waiting):
        waiting = _admit(state, step, waiting)
    busy = step.tokens > 0
    seconds = state.speed.step_s(step.tokens, step.pairs, streams, context)
    state.time_s[rows] += np.where(busy, seconds, 0.0)
    if state.mixed:
        state.steps[rows] += busy
        state.context[rows] += np.where(busy, streams, 0)
    _tell_first_tokens(state, step)


class _Step:
    """A step with prompts in it, one column a replica: what it computes, and what budget and room are left."""

    __slots__ = ("budget", "first_at", "first_ids", "pairs", "room", "rows", "tokens")

    def __init__(self, rows: Rows, budget: Column, room: Column) -> None:
        self.rows, self.budget, self.room = rows, budget, room
        self.tokens, self.pairs = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
        self.first_at: list[Rows] = []  # whose first token ends this step: places in `rows`, and ids
        self.first_ids: list[Ids] = []

    def take(self, at: Rows, tokens: Column, computed: Column, pages: Column) -> None:
        """Compute these prompt tokens after those computed before, into pages of so many tokens."""
        self.budget[at] -= tokens
        self.room[at] -= pages
        self.tokens[at] += tokens
        self.pairs[at] += tokens * computed + tokens * (tokens + 1) // 2


def _continue(state: Columns, step: _Step) -> None:
    """The next chunk of prompts that are computed in part; one that finds no room goes back to its queue."""
    at = (state.part[step.rows] >= 0).nonzero()[0]
    if not len(at):
        return
    rows = step.rows[at]
    tokens = np.minimum(state.part_left[rows], step.budget[at])
    done = state.part_done[rows]
    pages = state.paged(done + tokens) - state.paged(done)
    fits = pages <= step.room[at]
    for row in rows[~fits].tolist():
        preempt(state, row)
    at, rows, tokens, done, pages = at[fits], rows[fits], tokens[fits], done[fits], pages[fits]
    step.take(at, tokens, done, pages)
    state.part_done[rows] += tokens
    state.part_left[rows] -= tokens
    over = state.part_left[rows] == 0
    at, rows = at[over], rows[over]
    ids = state.part[rows]
    state.part[rows], state.part_done[rows] = NOBODY, 0
    _seat(state, step, at, rows, ids)


def _admit(state: Columns, step: _Step, at: Rows) -> Rows:
    """Take in the head of each queue that may start in this step; the places where another one may follow."""
    rows = step.rows[at]
    ids = state.head[rows]
    may = (ids >= 0) & (step.budget[at] > 0) & ~state.blocked[rows] & state.has_seat(rows) & (state.part[rows] == NOBODY)
    may &= state.requests.arrival_s[ids] <= state.time_s[rows]
    at, rows, ids = at[may], rows[may], ids[may]
    if not len(at):
        return at
    known = state.requests.prompt_tokens[ids].astype(np.int64)
    cached = _cached(state, step, at, ids, known)
    tokens = np.minimum(known - cached, step.budget[at])
    pages = state.paged(cached + tokens)
    fits = _fits_reserve(state, step, at, rows, ids) if state.reserves else pages <= step.room[at]
    state.blocked[rows[~fits]] = True
    at, rows, ids, known, tokens, cached, pages = (c[fits] for c in (at, rows, ids, known, tokens, cached, pages))
    state.head[rows] = state.requests.after[ids]
    state.queued[rows] -= 1
    if state.kept:
        for name in ids.tolist():
            state.kept.pop(name, None)
    step.take(at, tokens, cached, pages)
    whole = tokens + cached == known
    _seat(state, step, at[whole], rows[whole], ids[whole])
    part = rows[~whole]
    state.part[part] = ids[~whole]
    state.part_done[part] = (tokens + cached)[~whole]
    state.part_left[part] = (known - tokens - cached)[~whole]
    return at[state.head[rows] >= 0]


def _cached(state: Columns, step: _Step, at: Rows, ids: Ids, known: Column) -> Column:
    """Tokens of preempted requests that are still in the KV cache: room that nobody gave back after them."""
    cached = np.zeros(len(ids), np.int64)
    for place, name in enumerate(ids.tolist() if state.kept else ()):
        if name in state.kept:
            computed, released = state.kept[name]
            still = int(step.room[at[place]]) - int(state.released[step.rows[at[place]]]) + released
            cached[place] = max(0, min(still, computed, int(known[place]) - 1)) // state.page * state.page
    return cached


def _fits_reserve(state: Columns, step: _Step, at: Rows, rows: Rows, ids: Ids) -> Column:
    """Does the newcomer leave running streams the share of their output that is held back for them?"""
    known, output = state.requests.prompt_tokens[ids], state.requests.output_tokens[ids]
    own = np.minimum(np.maximum(state.max_tokens, output), RESERVE_CLIP_TOKENS)
    streams = state.decoding[rows]
    reserved = _reserved(state, rows)
    ratio = state.ratio[rows]
    missing = known + own + reserved * ratio + streams - step.room[at]
    fits: Column = (missing <= 0) | (streams == 0)
    gain = np.where(ratio > RESERVE_RATIO_LOW, reserved * RESERVE_DECAY, 0.0) - streams
    wait = np.ceil(missing / np.where(gain > 0, gain, 1.0))
    state.recheck[rows] = np.where(fits | (gain <= 0), NEVER, np.maximum(wait, 1)).astype(np.int64)
    return fits


def _reserved(state: Columns, rows: Rows) -> Column:
    """Tokens of output still allowed to the streams of each replica, as far as admission counts them."""
    width = max(1, int(state.decoding[rows].max()))
    used = np.arange(width) < state.decoding[rows][:, None]
    generated = state.steps[rows][:, None] - state.began[rows, :width] + 1
    left = state.max_tokens - generated if state.max_tokens else state.end[rows, :width] - state.steps[rows][:, None]
    reserved: Column = (np.clip(left, 0, RESERVE_CLIP_TOKENS) * used).sum(axis=1)
    return reserved


def _seat(state: Columns, step: _Step, at: Rows, rows: Rows, ids: Ids) -> None:
    """A prompt is computed with this step: its stream decodes from the next one on."""
    if not len(ids):
        return
    state.seat(rows, ids, state.steps[rows] + state.mixed)
    step.first_at.append(at)
    step.first_ids.append(ids)


def _tell_first_tokens(state: Columns, step: _Step) -> None:
    for at, ids in zip(step.first_at, step.first_ids, strict=True):
        new = np.isnan(state.requests.ttft_s[ids])
        at, ids = at[new], ids[new]
        state.requests.ttft_s[ids] = state.time_s[step.rows[at]] - state.requests.arrival_s[ids]
