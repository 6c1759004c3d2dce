"""What is kept of a pass over one level beside its records: what each process did, and why the pass failed."""

from __future__ import annotations

from typing import Literal

import msgspec

# records: a record could not be kept. server: it went away. workers: one was lost, or its records do not add up.
# start: an option, or the server, kept the pass from starting. bug: ours.
FailureKind = Literal["records", "server", "workers", "start", "bug"]


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a pass under Locust failed: `failure.json`, and what a worker tells its master."""

    kind: FailureKind
    message: str
    exit_code: int = 1


class LevelSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What one process did: `level-*.json`, and what a worker tells its master at the end."""

    worker: str
    host: str
    file: str  # its requests, in the folder of the level
    users: int
    connections_opened: int
    connections_wall_s: float  # before the first request
    started: int  # requests
    written: int  # records of them
    failure: str | None
    failure_kind: FailureKind | None = None
