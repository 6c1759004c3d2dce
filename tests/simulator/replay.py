"""A closed loop in pure virtual time: what the server would do, without sockets and without waiting.

The same engine and the same reading of requests as behind the HTTP face, so that a study that is fast-forwarded and one that
is driven over HTTP differ by transport and lateness alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadtest.errors import UsageError
from loadtest.simulator.core.chat import Chat
from loadtest.simulator.core.engine import Engine
from loadtest.simulator.core.sequence import Request, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """One request in virtual seconds: `chunk_s` holds the time of each token with text, as a client would stamp it."""

    index: int  # which of the requests, from 0
    user: int  # which of the streams sent it, from 0
    arrival_s: float
    chunk_s: tuple[float, ...]
    first_answer_chunk: int | None
    finished_s: float | None  # null: cut off, still running at the end
    ended_s: float  # the end, or the moment of the cut
    prompt_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    completion_tokens: int
    finish_reason: str | None
    preemptions: int


@dataclass(slots=True)
class _Live:
    index: int
    user: int
    chat: Chat
    sequence: Sequence
    token_s: list[float]


def fast_forward(
    config,
    step_time_s,
    chats,
    concurrency,
    *,
    start_s=0.0,
    until_s=float("inf"),
    engine=None,
):
    """Keep exactly `concurrency` requests in flight until `chats` runs out or `until_s` comes; timelines in order of end.

    Each stream sends its next request in the instant its last one ends. Requests that `until_s` cuts come last, with
    `finished_s` null. Give an `engine` (of the same config) to go on with a warm prefix cache, not before its time.
    Raises UsageError where a request does not fit the KV cache at all.
    """
    if concurrency < 1:
        raise UsageError(f"concurrency: expected 1 or more, got {concurrency}")
    engine = engine or Engine(config, step_time_s)
    source = enumerate(chats)
    live: dict[str, _Live] = {}
    for user in range(concurrency):
        _send(engine, source, live, user, max(start_s, engine.now_s))
    while live and (next_s := engine.next_time_s()) is not None and next_s <= until_s:
        leap = engine.leap(until_s)
        if leap is not None:
            for request_id in leap.request_ids:
                live[request_id].token_s.extend(leap.times_s)
            continue
        for event in engine.step():
            if event.time_s > until_s:
                continue
            if event.n_tokens:
                live[event.request_id].token_s.append(event.time_s)
            if event.kind == "finished":
                done = live.pop(event.request_id)
                yield _timeline(done, event.time_s, event.time_s)
                _send(engine, source, live, done.user, event.time_s)
    for cut in live.values():
        engine.abort(cut.sequence.request.id)
        yield _timeline(cut, None, until_s)


def _send(engine, source, live, user, now_s):
    index, chat = next(source, (0, None))
    if chat is None:
        return
    request_id = f"{now_s!r}-{index}"
    request = Request(id=request_id, prompt=chat.prompt, output_tokens=chat.output.output_tokens, max_tokens=chat.max_tokens)
    engine.submit(request, now_s)
    live[request_id] = _Live(index, user, chat, engine.sequences[request_id], [])


def _timeline(live, finished_s, ended_s):
    output, sequence = live.chat.output, live.sequence
    n = len(live.token_s)
    silent = set()  # tokens without text, from 1
    if live.chat.separates and output.closes_thinking:
        silent.add(output.thinking_tokens)
    if output.finish_reason == "stop":
        silent.add(output.output_tokens)
    first = output.first_answer_token
    chunk_of = None if first is None or first > n else first - 1 - sum(1 for token in silent if token < first)
    return Timeline(
        index=live.index,
        user=live.user,
        arrival_s=sequence.arrival_s,
        chunk_s=tuple(t for token, t in enumerate(live.token_s, start=1) if token not in silent),
        first_answer_chunk=chunk_of,
        finished_s=finished_s,
        ended_s=ended_s,
        prompt_tokens=sequence.prompt_tokens,
        cached_tokens=sequence.cached_tokens,
        reasoning_tokens=min(n, output.thinking_tokens),
        completion_tokens=n,
        finish_reason=output.finish_reason if finished_s is not None else None,
        preemptions=sequence.preemptions,
    )
