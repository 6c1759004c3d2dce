"""Raw facts on disk: the schema of a run folder, its writer and its reader. Nothing here is derived.

History of the format
---------------------
1   first version.

Layout (every field: docs/reference.md)::

    RUN/manifest.json                              `manifest.Manifest`
    RUN/programs.json                              what came of running the programs among the answers, where asked for
    RUN/cells/CELL/engine.json, engine.log         `engine_facts.EngineFacts`, and what the engine printed
    RUN/cells/CELL/cNN-rR/requests-*.jsonl         one line per request, one file per process
    RUN/cells/CELL/bursts-cNN-rR/                  the same of a pass of bursts (`workload.bursts`)
    RUN/cells/CELL/cNN-rR/server_metrics.jsonl     the server's own counters, 1 Hz
    RUN/cells/CELL/cNN-rR/gpu_metrics.jsonl        power, memory and utilisation of each GPU, 1 Hz, where NVML tells
    RUN/cells/CELL/cNN-rR/client_health-*.jsonl    the load generator's own state, 1 Hz

All times are offsets in seconds on the clock of the process that wrote them (`loadtest.clock`); every line carries
that clock's anchor and speed, so that a line means the same wherever it is moved to.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, get_args

import msgspec

from loadtest.errors import RecordError

# Still waited for when it stopped: its times are known to be longer. Other failures have no time to wait for.
CENSORED = frozenset({"cut_off", "truncated", "timeout", "stalled"})

FINISHED = frozenset({"ok", "no_answer", "truncated", "ended"})  # the server ended it by itself

# The server, or the way to it, failed: not the model, nor the end of the level.
FAILED = frozenset({"http_error", "timeout", "stalled", "connection_error", "protocol_error", "server_error", "failed"})

SCHEMA_VERSION = 1

Phase = Literal["warmup", "measure"]

EngineName = Literal["sglang", "vllm", "sglang-sim", "vllm-sim", "other"]

LengthMode = Literal["natural", "equal-work"]  # stop by itself, or at a length that is forced

Mode = Literal["natural", "equal-work", "decision"]  # of a run; decision: bursts, and one natural run of each engine

Api = Literal["chat", "completions", "responses", "messages"]  # the endpoint that is asked (`workload.apis`)

TokenCountSource = Literal["server", "tokenizer", "chunks", "tool"]  # tool: of another tool, which does not say how

OutputForm = Literal["call", "call or text", "json"]  # a call of a tool, a call if the model likes, JSON by a schema

Priority = Literal["realtime", "nice", "normal"]

StampSource = Literal["kernel", "process"]

Outcome = Literal[
    "ok",
    "no_answer",
    "truncated",
    "http_error",
    "timeout",
    "stalled",
    "connection_error",
    "protocol_error",
    "server_error",
    "cut_off",
    "ended",
    "failed",
]

# What an imported record does not hold. start: when it was sent, so that its times count from then. schedule: when it was
# due. chunks: when each chunk came, so that `chunk_s` has the first and the last alone. tokens: how many each chunk had.
# prompt: which prompt it was, so that `prompt_id` is its own. first: when its first text came, so that `chunk_s` begins with
# the answer.
Lack = Literal["start", "schedule", "chunks", "tokens", "prompt", "first"]

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

ANSWER_LIMIT_BYTES = 4096

TOOL_CALLS_KEPT = 16

# What a clock of ours can have said; anything else in a file is damage.
Seconds = Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)]  # an offset: within 30 years

UnixSeconds = Annotated[float, msgspec.Meta(ge=0, le=1e11)]

ClockSpeed = Annotated[float, msgspec.Meta(gt=0, le=1e6)]


def about(description: str) -> msgspec.Meta:
    """What a field is: in `Annotated[T, about("...")]`, the one place that says so."""
    return msgspec.Meta(description=description)


_ABSENT = re.compile(r"Object missing required field `(\w+)`")


def damage_text(said: str) -> str:
    """The message of a `msgspec.ValidationError` with the key first.

    >>> damage_text("Expected `int`, got `str` - at `$.cells[0].tp`")
    'cells[0].tp: expected int, got str'
    >>> damage_text("Object missing required field `health` - at `$`")
    'health: expected a value, got none'
    """
    what, _, place = said.replace("Invalid enum value", "Expected a value of its list, got").partition(" - at ")
    keys = [place.replace("`", "").removeprefix("key in ").removeprefix("$").removeprefix(".")]
    if absent := _ABSENT.match(what):
        keys, what = [*keys, absent[1]], "Expected a value, got none"
    key = ".".join(key for key in keys if key)
    what = what[:1].lower() + what[1:].replace("`", "")
    return f"{key}: {what}" if key else what


@dataclass(frozen=True, slots=True)
class RequestError:
    """Why a request failed: a stable `kind`, a sentence that names the cause, and the HTTP status if there was one."""

    kind: str
    message: str
    http_status: int | None = None


class LateChunks(NamedTuple):
    """Chunks that one read found together. Each came between `earliest_s` and the time of the last, and `chunk_s` spreads
    them evenly over that span."""

    first_chunk: int
    chunks: int
    earliest_s: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One call of a tool, as the model made it. `arguments` is JSON, if the model wrote it right, and its start where it is
    long. `first_chunk` and `last_chunk`: index of the chunks in which it began and came to its end."""

    name: str
    arguments: str
    first_chunk: int
    last_chunk: int
    id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request as it happened. Times are offsets (s); counts are tokens; None means "not known", never 0.

    `chunk_s` holds the arrival of each chunk that carried text, thinking or answer; `chunk_tokens` the tokens that the
    server says each of them carried (same length) or None; `first_answer_chunk` the index of the first with answer text.
    """

    run_id: str
    cell: str
    concurrency: int
    repeat: int
    phase: Phase
    worker: str
    user: int
    seq: int
    prompt_id: str
    scheduled_s: Seconds
    sent_s: Seconds | None
    headers_s: Seconds | None
    chunk_s: tuple[Seconds, ...]
    chunk_tokens: tuple[int, ...] | None
    first_answer_chunk: int | None
    ended_s: Seconds
    prompt_tokens: int | None
    completion_tokens: int | None
    reasoning_tokens: int | None
    cached_tokens: int | None
    token_count_source: TokenCountSource
    finish_reason: str | None
    outcome: Outcome
    error: RequestError | None
    answer: str | None
    answer_correct: bool | None
    request_sha256: str
    schema_version: int = SCHEMA_VERSION
    # Added to the contract's fields:
    clock_anchor_unix_s: UnixSeconds = 0.0  # wall clock (Unix s) at offset 0 of this process
    clock_speed: ClockSpeed = 1.0  # seconds of the run per wall second; not 1 only against a simulator
    connect_s: Seconds | None = None  # time spent connecting inside this request; 0 where a connection was open already
    thinking_field: str | None = None  # where thinking arrived: reasoning, reasoning_content, inline; None if nowhere
    think_closed: bool | None = None  # inline thinking: was `</think>` seen; None where the server splits
    forced_tokens: int | None = None  # equal-work: the output length that was forced
    prompt_chars: int | None = None
    text_bytes: int | None = None  # of all text that came, thinking too, in UTF-8; None: not measured
    text_tokens: int | None = None  # of the same by a local tokenizer, where one was given
    task: int | None = None  # which task of dependent requests it belongs to, counted over the level; None: on its own
    turn: int | None = None  # its place in the task, from 0
    task_turns: int | None = None  # requests that the task takes when all goes well
    output_end: str | None = None  # last 4,000 characters of all text, thinking too, where `answer` does not hold them
    resends: int = 0  # times it was sent anew within its own wait: its kept connection had been closed before it came
    burst: int | None = None  # which burst of its pass it belongs to, from 0; None: none
    endpoint: str | None = None  # which endpoint was asked, where a router has a second one; None: the cell's own
    replica: str | None = None  # which of several servers was asked, its host and port; None: there is one
    stamped_by: StampSource | None = None  # who timed the arrivals: the kernel, or this process when it read; None: not said
    unread_s: Seconds | None = None  # the longest that bytes lay unread by this process; 0: at most 1 ms of wall time
    write_s: Seconds | None = None  # how long the first write took: the request left so much after `sent_s` at most
    asked_prompt_tokens: int | None = None  # the length that its prompt was made to have; None: any
    late_chunks: tuple[LateChunks, ...] = ()  # whose arrival is known within bounds only, of more than 0.1 ms of wall time
    lacks: tuple[Lack, ...] = ()  # what is not known of it, as another tool measured it
    output_form: OutputForm | None = None  # what its output had to be; None: any text
    form_valid: bool | None = None  # is it so: calls by their tools' schemas, or JSON by its own; None: nothing to judge
    tool_calls: tuple[ToolCall, ...] = ()  # the first 16

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise RecordError(f"outcome: expected one of {', '.join(OUTCOMES)}, got {self.outcome!r}")
        if self.chunk_tokens is not None and len(self.chunk_tokens) != len(self.chunk_s):
            raise RecordError(
                f"chunk_tokens: expected {len(self.chunk_s)} entries, one for each of chunk_s, got {len(self.chunk_tokens)}"
            )
        if self.first_answer_chunk is not None and not 0 <= self.first_answer_chunk < len(self.chunk_s):
            raise RecordError(
                f"first_answer_chunk: expected an index into {len(self.chunk_s)} chunks, got {self.first_answer_chunk}"
            )
        for call in self.tool_calls:
            if not 0 <= call.first_chunk <= call.last_chunk < len(self.chunk_s):
                got = f"{call.first_chunk} and {call.last_chunk}"
                raise RecordError(f"tool_calls: expected indices into {len(self.chunk_s)} chunks, got {got}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSample:
    """What one of several servers of a cell told in the same reading; names as of `ServerSample`."""

    source: str  # host and port of its /metrics
    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None
    prompt_tokens_total: float | None = None
    generation_tokens_total: float | None = None
    prefix_cache_hit_tokens_total: float | None = None
    prefix_cache_query_tokens_total: float | None = None
    requests_finished_total: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSample:
    """One reading of a server's `/metrics`, under one set of names for every engine. None: the server does not tell.

    Names ending in `_total` count since the server started; tokens unless the name says otherwise.
    """

    t_s: Seconds
    clock_anchor_unix_s: UnixSeconds
    clock_speed: ClockSpeed
    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None  # share of the KV cache in use, 0 to 1
    prompt_tokens_total: float | None = None
    generation_tokens_total: float | None = None
    prefix_cache_hit_tokens_total: float | None = None
    prefix_cache_query_tokens_total: float | None = None
    preemptions_total: float | None = None  # vLLM: preemptions; SGLang: retractions
    requests_finished_total: float | None = None
    requests_aborted_total: float | None = None
    ttft_sum_s: float | None = None
    ttft_count: float | None = None
    ttft_buckets: tuple[tuple[float, float], ...] | None = None  # (upper bound in s, requests up to it), ascending
    e2e_sum_s: float | None = None
    e2e_count: float | None = None
    drafts_total: float | None = None  # of speculative decoding: rows of drafts that were verified, one a stream and step
    draft_tokens_total: float | None = None  # proposed in them
    accepted_draft_tokens_total: float | None = None
    accepted_by_position_total: tuple[float, ...] | None = None  # rows whose draft at each position was accepted
    replicas: tuple[ReplicaSample, ...] = ()  # of several /metrics, which the fields above add up
    error: str | None = None  # why this reading failed


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSample:
    """One second of the load generator itself: was it fast enough to stamp what arrived?"""

    t_s: Seconds
    clock_anchor_unix_s: UnixSeconds
    clock_speed: ClockSpeed
    worker: str
    loop_lag_mean_s: Seconds  # wall seconds by which the event loop woke late, mean and worst of this second
    loop_lag_max_s: Seconds
    cpu_share: float  # CPU seconds of this process per wall second, 1.0 = one core
    rss_bytes: int
    gc_collections: int  # collections in this second
    gc_pause_s: Seconds  # wall seconds spent in them
    interval_s: Seconds = 1.0  # wall seconds that this sample covers; the last one of a level is shorter
    late_starts: int = 0  # requests sent more than 10 ms (wall) after their schedule, in this second
    in_flight: int = 0
    reads: int = 0  # reads of responses in this second: about one a token
    ttft_s: Seconds | None = None  # mean time to first text (run's clock) of requests whose first text came in this second
    priority: Priority | None = None  # with which this process ran at the end of the second; None: not said


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """One reading of one GPU of this machine by NVML. None: the GPU does not tell."""

    t_s: Seconds
    clock_anchor_unix_s: UnixSeconds
    clock_speed: ClockSpeed
    gpu: int  # NVML's index
    power_w: float | None = None
    memory_used_bytes: int | None = None
    utilisation: float | None = None  # share of the last moments in which a kernel ran, 0 to 1
    error: str | None = None  # why this reading failed
