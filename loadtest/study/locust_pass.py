"""One pass over one level: headless Locust in a process of its own, watched until it ends."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from loadtest import resources
from loadtest.errors import RecordError, UsageError
from loadtest.records import read
from loadtest.records.progress import LevelProgress, ProgressReader
from loadtest.servers import preflight
from loadtest.servers.process import Guarded, open_log, python
from loadtest.study.schema import AskedPass, Cell, Study
from loadtest.workload.script import SALTED

_POLL_S = 0.1
_TELL_S = 1.0
_STOP_GRACE_S = 15.0


@dataclass(frozen=True, slots=True)
class Target:
    """The server that a pass drives: where it is, what it calls the model, how fast its clock runs (1: real), what context
    it serves (tokens; None: it does not say), whether it keeps apart what has another `cache_salt`, whose `/metrics` count
    its work (none: its own), the workload as it was fitted to it (None: the study's), servers that take turns with it."""

    base_url: str
    served_model: str
    clock_speed: float = 1.0
    room_tokens: int | None = None
    salted: bool = True
    metrics_urls: tuple[str, ...] = ()
    workload: str | None = None
    more_urls: tuple[str, ...] = ()

    @property
    def urls(self) -> tuple[str, ...]:
        return (self.base_url, *self.more_urls)


@dataclass(frozen=True, slots=True)
class PassEnd:
    """How one pass ended: `exit_code` of Locust; `reason` is None for a pass that ran to its end."""

    exit_code: int
    reason: str | None
    n_requests: int


def scenario_path(name: str) -> Path:
    """A scenario by its name in `scenarios/`, or the path of a locustfile."""
    path = Path(name) if name.endswith(".py") else resources.path("scenarios") / f"{name}.py"
    if not os.path.isfile(path):  # no error where it could name none: too long, or with a NUL
        known = ", ".join(sorted(p.stem for p in resources.path("scenarios").glob("*.py")))
        raise UsageError(f"scenario: expected one of {known} or the path of a locustfile, got {name}")
    return path


def command(study: Study, cell: Cell, target: Target, asked: AskedPass, repeat: int, run: Path, run_id: str) -> list[str]:
    """The exact Locust command of one pass. The contract and SLOs are read from the manifest in `run`."""
    scenario = "bursts" if asked.kind == "bursts" else study.scenario
    argv = [*python("loadtest.scenario"), "--locustfile", str(scenario_path(scenario)), "--headless"]
    users = asked.most_in_flight or asked.concurrency
    argv += ["--users", str(users), "--spawn-rate", str(max(users, 100)), "--host", target.base_url]
    argv += ["--only-summary", "--skip-log-setup", "--exit-code-on-error", "0"]
    argv += ["--out", str(run), "--run-id", run_id, "--cell", cell.id, "--repeat", str(repeat), "--engine", cell.engine]
    argv += [
        f"--model={target.served_model}",
        "--tp",
        str(cell.tp),
        f"--workload={target.workload or study.workload}",
        "--mode",
        cell.mode or study.lengths,
    ]
    argv += ["--seed", str(study.seed), "--warmup-requests", str(asked.warmup_requests)]
    argv += ["--clock-speed", repr(target.clock_speed)]
    if asked.most_in_flight is not None:
        argv += ["--level", str(asked.concurrency)]
    argv += [] if cell.api == "chat" else ["--api", cell.api]
    argv += [word for url in target.more_urls for word in ("--replica", url)]
    argv += [] if cell.proxy is None else ["--proxy", cell.proxy]
    argv += ["--insecure"] if cell.insecure else []
    argv += [] if cell.grammar is None else ["--grammar", "on" if cell.grammar else "off"]
    if asked.kind == "bursts":
        return [*argv, "--contexts", ",".join(map(str, asked.contexts_tokens))]
    for key, value in study.scenario_options.items():
        if value is not False:
            argv += [f"--{key.replace('_', '-')}", *([] if value is True else [str(value)])]
    if study.workers > 1:
        argv += shared(study.workers)
    if study.prompts is not None and cell.engine in SALTED and target.salted:
        argv += ["--prompts", str(study.prompts)]
    return [
        *argv,
        *(["--duration", repr(study.duration_s)] if asked.requests is None else ["--requests", str(asked.requests)]),
    ]


def shared(processes: int) -> list[str]:
    """Locust's options to share the users among processes of this host, on a port of their own: on Locust's default port
    the workers of two runs would join each other's masters."""  # fmt: skip
    port = str(preflight.free_port())
    argv = ["--processes", str(processes), "--expect-workers-max-wait", "120", "--master-bind-host", "127.0.0.1"]
    return [*argv, "--master-bind-port", port, "--master-port", port]


def cool_down(seconds: float, died: Callable[[], str | None]) -> None:
    """Send nothing for so long (wall s), so that the GPUs start every pass equally cool; return early if the server
    dies."""
    until_s = time.monotonic() + seconds
    while (left_s := until_s - time.monotonic()) > 0 and died() is None:
        time.sleep(min(left_s, _POLL_S))


def drive(
    argv: list[str],
    folder: Path,
    environment: Mapping[str, str],
    *,
    died: Callable[[], str | None],
    tell: Callable[[LevelProgress], None],
    enough: Callable[[], bool] = lambda: False,
) -> PassEnd:
    """Run Locust to its end, or stop it when the server dies, when it is `enough`, or the user interrupts.

    `died` is polled: why the server has gone, or None. `tell` gets once a second what the level has done so far.
    What Locust prints goes to `locust.log` in `folder`. Raises `RecordError` if Locust could not write its records.
    """
    with open_log(folder / "locust.log") as log:
        locust = Guarded(argv, log, grace_s=_STOP_GRACE_S, environment=environment)
    reason, stopped = None, False
    progress, told_s = ProgressReader(folder), -math.inf
    try:
        while locust.poll() is None and reason is None and not (stopped := enough()):
            reason = died()
            if time.monotonic() - told_s >= _TELL_S:
                told_s = time.monotonic()
                tell(progress.read())
            time.sleep(_POLL_S)
    finally:
        code = locust.stop()
    last = progress.read()
    tell(last)
    failure = read.read_failure(folder)
    if code != 0 and failure is not None and failure.kind == "records":
        raise RecordError(failure.message)  # later passes could not be recorded either
    if reason is None and ((code != 0 and not stopped) or last.ended == 0):
        how = f"with exit code {code}" if code != 0 else "without a single request"
        reason = f"Locust ended {how}: {failure.message if failure else _last_line(folder / 'locust.log')}"
    return PassEnd(exit_code=code, reason=reason, n_requests=last.ended)


def _last_line(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it printed nothing"
