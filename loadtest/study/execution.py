"""The state of one execution of a study."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from loadtest.study import estimate
from loadtest.study.schema import Study
from loadtest.workload.contract import Contract

Say = Callable[[str], None]


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
    budget_s: float | None = None  # no repeat starts that would end later
    problems: list[str] = field(default_factory=list)

    def note(self, problem: str) -> None:
        """Note a problem that makes the run incomplete; each is kept once."""
        self.say(problem)
        if problem not in self.problems:
            self.problems.append(problem)


def key_variables(study: Study) -> set[str]:
    """The environment variables with the API keys of the cells; only Locust gets a key, under its own name."""
    return {cell.api_key_env for cell in study.cells if cell.api_key_env is not None}
