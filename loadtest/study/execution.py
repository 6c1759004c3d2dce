"""The state of one execution of a study."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from loadtest.records.folder import PassKind
from loadtest.report.live import LevelStatus
from loadtest.servers.server import READY_TIMEOUT_S
from loadtest.study import estimate
from loadtest.study.bursts.asked import Wanted
from loadtest.study.schema import AskedPass, Cell, Study
from loadtest.workload.contract import Contract

Say = Callable[[str], None]


def _unheard(_: str) -> None:
    pass


def _unseen(_: LevelStatus | None) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Audience:
    """Whoever wants to know more than the lines of `Say`: `watch` gets once a second how far the level is that runs, and
    None when it has ended; `detail` gets commands, files and the log of Locust."""

    watch: Callable[[LevelStatus | None], None] = _unseen
    detail: Say = _unheard


NOBODY = Audience()


class Teller(Protocol):
    """`Say` of a command that measures, and the audience that belongs to it."""

    def __call__(self, line: str) -> None: ...

    @property
    def audience(self) -> Audience: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLimits:
    """How long a start and a pass may take (wall s), and when all of it must have ended (`time.monotonic`): whatever is over
    is stopped, and said to be."""

    start_s: float = READY_TIMEOUT_S
    pass_s: float = math.inf
    until_s: float = math.inf

    def is_over(self) -> bool:
        """Is no time left?"""
        return time.monotonic() >= self.until_s

    def start_left_s(self) -> float:
        """How long a start that begins now may take."""
        return min(self.start_s, max(0.0, self.until_s - time.monotonic()))

    def broken_by_pass(self, began_s: float) -> str | None:
        """Why a pass that began at `began_s` (`time.monotonic`) must end now; None while it may go on."""
        if self.is_over():
            return NO_TIME
        return f"ended at the limit of {self.pass_s:g} s" if time.monotonic() - began_s > self.pass_s else None


NO_TIME = "no time left"
UNLIMITED = TimeLimits()


@dataclass(slots=True)
class Spending:
    """Wall seconds spent: on each kind of pass of a cell the last time, and on each cell's last start beside its passes."""

    passes_s: dict[tuple[str, PassKind, int], float] = field(default_factory=dict)
    starts_s: dict[str, float] = field(default_factory=dict)
    _inside_s: float = 0.0

    def pass_ended(self, cell: str, asked: AskedPass, took_s: float) -> None:
        self.passes_s[cell, asked.kind, asked.concurrency] = took_s
        self._inside_s += took_s

    def cell_ended(self, cell: str, took_s: float) -> None:
        """One start of a cell, its passes included, is over."""
        self.starts_s[cell], self._inside_s = max(0.0, took_s - self._inside_s), 0.0


@dataclass(slots=True)
class Execution:
    """Where it writes, why cells cannot start, and the problems so far."""

    study: Study
    contract: Contract
    out: Path
    run_id: str
    say: Say
    force: bool
    blocked: dict[str, str]
    remaining: estimate.Remaining
    check_folder: Callable[[], None]  # raises `RecordError` where the run folder is no longer there
    wanted: Wanted  # what the next repeat measures
    budget_s: float | None = None  # nothing starts that would end later
    precision: float | None = None  # a share: go on until every pair's interval is as narrow on either side
    audience: Audience = NOBODY
    limits: TimeLimits = UNLIMITED
    started_s: float = field(default_factory=time.monotonic)
    problems: list[str] = field(default_factory=list)
    spending: Spending = field(default_factory=Spending)

    def is_out_of_time(self) -> bool:
        """Is the budget spent?"""
        return self.budget_s is not None and time.monotonic() > self.started_s + self.budget_s

    def has_time_for(self, wanted: Wanted) -> bool:
        """Would one start of each cell that is wanted end within the budget? Yes, before anything was measured."""
        if self.budget_s is None or not self.spending.starts_s:
            return True
        return time.monotonic() + self._expected_s(wanted) <= self.started_s + self.budget_s

    def _expected_s(self, wanted: Wanted) -> float:
        """As long as the last time; what was not measured yet, as long as predicted."""
        cells = [cell for cell in self.study.cells if cell.id in wanted.cells]
        passes = [(cell, one) for cell in cells for one in wanted.passes(self.study, self.contract, cell)]
        starts_s = sum(self.spending.starts_s.get(cell.id, 0.0) for cell in cells)
        return starts_s + sum(self._pass_s(cell, one) for cell, one in passes)

    def _pass_s(self, cell: Cell, asked: AskedPass) -> float:
        known = self.spending.passes_s.get((cell.id, asked.kind, asked.concurrency))
        return known if known is not None else self.remaining.pass_s(cell, asked) or 0.0

    def note(self, problem: str) -> None:
        """Note a problem that makes the run incomplete; each is kept once."""
        self.say(problem)
        if problem not in self.problems:
            self.problems.append(problem)


def key_variables(study: Study) -> set[str]:
    """The environment variables with keys and headers of the cells; only Locust gets them, a key under its own name."""
    keys = {cell.api_key_env for cell in study.cells if cell.api_key_env is not None}
    return keys | {variable for cell in study.cells for variable in cell.headers.values()}
