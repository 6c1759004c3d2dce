"""Reads the files of a run back, with one clear error for a damaged one."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from loadtest.errors import RecordError
from loadtest.records.digests import DIGESTS, SEAL, FileDigest, Written, broken_seal, differences_from, missing_passes
from loadtest.records.engine_facts import EngineFacts
from loadtest.records.folder import FAILURE_FILE, PASS_NAME, check_run_folder
from loadtest.records.manifest import Manifest
from loadtest.records.pass_facts import Failure
from loadtest.records.schema import SCHEMA_VERSION, GpuSample, HealthSample, RequestRecord, ServerSample, damage_text

_T = TypeVar("_T")


LARGEST_BYTES = 256 * 2**20  # of a JSON document, and of a line of records: twice the text of the longest reply


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A file of a run, open for reading: never a link out of the folder, nor a pipe or a device, which may have no end."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        why = "expected a file, got a link" if error.errno == errno.ELOOP else f"cannot read: {error.strerror}"
        raise RecordError(f"{path}: {why}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise RecordError(f"{path}: expected a file, got a folder, a pipe or a device")
    with open(handle, "rb") as stream:
        try:
            yield stream
        except OSError as error:
            raise RecordError(f"{path}: cannot read: {error.strerror}") from error


def read_bytes(path: Path) -> bytes:
    """What a file of a run holds. Raises RecordError where it cannot be read."""
    with _opened(path) as stream:
        content = stream.read(LARGEST_BYTES + 1)
    if len(content) > LARGEST_BYTES:
        raise RecordError(f"{path}: expected at most {LARGEST_BYTES} bytes, got more; {_NEXT_STEP}")
    return content


def count_lines(path: Path) -> int:
    """How many whole lines a file of a run has. Raises RecordError where it cannot be read."""
    with _opened(path) as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(2**20), b""))


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object, or say what is wrong with it and where."""
    return read_as(path, dict[str, Any])


def read_as(path: Path, kind: type[_T]) -> _T:
    """Read one JSON object of a kind, or say what is wrong with it and where."""
    try:
        return msgspec.json.decode(read_bytes(path), type=kind)
    except msgspec.ValidationError as error:
        raise _damaged(path, error) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError(f"{path}: expected a JSON object, got something else ({error}); {_NEXT_STEP}") from error


_NEXT_STEP = "bring the file back from a copy, or measure again"


def _damaged(path: Path, error: msgspec.ValidationError) -> RecordError:
    return RecordError(f"{path}: {damage_text(str(error))}; {_NEXT_STEP}")


def read_from(path: Path, offset_bytes: int) -> bytes:
    """The whole lines of a file that still grows, from an offset on."""
    try:
        with path.open("rb") as stream:
            stream.seek(offset_bytes)
            appended = stream.read()
    except OSError as error:
        raise RecordError(f"{path}: cannot read: {error.strerror}") from error
    return appended[: appended.rfind(b"\n") + 1]


def read_manifest(path: Path) -> Manifest:
    """Read `manifest.json`; keys that we do not know are kept in `others`."""
    return _manifest(read_json(path), path)


def read_own_manifest(path: Path) -> Manifest:
    """Read `manifest.json` of a run that is to be continued. Raises RecordError also where it is not as it was written."""
    table = read_json(path)
    for difference in broken_seal(table, str(path)):
        raise RecordError(f"{difference}; {_NEXT_STEP}")
    return _manifest(table, path)


def _manifest(table: dict[str, Any], path: Path) -> Manifest:
    _check_version(table.get("schema_version"), str(path))
    try:
        return Manifest.from_table({key: value for key, value in table.items() if key != SEAL})
    except msgspec.ValidationError as error:
        raise _damaged(path, error) from error


def read_engine(path: Path) -> EngineFacts:
    """Read `engine.json`."""
    return read_as(path, EngineFacts)


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
    damaged: tuple[str, ...] = ()  # files that are not as they were written, and records that are there twice


@dataclass(frozen=True, slots=True)
class CellRecords:
    """One cell: what `engine.json` says of its engine, and its passes, sorted by level and repeat: those over the workload,
    and those of bursts."""

    id: str
    engine: EngineFacts
    levels: tuple[LevelRecords, ...]
    bursts: tuple[LevelRecords, ...] = ()

    @property
    def passes(self) -> tuple[LevelRecords, ...]:
        """Passes of both kinds."""
        return (*self.levels, *self.bursts)


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder in memory: the manifest and the cells, sorted by id."""

    path: Path
    manifest: Manifest
    cells: tuple[CellRecords, ...] = field(default=())
    missing: tuple[str, ...] = ()  # passes that ended, and are not there
    altered: tuple[str, ...] = ()  # manifest.json or engine.json where they are not as they were written


def read_run(path: Path) -> Run:
    """Read a whole run folder.

    Raises `RecordError` where the folder is not a run, is from a newer schema, or a file in it is foreign. A torn last
    line (a process was killed while it wrote) is reported in `LevelRecords.torn`, never fatal.
    """
    manifest_path = path / "manifest.json"
    if not os.path.lexists(manifest_path):
        raise RecordError(f"{path}: expected a run folder with manifest.json, found none; name the folder that --out made")
    check_run_folder(path)
    manifest = read_manifest(manifest_path)
    cells_path = path / "cells"
    folders = sorted(p for p in cells_path.iterdir() if p.is_dir()) if cells_path.is_dir() else []
    programs = path / "programs.json"
    verdicts = read_as(programs, dict[str, bool | None]) if programs.is_file() else {}
    cells = tuple(_read_cell(folder, manifest, verdicts) for folder in folders)
    missing, altered = missing_passes(path, manifest.passes), tuple(_altered(path, manifest, folders))
    return Run(path=path, manifest=manifest, cells=cells, missing=missing, altered=altered)


def _altered(run: Path, manifest: Manifest, cells: Iterable[Path]) -> Iterator[str]:
    """Which descriptions are not as they were written. A run that lists the passes that ended has sealed all of them."""
    sealed = bool(manifest.passes)
    yield from broken_seal(read_json(run / "manifest.json"), "manifest.json", expected=sealed)
    measured = {one.partition("/")[0] for one in manifest.passes}
    for cell in cells:
        path, name = cell / "engine.json", f"cells/{cell.name}/engine.json"
        if path.exists():
            yield from broken_seal(read_json(path), name, expected=sealed)
        elif cell.name in measured:
            yield f"{name}: expected what is known of the engine that was measured, found no file"


def program_key(record: RequestRecord) -> str:
    """What the verdict on an answered program depends on, its key in `programs.json`: the prompt and the answer."""
    return f"{record.prompt_id} {hashlib.sha256((record.answer or '').encode()).hexdigest()[:16]}"


def _read_cell(folder: Path, manifest: Manifest, verdicts: Mapping[str, bool | None]) -> CellRecords:
    engine_path = folder / "engine.json"
    engine = read_engine(engine_path) if engine_path.exists() else _asked(folder.name, manifest)
    found: dict[bool, list[LevelRecords]] = {False: [], True: []}
    for one in sorted(folder.iterdir()):
        if name := PASS_NAME.fullmatch(one.name):
            ended = f"{folder.name}/{one.name}" in manifest.passes
            found[name[1] is not None].append(read_level(one, verdicts, ended=ended))
    levels, bursts = (tuple(sorted(some, key=lambda one: (one.concurrency, one.repeat))) for some in found.values())
    return CellRecords(id=folder.name, engine=engine, levels=levels, bursts=bursts)


def read_failure(folder: Path) -> Failure | None:
    """Why the pass in this folder failed; None where it did not, or could not say so."""
    path = folder / FAILURE_FILE
    return read_as(path, Failure) if path.exists() else None


def _asked(cell_id: str, manifest: Manifest) -> EngineFacts:
    """A cell without `engine.json` (its run was killed before the start): as the manifest asks for it."""
    asked = manifest.cell(cell_id)
    if asked is None:
        return EngineFacts(id=cell_id, simulated=manifest.simulated)
    return EngineFacts(
        id=cell_id,
        engine=asked.engine,
        model=asked.model,
        tp=asked.tp,
        gpu=asked.gpu,
        mode=asked.mode,
        simulated=manifest.simulated,
        clock_speed=asked.clock_speed,
        base_url=asked.base_url,
    )


def read_level(folder: Path, verdicts: Mapping[str, bool | None] | None = None, *, ended: bool = False) -> LevelRecords:
    """Read one pass over one level (`cNN-rR`, `bursts-cNN-rR`).

    `verdicts`: of `programs.json`, which judge answers left unjudged. `ended`: the manifest lists it as ended.
    """
    match = PASS_NAME.fullmatch(folder.name)
    if match is None:
        raise RecordError(f"{folder}: expected a level folder named cNN-rR, got {folder.name!r}")
    lines = _Lines(folder)
    requests = _each_once(lines.of("requests-*.jsonl", RequestRecord))
    server = tuple(lines.of("server_metrics*.jsonl", ServerSample))
    health = tuple(lines.of("client_health*.jsonl", HealthSample))
    gpu = tuple(lines.of("gpu_metrics*.jsonl", GpuSample))
    closed = tuple(_Lines(folder).of(DIGESTS, FileDigest))
    counted = [read_as(path, Written) for path in sorted(folder.glob("level-*.json"))]
    twice = lines.counts[RequestRecord] - len(requests)
    return LevelRecords(
        cell=folder.parent.name,
        concurrency=int(match[2]),
        repeat=int(match[3]),
        path=folder,
        requests=tuple(_judged(requests, verdicts or {})),
        server=server,
        health=health,
        gpu=gpu,
        torn=tuple(lines.torn),
        damaged=(
            *differences_from(closed, counted, lines.found, ended=ended),
            *([f"{twice} request(s) recorded twice: each counts once"] if twice else []),
        ),
    )


def _each_once(requests: Iterable[RequestRecord]) -> Collection[RequestRecord]:
    """The first record of each request: a pass has one of each phase and number."""
    first: dict[tuple[str, int], RequestRecord] = {}
    for one in requests:
        first.setdefault((one.phase, one.seq), one)
    return first.values()


def _judged(requests: Iterable[RequestRecord], verdicts: Mapping[str, bool | None]) -> Iterable[RequestRecord]:
    if not verdicts:
        return requests
    return (
        replace(one, answer_correct=verdicts.get(program_key(one))) if one.answer and one.answer_correct is None else one
        for one in requests
    )


class _Lines:
    """Reads the files of lines of one pass, and keeps what it met."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.torn: list[str] = []
        self.found: dict[str, FileDigest] = {}
        self.counts: Counter[type[Any]] = Counter()

    def of(self, pattern: str, kind: type[_T]) -> Iterator[_T]:
        """The values in the files of this pattern, in file order."""
        decoder = msgspec.json.Decoder(kind)
        for path in sorted(self._folder.glob(pattern)):
            content, complete = hashlib.sha256(), 0
            for number, line in _lines(path):
                content.update(line)
                complete += line.endswith(b"\n")
                if line.strip() and (value := self._decoded(decoder, line, f"{path}:{number}")) is not None:
                    self.counts[kind] += 1
                    yield value
            self.found[path.name] = FileDigest(path.name, complete, content.hexdigest())

    def _decoded(self, decoder: msgspec.json.Decoder[_T], line: bytes, where: str) -> _T | None:
        """What a line holds; None where its writer was killed in mid-line."""
        try:
            value = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, RecordError) as error:
            if not line.endswith(b"\n"):
                self.torn.append(f"{where}: torn line of {len(line)} bytes left out")
                return None
            _check_version(_version_of(line), where)
            raise RecordError(f"{where}: expected a {decoder.type.__name__}: {error}") from error
        if isinstance(value, RequestRecord):
            _check_version(value.schema_version, where)
        return value


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Each line of a file with its number, one at a time."""
    with _opened(path) as stream:
        for number in itertools.count(1):
            line = stream.readline(LARGEST_BYTES + 1)
            if len(line) > LARGEST_BYTES:
                raise RecordError(
                    f"{path}:{number}: expected a line of at most {LARGEST_BYTES} bytes, got more; {_NEXT_STEP}"
                )
            if not line:
                return
            yield number, line


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
