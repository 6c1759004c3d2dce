"""Names and places of the files in a run folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from loadtest.errors import RecordError
from loadtest.records.schema import Phase

PassKind = Literal["level", "bursts"]  # the workload at one concurrency; or bursts (`workload.bursts`)

FAILURE_FILE = "failure.json"  # in the folder of a level: why Locust ended early
MASTER_FILE = ".master"  # in the folder of a level: a token, by which a worker finds that it shares the master's folder

_MODEL_CHARS = 100  # of a cell's id, which is the name of a folder


def cell_id(engine: str, model: str, tp: int, *more: str | None) -> str:
    """Identity of a cell, `ENGINE_MODEL_tpN`, and what else tells it from others of the run (None: nothing); of a path or a
    hub name only the last part counts, at most 100 characters.

    >>> cell_id("vllm", "Qwen/QwQ-32B-AWQ", 2), cell_id("vllm", "qwq-32b", 1, "chunked", None)
    ('vllm_qwq-32b-awq_tp2', 'vllm_qwq-32b_tp1_chunked')
    """
    name = re.sub(r"[^a-z0-9.-]+", "-", model.rstrip("/").rsplit("/", 1)[-1].lower()).strip("-.") or "model"
    return "_".join([engine, name[:_MODEL_CHARS], f"tp{tp}", *(one for one in more if one)])


def request_id(run_id: str, cell: str, pass_name: str, phase: Phase, seq: int) -> str:
    """What a request is called on the wire (`x-request-id`) and so in a server's log: unique within a run.

    >>> request_id("r", "vllm_m_tp1", level_name(8, 1), "measure", 3)
    'r.vllm_m_tp1.c08-r1.measure-3'
    >>> request_id("r\\r\\nhost: x", "vllm_m_tp1", "c08-r1", "measure", 3)  # as the name of a folder may be
    'r-host:-x.vllm_m_tp1.c08-r1.measure-3'
    """
    return re.sub("[^!-~]+", "-", f"{run_id}.{cell}.{pass_name}.{phase}-{seq}")


def level_name(concurrency: int, repeat: int, kind: PassKind = "level") -> str:
    """Folder of one pass over one level, `cNN-rR`; of a pass of bursts `bursts-cNN-rR`.

    >>> level_name(8, 1), level_name(8, 1, "bursts")
    ('c08-r1', 'bursts-c08-r1')
    """
    return f"{'' if kind == 'level' else f'{kind}-'}c{concurrency:02d}-r{repeat}"


def level_path(run: Path, cell: str, concurrency: int, repeat: int, kind: PassKind = "level") -> Path:
    """Where the records of one pass over one level of one cell are."""
    return run / "cells" / cell / level_name(concurrency, repeat, kind)


def set_aside(folder: Path) -> Path:
    """Rename the folder of an incomplete pass to `cNN-rR.broken-N`, which readers ignore; returns the new path."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.broken-{number}")).exists():
        number += 1
    try:
        return folder.rename(aside)
    except OSError as error:
        raise RecordError(f"{folder}: cannot set aside what a broken pass left: {error.strerror}") from error


def check_run_folder(run: Path) -> None:
    """Raise `RecordError` where a run folder holds anything but folders and files: a link leads readers and writers out of
    it, a pipe or a device has no end. The folder itself may be named by a link."""
    folders = [str(run)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif not entry.is_file(follow_symlinks=False):
                        kind = "a link" if entry.is_symlink() else "a pipe, a socket or a device"
                        raise RecordError(f"{entry.path}: expected a file or a folder of the run, got {kind}; remove it")
        except OSError as error:
            raise RecordError(f"{error.filename or run}: cannot read: {error.strerror}") from error


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[Callable[[], None]]:
    """Lock a run folder, so that no other run writes into it; the lock ends with this process, however it ends.

    Gives what raises `RecordError` where the folder was renamed or removed since.
    Raises `RecordError`: another process holds it, or the disk refuses.
    """
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_run_folder(folder)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
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
        yield lambda: _check_still_there(path, handle)
    finally:
        os.close(handle)


def _check_still_there(lock: Path, handle: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.lstat(lock), os.fstat(handle)):
            return
    raise RecordError(
        f"{lock.parent}: expected the folder of this run, found it renamed or removed; what it holds is incomplete"
    )


def own_stem(kind: str) -> str:
    """File stem for what this process writes of a kind, `requests` for one: unique over hosts and processes."""
    host = re.sub(r"[^A-Za-z0-9]+", "-", socket.gethostname())[:32] or "host"
    return f"{kind}-{host}-{os.getpid()}"


PASS_NAME = re.compile(r"(?:(bursts)-)?c(0[1-9]|[1-9][0-9]{1,6})-r([1-9][0-9]{0,6})")  # what `level_name` gives
