"""`duel`: two servers that run already take turns until it is certain which is faster, or that they are equal."""

from __future__ import annotations

import argparse
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from loadtest.commands import resumed
from loadtest.commands.finish import carry_out, new_folder
from loadtest.commands.measure import hours_in_s
from loadtest.credentials import read_header
from loadtest.decision.rounds import MOST_ROUNDS
from loadtest.errors import UsageError
from loadtest.records import read
from loadtest.records.environment import describe
from loadtest.records.schema import EngineName
from loadtest.servers import probe
from loadtest.servers.probe import ServerInfo, normalise_url
from loadtest.servers.route import Route, check_route
from loadtest.study import plan, schema
from loadtest.study.cell_server import reaching
from loadtest.study.parse import start_sd_of
from loadtest.study.run import execute
from loadtest.study.schema import Cell
from loadtest.workload.source import keyed

if TYPE_CHECKING:
    from loadtest.records.engine_facts import Side
    from loadtest.study.execution import Teller

_NATURAL_PROMPTS = 32  # answers that tell the lengths, on one server of each engine


def duel(arguments: argparse.Namespace, say: Teller) -> str:
    """Bursts on A, B, then B, A, and so on, one server at a time; a natural run tells the lengths once."""
    budget_s, resume = hours_in_s(arguments.budget), arguments.resume is not None
    study = _study(arguments, (_cell(arguments, "a", arguments.url_a), _cell(arguments, "b", arguments.url_b)))
    plan.asked(study)
    a, b = (_probed(cell, arguments.model) for cell in study.cells)
    if a.model.rstrip("/").rpartition("/")[2].lower() != b.model.rstrip("/").rpartition("/")[2].lower():
        raise UsageError(f"duel: expected one model on both servers, got {a.model} and {b.model}; name one with --model")
    start_sd = None if arguments.start_sd is None else start_sd_of(arguments.start_sd, (a, b), describe().cpu)
    study = replace(study, cells=(a, b), name=f"{a.base_url} against {b.base_url}", start_sd=start_sd)
    out = arguments.out or new_folder("duel")
    return carry_out(
        lambda: execute(study, out, resume=resume, budget_s=budget_s, say=say, audience=say.audience),
        out,
        say,
        arguments.json,
        again=f"loadtest duel --resume {shlex.quote(str(out))}"
        f"{resumed.named_again('duel', [arguments.url_a, arguments.url_b], arguments.proxy, arguments.insecure)}",
    )


def _cell(arguments: argparse.Namespace, side: Side, url: str) -> Cell:
    headers = dict(map(read_header, arguments.header))
    return Cell(
        engine="other",
        model=arguments.model or "model",
        base_url=normalise_url(url),
        side=side,
        headers=headers,
        proxy=arguments.proxy,
        insecure=arguments.insecure and url.startswith("https://"),
    )


def _study(arguments: argparse.Namespace, cells: tuple[Cell, Cell]) -> schema.Study:
    """The study of both servers, before they are asked what they are."""
    if cells[0].base_url == cells[1].base_url:
        raise UsageError(f"duel: expected two servers, got {cells[0].base_url} twice")
    urls = tuple(cell.base_url for cell in cells if cell.base_url is not None)
    check_route(Route(proxy=arguments.proxy, insecure=arguments.insecure), urls)
    if not 0 < arguments.matters < 100:
        raise UsageError(f"--matters: expected a percentage above 0 and below 100, got {arguments.matters:g}")
    levels = schema.parse_levels(arguments.concurrency)
    return schema.Study(
        name="duel",
        question="Which of two servers is faster?",
        workload=keyed(arguments.workload, arguments.prompt_key, arguments.answer_key),
        cells=cells,
        mode="decision",
        levels=levels,
        repeats=MOST_ROUNDS if arguments.resume is None else _rounds_on(arguments.resume),
        until_decided=True,
        natural_users=max(levels),
        natural_prompts=_NATURAL_PROMPTS,
        seed=arguments.seed,
        matters=arguments.matters / 100,
        contract={} if arguments.max_tokens is None else {"max_tokens": arguments.max_tokens},
    )


def _rounds_on(run: Path) -> int:
    """Rounds that a resumed duel may reach: its interval holds whenever one looks, so it may go on as long as one likes."""
    known = read.read_manifest(run / "manifest.json")
    done = [int(match[1]) for name in known.passes if (match := re.search(r"/bursts-.*-r(\d{1,7})$", name))]
    return max(known.repeats, max(done, default=0) + MOST_ROUNDS)


def _probed(cell: Cell, model: str | None) -> Cell:
    """The cell as its server says what it is."""
    assert cell.base_url is not None
    with reaching(cell):
        info: ServerInfo = probe.probe(cell.base_url, model=model)
    return replace(
        cell,
        engine=cast("EngineName", info.engine),
        model=model or info.model or "model",
        tp=info.tp or 1,
        gpu=info.gpu,
        context_tokens=info.max_model_len,
        clock_speed=info.clock_speed if info.simulated else None,
    )
