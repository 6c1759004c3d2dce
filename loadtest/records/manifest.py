"""`manifest.json`: what a run says of itself, with the same keys for a study and for a scenario under Locust."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from loadtest import credentials
from loadtest.records.environment import Environment, describe
from loadtest.records.imported import Imported
from loadtest.records.instrument import InstrumentError
from loadtest.records.schema import SCHEMA_VERSION, ClockSpeed, Mode, UnixSeconds, about

IMPORTED = "another tool"  # `driven` of a run that was imported

VIRTUAL_TIME = "virtual time"  # `driven` of a fast-forwarded study: there was no load generator

UNFINISHED = "still running, or killed before it could say how it ended"

_Part = TypeVar("_Part", bound="_Open")


class _Open(msgspec.Struct, frozen=True, kw_only=True):
    """A JSON object that may have keys that we do not know: `others` keeps them, and they are written back unchanged."""

    others: dict[str, Any] = {}


class RunWorkload(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked."""

    source: Annotated[str, about("As it was named: a generator with its options, or a file.")]
    name: Annotated[str, about("Its short name.")]
    identity: Annotated[str, about("SHA-256 of the prompts: equal for equal workloads.")]
    n_prompts: Annotated[int, about("Different prompts in it.")]


class Prices(msgspec.Struct, frozen=True, kw_only=True):
    """What one GPU costs for an hour; None: not said."""

    gpu_hour: float | None = None
    currency: str | None = None


class ManifestCell(_Open, frozen=True, kw_only=True):
    """One cell as it was asked for. `others`: further keys of a study's cell (settings, arguments)."""

    id: str
    engine: str = "other"
    model: str | None = None
    tp: int | None = None
    gpu: str | None = None
    mode: Mode | None = None  # None: the run's
    name: str | None = None  # of the configuration, where an engine has several
    base_url: str | None = None  # None: started by the run
    clock_speed: ClockSpeed | None = None

    @classmethod
    def from_table(cls, table: dict[str, Any]) -> ManifestCell:
        """A cell from all that is said of it."""
        return msgspec.convert(_split(table, cls), cls)


class Manifest(_Open, frozen=True, kw_only=True):
    """The whole run. Made once by `begun`; changed by `msgspec.structs.replace`."""

    run_id: str
    schema_version: int = SCHEMA_VERSION
    name: str = ""
    question: str = ""
    started_unix_s: UnixSeconds | None = None
    ended_unix_s: UnixSeconds | None = None
    complete: bool = False
    incomplete_reason: str | None = None
    interrupted: bool = False
    driven: str = "locust"
    simulated: bool = False
    clock_speed: ClockSpeed = 1.0
    mode: Mode | None = None
    scenario: str = ""
    scenario_options: dict[str, Any] | None = None
    workload: RunWorkload | None = None
    contract: dict[str, Any] = {}  # `workload.contract.Contract`
    slo: tuple[str, ...] = ()
    matters: float | None = None
    start_sd: float | None = None
    prices: Prices = Prices()
    findings: str | None = None
    commands: tuple[str, ...] = ()
    seed: int | None = None
    baseline: str | None = None  # name or id of the cells that others of their engine and deployment are held against
    levels: tuple[int, ...] = ()
    duration_s: float | None = None  # of a pass; None: by requests
    min_requests: int | None = None  # measured requests of a pass: so many, or `requests_per_stream` of each stream
    requests_per_stream: int | None = None
    warmup_requests: int | None = None  # of each stream
    cooldown_s: float | None = None  # before each pass
    workers: int | None = None  # processes that share the streams
    repeats: int = 0
    prompts: int | None = None  # each level asked whole rounds of so many
    unsalted: tuple[str, ...] = ()  # cells whose engine knows no `cache_salt`: they ask on through the workload
    natural_users: int | None = None  # mode decision: concurrency of the natural runs, and their requests
    natural_prompts: int | None = None
    until_decided: bool = False  # looked at between repeats: judged by a stricter level
    passes: tuple[str, ...] = ()  # `CELL/cNN-rR`: ended as they should, so each of their files was closed
    environment: Environment | None = None
    instrument: InstrumentError | None = None  # of `run --verify`, before the first cell
    imported: Imported | None = None  # another tool measured it
    cells: tuple[ManifestCell, ...] = ()

    @classmethod
    def from_table(cls, table: dict[str, Any]) -> Manifest:
        """From the object that `manifest.json` holds. Raises `msgspec.ValidationError`."""
        cells = table.get("cells")
        if isinstance(cells, list):
            table = table | {"cells": [_split(cell, ManifestCell) for cell in cells]}
        return msgspec.convert(_split(table, cls), cls)

    def to_table(self) -> dict[str, Any]:
        """The object that `manifest.json` holds."""
        table = _joined(msgspec.to_builtins(self))
        return table | {"cells": [_joined(cell) for cell in table["cells"]]}

    @property
    def open_loop(self) -> bool:
        """Did requests come by the clock? The concurrency of a level is then only the most that could be in flight."""
        return "arrivals" in (self.scenario_options or {})

    @property
    def tool(self) -> str:
        """What measured it, and which version where that is told."""
        return "loadtest" if self.imported is None else self.imported.name

    def cell(self, cell_id: str) -> ManifestCell | None:
        return next((cell for cell in self.cells if cell.id == cell_id), None)


def begun(
    *, run_id: str, workload: RunWorkload, contract: dict[str, Any], mode: Mode | None = None, **facts: Any
) -> Manifest:
    """The manifest of a run that begins: incomplete until `ended` says otherwise. `facts`: its other fields.
    `mode` None: the contract's."""
    return Manifest(
        run_id=run_id,
        started_unix_s=time.time(),
        incomplete_reason=UNFINISHED,
        mode=mode or contract["mode"],
        workload=workload,
        contract=contract,
        commands=(_typed(),),
        environment=describe(),
        **facts,
    )


def _typed() -> str:
    """The command line that began the run, its program without the folder, no key in it."""
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    return credentials.redacted(shlex.join((name, *sys.argv[1:])))


def ended(manifest: Manifest, problems: list[str], passes: Iterable[str], *, interrupted: bool) -> Manifest:
    """The manifest of a run that has ended: complete where nothing went wrong, else with every problem."""
    return msgspec.structs.replace(
        manifest,
        complete=not problems,
        incomplete_reason="; ".join(problems) or None,
        interrupted=interrupted,
        ended_unix_s=time.time(),
        passes=tuple(sorted(passes)),
    )


def _split(table: Any, kind: type[_Part]) -> Any:
    """Move the keys that `kind` does not know into `others`; a value that is no object is returned as it is."""
    if not isinstance(table, dict):
        return table
    ours = set(kind.__struct_fields__) - {"others"}
    return {key: table[key] for key in table if key in ours} | {"others": {k: table[k] for k in table if k not in ours}}


def _joined(table: dict[str, Any]) -> dict[str, Any]:
    others = table.pop("others")
    return {**table, **others}
