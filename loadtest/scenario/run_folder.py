"""From Locust's options to a pass: asks the server, opens the run folder, keeps its manifest."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from loadtest import credentials
from loadtest.client.pass_options import PassOptions
from loadtest.clock import Clock
from loadtest.errors import RecordError, UsageError
from loadtest.records import read, write
from loadtest.records.engine_facts import EngineFacts, PromptLengths
from loadtest.records.folder import FAILURE_FILE, MASTER_FILE, PASS_NAME, PassKind, cell_id, claimed, level_name
from loadtest.records.manifest import UNFINISHED, Manifest, ManifestCell, begun, ended
from loadtest.records.pass_facts import Failure, LevelSummary
from loadtest.records.write import JsonlWriter
from loadtest.servers import probe, route
from loadtest.workload import contract as contracts
from loadtest.workload import exact, workload
from loadtest.workload.apis import check_api
from loadtest.workload.contract import Contract, check_format, check_lengths
from loadtest.workload.server_count import fit_to_server
from loadtest.workload.source import keyed
from loadtest.workload.workload import Workload


def base_url(host: str | None) -> str:
    """The server's address from Locust's `--host`, normalised by `probe.normalise_url`."""
    if not host:
        raise UsageError("--host: expected the URL of the server, got none; add --host http://127.0.0.1:8000")
    return probe.normalise_url(host)


class Opening:
    """A run folder, opened for one pass. `held`: we hold the folder and write the manifest, not a study. `pending`: why the
    run was incomplete before this pass."""  # fmt: skip

    def __init__(self, asked: PassOptions, held: contextlib.ExitStack | None = None, *, pending: str | None = None) -> None:
        self.asked = asked
        self._run = Path(asked.out)
        self._pending = pending
        self._clock = Clock.start(asked.clock_speed)
        self._held = held
        self._counters = JsonlWriter(asked.folder, "server_metrics") if held is not None else None
        self._read_counters()

    def _read_counters(self) -> None:
        """Read the server's counters, before the first request and after the last only."""
        if self._counters is not None:
            from loadtest.servers.prometheus import scrape_once

            self._counters.write(scrape_once(self.asked.urls, self._clock))

    def mark(self, token: str) -> None:
        """Mark the folder of the pass as the master's: a worker that finds the token there has no records to ship."""
        write.write_file(self.asked.folder / MASTER_FILE, token.encode())

    def count_lines(self, summaries: Iterable[LevelSummary]) -> None:
        """Compare the records on disk with what each process reports."""
        for summary in summaries:
            path = self.asked.folder / summary.file
            lines = read.count_lines(path)
            if lines != summary.written:
                raise RecordError(f"{path}: expected {summary.written} records, as its writer counted, found {lines}")

    def keep(self, failure: Failure) -> None:
        """Record why the pass failed, for the process that started Locust."""
        with contextlib.suppress(RecordError):  # the failure may be that of the disk
            write.write_json(self.asked.folder / FAILURE_FILE, failure)

    def close(self, failure: Failure | None, *, interrupted: bool) -> None:
        """Mark the run complete or incomplete; one incomplete pass makes the run incomplete."""
        if self._counters is None or self._held is None:
            return
        self._read_counters()
        self._counters.close()
        manifest = read.read_manifest(self._run / "manifest.json")
        problems = [reason for reason in (self._pending, failure and failure.message) if reason]
        if interrupted and not failure:
            problems.append(f"{self.asked.cell}/{self.asked.folder.name}: interrupted")
        own = [] if failure or interrupted else [f"{self.asked.cell}/{self.asked.folder.name}"]
        passes = {*manifest.passes, *own}
        write.write_manifest(self._run, ended(manifest, problems, passes, interrupted=manifest.interrupted or interrupted))
        self._held.close()


def open_run(options: Any, host: str | None, users: int, kind: PassKind = "level") -> Opening:
    """Resolve the options, ask the server for what they leave open, and open the run folder."""
    url = base_url(host)
    credentials.declare(dict(map(credentials.read_header, options.header or ())))
    route.take(route.Route(proxy=options.proxy, insecure=options.insecure))
    more = tuple(map(probe.normalise_url, options.replica or ()))
    route.check_route(route.current(), (url, *more))
    told = _ask_server(options, url)
    info = told or probe.ServerInfo(engine=options.engine)
    run = Path(options.out or Path("runs") / f"{time.strftime('%Y%m%dT%H%M%S')}-{options.engine or info.engine}")
    options.workload = keyed(options.workload, options.prompt_key, options.answer_key, options.speed_up)
    options.prompt_key = options.answer_key = options.speed_up = None
    lengths = _fit_lengths(options, url, info, run)
    loaded = workload.load(options.workload)
    if options.run_id is not None:
        asked = _resolved(options, url, users, kind, run, _manifest_of(run), info, loaded)
        check_format(asked.contract, loaded.prompts)
        return Opening(asked)
    with contextlib.ExitStack() as held:
        held.enter_context(claimed(run))
        manifest = _manifest_of(run)
        asked = _resolved(options, url, users, kind, run, manifest, info, loaded)
        check_format(asked.contract, loaded.prompts)
        check_lengths(asked.contract, loaded.prompts)
        check_api(asked.api, asked.contract.mode, loaded.prompts)
        new = _new_manifest(options, asked, loaded)
        pending = None
        if manifest is not None:
            _refuse_other(run, manifest, new)
            _refuse_another_way(asked)
            pending = manifest.incomplete_reason if manifest.levels and not manifest.complete else None
        write.write_manifest(run, _joined(manifest or new, asked, info))
        _write_engine(asked, told, lengths)
        return Opening(asked, held.pop_all(), pending=pending)


def _fit_lengths(options: Any, url: str, info: probe.ServerInfo, run: Path) -> PromptLengths | None:
    """Fit prompts of exact lengths to the server, and have everybody send these; None where none are asked for."""
    if not exact.is_open(options.workload):
        return None
    model, engine = options.model or info.model or "", options.engine or info.engine
    contract = _contract(options, _manifest_of(run))
    lengths = fit_to_server(options.workload, contract, base_url=url, model=model, engine=engine, api=options.api)
    options.workload = lengths.workload
    return lengths


def _ask_server(options: Any, url: str) -> probe.ServerInfo | None:
    """What the server says of itself; None if the options leave nothing open."""
    return None if options.engine and options.model and options.clock_speed else probe.probe(url)


def _resolved(
    options: Any,
    url: str,
    users: int,
    kind: PassKind,
    run: Path,
    manifest: Manifest | None,
    info: probe.ServerInfo,
    loaded: Workload,
) -> PassOptions:
    engine, model, tp = options.engine or info.engine, options.model or info.model, options.tp or info.tp or 1
    if not model:
        raise UsageError(f"{url}/v1/models: the server names no model; add --model")
    cell = options.cell or cell_id(engine, model, tp)
    return PassOptions(
        out=str(run),
        run_id=options.run_id or (manifest.run_id if manifest else run.name),
        cell=cell,
        engine=engine,
        model=model,
        tp=tp,
        url=url,
        concurrency=users,
        repeat=options.repeat or _next_repeat(run, cell, users, kind),
        kind=kind,
        api=options.api,
        headers=credentials.header_variables(),
        route=route.current(),
        more_urls=tuple(map(probe.normalise_url, options.replica or ())),
        requests=options.requests,
        warmup_requests=options.warmup_requests,
        seed=options.seed,
        clock_speed=options.clock_speed or info.clock_speed or 1.0,
        workload=options.workload,
        workload_identity=loaded.identity,
        contract=_contract(options, manifest),
        tokenizer=options.tokenizer,
        prompts=options.prompts,
        level=options.level,
    )


def _manifest_of(run: Path) -> Manifest | None:
    path = run / "manifest.json"
    return read.read_own_manifest(path) if path.is_file() else None


def _contract(options: Any, manifest: Manifest | None) -> Contract:
    """The contract of the run, if there is one, changed by the options."""
    table: dict[str, Any] = dict(manifest.contract) if manifest else {}
    table.setdefault("seed", options.seed)
    if options.mode or not manifest:
        table["mode"] = options.mode or workload.usual_mode(options.workload)
    if options.max_tokens:
        table["max_tokens"] = options.max_tokens
    if options.grammar:
        table["grammar"] = options.grammar == "on"
    return contracts.from_table(table)


def _next_repeat(run: Path, cell: str, users: int, kind: PassKind) -> int:
    stem = level_name(users, 1, kind).removesuffix("1")
    folder = run / "cells" / cell
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    taken = [int(name.removeprefix(stem)) for name in names if name.startswith(stem) and PASS_NAME.fullmatch(name)]
    return max(taken, default=0) + 1


_OF_SCENARIOS = ("rate", "arrivals", "steps", "step_time", "easy_model")


def _new_manifest(options: Any, asked: PassOptions, loaded: Workload) -> Manifest:
    own = {name: getattr(options, name) for name in _OF_SCENARIOS if hasattr(options, name)}
    return begun(
        run_id=asked.run_id,
        name=asked.run_id,
        scenario_options=own or None,
        scenario=Path((options.locustfile or "locustfile").split(",")[0]).stem,
        driven="locust",
        simulated=asked.engine.endswith("-sim"),
        clock_speed=asked.clock_speed,
        seed=asked.seed,
        workload=loaded.facts,
        contract=asdict(asked.contract),
    )


def _refuse_other(run: Path, manifest: Manifest, new: Manifest) -> None:
    """Raise `UsageError` if a pass differs from the run that it joins, because their figures are pooled."""
    other: dict[str, tuple[object, object]] = {}
    ours, theirs = manifest.workload, new.workload
    if ours and theirs and ours.identity != theirs.identity:
        other["workload"] = (ours.source, theirs.source)
    if Path(manifest.scenario).stem != new.scenario:  # a study's may be a path
        other["scenario"] = (manifest.scenario, new.scenario)
    known, given = manifest.scenario_options or {}, new.scenario_options or {}
    other |= {f"--{key}": (known[key], given[key]) for key in known.keys() & given.keys() if known[key] != given[key]}
    other |= contracts.contract_differences(*(contracts.from_table(one.contract) for one in (manifest, new)))
    for key, (expected, got) in other.items():
        raise UsageError(f"{run}: {key}: expected the run's own ({expected}), got {got}; name another --out")


def _joined(manifest: Manifest, asked: PassOptions, info: probe.ServerInfo) -> Manifest:
    """The manifest with this pass in it, incomplete until the pass has ended."""
    cell = ManifestCell(
        id=asked.cell,
        engine=asked.engine,
        model=asked.model,
        tp=asked.tp,
        gpu=info.gpu,
        base_url=asked.url,
        clock_speed=asked.clock_speed,
    )
    return msgspec.structs.replace(
        manifest,
        levels=tuple(sorted({*manifest.levels, asked.concurrency})),
        repeats=max(manifest.repeats, asked.repeat),
        cells=manifest.cells if manifest.cell(cell.id) else (*manifest.cells, cell),
        complete=False,
        incomplete_reason=UNFINISHED,
    )


def _write_engine(asked: PassOptions, info: probe.ServerInfo | None, lengths: PromptLengths | None) -> None:
    path = _engine_path(asked)
    if path.is_file():
        return
    facts = EngineFacts(
        id=asked.cell,
        engine=asked.engine,
        engine_version=info.version if info else None,
        model=asked.model,
        tp=asked.tp,
        gpu=info.gpu if info else None,
        simulated=bool(info and info.simulated) or asked.engine.endswith("-sim"),
        clock_speed=asked.clock_speed,
        base_url=asked.url,
        status="ok",
        server_info=msgspec.to_builtins(info) if info else None,
        prompt_lengths=lengths,
        **_way(asked),
    )
    write.write_sealed(path, facts)


def _engine_path(asked: PassOptions) -> Path:
    return Path(asked.out) / "cells" / asked.cell / "engine.json"


def _way(asked: PassOptions) -> dict[str, Any]:
    """Fields of `engine.json`: how the servers of a pass are reached, and which they are where there are several."""
    proxy = route.proxy_to(asked.url)
    return {
        "base_urls": asked.urls if asked.more_urls else (),
        "proxy": None if proxy is None else proxy.url,
        "insecure": asked.route.insecure,
    }


def _refuse_another_way(asked: PassOptions) -> None:
    """Raise `UsageError` if a pass reaches its servers in another way than those that it would be pooled with."""
    path = _engine_path(asked)
    known = read.read_engine(path) if path.is_file() else None
    for key, got in _way(asked).items() if known is not None else ():
        if (expected := getattr(known, key)) != got:
            raise UsageError(f"{asked.out}: {key}: expected the run's own ({expected}), got {got}; name another --out")
