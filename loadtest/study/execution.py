"""The state of one execution of a study."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from loadtest.report.live import LevelStatus
from loadtest.study import estimate
from loadtest.study.bursts.asked import Wanted
from loadtest.study.schema import Study
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
    budget_s: float | None = None  # no repeat starts that would end later
    precision: float | None = None  # a share: go on until every pair's interval is as narrow on either side
    audience: Audience = NOBODY
    started_s: float = field(default_factory=time.monotonic)
    problems: list[str] = field(default_factory=list)

    def is_out_of_time(self) -> bool:
        """Is the budget spent?"""
        return self.budget_s is not None and time.monotonic() > self.started_s + self.budget_s

    def note(self, problem: str) -> None:
        """Note a problem that makes the run incomplete; each is kept once."""
        self.say(problem)
        if problem not in self.problems:
            self.problems.append(problem)


def key_variables(study: Study) -> set[str]:
    """The environment variables with keys and headers of the cells; only Locust gets them, a key under its own name."""
    keys = {cell.api_key_env for cell in study.cells if cell.api_key_env is not None}
    return keys | {variable for cell in study.cells for variable in cell.headers.values()}
