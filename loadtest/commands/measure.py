"""`demo`, `run`, `attach`, `serve`: what starts or asks a server."""

from __future__ import annotations

import argparse
import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from loadtest import resources
from loadtest.commands import resumed
from loadtest.commands.dry_run import decision_notes, dry_run, shell_line
from loadtest.commands.finish import carry_out, new_folder
from loadtest.commands.machine.verification import verify
from loadtest.credentials import read_header
from loadtest.decision import verdicts
from loadtest.errors import UsageError
from loadtest.records.schema import EngineName
from loadtest.servers import preflight, probe, server
from loadtest.study import parse, plan, schema
from loadtest.study.bursts import asked
from loadtest.study.cell_server import reaching
from loadtest.study.run import execute
from loadtest.workload.contract import Contract
from loadtest.workload.source import keyed
from loadtest.workload.traces.trace import is_trace
from loadtest.workload.workload import load, usual_mode

if TYPE_CHECKING:
    from loadtest.study.execution import Say, Teller


def demo(arguments: argparse.Namespace, say: Teller) -> str:
    """The whole matrix against the embedded simulator."""
    study = parse.load_study(resources.path("scenarios/studies/demo.toml"))
    return _measure(study, arguments.out or new_folder("demo"), say)


def run(arguments: argparse.Namespace, say: Teller) -> str:
    """A study, from its file to its page."""
    study = schema.select(parse.load_study(arguments.study, plan.asked), arguments.only)
    if arguments.workers is not None:
        study = replace(study, workers=arguments.workers)
    if arguments.mode is None and not arguments.find_max and not any(one.startswith("mode=") for one in arguments.only):
        study = _by_default(study, say)
    elif arguments.mode is not None and arguments.mode != study.mode:
        study = schema.in_mode(study, arguments.mode)
    if arguments.until_decided or arguments.precision is not None:
        study = replace(study, until_decided=True, repeats=study.repeats if study.repeats > 1 else verdicts.LOOKS[-1])
    if arguments.precision is not None and not 0 < arguments.precision < 100:
        raise UsageError(f"--precision: expected a percentage above 0 and below 100, got {arguments.precision:g}")
    study, budget_s = searched_cells(study, arguments), hours_in_s(arguments.budget)
    if arguments.dry_run:
        return dry_run(study)
    if arguments.resume and arguments.out is None:
        raise UsageError("--resume: expected --out with the folder of the unfinished run, got none")
    _warn_of_few_requests(study, say, "min_requests")
    for line in decision_notes(study):
        say(line)
    out = arguments.out or new_folder(study.name)
    precision = None if arguments.precision is None else arguments.precision / 100
    return carry_out(
        lambda: execute(
            study,
            out,
            resume=arguments.resume,
            force=arguments.force,
            budget_s=budget_s,
            precision=precision,
            instrument=verify(max(study.levels), say) if arguments.verify else None,
            say=say,
            audience=say.audience,
        ),
        out,
        say,
        arguments.json,
        again=f"loadtest run {shlex.join((str(arguments.study), '--resume', '--out', str(out)))}",
    )


def _by_default(study: schema.Study, say: Teller) -> schema.Study:
    """The study in the mode that it leaves open; natural, where its bursts would find no room."""
    found = schema.by_default(study)
    if found.decides and not study.decides:
        try:
            asked.check_room(found, plan.asked(study)[1])
        except UsageError as error:
            say(f"natural mode, as bursts find no room: {error}")
            return study
    return found


def search(arguments: argparse.Namespace, say: Teller) -> str:
    """The largest concurrency within the SLOs of a server that already runs."""
    for name in ("concurrency", "duration", "rate", "arrivals", "speed_up"):
        setattr(arguments, name, None)
    arguments.find_max = True
    return _attach(arguments, say, "search")


def attach(arguments: argparse.Namespace, say: Teller) -> str:
    """A server that already runs, measured as a study of one cell; the command line is checked first."""
    if not arguments.find_max and arguments.budget is not None:
        raise UsageError("--budget: expected with --find-max, got it alone")
    return _attach(arguments, say, "attach")


def _attach(arguments: argparse.Namespace, say: Teller, name: str) -> str:
    study, budget_s = searched(_attached(arguments), arguments, arguments.requests), hours_in_s(arguments.budget)
    plan.asked(study)
    with reaching(study.cells[0]):
        info = probe.probe(arguments.base_url[0], model=arguments.model)
    cell = replace(
        study.cells[0],
        engine=arguments.engine or cast("EngineName", info.engine),
        model=arguments.model or info.model or "model",
        tp=info.tp or 1 if arguments.tp is None else arguments.tp,
        gpu=arguments.gpu or info.gpu,
        context_tokens=info.max_model_len,
        clock_speed=info.clock_speed if info.simulated else None,
    )
    study = replace(study, name=f"{cell.engine} at {', '.join(arguments.base_url)}", cells=(cell,))
    _warn_of_few_requests(study, say, "--requests")
    out = arguments.out or new_folder(name)
    resume = arguments.resume is not None
    return carry_out(
        lambda: execute(study, out, resume=resume, budget_s=budget_s, say=say, audience=say.audience),
        out,
        say,
        arguments.json,
        again=f"loadtest {name} --resume {shlex.quote(str(out))}"
        f"{resumed.named_again(name, arguments.base_url, arguments.proxy, arguments.insecure)}",
    )


def _warn_of_few_requests(study: schema.Study, say: Teller, option: str) -> None:
    """Say at once which SLOs the run cannot judge; a search and a decision take as many requests as they need."""
    if not study.decides and study.search is None:
        for line in plan.too_few_requests(study):
            say(f"{line}; give {option}")


def searched_cells(study: schema.Study, arguments: argparse.Namespace) -> schema.Study:
    """A study from a file as it is, or as a search of each cell."""
    if arguments.requests is not None and not arguments.find_max:
        raise UsageError("--requests: expected with --find-max, got it alone; min_requests of a study says it otherwise")
    return searched(study, arguments, arguments.requests)


def searched(study: schema.Study, arguments: argparse.Namespace, requests: int | None = None) -> schema.Study:
    """The study as it is, or with `--find-max` as a search of each cell."""
    given = {name: value for name in ("max_concurrency", "start") if (value := getattr(arguments, name)) is not None}
    if not arguments.find_max:
        for name in (*given, *(["rates"] if getattr(arguments, "rates", False) else [])):
            raise UsageError(f"--{name.replace('_', '-')}: expected with --find-max, got it alone")
        return study
    of_rates = getattr(arguments, "rates", False)
    limits = schema.SearchLimits(requests=requests, of="requests/h" if of_rates else "users", **_limits(given, of_rates))
    study = schema.in_mode(study, "natural") if study.decides else study
    warmup = max(1, study.warmup_requests)  # else the prompts with which all users begin at once would count
    sized = replace(study, repeats=1, until_decided=False, duration_s=None, warmup_requests=warmup)
    if of_rates:
        options = {**sized.scenario_options, "arrivals": "poisson"}
        sized = replace(sized, scenario=schema.OPEN_LOOP, scenario_options=options, warmup_requests=0)
    return replace(sized, search=limits, min_requests=1, requests_per_stream=1)


def _limits(given: dict[str, Any], of_rates: bool) -> dict[str, Any]:
    """`--start` of rates is requests per second, of users a whole number."""
    start = given.get("start")
    if start is None:
        return given
    if not of_rates and start != int(start):
        raise UsageError(f"--start: expected a whole number of users, got {start:g}")
    return given | {"start": round(3600 * start) if of_rates else int(start)}


def hours_in_s(hours: float | None) -> float | None:
    """Seconds of a `--budget`."""
    if hours is not None and not 0 < hours < math.inf:
        raise UsageError(f"--budget: expected hours above 0, got {hours:g}")
    return None if hours is None else 3600 * hours


def _attached(arguments: argparse.Namespace) -> schema.Study:
    """The study of one cell that `attach` asks for, before the server is asked what it is."""
    workload = keyed(arguments.workload, arguments.prompt_key, arguments.answer_key, arguments.speed_up)
    cell = schema.Cell(
        engine=arguments.engine or "other",
        model=arguments.model or "model",
        tp=1 if arguments.tp is None else arguments.tp,
        gpu=arguments.gpu,
        **schema.of_servers(arguments.base_url),
        api=arguments.api,
        headers=dict(map(read_header, arguments.header)),
        proxy=arguments.proxy,
        insecure=arguments.insecure,
        calibration=arguments.calibration,
    )
    contract: dict[str, Any] = {}
    if arguments.max_tokens is not None:
        contract["max_tokens"] = arguments.max_tokens
    if arguments.extra_body is not None:
        contract["extra_body"] = _json_object(arguments.extra_body, "--extra-body")
    study = schema.Study(
        name="attached",
        workload=workload,
        cells=(cell,),
        mode=arguments.mode or usual_mode(workload),
        levels=schema.parse_levels(arguments.concurrency or "1,2,4,8"),
        duration_s=arguments.duration,
        warmup_requests=1 if arguments.warmup_requests is None else arguments.warmup_requests,
        workers=arguments.workers,
        seed=arguments.seed,
        slo=tuple(arguments.slo),
        contract=contract,
        scenario_options={} if arguments.tokenizer is None else {"tokenizer": arguments.tokenizer},
    )
    if is_trace(workload) and arguments.rate is None and not arguments.find_max:
        arguments.arrivals = arguments.arrivals or "recorded"
    if arguments.rate is not None or arguments.arrivals is not None:
        return _open_loop(study, arguments)
    if arguments.requests is not None:
        return replace(study, min_requests=arguments.requests, requests_per_stream=1)
    return study


_IN_FLIGHT, _OPEN_LOOP_REQUESTS = "128", 40  # 40 give a p90; its interval needs 36


def _open_loop(study: schema.Study, arguments: argparse.Namespace) -> schema.Study:
    """The study of requests that are sent by the clock: its only level is the most that may be in flight."""
    arrivals, rate = arguments.arrivals or "poisson", arguments.rate
    if rate is None and arrivals != "recorded":
        raise UsageError(f"--arrivals {arrivals}: expected --rate with it, got none; say how many requests per second")
    if rate is not None and not 0 < rate < 1e6:
        raise UsageError(f"--rate: expected requests per second, above 0, got {rate:g}")
    levels = schema.parse_levels(arguments.concurrency or _IN_FLIGHT)
    if len(levels) > 1:
        raise UsageError(f"--concurrency {arguments.concurrency}: expected one number with --rate, the most in flight")
    own = {"arrivals": arrivals} if rate is None else {"arrivals": arrivals, "rate": rate}
    return replace(
        study,
        scenario="open_loop",
        scenario_options=study.scenario_options | own,
        levels=levels,
        min_requests=arguments.requests or _open_loop_requests(study.workload),
        requests_per_stream=0,
        warmup_requests=arguments.warmup_requests or 0,
    )


def _open_loop_requests(spec: str) -> int:
    """All of a trace, else enough for a p90 with its interval."""
    return len(load(spec).prompts) if is_trace(spec) else _OPEN_LOOP_REQUESTS


def _measure(study: schema.Study, out: Path, say: Teller) -> str:
    """Measure a study for real, and conclude."""
    return carry_out(lambda: execute(study, out, say=say, audience=say.audience), out, say, json=False)


def serve(arguments: argparse.Namespace, say: Say) -> str:
    """Start one engine in the foreground, or print its command."""
    cell = schema.Cell(
        engine=arguments.engine,
        model=arguments.model,
        tp=arguments.tp,
        gpu=arguments.gpu,
        context_tokens=arguments.context,
        yarn=arguments.yarn,
        memory_fraction=arguments.memory_fraction,
        args=tuple(arguments.engine_args),
    )
    contract = Contract(seed=arguments.seed, prefix_caching=not arguments.no_prefix_caching)
    spec = replace(plan.launch_spec(cell, contract, arguments.port), served_name=arguments.served_name)
    if arguments.reasoning_parser is not None:
        spec = replace(spec, reasoning_parser=arguments.reasoning_parser)
    if arguments.print:
        return shell_line(spec)
    if not arguments.force:
        plan.refuse_misfit(cell, contract)
        preflight.check_launch(spec)
    say(shell_line(spec))
    return server.run_in_foreground(spec)


def _json_object(text: str, option: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise UsageError(f"{option}: expected a JSON object, got {text[:80]!r}: {error}") from None
