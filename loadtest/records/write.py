"""Writes the files of a run: appended lines, whole JSON documents, CSV."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import itertools
import os
import re
import stat
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from loadtest.credentials import redacted
from loadtest.errors import RecordError, UsageError
from loadtest.records.digests import FileDigest, sealed
from loadtest.records.folder import own_stem
from loadtest.records.manifest import Manifest


class RecordFile:
    """A file that only grows, its bytes handed to the system before a call returns.

    It is created exclusively: two processes never share one. A write that fails raises `RecordError`, and so ends the run:
    a measurement that cannot be kept is not a measurement.
    """

    def __init__(self, directory: Path, stem: str) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self.path, self._fd = _create(directory, stem)
            self._lines, self._content = 0, hashlib.sha256()
            self.size_bytes = 0
        except OSError as error:
            raise RecordError(f"{directory}: cannot create a record file: {error.strerror}") from error

    def append(self, content: bytes) -> None:
        try:
            written = os.write(self._fd, content)
        except OSError as error:
            raise RecordError(f"{self.path}: cannot write a record: {error.strerror}") from error
        if written != len(content):
            raise RecordError(f"{self.path}: the disk took {written} of {len(content)} bytes of a record; is it full?")
        self._content.update(content)
        self._lines += content.count(b"\n")
        self.size_bytes += written

    @property
    def digest(self) -> FileDigest:
        """What it holds so far."""
        return FileDigest(self.path.name, self._lines, self._content.hexdigest())

    def close(self, digest: FileDigest | None = None) -> None:
        """Close the file, and keep in `digests-HOST-PID.jsonl` what it holds: a reader can tell that it is whole.

        `digest`: what it is to hold, where another process says so."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            _append_digest(self.path.parent, digest or self.digest)


class JsonlWriter(RecordFile):
    """Appends one JSON line at a time."""

    def write(self, value: object) -> None:
        self.append(redacted(_encoded(value).decode()).encode() + b"\n")


def _append_digest(folder: Path, digest: FileDigest) -> None:
    """A disk that refuses says so at the records themselves, and a file without a digest is named in reading."""
    path = folder / f"{own_stem('digests')}.jsonl"
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
        try:
            os.write(handle, msgspec.json.encode(digest) + b"\n")
        finally:
            os.close(handle)


def _create(directory: Path, stem: str) -> tuple[Path, int]:
    """A new file that nobody else has, `STEM.jsonl` or with the next free number, also where two processes try at once."""
    for number in itertools.count(1):
        path = directory / (f"{stem}.jsonl" if number == 1 else f"{stem}-{number}.jsonl")
        with contextlib.suppress(FileExistsError):
            return path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
    raise AssertionError("numbers do not end")


def write_file(path: Path, content: bytes) -> None:
    """Write a whole file atomically: after a crash it is the old one or the new one.

    Raises `RecordError` where the disk refuses, or where a link, a folder or a device has that name: what came with a run
    folder from elsewhere never leads a write out of it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_replaceable(path)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise RecordError(f"{path}: cannot write: {error.strerror}") from error


def _check_replaceable(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise RecordError(f"{path}: expected a file to write anew, got a link, a folder or a device; remove it")


def make_folder(path: Path) -> None:
    """Make a folder for files of ours. Raises `RecordError`: the disk refuses, or a link has that name."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordError(f"{path}: cannot write: {error.strerror}") from error
    if path.is_symlink():
        raise RecordError(f"{path}: expected a folder to write to, got a link; remove it")


def write_json(path: Path, value: object) -> None:
    """Write a JSON document, indented, as `write_file` does."""
    write_file(path, redacted(msgspec.json.format(_encoded(value).decode(), indent=1)).encode() + b"\n")


def write_sealed(path: Path, value: object) -> None:
    """Write a JSON object with its own digest, as `write_file` does: a reader can tell that it is as it was written."""
    table = msgspec.json.decode(redacted(_encoded(value).decode()))
    write_file(path, msgspec.json.format(msgspec.json.encode(sealed(table)), indent=1) + b"\n")


def _encoded(value: object) -> bytes:
    """A value as JSON, also with text that is not Unicode, as the name of a folder may be."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(_readable(msgspec.to_builtins(value)))


def _readable(value: object) -> object:
    """The same with what is not Unicode written out, as `\\udcff`."""
    if isinstance(value, dict):
        return {_readable(key): _readable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_readable(one) for one in value]
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def write_manifest(run: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into the folder of a run."""
    write_sealed(run / "manifest.json", manifest.to_table())


def write_new(path: Path, content: bytes) -> None:
    """Write a file that is not there yet. Raises `UsageError` if it exists: a file of the user is never overwritten."""
    made = False
    try:
        with path.open("xb") as stream:
            made = True
            stream.write(content)
    except FileExistsError:
        raise UsageError(f"{path}: expected a new file, got one that exists; name another") from None
    except OSError as error:
        if made:
            path.unlink()  # half of it: the disk is full
        raise RecordError(f"{path}: cannot write: {error.strerror}") from error


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows of equal keys as CSV; text that a spreadsheet would take for a formula is preceded by an apostrophe."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [])
    writer.writeheader()
    writer.writerows({key: _harmless(value) for key, value in row.items()} for row in rows)
    write_file(path, text.getvalue().encode(errors="backslashreplace"))


_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]|[\t\r\n]")  # how a cell begins that a spreadsheet may take for a formula


def _harmless(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value
