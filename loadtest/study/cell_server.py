"""The server of one cell: attached to by its URL, or started, waited for, and stopped again."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import msgspec

from loadtest import credentials
from loadtest.errors import EngineError
from loadtest.servers import chat_template, flags, preflight, probe, route
from loadtest.servers.salts import salting_of
from loadtest.servers.server import Server
from loadtest.study import locust_pass
from loadtest.study.contract_check import check_contract
from loadtest.study.engine_file import EngineFile, memory_fit
from loadtest.study.execution import Execution, key_variables
from loadtest.study.plan import launch_spec, refuse_misfit
from loadtest.study.schema import Cell
from loadtest.workload import exact
from loadtest.workload.script import SALTED
from loadtest.workload.server_count import fit_to_server


@contextlib.contextmanager
def reaching(cell: Cell) -> Iterator[None]:
    """While inside, servers are asked as the cell says: with its key and headers, by its way. Raises `UsageError` where a
    secret is missing."""
    with credentials.named(cell.api_key_env), credentials.with_headers(cell.headers), route.taken(cell.route):
        yield


@contextlib.contextmanager
def serving(
    execution: Execution, cell: Cell, engine: EngineFile
) -> Iterator[tuple[locust_pass.Target, Callable[[], str | None]]]:
    """The server of a cell, which runs and answers: attached to by its URL, or started, and stopped at the end."""
    if cell.base_url is not None:
        first, *more = map(probe.normalise_url, cell.urls)
        yield replace(_attached(execution, first, cell, engine, more), more_urls=tuple(more)), lambda: None
        return
    _check_fit(execution, cell, engine)
    if cell.id in execution.blocked:
        raise EngineError(execution.blocked[cell.id])
    spec = launch_spec(cell, execution.contract, port=preflight.free_port())
    argv, variables = flags.launch_command(spec)
    engine.learn(command=tuple(argv), env=variables)
    execution.say(f"{cell.title}: starting")
    log = execution.out / "cells" / cell.id / "engine.log"
    execution.audience.detail(f"command: {shlex.join(argv)}")
    execution.audience.detail(f"log: {log}")
    with Server(spec, log, key_variables(execution.study)) as server:
        server.wait_ready(execution.limits.start_left_s())
        engine.learn(ready_unix_s=time.time())
        yield _attached(execution, server.base_url, cell, engine), server.died
    engine.learn(exit_code=server.exit_code)


def _attached(
    execution: Execution, base_url: str, cell: Cell, engine: EngineFile, more_urls: Sequence[str] = ()
) -> locust_pass.Target:
    info = probed(base_url, cell)
    for url in more_urls:
        _check_alike(base_url, info, url, probe.probe(url, model=cell.model))
    if info.engine not in ("other", cell.engine) and (info.simulated or cell.engine != "other"):
        kind = "the simulator " if info.simulated else ""
        raise EngineError(f"{base_url}: engine: expected {cell.engine}, got {kind}{info.engine}; say --engine {info.engine}")
    proxy = None if cell.base_url is None else route.proxy_to(base_url)
    engine.learn(proxy=None if proxy is None else proxy.url)
    engine.learn(engine_version=info.version, server_info=msgspec.to_builtins(info), clock_speed=info.clock_speed)
    served = _served(base_url, cell, info)
    told = chat_template.thinking_prelude(base_url, served) if info.engine in ("sglang", "vllm") else None
    contract = check_contract(cell, execution.contract, engine.facts.command or (), info, told)
    engine.learn(contract=contract)
    tell = execution.note if cell.base_url is None else execution.say  # a server of others: no problem of ours
    for violation in contract.violations:
        tell(f"{cell.title}: differs from the contract: {violation}")
    return locust_pass.Target(
        base_url=base_url,
        served_model=served,
        clock_speed=info.clock_speed,
        room_tokens=info.max_model_len,
        salted=_keeps_salts(execution, cell, engine, base_url, served),
        metrics_urls=tuple(map(probe.normalise_url, cell.metrics_urls)),
        workload=_fitted(execution, base_url, cell, served, engine),
    )


def probed(base_url: str, cell: Cell) -> probe.ServerInfo:
    """What the server says of itself. A router is no engine, and may call each model "unknown": the first server behind it
    is asked in its place, without the key, which was given for the router."""
    info = probe.probe(base_url, model=cell.model)
    if info.engine == "other" and cell.metrics_urls:
        with contextlib.suppress(EngineError):
            return probe.probe(cell.metrics_urls[0], "", model=cell.model)
    return info


_ALIKE = ("engine", "version", "model", "max_model_len", "clock_speed")  # of servers that take turns


def _check_alike(base_url: str, first: probe.ServerInfo, url: str, info: probe.ServerInfo) -> None:
    """Raise `EngineError` where two servers of one cell are not of one kind."""
    for key in _ALIKE:
        expected, got = getattr(first, key), getattr(info, key)
        if expected != got:
            raise EngineError(f"{url}: {key}: expected {expected}, as at {base_url}, got {got}; give it a cell of its own")


def _keeps_salts(execution: Execution, cell: Cell, engine: EngineFile, base_url: str, served: str) -> bool:
    """May rounds of the same prompts be told apart by salts? A real server is asked, where the study has rounds."""
    if execution.study.prompts is None or cell.engine not in SALTED or cell.simulated:
        return cell.engine in SALTED
    salting = salting_of(base_url, served)
    engine.learn(cache_salt=salting)
    if salting not in ("refused", "ignored"):
        return True
    execution.say(f"{cell.title}: cache_salt is {salting}: its levels ask on through the workload, each prompt once")
    return False


def _fitted(execution: Execution, base_url: str, cell: Cell, served: str, engine: EngineFile) -> str | None:
    """The workload with prompts of exact lengths by this server's count; None where the study asks for none."""
    spec = execution.study.workload
    if not exact.is_open(spec):
        return None
    lengths = fit_to_server(spec, execution.contract, base_url=base_url, model=served, engine=cell.engine, api=cell.api)
    engine.learn(prompt_lengths=lengths)
    execution.say(f"{cell.id}: prompts fitted to the server's count by {lengths.requests} short requests")
    return lengths.workload


_NAMELESS = "unknown"  # what sglang-router calls a model of which the server behind it says too little


def _served(base_url: str, cell: Cell, info: probe.ServerInfo) -> str:
    """The server's name of the cell's model: the same name, or that of the only model that it serves."""
    if cell.model in info.models or info.models in ((), (_NAMELESS,)):
        return cell.model
    if len(info.models) > 1:
        known = ", ".join(info.models[:8])
        raise EngineError(f"{base_url}: model: expected one of {known}, got {cell.model}; name it as the server does")
    return info.models[0]


def _check_fit(execution: Execution, cell: Cell, engine: EngineFile) -> None:
    """Refuse a cell that does not fit its GPUs; `--force` starts it anyway."""
    engine.learn(fit=memory_fit(cell, execution.contract))
    if not execution.force:
        refuse_misfit(cell, execution.contract)
