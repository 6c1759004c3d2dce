"""What each file of a run held when it was written, and how it differs from that.

`digests-HOST-PID.jsonl`, in the folder of a pass: a line for each record file that the process closed. `manifest.json` and
`engine.json`, which are written anew as a run goes on, hold their own digest: the key `sha256`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

DIGESTS = "digests-*.jsonl"
SEAL = "sha256"


class FileDigest(msgspec.Struct, frozen=True):
    """One record file: its name, its lines, and the SHA-256 of its bytes."""

    file: str
    lines: int
    sha256: str


class Written(msgspec.Struct, frozen=True):
    """Of `level-*.json`: the file of requests, and how many its writer counted; None: an older release."""

    file: str | None = None
    written: int | None = None


def differences_from(
    closed: Iterable[FileDigest], counted: Iterable[Written], found: Mapping[str, FileDigest], *, ended: bool
) -> Iterator[str]:
    """How the files found differ from what their writers say, a line for each file.

    `ended`: the run says that the pass ended as it should, so each of its files was closed.
    """
    expected = {one.file: one for one in closed}
    for name, digest in sorted(expected.items()):
        if (difference := _difference(digest, found.get(name))) is not None:
            yield difference
    for each in counted:
        if each.file is not None and each.written is not None and each.file not in expected:
            one = found.get(each.file)
            if one is None or one.lines != each.written:
                yield f"{each.file}: expected {each.written} records, as its writer counted, {_lines(one)}"
    if ended and not expected:
        yield f"{DIGESTS}: expected what the writers say of their files, found none"
    if ended and expected:
        yield from (
            f"{name}: expected no such file, as no writer of this pass tells of it" for name in found.keys() - expected
        )


def _difference(expected: FileDigest, found: FileDigest | None) -> str | None:
    if found == expected:
        return None
    if found is None or found.lines != expected.lines:
        return f"{expected.file}: expected {expected.lines} lines, as its writer counted, {_lines(found)}"
    return (
        f"{expected.file}: expected the content that was written, SHA-256 {expected.sha256[:12]}, found {found.sha256[:12]}"
    )


def _lines(found: FileDigest | None) -> str:
    return "found no file" if found is None else f"found {found.lines}"


def missing_passes(run: Path, passes: Iterable[str]) -> tuple[str, ...]:
    """Which passes that a run says have ended are not in its folder."""
    gone = (one for one in passes if not (run / "cells" / one).is_dir())
    return tuple(f"cells/{one}: expected a pass that ended, found no folder" for one in gone)


def sealed(table: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with the digest of all else in it.

    >>> broken_seal(sealed({"a": 1.5}), "manifest.json"), broken_seal({"a": 1.5}, "manifest.json")
    ((), ())
    >>> broken_seal(sealed({"a": 1.5}) | {"a": 2}, "manifest.json")
    ('manifest.json: expected the content that was written, SHA-256 3b1cb40b2293, found 7e8059f49558',)
    """
    return {**table, SEAL: _digest(table)}


def broken_seal(table: Mapping[str, Any], name: str, *, expected: bool = False) -> tuple[str, ...]:
    """How an object differs from what was written, in words; `expected`: whoever wrote it seals what it writes."""
    told, found = table.get(SEAL), _digest({key: value for key, value in table.items() if key != SEAL})
    if told == found or (told is None and not expected):
        return ()
    said = f"SHA-256 {told[:12]}" if isinstance(told, str) else "with its SHA-256"
    return (f"{name}: expected the content that was written, {said}, found {found[:12]}",)


def _digest(table: Mapping[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(table)).hexdigest()
