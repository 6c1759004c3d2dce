"""What one pass over one level is: every option resolved, the same in every worker."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec

from loadtest.records.folder import PassKind, level_name, level_path
from loadtest.records.schema import Api
from loadtest.servers.route import Route
from loadtest.workload.apis import PATHS
from loadtest.workload.contract import Contract
from loadtest.workload.script import Rounds


class PassOptions(msgspec.Struct, frozen=True, kw_only=True):
    """One pass. Made once, by the process that opens the run folder; workers get `to_table`."""

    out: str  # the run folder
    run_id: str
    cell: str
    engine: str
    model: str
    tp: int
    url: str  # of the server, without a path; of several, the first
    concurrency: int
    repeat: int
    requests: int | None  # None: for a time
    warmup_requests: int  # of each user
    seed: int
    clock_speed: float
    workload: str
    workload_identity: str  # SHA-256 of its prompts
    contract: Contract
    api: Api = "chat"
    headers: dict[str, str] = {}  # name to the environment variable that holds its value
    route: Route = Route()
    more_urls: tuple[str, ...] = ()  # of further servers, which take turns with the first
    kind: PassKind = "level"
    prompts: int | None = None  # whole rounds of so many; None: the workload on and on
    level: int | None = None  # its number, where that is no concurrency; None: the concurrency
    tokenizer: str | None = None  # where it is, to count the tokens of a server that never tells

    @property
    def folder(self) -> Path:
        """Where the records of the pass are."""
        return level_path(Path(self.out), self.cell, self.level or self.concurrency, self.repeat, self.kind)

    @property
    def name(self) -> str:
        """The name of that folder."""
        return level_name(self.level or self.concurrency, self.repeat, self.kind)

    @property
    def rounds(self) -> Rounds | None:
        """The rounds of the workload's first prompts that it sends, if any."""
        if self.prompts is None:
            return None
        return Rounds(self.prompts, self.name, math.ceil((self.requests or 0) / self.prompts))

    @property
    def urls(self) -> tuple[str, ...]:
        """Of every server."""
        return (self.url, *self.more_urls)

    @property
    def request_urls(self) -> tuple[str, ...]:
        """What measured requests ask, of each server."""
        return tuple(f"{url}{PATHS[self.api]}" for url in self.urls)

    @classmethod
    def from_table(cls, table: dict[str, Any]) -> PassOptions:
        return msgspec.convert(table, cls)

    def to_table(self) -> dict[str, Any]:
        """Plain values, which Locust can send."""
        table: dict[str, Any] = msgspec.to_builtins(self)
        return table
