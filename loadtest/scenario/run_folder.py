"""From Locust's options to a settled pass: the server asked, the run folder opened, its manifest kept."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from loadtest.client.level import Settings
from loadtest.clock import Clock
from loadtest.errors import RecordError, UsageError
from loadtest.records import read, write
from loadtest.records.engine_facts import EngineFacts
from loadtest.records.folder import cell_id, level_path
from loadtest.records.manifest import UNFINISHED, Manifest, ManifestCell, begun, ended
from loadtest.records.write import JsonlWriter
from loadtest.servers import probe
from loadtest.workload import contract as contracts
from loadtest.workload import workload
from loadtest.workload.contract import Contract, check_format
from loadtest.workload.workload import Workload


def base_url(host: str | None) -> str:
    """The server's address from Locust's `--host`, as `endpoint.normalise_url` has it."""
    if not host:
        raise UsageError("--host: expected the URL of the server, got none; add --host http://127.0.0.1:8000")
    return probe.normalise_url(host)


def settle(options: Any, host: str | None, users: int) -> tuple[Settings, Workload]:
    """The pass that resolved options describe (`open_run` has filled the gaps), and its workload loaded."""
    run = Path(options.out)
    settings = Settings(
        run=run,
        run_id=options.run_id,
        cell=options.cell,
        engine=options.engine,
        model=options.model,
        url=base_url(host) + "/v1/chat/completions",
        concurrency=users,
        repeat=options.repeat,
        requests=options.requests,
        warmup_requests=options.warmup_requests,
        seed=options.seed,
        clock_speed=options.clock_speed,
        contract=contracts.from_table(options.loadtest_contract),
    )
    return settings, workload.load(options.workload)


class Opening:
    """A run folder, opened for one pass. `owned`: nobody else keeps its manifest, so we do. `pending`: what made the run
    incomplete before this pass."""  # fmt: skip

    def __init__(
        self, run: Path, folder: Path, *, owned: bool, url: str, clock_speed: float, pending: str | None = None
    ) -> None:
        self.run = run
        self.folder = folder
        self.owned = owned
        self._pending = pending
        self._url = url
        self._clock = Clock.start(clock_speed)
        self._counters = JsonlWriter(folder, "server_metrics") if owned else None
        self._read_counters()

    def _read_counters(self) -> None:
        """The server's own counts, before the first request and after the last: nothing is asked of it in between."""
        if self._counters is not None:
            from loadtest.servers.prometheus import scrape

            self._counters.write(scrape(self._url, self._clock))

    def count_lines(self, finals: Iterable[Mapping[str, Any]]) -> None:
        """Compare the records on disk with what each process says it wrote, where its file is on this host."""
        for final in finals:
            path = self.folder / str(final["file"])
            if path.is_file():
                lines = path.read_bytes().count(b"\n")
                if lines != final["written"]:
                    raise RecordError(f"{path}: expected {final['written']} records, as its writer counted, found {lines}")

    def close(self, failure: str | None, *, interrupted: bool) -> None:
        """Mark the run complete, or say why it is not; one incomplete pass makes the run incomplete."""
        if self._counters is None:
            return
        self._read_counters()
        self._counters.close()
        manifest = read.read_manifest(self.run / "manifest.json")
        problems = [reason for reason in (self._pending, failure) if reason]
        if interrupted and not failure:
            problems.append(f"{self.folder.parent.name}/{self.folder.name}: interrupted")
        write.write_manifest(self.run, ended(manifest, problems, interrupted=manifest.interrupted or interrupted))


def open_run(options: Any, host: str | None, users: int) -> Opening:
    """Fill the options that were not given, by asking the server, and open the run folder.

    The resolved values are put back into `options`: Locust hands them on to its workers.
    """
    url = base_url(host)
    info = _ask_server(options, url)
    driven = options.run_id is not None
    loaded = workload.load(options.workload)
    options.out = options.out or str(Path("runs") / f"{time.strftime('%Y%m%dT%H%M%S')}-{options.engine}")
    run = Path(options.out)
    manifest = _manifest_of(run)
    contract = _contract(options, manifest)
    check_format(contract, loaded.prompts)
    options.loadtest_contract = asdict(contract)
    options.loadtest_users = users
    options.cell = options.cell or cell_id(options.engine, options.model, options.tp)
    options.repeat = options.repeat or _next_repeat(run, options.cell, users)
    folder = level_path(run, options.cell, users, options.repeat)
    pending = None
    if not driven:
        options.run_id = manifest.run_id if manifest else run.name
        new = _new_manifest(options, contract, loaded)
        if manifest is not None:
            _refuse_other(run, manifest, new)
            pending = manifest.incomplete_reason if manifest.levels and not manifest.complete else None
        write.write_manifest(run, _joined(manifest or new, options, url, info, users))
        _write_engine(run, options, url, info)
    return Opening(run, folder, owned=not driven, url=url, clock_speed=options.clock_speed, pending=pending)


def _ask_server(options: Any, url: str) -> probe.ServerInfo | None:
    """Ask the server for what the options leave open; its answers, or None where they leave nothing open."""
    if options.engine and options.model and options.clock_speed:
        options.tp = options.tp or 1
        return None
    info = probe.probe(url)
    options.engine = options.engine or info.engine
    options.model = options.model or info.model
    options.clock_speed = options.clock_speed or info.clock_speed or 1.0
    options.tp = options.tp or info.tp or 1
    if not options.model:
        raise UsageError(f"{url}/v1/models: the server names no model; add --model")
    return info


def _manifest_of(run: Path) -> Manifest | None:
    path = run / "manifest.json"
    return read.read_manifest(path) if path.is_file() else None


def _contract(options: Any, manifest: Manifest | None) -> Contract:
    """The run's contract where there is one, with what the options say on top."""
    table: dict[str, Any] = dict(manifest.contract) if manifest else {}
    table.setdefault("seed", options.seed)
    if options.mode:
        table["mode"] = options.mode
    if options.max_tokens:
        table["max_tokens"] = options.max_tokens
    return contracts.from_table(table)


def _next_repeat(run: Path, cell: str, users: int) -> int:
    pattern = re.compile(rf"c0*{users}-r(\d+)")
    folder = run / "cells" / cell
    taken = [int(m[1]) for p in folder.iterdir() if (m := pattern.fullmatch(p.name))] if folder.is_dir() else []
    return max(taken, default=0) + 1


_OF_SCENARIOS = ("rate", "arrivals", "steps", "step_time", "easy_model")


def _new_manifest(options: Any, contract: Contract, loaded: Workload) -> Manifest:
    own = {name: getattr(options, name) for name in _OF_SCENARIOS if hasattr(options, name)}
    return begun(
        run_id=options.run_id,
        name=options.run_id,
        scenario_options=own or None,
        scenario=Path((options.locustfile or "locustfile").split(",")[0]).stem,
        driven="locust",
        simulated=options.engine.endswith("-sim"),
        clock_speed=options.clock_speed,
        seed=options.seed,
        workload=loaded.facts,
        contract=asdict(contract),
    )


def _refuse_other(run: Path, manifest: Manifest, new: Manifest) -> None:
    """Raise `UsageError` where a pass asks for something else than the run that it joins: their figures are pooled."""
    other: dict[str, tuple[object, object]] = {}
    ours, theirs = manifest.workload, new.workload
    if ours and theirs and ours.identity != theirs.identity:
        other["workload"] = (ours.source, theirs.source)
    if Path(manifest.scenario).stem != new.scenario:  # a study's may be a path
        other["scenario"] = (manifest.scenario, new.scenario)
    known, given = manifest.scenario_options or {}, new.scenario_options or {}
    other |= {f"--{key}": (known[key], given[key]) for key in known.keys() & given.keys() if known[key] != given[key]}
    other |= contracts.differences(*(contracts.from_table(one.contract) for one in (manifest, new)))
    for key, (expected, got) in other.items():
        raise UsageError(f"{run}: {key}: expected the run's own ({expected}), got {got}; name another --out")


def _joined(manifest: Manifest, options: Any, url: str, info: probe.ServerInfo | None, users: int) -> Manifest:
    """The manifest with this pass in it, incomplete until the pass has ended."""
    cell = ManifestCell(
        id=options.cell,
        engine=options.engine,
        model=options.model,
        tp=options.tp,
        gpu=info.gpu if info else None,
        base_url=url,
        clock_speed=options.clock_speed,
    )
    return msgspec.structs.replace(
        manifest,
        levels=tuple(sorted({*manifest.levels, users})),
        repeats=max(manifest.repeats, options.repeat),
        cells=manifest.cells if manifest.cell(cell.id) else (*manifest.cells, cell),
        complete=False,
        incomplete_reason=UNFINISHED,
    )


def _write_engine(run: Path, options: Any, url: str, info: probe.ServerInfo | None) -> None:
    path = run / "cells" / options.cell / "engine.json"
    if path.is_file():
        return
    known = {name: getattr(info, name) for name in ("version", "max_model_len", "simulated", "gpu")} if info else {}
    facts = EngineFacts(
        id=options.cell,
        engine=options.engine,
        engine_version=info.version if info else None,
        model=options.model,
        tp=options.tp,
        gpu=info.gpu if info else None,
        simulated=bool(info and info.simulated) or options.engine.endswith("-sim"),
        clock_speed=options.clock_speed,
        base_url=url,
        status="ok",
        server_info=known,
    )
    write.write_json(path, facts)
