"""What a file of another tool tells, in one shape for all tools. Times are seconds; None: the file does not tell."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from loadtest.errors import UsageError
from loadtest.records.imported import ToldFigure
from loadtest.records.read import LARGEST_BYTES
from loadtest.records.schema import EngineName, damage_text

MOST_DOCUMENTS = 200_000
MOST_FIGURES = 200
MOST_TOKENS = 10**8
MOST_SECONDS = 1e7  # of any time in a file

_T = TypeVar("_T")
Ending = Literal["ok", "truncated", "cut_off"]  # where a file says how a response ended
_ZIP = b"PK\x03\x04"
DATABASE = b"SQLite format 3\0"  # how such a file begins


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRequest:
    """One request. `prompt_id`: alike in every file of one data set, where a tool keeps its order.

    `start_s`: on the tool's own clock; `first_s`, `answer_s`, `end_s`: from there to the first chunk, the first text of the
    answer, the end; `gaps_s`: between chunks. `first_s` None with `answer_s`: text that came before the answer is not told.
    `error`: the tool says that it failed, and how.
    """

    prompt_id: str | None = None
    start_s: float | None = None
    first_s: float | None = None
    answer_s: float | None = None
    end_s: float | None = None
    gaps_s: tuple[float, ...] | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    error: str | None = None
    ending: Ending | None = None
    forced: bool = False  # to the length that it has, as the user says


@dataclass(frozen=True, slots=True)
class PeerArrivals:
    """An open loop: how requests came, and how many a second on average; None: not told."""

    kind: str
    rate: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerPass:
    """One measurement. `requests`: empty where the file has totals alone; `date`: as the file has it."""

    concurrency: int | None
    requests: tuple[PeerRequest, ...]
    figures: tuple[ToldFigure, ...] = ()
    arrivals: PeerArrivals | None = None
    date: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerResult:
    """What one file tells: `engine` where it says which one answered, with `engine_version` and `tp`."""

    passes: tuple[PeerPass, ...]
    version: str | None = None
    model: str | None = None
    engine: EngineName | None = None
    engine_version: str | None = None
    tp: int | None = None


@dataclass(frozen=True, slots=True)
class PeerFile:
    """A file as it was read: its JSON documents, one after another, or a whole database (SQLite)."""

    path: Path
    sha256: str
    documents: tuple[Any, ...]
    database: bytes = b""

    @property
    def keys(self) -> frozenset[str]:
        """Of the first object in it; none of a database."""
        first = self.documents[0] if self.documents else None
        found = first[0] if isinstance(first, list) and first else first
        return frozenset(found) if isinstance(found, dict) else frozenset()

    def beside(self, name: str) -> dict[str, Any]:
        """The JSON object in a file of its folder, which the tool wrote with it; empty where there is none."""
        path = self.path.with_name(name)
        found = open_file(path).documents if path.is_file() else ()
        return found[0] if found and isinstance(found[0], dict) else {}

    def of(self, kind: type[_T]) -> Iterator[_T]:
        """Each document as `kind`. Raises `UsageError` that names the key."""
        for number, document in enumerate(self.documents, 1):
            try:
                yield msgspec.convert(document, kind)
            except msgspec.ValidationError as error:
                place = f"{self.path}:{number}" if len(self.documents) > 1 else str(self.path)
                raise UsageError(f"{place}: {damage_text(str(error))}; import the file as the tool wrote it") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """How the files of one tool are known and read.

    `written_by`: the options that make it write them; `keys`: which every document of it has, none for a database;
    `notes`: where its definitions differ from ours.
    """

    tool: str
    written_by: str
    keys: frozenset[str]
    read: Callable[[PeerFile], PeerResult]
    notes: tuple[str, ...] = ()

    def knows(self, file: PeerFile) -> bool:
        return self.keys <= file.keys if self.keys else bool(file.database)


def open_file(path: Path) -> PeerFile:
    """Read a file of JSON documents. Raises `UsageError`: it is none, or too large."""
    if not path.is_file():
        raise UsageError(f"{path}: expected a result file of another tool, got {'a folder' if path.is_dir() else 'no file'}")
    try:
        with path.open("rb") as stream:
            content = stream.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot read: {error.strerror}") from error
    if len(content) > LARGEST_BYTES:
        raise UsageError(f"{path}: expected at most {LARGEST_BYTES} bytes, got more; import fewer requests")
    return file_of(path, content)


def file_of(path: Path, content: bytes) -> PeerFile:
    """What a file holds. Raises `UsageError`: neither JSON nor a database."""
    sha256 = hashlib.sha256(content).hexdigest()
    if content.startswith(_ZIP):
        raise UsageError(f"{path}: expected a result file of another tool, got an archive; a bundle is imported alone")
    if content.startswith(DATABASE):
        return PeerFile(path, sha256, (), content)
    return PeerFile(path, sha256, tuple(_documents(path, content)))


def _documents(path: Path, content: bytes) -> list[Any]:
    """The one document of a file, or that of each of its lines. Python's own reader, as tools write NaN and Infinity."""
    try:
        return [json.loads(content)]
    except (ValueError, RecursionError):
        lines = [line for line in content.splitlines() if line.strip()]
    if not 1 < len(lines) <= MOST_DOCUMENTS:
        raise UsageError(f"{path}: expected JSON, or at most {MOST_DOCUMENTS} lines of JSON, got something else")
    return [_document(path, number, line) for number, line in enumerate(lines, 1)]


def _document(path: Path, number: int, line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}:{number}: expected JSON, got something else ({str(error)[:100]})") from None


def figures_of(table: Mapping[str, Any], without: frozenset[str] = frozenset()) -> tuple[ToldFigure, ...]:
    """The finite numbers of an object, also inside of objects (`ttft.mean`), but for keys `without`; 200 at most.

    >>> told = {"ttft": {"mean": 1.5, "p99": float("nan")}, "rate": 2, "n": True}
    >>> [one.name for one in figures_of(told, frozenset({"rate"}))]
    ['ttft.mean']
    """
    return tuple(_numbers("", table, without))[:MOST_FIGURES]


def _numbers(prefix: str, table: Mapping[str, Any], without: frozenset[str]) -> Iterator[ToldFigure]:
    for key, value in table.items():
        if key in without:
            continue
        if isinstance(value, dict) and prefix.count(".") < 3:
            yield from _numbers(f"{prefix}{key}.", value, frozenset())
        elif is_number(value) and abs(value) < sys.float_info.max:
            yield ToldFigure(f"{prefix}{key}"[:100], float(value))


def known_seconds(value: float | None) -> float | None:
    """A time that can have been measured; None for what cannot.

    >>> known_seconds(0.5), known_seconds(-1.0), known_seconds(float("nan")), known_seconds(None)
    (0.5, None, None, None)
    """
    return None if value is None or not 0 <= value <= MOST_SECONDS else value


def at(table: Any, *keys: str | int) -> Any:
    """What stands at a place in nested objects and lists; None where there is no such place.

    >>> at({"a": [{"b": 2}]}, "a", 0, "b"), at({"a": []}, "a", 0, "b")
    (2, None)
    """
    for key in keys:
        if isinstance(key, int):
            table = table[key] if isinstance(table, list) and len(table) > key else None
        else:
            table = table.get(key) if isinstance(table, dict) else None
    return table


def is_number(value: Any) -> bool:
    """Is it one, and not true or false?"""
    return isinstance(value, int | float) and not isinstance(value, bool)


def whole(value: float | None) -> int | None:
    """A number of requests that a file has as a float; None where it is none.

    >>> whole(8.0), whole(float("nan")), whole(None)
    (8, None, None)
    """
    return int(value) if value is not None and 1 <= value <= MOST_TOKENS else None


def text_at(table: Any, *keys: str | int) -> str | None:
    """The text at such a place, at most 300 characters of it."""
    found = at(table, *keys)
    return found[:300] if isinstance(found, str) and found else None


def count_at(table: Any, *keys: str | int) -> int | None:
    """The whole number above 0 at such a place."""
    found = at(table, *keys)
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else None


def same_lengths(path: Path, lists: Mapping[str, Sequence[Any] | None]) -> int:
    """The common length of lists that go together, 0 where none is there. Raises `UsageError` where they differ."""
    known = {name: len(one) for name, one in lists.items() if one is not None}
    if len(set(known.values())) > 1:
        said = ", ".join(f"{name} {n}" for name, n in known.items())
        raise UsageError(f"{path}: expected an entry of each list for each request, got {said}; was it cut?")
    return next(iter(known.values()), 0)
