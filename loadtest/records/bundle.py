"""A run in one file, to hand on: a zip archive of its records, with a list of their sizes and SHA-256.

What comes from elsewhere is not trusted: an archive is unpacked into a folder of our own, only by names that a run has, and
only up to a size; what differs from the list is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from loadtest import __version__
from loadtest.errors import RecordError, UsageError
from loadtest.records.digests import SEAL, FileDigest, broken_seal, sealed
from loadtest.records.folder import check_run_folder
from loadtest.records.pseudonyms import Pseudonyms
from loadtest.records.read import read_bytes

SUFFIX = ".loadtest"
LIST = "bundle.json"
SCHEMA_VERSION = 1
MOST_FILES = 100_000
MOST_BYTES = 8 * 2**30  # unpacked
MOST_LIST_BYTES = 32 * 2**20
_PART = r"[A-Za-z0-9][A-Za-z0-9._+=@-]{0,199}"
_NAME = re.compile(rf"(?:manifest|programs|acceptance)\.json|cells/{_PART}/(?:{_PART}/)?{_PART}\.(?:jsonl?|log)")
_SET_ASIDE = re.compile(r"\.broken-\d+/")
_PIECE_BYTES = 2**20


class BundledFile(msgspec.Struct, frozen=True):
    """One file of a bundle, as it was before compression."""

    n_bytes: int
    sha256: str


class BundleList(msgspec.Struct, frozen=True, kw_only=True):
    """`bundle.json`, the first entry: who packed it, and what every file must be."""

    schema_version: int
    loadtest: str
    redacted: bool
    files: dict[str, BundledFile]


def pack(run: Path, target: Path, *, redact: bool = False, hidden: Iterable[str] = ()) -> BundleList:
    """Write the records of a run folder into one new file; derived files and broken repeats are left out.

    `redact` replaces names of machines and people (`pseudonyms`), and the words in `hidden`; digests are made anew for files
    that were as written, so that damage stays visible.
    Raises `RecordError`: not a run folder, or the disk refuses; `UsageError`: the target exists.
    """
    if not (run / "manifest.json").exists():
        raise RecordError(f"{run}: expected a run folder with manifest.json, found none; name the folder that --out made")
    check_run_folder(run)
    names = sorted(_names(run))
    contents = {name: read_bytes(run / name) for name in names}
    if redact or hidden:
        contents = _redacted(contents, Pseudonyms((name.rpartition("/")[2] for name in names), hidden))
    files = {name: BundledFile(len(data), hashlib.sha256(data).hexdigest()) for name, data in contents.items()}
    listed = BundleList(schema_version=SCHEMA_VERSION, loadtest=__version__, redacted=bool(redact or hidden), files=files)
    _write(target, listed, contents)
    return listed


def _names(run: Path) -> Iterator[str]:
    for folder, _, files in os.walk(run):
        for file in files:
            name = (Path(folder) / file).relative_to(run).as_posix()
            if _NAME.fullmatch(name) and not _SET_ASIDE.search(name):
                yield name


def _write(target: Path, listed: BundleList, contents: dict[str, bytes]) -> None:
    if os.path.lexists(target):
        raise UsageError(f"{target}: expected a new file, got one that exists; name another")
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}.")
        try:
            with os.fdopen(handle, "wb") as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(_entry(LIST), msgspec.json.format(msgspec.json.encode(listed), indent=1))
                for name, data in contents.items():
                    archive.writestr(_entry(name), data)
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise RecordError(f"{target}: cannot write: {error.strerror}") from error


def _entry(name: str) -> zipfile.ZipInfo:
    """Without a time or an owner: two bundles of one run are equal byte for byte."""
    entry = zipfile.ZipInfo(name)
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The run folder that a path names, or the content of a bundle in a temporary folder that is removed at the end.

    Raises `RecordError` where a file is not a bundle, or not what its list says.
    """
    if not path.is_file():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="loadtest-bundle-") as folder:
        run = Path(folder) / _run_name(path)
        _unpack(path, run)
        yield run


def unpack(path: Path, out: Path) -> None:
    """Lay the content of a bundle into a folder that is new, or without a run.

    Raises `RecordError`, and leaves the folder as it was, where the file is not a bundle, or not what its list says.
    """
    if (out / "manifest.json").exists():
        raise UsageError(f"{out}: expected a new folder, got one with a run; name another --out")
    with unpacked(path) as run:
        try:
            shutil.copytree(run, out, dirs_exist_ok=True)
        except OSError as error:
            raise RecordError(f"{out}: cannot unpack {path}: {error}") from error


def is_bundle(path: Path) -> bool:
    """Does this file look like a bundle? `unpack` says whether it is one."""
    return path.is_file() and zipfile.is_zipfile(path)


def _run_name(path: Path) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.name.removesuffix(SUFFIX)).strip(".-")[:100] or "run"


def _unpack(path: Path, run: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            listed = _list(path, archive, entries)
            run.mkdir(parents=True)
            for entry in entries:
                if entry.filename != LIST:
                    _unpack_entry(path, archive, entry, listed.files[entry.filename], run)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise RecordError(f"{path}: expected a bundle of `loadtest bundle`, got something else ({error})") from error
    except OSError as error:
        raise RecordError(f"{path}: cannot unpack: {error.strerror}") from error


def _list(path: Path, archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo]) -> BundleList:
    """`bundle.json`, and the entries held against it before any is unpacked."""
    names = [entry.filename for entry in entries]
    if names[:1] != [LIST] or entries[0].file_size > MOST_LIST_BYTES:
        raise RecordError(f"{path}: expected a bundle of `loadtest bundle`, whose first file is {LIST}; got another archive")
    if len(names) > MOST_FILES or sum(entry.file_size for entry in entries) > MOST_BYTES:
        raise RecordError(f"{path}: expected at most {MOST_FILES} files and {MOST_BYTES} bytes unpacked, got more")
    try:
        listed = msgspec.json.decode(archive.read(LIST), type=BundleList)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError(f"{path}: {LIST}: expected the list of a bundle, got something else ({error})") from error
    if listed.schema_version > SCHEMA_VERSION:
        raise RecordError(f"{path}: schema_version: expected {SCHEMA_VERSION}, got {listed.schema_version}; update loadtest")
    if sorted(names[1:]) != sorted(listed.files):
        raise RecordError(f"{path}: expected the {len(listed.files)} files of its list, each once, got others")
    for name in names[1:]:
        if not _NAME.fullmatch(name) or ".." in name:
            raise RecordError(f"{path}: expected files of a run, got {name[:100]!r}")
    return listed


def _unpack_entry(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, told: BundledFile, run: Path) -> None:
    target = run / entry.filename
    target.parent.mkdir(parents=True, exist_ok=True)
    content, n_bytes = hashlib.sha256(), 0
    with archive.open(entry) as source, target.open("xb") as stream:
        while piece := source.read(_PIECE_BYTES):
            n_bytes += len(piece)
            if n_bytes > told.n_bytes:
                break
            content.update(piece)
            stream.write(piece)
    if n_bytes != told.n_bytes or content.hexdigest() != told.sha256:
        raise RecordError(
            f"{path}: {entry.filename}: expected the content of its list, got another; ask for the bundle again"
        )


def _redacted(contents: dict[str, bytes], names: Pseudonyms) -> dict[str, bytes]:
    """Every file with pseudonyms for names, and each digest that was right made anew."""
    for name in contents:
        if name.endswith(("manifest.json", "engine.json")):
            names.learn(contents[name].decode(errors="replace"))
    whole = {name for name, data in contents.items() if _is_as_written(name, data, contents)}
    renamed = {name: _renamed(name, names) for name in contents}
    found = {renamed[name]: _without_names(name, data, names) for name, data in contents.items()}
    for name in contents:
        if name.rpartition("/")[2].startswith("digests-"):
            found[renamed[name]] = _digests_anew(name, contents, found, renamed, whole)
        elif SEAL.encode() in contents[name] and name.endswith(("manifest.json", "engine.json")) and name in whole:
            table = msgspec.json.decode(found[renamed[name]], type=dict[str, object])
            table.pop(SEAL, None)
            found[renamed[name]] = msgspec.json.format(msgspec.json.encode(sealed(table)), indent=1) + b"\n"
    return found


def _renamed(name: str, names: Pseudonyms) -> str:
    folder, _, file = name.rpartition("/")
    return f"{folder}/{names.in_name(file)}" if folder else file


def _without_names(name: str, data: bytes, names: Pseudonyms) -> bytes:
    if name.endswith(".json"):
        return msgspec.json.format(names.in_line(data), indent=1) + b"\n"
    if name.endswith(".log"):
        return names.in_text(data.decode(errors="replace")).encode()
    torn = b"" if data.endswith(b"\n") or not data else names.in_line(data[data.rfind(b"\n") + 1 :])
    return b"".join(names.in_line(line) + b"\n" for line in data[: data.rfind(b"\n") + 1].splitlines()) + torn


def _is_as_written(name: str, data: bytes, contents: dict[str, bytes]) -> bool:
    if name.endswith(("manifest.json", "engine.json")):
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return not broken_seal(msgspec.json.decode(data, type=dict[str, object]), name)
        return False
    folder, _, file = name.rpartition("/")
    digest = FileDigest(file, data.count(b"\n"), hashlib.sha256(data).hexdigest())
    lists = (text for other, text in contents.items() if other.startswith(f"{folder}/digests-"))
    return any(digest == one for text in lists for one in _digests(text))


def _digests(text: bytes) -> Iterator[FileDigest]:
    for line in text.splitlines():
        with contextlib.suppress(msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError):
            yield msgspec.json.decode(line, type=FileDigest)


def _digests_anew(
    name: str, contents: dict[str, bytes], found: dict[str, bytes], renamed: dict[str, str], whole: set[str]
) -> bytes:
    folder = name.rpartition("/")[0]
    lines = []
    for one in _digests(contents[name]):
        old = f"{folder}/{one.file}"
        new = renamed.get(old, old)
        digest = hashlib.sha256(found[new]).hexdigest() if old in whole else one.sha256
        lines.append(msgspec.json.encode(FileDigest(new.rpartition("/")[2], one.lines, digest)) + b"\n")
    return b"".join(lines)
