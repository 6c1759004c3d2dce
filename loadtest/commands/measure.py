"""`demo`, `run`, `attach`, `serve`: what starts or asks a server."""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from loadtest import resources
from loadtest.analysis.bursts.objectives import is_told
from loadtest.analysis.factors import are_rivals, baselines
from loadtest.commands import resumed
from loadtest.commands.finish import carry_out, new_folder
from loadtest.commands.machine.verification import verify
from loadtest.credentials import read_header
from loadtest.decision import verdicts
from loadtest.errors import EngineError, UsageError
from loadtest.metrics.slo import parse_slo
from loadtest.perfmodel import memory
from loadtest.records.schema import EngineName
from loadtest.report.formatting import spoken
from loadtest.servers import flags, preflight, probe, server
from loadtest.study import estimate, locust_pass, parse, plan, schema
from loadtest.study.bursts import asked
from loadtest.study.cell_server import reaching
from loadtest.study.run import execute
from loadtest.workload.contract import Contract
from loadtest.workload.source import keyed
from loadtest.workload.traces.trace import is_trace
from loadtest.workload.workload import Workload, load, usual_mode

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
    study, budget_s = searched(study, arguments), hours_in_s(arguments.budget)
    if arguments.dry_run:
        return _dry_run(study)
    if arguments.resume and arguments.out is None:
        raise UsageError("--resume: expected --out with the folder of the unfinished run, got none")
    _warn_of_few_requests(study, say, "min_requests")
    for line in _of_decision(study):
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


def _of_decision(study: schema.Study) -> list[str]:
    """What mode decision means for this study: that it is the default, and the SLOs that it leaves open."""
    if not study.decides:
        return []
    untold = [text for text in study.slo if not is_told(parse_slo(text))]
    chosen = 'decision mode, the default for studies that compare; mode = "natural" measures each level whole'
    lines = [chosen] if "mode" in study.unsaid else []
    return [*lines, *([f'bursts do not tell {", ".join(untold)}: mode = "natural" does'] if untold else [])]


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
        return _shell(spec)
    if not arguments.force:
        plan.refuse_misfit(cell, contract)
        preflight.check_launch(spec)
    say(_shell(spec))
    return server.run_in_foreground(spec)


def _dry_run(study: schema.Study) -> str:
    """The plan of a study: each cell with its fit and its command, the Locust command of each level, and estimated times."""
    workload, contract = plan.asked(study)
    times = _times(study, workload, contract)
    head = (
        f"{study.name}: {len(study.cells)} cells, levels {list(study.levels)}, {study.repeats} repeat(s); nothing is started"
    )
    lines = [line for cell in study.cells for line in _plan_of(study, cell, contract, times[cell.id])]
    total = _total(study, times)
    if study.decides:
        return "\n".join([head, *lines, "", *_of_decision(study), *_both(study, workload, contract), total])
    return "\n".join([head, *lines, "", *_power(study), *_instead(study, workload, contract), total])


def _times(study: schema.Study, workload: Workload, contract: Contract) -> dict[str, estimate.CellTime]:
    chosen = asked.natural_cells(study, contract) if study.decides else set()
    fitting = {cell.id: (fit := plan.fit_of(cell, contract)) is None or fit.fits for cell in study.cells}
    return {
        cell.id: estimate.of_cell(study, cell, workload, contract, natural=cell.id in chosen)
        if fitting[cell.id] or not study.decides
        else estimate.CellTime(0.0, {})
        for cell in study.cells
    }


def _total(study: schema.Study, times: Mapping[str, estimate.CellTime]) -> str:
    known = [one for time in times.values() if (one := time.all_s(study.repeats)) is not None]
    missing = len(times) - len(known)
    unknown = f"; {missing} cell(s) are not included: refused, or no GPU is named" if missing else ""
    most = "in all, if no pair is decided sooner" if study.until_decided else "in all"
    return f"{most}: about {spoken(sum(known))} (an estimate of the performance model{unknown})"


def _both(study: schema.Study, workload: Workload, contract: Contract) -> list[str]:
    """A decision beside the grid: hours of each, and what each will be able to tell."""
    grid = schema.in_mode(study, "natural")
    return [line for one in (grid, study) for line in _prospect(one, workload, contract)]


def _instead(study: schema.Study, workload: Workload, contract: Contract) -> list[str]:
    """What a decision would take in place of this grid; nothing where no engines are compared, or bursts cannot be."""
    closed = study.scenario == "long_reasoning" and study.duration_s is None and study.mode == "natural"
    if not (closed and _pairs(study)):
        return []
    try:
        return _prospect(schema.in_mode(study, "decision"), workload, contract)
    except UsageError:  # no room for bursts
        return []


def _prospect(study: schema.Study, workload: Workload, contract: Contract) -> list[str]:
    """Hours of a study with three starts of each engine, and its power at 5 %."""
    pairs = _pairs(study)
    times = _times(study, workload, contract).values()
    hours = {n: sum(one.all_s(n) or 0.0 for one in times) for n in (schema.TYPICAL_STARTS, study.repeats)}
    if not (pairs and hours[schema.TYPICAL_STARTS]):
        return []
    power = verdicts.planned_power(1.05, pairs, study.repeats, study.start_sd, sequential=study.until_decided)
    name = "decision (mode decision)" if study.decides else "whole grid (mode natural)"
    more = f", at most {spoken(hours[study.repeats])} with {study.repeats}" if study.until_decided else ""
    return [
        f"{name}: about {spoken(hours[schema.TYPICAL_STARTS])} with {schema.TYPICAL_STARTS} starts of each engine{more};"
        f" finds a difference of 5 % in about {100 * power:.0f} % of pairs, if starts vary by {_start_sd(study)}"
    ]


def _pairs(study: schema.Study) -> int:
    """Pairs of cells that it compares."""
    held = baselines(study.cells, study.baseline)
    engines = [(a.id, b.id) for a, b in combinations(study.cells, 2) if are_rivals(a, b)]
    return len({frozenset(pair) for pair in (*held.items(), *engines)})


def _start_sd(study: schema.Study) -> str:
    return f"{100 * (verdicts.TYPICAL_START_SD if study.start_sd is None else study.start_sd):g} %"


def _power(study: schema.Study) -> list[str]:
    """What the study can tell of each pair of engines; nothing where it has none."""
    pairs = _pairs(study)
    if not pairs:
        return []
    if study.repeats == 1 and study.start_sd is None:
        return ["one start each gives no verdict: set repeats = 3, or --until-decided"]
    least = verdicts.planned_ratio(pairs, study.repeats, study.start_sd, sequential=study.until_decided)
    found = f"a difference of {100 * (least - 1):.1f} % is found with about 80 % power"
    return [f"{found}, if starts vary by {_start_sd(study)}"]


def _plan_of(study: schema.Study, cell: schema.Cell, contract: Contract, time: estimate.CellTime) -> list[str]:
    fit = plan.fit_of(cell, contract, max(study.levels))
    pools = "fit: not modelled (several GPU pools behind one URL)"
    unchecked = (
        pools if cell.gpus else "fit: not checked (no GPU is named, the model is unknown, or the server is running already)"
    )
    lines = ["", cell.id, *(fit.lines if fit is not None else [unchecked]), *_crowding(fit)]
    if cell.base_url is None:
        spec = plan.launch_spec(cell, contract, port=8000)
        lines += [*_refusal(spec), _shell(spec)]
    target = locust_pass.Target(cell.base_url or "http://127.0.0.1:8000", cell.model, cell.clock_speed or 1.0)
    for one, seconds in (*time.passes_s.items(), *time.once_s.items()):
        argv = locust_pass.command(study, cell, target, one, 1, Path("RUN"), "RUN-ID")
        what = ("bursts, " if one.kind == "bursts" else "") + ("once, " if one in time.once_s else "")
        n = f"{one.requests} requests" if one.requests is not None else f"{study.duration_s:g} s"
        lines += [f"concurrency {one.concurrency}, {what}{n}{_about(seconds)}:", f"  {shlex.join(argv)}"]
    return [*lines, f"{study.repeats} repeat(s) and as many starts{_about(time.all_s(study.repeats))}"]


def _crowding(fit: memory.Fit | None) -> list[str]:
    """A warning where requests of the longest kind do not all fit at once."""
    if fit is None or not fit.fits or fit.fits_concurrency:
        return []
    return [
        f"  above {fit.max_streams} such requests at once it preempts; shorter ones need less, and preemptions are counted"
    ]


def _refusal(spec: flags.LaunchSpec) -> list[str]:
    """What keeps this machine from starting it; empty where nothing does."""
    try:
        preflight.check_launch(spec)
    except EngineError as error:
        return [f"not on this machine: {error}"]
    return []


def _about(seconds: float | None) -> str:
    return "" if seconds is None else f", about {spoken(seconds)}"


def _shell(spec: flags.LaunchSpec) -> str:
    """A launch as a line for a shell: its settings, then its command."""
    argv, settings = flags.launch_command(spec)
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in sorted(settings.items())), shlex.join(argv)])


def _json_object(text: str, option: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise UsageError(f"{option}: expected a JSON object, got {text[:80]!r}: {error}") from None
