"""What each record file held when its writer closed it, and how the files of a pass differ from that.

`digests-HOST-PID.jsonl`, in the folder of a pass: a line for each record file that the process closed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

DIGESTS = "digests-*.jsonl"


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
