"""One pass over one level of a cell: driven, watched, and in pass.json how it ended."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from loadtest import credentials
from loadtest.errors import EngineError, RecordError
from loadtest.records import read, write
from loadtest.records.folder import PASS_NAME, PassKind, level_path, set_aside
from loadtest.records.progress import LevelProgress, appended_lines
from loadtest.report.formatting import place_of
from loadtest.report.live import LevelStatus
from loadtest.servers import probe
from loadtest.study import estimate, locust_pass, sampling
from loadtest.study.execution import Execution, key_variables
from loadtest.study.schema import AskedPass, Cell, Study

PASS_FILE = "pass.json"
SILENCE_S = 30.0  # wall: from a server that sends nothing for so long, a duel expects nothing beyond its budget
ENOUGH_FAILURES = 2  # requests of a duel's pass that all failed


class PassFacts(msgspec.Struct, frozen=True, kw_only=True):
    """How a pass ended: `pass.json`. None: not known, or not of this kind of pass."""

    complete: bool
    n_requests: int | None = None
    command: tuple[str, ...] | None = None  # of Locust
    exit_code: int | None = None  # of Locust
    reason: str | None = None  # why it is not complete
    clocks: sampling.ClockChanges | None = None
    cooldown_s: float | None = None
    simulated_s: float | None = None  # in virtual time: how long it took


def is_finished(execution: Execution, cell: Cell, asked: AskedPass, repeat: int) -> bool:
    """Whether this pass is complete on disk. The files of an earlier, incomplete attempt are kept under another name."""
    folder = level_path(execution.out, cell.id, asked.concurrency, repeat, asked.kind)
    if not folder.exists():
        return False
    problem = _problem(folder)
    if problem is None:
        return True
    aside = set_aside(folder)
    execution.say(f"{cell.title}: an incomplete {folder.name} is kept as {aside.name}{problem and f': {problem}'}")
    return False


def _problem(folder: Path) -> str | None:
    """Why a pass on disk is to be measured again, empty where it only did not end; None: it is whole."""
    try:
        facts = read.read_as(folder / PASS_FILE, PassFacts) if (folder / PASS_FILE).exists() else None
        if facts is None or not facts.complete:
            return ""
        level = read.read_level(folder)
    except RecordError as error:
        return str(error)
    if level.torn or level.damaged:
        return (*level.damaged, *level.torn)[0]
    if facts.n_requests not in (None, len(level.requests)):
        return f"expected {facts.n_requests} requests, as pass.json counts, found {len(level.requests)}"
    return None


def finished_passes(out: Path) -> list[str]:
    """`CELL/cNN-rR` of each pass in a run folder that ended as it should."""
    markers = [path for path in out.glob(f"cells/*/*/{PASS_FILE}") if PASS_NAME.fullmatch(path.parent.name)]
    return ["/".join(path.parts[-3:-1]) for path in markers if read.read_as(path, PassFacts).complete]


def run_pass(
    execution: Execution,
    cell: Cell,
    target: locust_pass.Target,
    died: Callable[[], str | None],
    asked: AskedPass,
    repeat: int,
    enough: Callable[[], bool] = lambda: False,
) -> None:
    """Drive one pass and note in pass.json how it ended. `enough`: ends it early, as planned."""
    execution.check_folder()
    folder = level_path(execution.out, cell.id, asked.concurrency, repeat, asked.kind)
    argv = locust_pass.command(execution.study, cell, target, asked, repeat, execution.out, execution.run_id)
    locust_pass.cool_down(execution.study.cooldown_s, died)
    if cell.base_url is None:  # a server that we did not start may serve others: its cache is not flushed
        probe.flush_cache(target.base_url, cell.engine)
    before = sampling.Moment.now()
    limits = execution.limits
    execution.audience.detail(f"records: {folder}")
    execution.audience.detail(f"command: {shlex.join(argv)}")
    teller = _Teller(execution, cell, asked, repeat, folder / "locust.log")
    try:
        with sampling.sampling(target, folder, gpus=_is_here(target)) as unwritable:
            end = locust_pass.drive(
                argv,
                folder,
                _environment(execution.study, cell),
                died=lambda: unwritable() or died() or teller.gone() or limits.broken_by_pass(before.monotonic_s),
                tell=teller,
                enough=enough,
            )
    finally:
        teller.end()
    after = sampling.Moment.now()
    clocks = sampling.ClockChanges.between(before, after)
    execution.check_folder()
    reason = end.reason or clocks.suspended
    facts = PassFacts(
        complete=reason is None,
        n_requests=end.n_requests,
        command=tuple(argv),
        exit_code=end.exit_code,
        reason=reason,
        clocks=clocks,
        cooldown_s=execution.study.cooldown_s,
    )
    write.write_json(folder / PASS_FILE, facts)
    left = execution.remaining.after(cell, asked)
    took_s = after.monotonic_s - before.monotonic_s
    failed = f", {teller.progress.failed} failed" if teller.progress.failed else ""
    what = f"{'bursts  ' if asked.kind == 'bursts' else ''}{teller.progress.requests:>4} requests"
    where = f"{cell.title} at {place_of(asked.concurrency, asked.of)}"
    execution.say(f"{where}  {what} in {took_s:5.1f} s{failed}{left}")
    if clocks.set_by is not None:
        execution.say(f"{where}  {clocks.set_by}")
    if end.reason is not None:
        raise EngineError(f"concurrency {asked.concurrency}, {execution.study.turn} {repeat}: {end.reason}")
    if clocks.suspended is not None:  # --resume measures this pass again; the next may be sound
        execution.note(f"{cell.title}: concurrency {asked.concurrency}, {execution.study.turn} {repeat}: {clocks.suspended}")


def _is_here(target: locust_pass.Target) -> bool:
    return all(map(probe.is_loopback, target.urls))


def _environment(study: Study, cell: Cell) -> dict[str, str]:
    """The environment of Locust. It has an API key only if we did not start the server, and only the key of this cell."""
    withheld = key_variables(study) | (set(credentials.WITHHELD) if cell.base_url is None else set())
    withheld -= {credentials.KEY_VARIABLES[0], *cell.headers.values()} if cell.base_url is not None else set()
    return {name: value for name, value in os.environ.items() if name not in withheld}


class _Teller:
    """Tells the audience of a run how far a pass is, and what Locust logs."""

    def __init__(self, execution: Execution, cell: Cell, asked: AskedPass, repeat: int, log: Path) -> None:
        self._execution, self._cell, self._asked, self._repeat, self._log = execution, cell, asked, repeat, log
        self._read_bytes: dict[Path, int] = {}
        self._began_s = time.monotonic()
        study, remaining = execution.study, execution.remaining
        self._by_clock_s = _by_clock_s(study, cell, asked)
        self._expected_s = remaining.pass_s(cell, asked)
        self.progress = LevelProgress()
        self._heard_s = self._began_s

    def gone(self) -> str | None:
        """Why the pass of a duel need not go on: every request failed, or the budget is spent and nothing comes."""
        execution, seen = self._execution, self.progress
        if not execution.study.is_duel:
            return None
        if seen.failed == seen.requests >= ENOUGH_FAILURES:
            return f"each of the first {seen.requests} requests failed"
        silent_s = time.monotonic() - self._heard_s
        if not execution.is_out_of_time() or silent_s < SILENCE_S:
            return None
        return f"the budget is spent, and nothing came for {silent_s:.0f} s; {seen.ended} requests had ended"

    def __call__(self, progress: LevelProgress) -> None:
        if progress.tokens_per_s or progress.ended > self.progress.ended:
            self._heard_s = time.monotonic()
        self.progress = progress
        asked, elapsed_s = self._asked, time.monotonic() - self._began_s
        left_s = (
            estimate.level_left_s(asked, progress.ended, elapsed_s, self._expected_s)
            if self._by_clock_s is None
            else max(0.0, self._by_clock_s - elapsed_s)
        )
        self._execution.audience.watch(
            LevelStatus(
                cell=self._cell.title,
                concurrency=asked.concurrency,
                place=_place(self._execution.study, self._cell, asked, self._repeat),
                asked=asked.requests,
                warmups_asked=asked.concurrency * (1 if asked.kind == "bursts" else asked.warmup_requests),
                progress=progress,
                elapsed_s=elapsed_s,
                level_left_s=left_s,
                study_left_s=None if left_s is None else left_s + self._beyond_s(elapsed_s + left_s),
                of=asked.of,
            )
        )
        self.log()

    def _beyond_s(self, pass_s: float) -> float:
        return self._execution.remaining.beyond_s(self._cell, self._asked, pass_s)

    def log(self) -> None:
        """What Locust logged since."""
        for line in appended_lines(self._log, self._read_bytes):
            self._execution.audience.detail(f"locust: {line.decode(errors='replace')}")

    def end(self) -> None:
        self.log()
        self._execution.audience.watch(None)


def _by_clock_s(study: Study, cell: Cell, asked: AskedPass) -> float | None:
    """Wall seconds of a pass that the clock ends: of a given duration, or sent at a rate; None of others."""
    rate = study.scenario_options.get("rate")
    by_rate_s = asked.requests / rate if isinstance(rate, int | float) and asked.requests is not None else None
    seconds = study.duration_s if study.duration_s is not None else by_rate_s
    return None if seconds is None else seconds / (cell.clock_speed or 1.0)


def _place(study: Study, cell: Cell, asked: AskedPass, repeat: int) -> str:
    """
    >>> study = Study(name="x", workload="math", cells=(a := Cell(engine="vllm", model="m"),), repeats=3)
    >>> _place(study, a, AskedPass(concurrency=2, requests=8), 1)
    'level 2 of 4, repeat 1 of 3'
    """
    ordinary = asked.kind == "level" and asked.concurrency in study.levels
    first = f"level {study.levels.index(asked.concurrency) + 1} of {len(study.levels)}" if ordinary else _ASKED[asked.kind]
    counted = (
        ("cell", study.cells.index(cell) + 1, len(study.cells)),
        (study.turn, repeat, max(repeat, study.repeats)),
    )
    return ", ".join([first, *(f"{what} {n} of {of}" for what, n, of in counted if of > 1)])


_ASKED: dict[PassKind, str] = {"level": "natural run", "bursts": "bursts"}
