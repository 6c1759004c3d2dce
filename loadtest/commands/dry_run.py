"""`run --dry-run`: what a study would start, ask and take, and what it will be able to tell; nothing is started."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

from loadtest.analysis.bursts.objectives import is_told
from loadtest.analysis.factors import are_rivals, baselines
from loadtest.decision import verdicts
from loadtest.errors import EngineError, UsageError
from loadtest.metrics.slo import parse_slo
from loadtest.perfmodel import memory
from loadtest.report.formatting import spoken
from loadtest.servers import flags, preflight
from loadtest.study import estimate, locust_pass, plan, schema
from loadtest.study.bursts import asked
from loadtest.study.run import extent_words
from loadtest.study.schema import AskedPass
from loadtest.study.search.asked import foreseen_levels, search_pass, study_of_pass
from loadtest.study.search.cell_search import spoken_level
from loadtest.study.search.start import start_of
from loadtest.workload.contract import Contract
from loadtest.workload.workload import Workload


def decision_notes(study: schema.Study) -> list[str]:
    """What mode decision means for this study: that it is the default, and the SLOs that it leaves open."""
    if not study.decides:
        return []
    untold = [text for text in study.slo if not is_told(parse_slo(text))]
    chosen = 'decision mode, the default for studies that compare; mode = "natural" measures each level whole'
    lines = [chosen] if "mode" in study.unsaid else []
    return [*lines, *([f'bursts do not tell {", ".join(untold)}: mode = "natural" does'] if untold else [])]


def dry_run(study: schema.Study) -> str:
    """The plan of a study: each cell with its fit and its command, the Locust command of each level, and estimated times."""
    workload, contract = plan.asked(study)
    if study.search is not None:
        return "\n".join(_search_lines(study, workload, contract))
    times = _times(study, workload, contract)
    head = (
        f"{study.name}: {len(study.cells)} cells, levels {list(study.levels)}, {study.repeats} repeat(s); nothing is started"
    )
    lines = [line for cell in study.cells for line in _plan_of(study, cell, contract, times[cell.id])]
    total = _total(study, times)
    if study.decides:
        return "\n".join([head, *lines, "", *decision_notes(study), *_both(study, workload, contract), total])
    return "\n".join([head, *lines, "", *_power(study), *_instead(study, workload, contract), total])


# A grid or a decision ------------------------------------------------------------------------------------------------


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
    most = "in all, if no pair is decided sooner" if study.until_decided else "in all"
    return _sum_line(most, [time.all_s(study.repeats) for time in times.values()])


def _sum_line(what: str, times_s: Sequence[float | None]) -> str:
    known = [one for one in times_s if one is not None]
    missing = len(times_s) - len(known)
    unknown = f"; {missing} cell(s) are not included: refused, or no GPU is named" if missing else ""
    return f"{what}: about {spoken(sum(known))} (an estimate of the performance model{unknown})"


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
    lines = _start_of(cell, contract, max(study.levels))
    for one, seconds in (*time.passes_s.items(), *time.once_s.items()):
        what = ("bursts, " if one.kind == "bursts" else "") + ("once, " if one in time.once_s else "")
        n = f"{one.requests} requests" if one.requests is not None else f"{study.duration_s:g} s"
        lines += [f"concurrency {one.concurrency}, {what}{n}{_about(seconds)}:", f"  {_locust(study, cell, one)}"]
    return [*lines, f"{study.repeats} repeat(s) and as many starts{_about(time.all_s(study.repeats))}"]


def _start_of(cell: schema.Cell, contract: Contract, concurrency: int) -> list[str]:
    """Does the cell fit, and the command that would start it."""
    fit = plan.fit_of(cell, contract, concurrency)
    pools = "fit: not modelled (several GPU pools behind one URL)"
    unchecked = (
        pools if cell.gpus else "fit: not checked (no GPU is named, the model is unknown, or the server is running already)"
    )
    lines = ["", cell.id, *(fit.lines if fit is not None else [unchecked]), *_crowding(fit)]
    if cell.base_url is None:
        spec = plan.launch_spec(cell, contract, port=8000)
        lines += [*_refusal(spec), shell_line(spec)]
    return lines


def _locust(study: schema.Study, cell: schema.Cell, one: AskedPass) -> str:
    """The command of a pass."""
    target = locust_pass.Target(cell.base_url or "http://127.0.0.1:8000", cell.model, cell.clock_speed or 1.0)
    return shlex.join(locust_pass.command(study, cell, target, one, 1, Path("RUN"), "RUN-ID"))


# A search ------------------------------------------------------------------------------------------------------------


def _search_lines(study: schema.Study, workload: Workload, contract: Contract) -> list[str]:
    """Where each cell's search would begin, the levels that it would try if that is the frontier, and their times."""
    found = [_cell_search(study, cell, workload, contract) for cell in study.cells]
    lines = [f"{study.name}: {extent_words(study)}; nothing is started", *(line for made, _ in found for line in made)]
    times_s = [seconds for _, seconds in found]
    if all(one is None for one in times_s):
        return [*lines, "", "in all: not known, as no prediction says where the search ends"]
    return [*lines, "", _sum_line("in all, if the predictions hold, at most", times_s)]


def _cell_search(
    study: schema.Study, cell: schema.Cell, workload: Workload, contract: Contract
) -> tuple[list[str], float | None]:
    """The search of one cell in words, and its seconds at most; None where they cannot be foreseen."""
    search = study.search
    assert search is not None
    begun = start_of(study, cell, workload, contract)
    lines = _start_of(cell, contract, begun.level if search.of == "users" else 1)
    fit = plan.fit_of(cell, contract)
    if fit is not None and not fit.fits:
        return lines, None
    foreseen = begun.source.startswith("predicted")
    levels = foreseen_levels(begun.level, search.most) if foreseen else [begun.level]
    time = estimate.of_passes(study, cell, workload, contract, [search_pass(study, level) for level in levels])
    first = next(iter(time.passes_s))
    most = "" if search.of != "users" else f" up to {search.most}"
    lines += [
        f"search: from {spoken_level(begun.level, search.of)} ({begun.source}) it doubles{most}, then bisects;"
        f" a level ends when it is decided, at the latest after so many requests:",
        *(
            f"  {spoken_level(one.concurrency, search.of)}: {one.requests} requests{_about(s)}"
            for one, s in time.passes_s.items()
        ),
        f"  {_locust(study_of_pass(study, first), cell, first)}",
    ]
    return lines, time.all_s(1) if foreseen else None


# Commands ------------------------------------------------------------------------------------------------------------


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


def shell_line(spec: flags.LaunchSpec) -> str:
    """A launch as a line for a shell: its settings, then its command."""
    argv, settings = flags.launch_command(spec)
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in sorted(settings.items())), shlex.join(argv)])
