"""Record files on their way from a worker's disk to its master's: cut into batches, checked, written down once.

The worker's file is the truth. A batch is a piece of it, by its offset; the master answers how far it has the file. So a
batch that is lost, late, out of order or sent twice does no harm, and only one is on its way at a time.
"""

from __future__ import annotations

import re
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from loadtest.records.digests import DIGESTS, FileDigest
from loadtest.records.folder import MASTER_FILE
from loadtest.records.pass_facts import LevelSummary
from loadtest.records.write import RecordFile, write_json

LARGEST_BATCH_BYTES = 128 * 1024  # of a file
FILES_PER_WORKER = 4

_NAME = re.compile(r"(requests|client_health)-[A-Za-z0-9-]{1,80}\.jsonl")
_FAST = 1  # of zlib: times compress little better at six times the cost


class RefusedError(ValueError):
    """A message that is not one of a worker of this pass; nothing was written."""


class Batch(msgspec.Struct, frozen=True):
    """A piece of a record file, compressed. `token`: of the pass."""

    token: str
    file: str
    offset_bytes: int
    size_bytes: int
    packed: bytes


class Kept(msgspec.Struct, frozen=True):
    """How far the master has a file on its disk."""

    token: str
    file: str
    size_bytes: int


class FileEnd(FileDigest, frozen=True):
    """What a worker says of a file that it closed."""

    size_bytes: int


class WorkerEnd(msgspec.Struct, frozen=True):
    """What a worker says of its part of a pass. `files`: those that it ships; none where it writes into the master's
    folder."""

    summary: LevelSummary | None = None
    files: tuple[FileEnd, ...] = ()


def is_masters(folder: Path, token: str) -> bool:
    """Is this the folder that the master writes to? It then holds the token of the pass."""
    try:
        return (folder / MASTER_FILE).read_bytes() == token.encode()
    except OSError:
        return False


class Outbox:
    """The record files of one worker in the folder of a pass, and how far the master has each."""

    def __init__(self, folder: Path, names: Iterable[str], token: str) -> None:
        self._folder = folder
        self._token = token
        self._kept = dict.fromkeys(names, 0)
        self._turn = deque(self._kept)

    def _left(self, name: str) -> int:
        try:
            return (self._folder / name).stat().st_size - self._kept[name]
        except OSError:  # somebody removed it: the digests tell
            return 0

    @property
    def left_bytes(self) -> int:
        """How much the master does not have yet."""
        return sum(map(self._left, self._kept))

    def next_batch(self, most_bytes: int) -> Batch | None:
        """A batch of one of the files, in turn; None where the master has all. Raises `OSError`."""
        name = next((name for name in self._turn if self._left(name) > 0), None)
        if name is None:
            return None
        self._turn.rotate(-1)
        offset = self._kept[name]
        with (self._folder / name).open("rb") as stream:
            stream.seek(offset)
            content = stream.read(most_bytes)
        content = content[: content.rfind(b"\n") + 1] or content  # whole lines, but of one longer than a batch
        return Batch(self._token, name, offset, len(content), zlib.compress(content, _FAST))

    def acknowledge(self, kept: Kept) -> bool:
        """Note what the master has; whether that is more than was known."""
        if kept.token != self._token or kept.size_bytes <= self._kept.get(kept.file, kept.size_bytes):
            return False
        self._kept[kept.file] = kept.size_bytes
        return True

    def ends(self) -> tuple[FileEnd, ...]:
        """What is in the files, once they are closed."""
        closed = (one for path in self._folder.glob(DIGESTS) for one in _digests(path))
        return tuple(
            FileEnd(one.file, one.lines, one.sha256, (self._folder / one.file).stat().st_size)
            for one in closed
            if one.file in self._kept
        )


def _digests(path: Path) -> list[FileDigest]:
    return [msgspec.json.decode(line, type=FileDigest) for line in path.read_bytes().splitlines()]


class Inbox:
    """What came of the workers of a pass, each file written down under the worker's name for it, or the next free one."""

    def __init__(self, folder: Path, token: str) -> None:
        self._folder = folder
        self._token = token
        self._copies: dict[str, dict[str, RecordFile]] = {}
        self._ends: dict[str, WorkerEnd] = {}

    def take(self, worker: str, batch: Batch) -> Kept:
        """Write down what is new of a batch. Raises `RefusedError`, and `RecordError` where the disk refuses."""
        if batch.token != self._token:
            raise RefusedError("a batch of another pass")
        content = _unpacked(batch)
        copy = self._copy(worker, batch.file)
        if batch.offset_bytes == copy.size_bytes:
            copy.append(content)
        return Kept(self._token, batch.file, copy.size_bytes)

    def _copy(self, worker: str, name: str) -> RecordFile:
        copies = self._copies.setdefault(worker, {})
        if name not in copies:
            _check_name(name)
            if len(copies) >= FILES_PER_WORKER:
                raise RefusedError(f"more than {FILES_PER_WORKER} files")
            copies[name] = RecordFile(self._folder, name.removesuffix(".jsonl"))
        return copies[name]

    def end(self, worker: str, said: WorkerEnd) -> None:
        """Note what a worker says at its end. Raises `RefusedError`, and `RecordError` where the disk refuses."""
        if said.summary is not None:
            _check_name(said.summary.file)
        for one in said.files:
            self._copy(worker, one.file)
        self._ends[worker] = said

    def left_bytes(self, worker: str) -> int:
        """How much of a worker's files is still to come, as far as it has said."""
        return sum(max(0, one.size_bytes - self._size(worker, one.file)) for one in self._stated(worker))

    def _size(self, worker: str, name: str) -> int:
        copy = self._copies.get(worker, {}).get(name)
        return 0 if copy is None else copy.size_bytes

    def _stated(self, worker: str) -> tuple[FileEnd, ...]:
        end = self._ends.get(worker)
        return () if end is None else end.files

    def summaries(self) -> dict[str, LevelSummary]:
        """What each worker did, with the name that its file of requests has here."""
        return {
            worker: msgspec.structs.replace(end.summary, file=self._name(worker, end.summary.file))
            for worker, end in self._ends.items()
            if end.summary is not None
        }

    def _name(self, worker: str, name: str) -> str:
        copy = self._copies.get(worker, {}).get(name)
        return name if copy is None else copy.path.name

    def close(self) -> list[str]:
        """Close the files, with `level-*.json` and digests as the workers state them; how what came differs from that."""
        differences = [line for worker in self._ends for line in self._differences(worker)]
        for worker, copies in self._copies.items():
            stated = {one.file: one for one in self._stated(worker)}
            for name, copy in copies.items():
                one = stated.get(name)
                copy.close(None if one is None else FileDigest(copy.path.name, one.lines, one.sha256))
        for worker, summary in self.summaries().items():
            if worker in self._copies:
                name = Path(summary.file).stem.removeprefix("requests-")
                write_json(self._folder / f"level-{name}.json", summary)
        return differences

    def _differences(self, worker: str) -> Iterator[str]:
        for one in self._stated(worker):
            copy = self._copies[worker][one.file]
            got = copy.digest
            if (got.lines, got.sha256) != (one.lines, one.sha256):
                yield (
                    f"{one.file}: expected {one.lines} lines ({one.size_bytes} bytes), as its writer counted,"
                    f" got {got.lines} ({copy.size_bytes})"
                )


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise RefusedError(f"expected the name of a record file, got {name[:40]!r}")


def _unpacked(batch: Batch) -> bytes:
    """What a batch holds; never more than it may, whatever it unpacks to."""
    if not 0 < batch.size_bytes <= LARGEST_BATCH_BYTES or batch.offset_bytes < 0:
        raise RefusedError(f"a batch of {batch.size_bytes} bytes at {batch.offset_bytes}")
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(batch.packed, batch.size_bytes + 1)
    except zlib.error as error:
        raise RefusedError(f"a batch that cannot be unpacked: {error}") from error
    if len(content) != batch.size_bytes or not unpacker.eof or unpacker.unused_data:
        raise RefusedError("a batch that is not as long as it says")
    return content
