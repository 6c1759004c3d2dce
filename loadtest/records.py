"""Raw facts on disk: the schema of a run folder, its writer and its reader. Nothing here is derived.

History of the format
---------------------
1   first version.

Layout (every field: docs/reference.md)::

    RUN/manifest.json
    RUN/programs.json                              what came of running the programs among the answers, where asked for
    RUN/cells/CELL/engine.json, engine.log
    RUN/cells/CELL/cNN-rR/requests-*.jsonl         one line per request, one file per process
    RUN/cells/CELL/cNN-rR/server_metrics.jsonl     the server's own counters, 1 Hz
    RUN/cells/CELL/cNN-rR/gpu_metrics.jsonl        power, memory and utilisation of each card, 1 Hz, where NVML tells
    RUN/cells/CELL/cNN-rR/client_health.jsonl      the load generator's own state, 1 Hz

All times are offsets in seconds on the clock of the process that wrote them (`loadtest.clock`); every line carries
that clock's anchor and speed, so that a line means the same wherever it is moved to.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import itertools
import os
import re
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, get_args

import msgspec

from loadtest.credentials import redacted
from loadtest.errors import RecordError, UsageError

SCHEMA_VERSION = 1

Phase = Literal["warmup", "measure"]
TokenCountSource = Literal["server", "tokenizer", "chunks"]
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
]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

ANSWER_LIMIT_BYTES = 4096
_MODEL_CHARS = 100  # of a cell's id, which is the name of a folder
UNWRITABLE = re.compile("cannot write a record|cannot create a record file|the disk took")  # how JsonlWriter says it

# What a clock of ours can have said; anything else in a file is damage.
Seconds = Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)]  # an offset: within 30 years
UnixSeconds = Annotated[float, msgspec.Meta(ge=0, le=1e11)]
ClockSpeed = Annotated[float, msgspec.Meta(gt=0, le=1e6)]


@dataclass(frozen=True, slots=True)
class RequestError:
    """Why a request failed: a stable `kind`, a sentence that names the cause, and the HTTP status if there was one."""

    kind: str
    message: str
    http_status: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request as it happened. Times are offsets (s); counts are tokens; null means "not known", never 0.

    `chunk_s` holds the arrival of each chunk that carried text, thinking or answer; `chunk_tokens` the tokens that the
    server says each of them carried (same length) or null; `first_answer_chunk` the index of the first with answer text.
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
    thinking_field: str | None = None  # where thinking arrived: reasoning, reasoning_content, inline; null if nowhere
    think_closed: bool | None = None  # inline thinking: was `</think>` seen; null where the server splits
    forced_tokens: int | None = None  # equal-work: the output length that was forced
    prompt_chars: int | None = None
    task: int | None = None  # which task of dependent requests it belongs to, counted over the level; null: on its own
    turn: int | None = None  # its place in the task, from 0
    task_turns: int | None = None  # requests that the task takes when all goes well
    output_end: str | None = None  # last 4,000 characters of all text, thinking too, where `answer` does not hold them
    endpoint: str | None = None  # which endpoint was asked, where a router has a second one; null: the cell's own

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSample:
    """One reading of a server's `/metrics`, under one set of names for every runtime. Null: the server does not tell.

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
    error: str | None = None  # why this reading failed


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSample:
    """One second of the load generator's own life: did it have the time to stamp what arrived?"""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """One reading of one graphics card of this machine by NVML. Null: the card does not tell."""

    t_s: Seconds
    clock_anchor_unix_s: UnixSeconds
    clock_speed: ClockSpeed
    gpu: int  # NVML's index
    power_w: float | None = None
    memory_used_bytes: int | None = None
    utilisation: float | None = None  # share of the last moments in which a kernel ran, 0 to 1
    error: str | None = None  # why this reading failed


def cell_id(engine: str, model: str, tp: int) -> str:
    """Identity of a cell, `ENGINE_MODEL_tpN`; of a path or a hub name only the last part counts, at most 100 characters.

    >>> cell_id("vllm", "Qwen/QwQ-32B-AWQ", 2)
    'vllm_qwq-32b-awq_tp2'
    """
    name = re.sub(r"[^a-z0-9.-]+", "-", model.rstrip("/").rsplit("/", 1)[-1].lower()).strip("-.") or "model"
    return f"{engine}_{name[:_MODEL_CHARS]}_tp{tp}"


def request_id(run_id: str, cell: str, concurrency: int, repeat: int, phase: Phase, seq: int) -> str:
    """What a request is called on the wire (`x-request-id`) and so in a server's log: unique within a run.

    >>> request_id("r", "vllm_m_tp1", 8, 1, "measure", 3)
    'r.vllm_m_tp1.c08-r1.measure-3'
    """
    return f"{run_id}.{cell}.{level_name(concurrency, repeat)}.{phase}-{seq}"


def level_name(concurrency: int, repeat: int) -> str:
    """Folder of one pass over one level, `cNN-rR`.

    >>> level_name(8, 1)
    'c08-r1'
    """
    return f"c{concurrency:02d}-r{repeat}"


def level_path(run: Path, cell: str, concurrency: int, repeat: int) -> Path:
    """Where the records of one pass over one level of one cell are."""
    return run / "cells" / cell / level_name(concurrency, repeat)


def set_aside(folder: Path) -> Path:
    """Rename what a broken pass left to `cNN-rR.broken-N`, which no reader counts; where it is now."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.broken-{number}")).exists():
        number += 1
    try:
        return folder.rename(aside)
    except OSError as error:
        raise RecordError(f"{folder}: cannot set aside what a broken pass left: {error.strerror}") from error


class JsonlWriter:
    """Appends one JSON line at a time, each handed to the system before the call returns.

    The file is created exclusively: two processes never share one. A write that fails raises `RecordError`, and so ends
    the run: a measurement that cannot be kept is not a measurement.
    """

    def __init__(self, directory: Path, stem: str) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self.path, self._fd = _create(directory, stem)
        except OSError as error:
            raise RecordError(f"{directory}: cannot create a record file: {error.strerror}") from error

    def write(self, value: object) -> None:
        line = redacted(msgspec.json.encode(value).decode()).encode() + b"\n"
        try:
            written = os.write(self._fd, line)
        except OSError as error:
            raise RecordError(f"{self.path}: cannot write a record: {error.strerror}") from error
        if written != len(line):
            raise RecordError(f"{self.path}: the disk took {written} of {len(line)} bytes of a record; is it full?")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _create(directory: Path, stem: str) -> tuple[Path, int]:
    """A new file that nobody else has, `STEM.jsonl` or with the next free number, also where two processes try at once."""
    for number in itertools.count(1):
        path = directory / (f"{stem}.jsonl" if number == 1 else f"{stem}-{number}.jsonl")
        with contextlib.suppress(FileExistsError):
            return path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
    raise AssertionError("numbers do not end")


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a run folder, so that no other run writes into it; the system lets go of it however this process ends.

    Raises `RecordError`: another process holds it, or the disk refuses.
    """
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise RecordError(f"{folder}: cannot write here: {error.strerror}; name another --out") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 20, 0).decode("ascii", "replace").strip()
            raise RecordError(
                f"{folder}: expected a folder that no other run writes to, found process {holder}; name another --out"
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


def requests_stem() -> str:
    """File stem for the requests of this process: unique over hosts and processes."""
    host = re.sub(r"[^A-Za-z0-9]+", "-", socket.gethostname())[:32] or "host"
    return f"requests-{host}-{os.getpid()}"


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a reader, or a crash, sees the old file or the new one and nothing between."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(redacted(msgspec.json.format(msgspec.json.encode(value).decode(), indent=1)).encode() + b"\n")
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise RecordError(f"{path}: cannot write: {error.strerror}") from error


def write_new(path: Path, content: bytes) -> None:
    """Write a file that is not there yet. Raises `UsageError` where it is: nothing of the user's is ever written over."""
    try:
        with path.open("xb") as stream:
            stream.write(content)
    except FileExistsError:
        raise UsageError(f"{path}: expected a new file, got one that exists; name another") from None
    except OSError as error:
        raise RecordError(f"{path}: cannot write: {error.strerror}") from error


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows of equal keys as CSV; text that a spreadsheet would take for a formula is preceded by an apostrophe."""
    try:
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(rows[0]) if rows else [])
            writer.writeheader()
            writer.writerows({key: _harmless(value) for key, value in row.items()} for row in rows)
    except OSError as error:
        raise RecordError(f"{path}: cannot write: {error.strerror}") from error


def _harmless(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


class _Named(TypedDict):
    id: str


class ManifestCell(_Named, total=False):
    """What the reader of a run relies on in a cell of `manifest.json`."""

    engine: str | None
    model: str | None
    tp: int | None
    gpu: str | None


class Manifest(TypedDict, total=False):
    """What the reader of a run relies on in `manifest.json`: these keys have these types; others are kept as they are."""

    schema_version: int
    run_id: str | None
    name: str | None
    question: str | None
    started_unix_s: UnixSeconds | None
    complete: bool
    incomplete_reason: str | None
    interrupted: bool
    driven: str | None
    simulated: bool
    clock_speed: ClockSpeed
    mode: str | None
    scenario: str | None
    workload: dict[str, Any] | None
    contract: dict[str, Any] | None
    slo: list[str] | None
    prices: dict[str, Any] | None
    findings: str | None
    seed: int | None
    levels: list[int]
    repeats: int
    environment: dict[str, Any] | None
    cells: list[ManifestCell]
    commands: list[str]


class FitFacts(TypedDict, total=False):
    """What the reader of a run relies on in the fit check of a cell (`roofline.Fit`)."""

    fits: bool
    reason: str | None
    context_tokens: int
    max_streams: int
    kv_capacity_tokens: int
    bound_tokens_per_s: float
    lines: list[str]


class EngineFacts(TypedDict, total=False):
    """What the reader of a run relies on in `engine.json`, likewise."""

    id: str
    engine: str | None
    engine_version: str | None
    model: str | None
    tp: int | None
    gpu: str | None
    simulated: bool
    clock_speed: ClockSpeed | None
    base_url: str | None
    command: list[str] | None
    env: dict[str, str] | None
    status: str | None
    reason: str | None
    started_unix_s: UnixSeconds | None
    ready_unix_s: UnixSeconds | None
    stopped_unix_s: UnixSeconds | None
    exit_code: int | None
    fit: FitFacts | None
    clock_error: dict[str, Any] | None
    server_info: dict[str, Any] | None


def _regular(path: Path) -> Path:
    """The path of a file, which has an end: a device or a pipe in a folder that somebody sent may have none."""
    if path.exists() and not path.is_file():
        raise RecordError(f"{path}: expected a file, got a folder or a device")
    return path


def read_json(path: Path, kind: Any = dict[str, Any]) -> dict[str, Any]:
    """Read one JSON object, or say what is wrong with it and where; `kind`: what it must hold (keys beyond are kept)."""
    try:
        value = msgspec.json.decode(_regular(path).read_bytes())
        msgspec.convert(value, kind)
    except OSError as error:
        raise RecordError(f"{path}: cannot read: {error.strerror}") from error
    except msgspec.ValidationError as error:
        raise RecordError(f"{path}: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError(f"{path}: expected a JSON object, got something else: {error}") from error
    found: dict[str, Any] = value
    return found


@dataclass(frozen=True, slots=True)
class LevelRecords:
    """Everything on disk about one pass over one level, in file order; `torn` names each line that could not be read."""

    cell: str
    concurrency: int
    repeat: int
    path: Path
    requests: tuple[RequestRecord, ...]
    server: tuple[ServerSample, ...]
    health: tuple[HealthSample, ...]
    torn: tuple[str, ...] = ()
    gpu: tuple[GpuSample, ...] = ()


@dataclass(frozen=True, slots=True)
class CellRecords:
    """One cell: what `engine.json` says (see `launch` in `engines`), and its passes, sorted by level and repeat."""

    id: str
    engine: dict[str, Any]
    levels: tuple[LevelRecords, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder in memory: the manifest and the cells, sorted by id."""

    path: Path
    manifest: dict[str, Any]
    cells: tuple[CellRecords, ...] = field(default=())


def read_run(path: Path) -> Run:
    """Read a whole run folder.

    Raises `RecordError` where the folder is not a run, is from a newer schema, or a file in it is foreign. A torn last
    line (a process was killed while it wrote) is reported in `LevelRecords.torn`, never fatal.
    """
    manifest_path = path / "manifest.json"
    if not manifest_path.is_file():
        raise RecordError(f"{path}: expected a run folder with manifest.json, found none; name the folder that --out made")
    _check_version(read_json(manifest_path).get("schema_version"), str(manifest_path))
    manifest = read_json(manifest_path, Manifest)
    cells_path = path / "cells"
    folders = sorted(p for p in cells_path.iterdir() if p.is_dir()) if cells_path.is_dir() else []
    programs = path / "programs.json"
    verdicts = read_json(programs, dict[str, bool | None]) if programs.is_file() else {}
    return Run(path=path, manifest=manifest, cells=tuple(_read_cell(folder, verdicts) for folder in folders))


def program_key(record: RequestRecord) -> str:
    """What the verdict on an answered program depends on, its key in `programs.json`: the prompt and the answer."""
    return f"{record.prompt_id} {hashlib.sha256((record.answer or '').encode()).hexdigest()[:16]}"


def _read_cell(folder: Path, verdicts: Mapping[str, bool | None]) -> CellRecords:
    engine_path = folder / "engine.json"
    engine = read_json(engine_path, EngineFacts) if engine_path.exists() else {}
    levels = [read_level(level, verdicts) for level in sorted(folder.iterdir()) if _LEVEL.fullmatch(level.name)]
    levels.sort(key=lambda level: (level.concurrency, level.repeat))
    return CellRecords(id=folder.name, engine=engine, levels=tuple(levels))


_LEVEL = re.compile(r"c(\d+)-r(\d+)")


def read_level(folder: Path, verdicts: Mapping[str, bool | None] | None = None) -> LevelRecords:
    """Read one pass over one level (`cNN-rR`); `verdicts`: of `programs.json`, which judge answers left unjudged."""
    match = _LEVEL.fullmatch(folder.name)
    if match is None:
        raise RecordError(f"{folder}: expected a level folder named cNN-rR, got {folder.name!r}")
    torn: list[str] = []
    return LevelRecords(
        cell=folder.parent.name,
        concurrency=int(match[1]),
        repeat=int(match[2]),
        path=folder,
        requests=tuple(_judged(_read_lines(sorted(folder.glob("requests-*.jsonl")), RequestRecord, torn), verdicts or {})),
        server=tuple(_read_lines(sorted(folder.glob("server_metrics*.jsonl")), ServerSample, torn)),
        health=tuple(_read_lines(sorted(folder.glob("client_health*.jsonl")), HealthSample, torn)),
        gpu=tuple(_read_lines(sorted(folder.glob("gpu_metrics*.jsonl")), GpuSample, torn)),
        torn=tuple(torn),
    )


def _judged(requests: Iterator[RequestRecord], verdicts: Mapping[str, bool | None]) -> Iterator[RequestRecord]:
    if not verdicts:
        return requests
    return (
        replace(one, answer_correct=verdicts.get(program_key(one))) if one.answer and one.answer_correct is None else one
        for one in requests
    )


def _read_lines(paths: Iterable[Path], kind: type[Any], torn: list[str]) -> Iterator[Any]:
    decoder = msgspec.json.Decoder(kind)
    for path in paths:
        try:
            content = _regular(path).read_bytes()
        except OSError as error:
            raise RecordError(f"{path}: cannot read: {error.strerror}") from error
        lines = content.split(b"\n")
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                value = decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, RecordError) as error:
                if number == len(lines):  # no newline after it: the writer was killed in mid-line
                    torn.append(f"{where}: torn line of {len(line)} bytes left out")
                    continue
                _check_version(_version_of(line), where)
                raise RecordError(f"{where}: expected a {kind.__name__}: {error}") from error
            if isinstance(value, RequestRecord):
                _check_version(value.schema_version, where)
            yield value


def _version_of(line: bytes) -> object:
    try:
        value = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return SCHEMA_VERSION
    return value.get("schema_version", SCHEMA_VERSION) if isinstance(value, dict) else SCHEMA_VERSION


def _check_version(version: object, where: str) -> None:
    if version != SCHEMA_VERSION:
        raise RecordError(
            f"{where}: schema_version: expected {SCHEMA_VERSION}, got {version!r}; read it with the loadtest that wrote it"
        )
