"""What one process does in a Locust test: alone, as a master, or as a worker."""

from __future__ import annotations

import logging
import resource
from typing import Any, Protocol, cast

import gevent
import locust
from locust.env import Environment
from locust.runners import STATE_MISSING, LocalRunner, MasterRunner, WorkerRunner
from locust.stats import CSV_STATS_INTERVAL_SEC

from loadtest import credentials
from loadtest.client.level import Endpoint, Level, Settings
from loadtest.client.reply import token_counter
from loadtest.client.transport import SocketTransport
from loadtest.errors import LoadtestError
from loadtest.records.schema import RequestRecord
from loadtest.scenario import options as scenario_options
from loadtest.scenario import run_folder
from loadtest.workload.script import slots_of
from loadtest.workload.workload import Workload

logger = logging.getLogger("loadtest")

_OTHER_FILES = 128  # descriptors beside those of the streams

_events: Any = locust.events

FINISH, FINAL, DONE, FAILED = "loadtest_finish", "loadtest_final", "loadtest_done", "loadtest_failed"

WATCH_INTERVAL_S = 0.5

FINAL_WAIT_S = 60.0

RESOLVED = ("engine", "model", "tp", "cell", "repeat", "run_id", "clock_speed", "out")

REASONS = {
    "cut_off": "still running when the level ended",
    "truncated": "ended by the limit on its length",
    "no_answer": "stopped by itself without an answer",
}


def report(environment: Environment, record: RequestRecord) -> None:
    """Tell Locust's statistics about a request that has ended: TTFT, first answer, final answer, in ms of the run.

    Every outcome but `ok`, `cut_off` among them, is a failure of the final answer.
    """

    fire: Any = environment.events.request.fire

    def row(name: str, at_s: float, exception: Exception | None = None) -> None:
        fire(
            request_type="stream",
            name=name,
            response_time=max(0.0, at_s) * 1000,
            response_length=record.completion_tokens or 0,
            exception=exception,
            context={},
        )

    sent_s = record.scheduled_s if record.sent_s is None else record.sent_s
    if record.chunk_s:
        row("TTFT", record.chunk_s[0] - sent_s)
    if record.first_answer_chunk is not None:
        row("first answer", record.chunk_s[record.first_answer_chunk] - sent_s)
    if record.outcome == "ok":
        row("final answer", record.chunk_s[-1] - sent_s)
    else:
        why = f"{record.error.kind}: {record.error.message}" if record.error else REASONS.get(record.outcome, "")
        row("final answer", record.ended_s - sent_s, RuntimeError(credentials.redacted(f"{record.outcome}: {why}")))


class Asking(Protocol):
    """What a session asks of a class of our users (`scenario.user.ReasoningUser`) before a level begins."""

    turns: int

    @classmethod
    def check_options(cls, options: Any, workload: Workload) -> None: ...

    @classmethod
    def second_endpoint(cls, options: Any, settings: Settings, workload: Workload) -> Endpoint | None: ...


class Session:
    """What this process does in a Locust test: its level, or (master) the watch over the workers and the manifest."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.runner: Any = environment.runner
        self.options: Any = environment.parsed_options
        self._given = {key: getattr(self.options, key, None) for key in RESOLVED}
        self.level: Level | None = None
        self.opening: run_folder.Opening | None = None
        self.failure: str | None = None
        self.shutting_down = False
        self.ended = False
        self._shares: dict[str, int] = {}  # worker -> number of its users
        self._done: set[str] = set()
        self._finals: dict[str, dict[str, Any]] = {}
        self._finishing = False

    # --- the start and the end of a level

    def start(self) -> None:
        runner, options = self.runner, self.options
        self.failure, self.ended, self.level, self._finishing = None, False, None, False
        try:
            if not isinstance(runner, WorkerRunner):
                vars(options).update(self._given)  # a second test from the web page finds its own run and repeat
                users = max(runner.target_user_count or 0, options.num_users or 0, *_steps(options), 1)
                self.opening = run_folder.open_run(options, self.environment.host, users)
            if isinstance(runner, MasterRunner):
                self._deal(runner)
            else:
                self._open_level(runner)
        except LoadtestError as error:
            self.fail(str(error), error.exit_code)
        except Exception as error:
            self.fail(f"a bug: the start of the test ended with {error!r}")
            raise  # Locust logs it with its traceback; by itself it would go on for ever without a request

    def _open_level(self, runner: LocalRunner | WorkerRunner) -> None:
        options = self.options
        users = options.loadtest_users
        worker, workers = (0, 1) if isinstance(runner, LocalRunner) else options.loadtest_workers[runner.client_id]
        settings, workload = run_folder.settle(options, self.environment.host, users)
        for cls in self._user_classes:
            cls.check_options(options, workload)
        slots = slots_of(worker, workers, users)
        _allow_files(len(slots))
        transport = SocketTransport(settings.url, api_key=credentials.api_key(), speed=settings.clock_speed)
        count_tokens = token_counter(options.tokenizer)
        self.level = Level(
            settings,
            workload,
            slots,
            transport=transport,
            kept=self._on_record,
            failed=self.fail,
            count_tokens=count_tokens,
            turns=max((cls.turns for cls in self._user_classes), default=1),
            second=next(
                filter(None, (cls.second_endpoint(options, settings, workload) for cls in self._user_classes)), None
            ),
        )
        self.level.open()
        logger.info("opened %d connections in %.3f s", len(slots), self.level.connected_wall_s)
        if self.level.finished:
            self.done()

    @property
    def _user_classes(self) -> list[type[Asking]]:
        """Those of ours; a locustfile may have others."""
        return [cast("type[Asking]", cls) for cls in self.environment.user_classes if hasattr(cls, "second_endpoint")]

    def finish(self) -> None:
        """The users have stopped: close the level, and tell the master or the manifest."""
        runner = self.runner
        self.ended = True
        summary: dict[str, Any] = {}
        if self.level is not None:
            self.level.close()
            summary = self.level.summary()
        if isinstance(runner, WorkerRunner):
            runner.send_message(FINAL, summary)
            return
        if isinstance(runner, LocalRunner) and summary:
            self._finals = {str(summary["worker"]): summary}
        self._reconcile()
        if self.opening is not None:
            self.opening.close(self.failure, interrupted=self.shutting_down)

    def _reconcile(self) -> None:
        """Every request that was started has its record, in every process."""
        for worker in self._shares:
            if worker not in self._finals:
                self.fail(f"worker {worker} never said what it recorded; its records, if any, are in its own folder")
        for name, final in self._finals.items():
            if final.get("failure"):
                self.fail(f"worker {name}: {final['failure']}")
            elif final.get("started") != final.get("written"):
                self.fail(f"worker {name}: {final.get('started')} requests were started, {final.get('written')} recorded")
        if self.opening is not None and self.failure is None:
            try:
                self.opening.count_lines(self._finals.values())
            except LoadtestError as error:
                self.fail(str(error))

    # --- ending

    def done(self) -> None:
        """All measured requests of this process have ended."""
        runner = self.runner
        if isinstance(runner, WorkerRunner):
            runner.send_message(DONE, {"worker": runner.client_id})
        else:
            self.quit()

    def fail(self, message: str, exit_code: int = 1) -> None:
        """The measurement cannot go on, or cannot be trusted: say so, and end with this exit code."""
        if self.failure is not None:
            return
        self.failure = message
        logger.error(message)
        self.environment.process_exit_code = exit_code
        runner = self.runner
        if isinstance(runner, WorkerRunner):
            runner.send_message(FAILED, {"worker": runner.client_id, "message": message, "exit_code": exit_code})
        elif not self.ended:
            self.quit()

    def _on_record(self, record: RequestRecord) -> None:
        report(self.environment, record)
        if self.level is not None and self.level.finished and record.phase == "measure":
            self.done()

    def quit(self) -> None:
        """Stop the test from a greenlet of its own: the caller may be one that gets killed by it."""
        gevent.spawn(self._quit)

    def _quit(self) -> None:
        runner, options = self.runner, self.options
        if options.headless:
            runner.quit()
        else:
            runner.stop()

    # --- master and workers

    def _deal(self, runner: MasterRunner) -> None:
        """Share the users out; the numbers travel to the workers among the options, with Locust's own spawn message."""
        options = self.options
        workers = sorted(c.id for c in runner.clients.ready + runner.clients.running + runner.clients.spawning)
        users = options.loadtest_users
        options.loadtest_workers = {worker: (i, len(workers)) for i, worker in enumerate(workers)}
        self._shares = {worker: len(slots_of(i, len(workers), users)) for i, worker in enumerate(workers)}
        self._done, self._finals = set(), {}
        gevent.spawn(self._watch_workers, runner)

    def _watch_workers(self, runner: MasterRunner) -> None:
        while not self.ended and not self._finishing:
            gevent.sleep(WATCH_INTERVAL_S)
            for worker in self._lost(runner):
                self.fail(
                    f"worker {worker} was lost in the middle of the run, which is incomplete; look into its host's log"
                )

    def _lost(self, runner: MasterRunner) -> list[str]:
        missing = [w for w in self._shares if w not in runner.clients or runner.clients[w].state == STATE_MISSING]
        return [] if self.ended or self._finishing else missing

    def stopping(self) -> None:
        """The test is about to stop. A master has its workers finish first, and waits for what they say."""
        runner = self.runner
        if not isinstance(runner, MasterRunner) or self._finishing:
            return
        gone = set(self._lost(runner))
        self._finishing = True
        runner.send_message(FINISH)
        with gevent.Timeout(self.environment.stop_timeout + FINAL_WAIT_S, False):
            while set(self._shares) - gone - set(self._finals):
                gevent.sleep(0.02)

    def on_message(self, kind: str, data: dict[str, Any], sender: str) -> None:
        if kind == FINISH:
            gevent.spawn(self.runner.stop)
        elif kind == FINAL:
            self._finals[sender] = data
        elif kind == DONE:
            self._done.add(sender)
            if self._done >= set(self._shares):
                self.quit()
        elif kind == FAILED:
            self.fail(f"worker {sender}: {data['message']}", data["exit_code"])

    # --- exit code

    def quitting(self) -> None:
        """Locust works its exit code out next: an interrupted level is 130; requests cut off by plan are no error."""
        self.shutting_down = True
        environment = self.environment
        if environment.process_exit_code is not None:
            return
        if (self.level is not None or self._shares) and not self.ended:
            environment.process_exit_code = 130
        elif not self.runner.exceptions and all("cut_off" in str(error.error) for error in self.runner.errors.values()):
            environment.process_exit_code = 0


def _steps(options: Any) -> list[int]:
    """Users at each step of a ramp (`scenarios/concurrency_ramp.py`); none elsewhere."""
    return [int(part) for part in getattr(options, "steps", "").split(",") if part.strip().isdigit()]


_sessions: dict[int, Session] = {}


def session_of(environment: Environment) -> Session:
    """The session of a Locust environment."""
    return _sessions[id(environment)]


def current_level(environment: Environment) -> Level | None:
    """The level that runs in this process now; null on a master, and where the start failed."""
    session = _sessions.get(id(environment))
    return None if session is None or session.failure is not None else session.level


def _add_options(parser: Any) -> None:
    scenario_options.add_options(parser)


def _init(environment: Environment, **_: Any) -> None:
    session = Session(environment)
    _sessions[id(environment)] = session
    fired: Any = environment.events
    fired.test_start.add_listener(lambda **_: session.start())
    fired.test_stopping.add_listener(lambda **_: session.stopping())
    fired.test_stop.add_listener(lambda **_: session.finish())
    fired.quitting.add_listener(lambda **_: session.quitting())
    fired.quit.add_listener(lambda **_: _finish_csv(environment))
    fired.user_error.add_listener(lambda exception, **_: session.fail(f"a bug: a user ended with {exception!r}"))
    for kind in (FINISH, FINAL, DONE, FAILED):
        session.runner.register_message(kind, _hand_over(session, kind))


def _finish_csv(environment: Environment) -> None:
    """Let Locust write its `--csv` files once more: it does so every second, and at the end closes them as they are."""
    if getattr(environment.parsed_options, "csv_prefix", None):
        gevent.sleep(CSV_STATS_INTERVAL_SEC + 0.1)


def _hand_over(session: Session, kind: str) -> Any:
    def listener(environment: Environment, msg: Any, **_: Any) -> None:
        session.on_message(kind, msg.data or {}, msg.node_id)

    return listener


def _allow_files(streams: int) -> None:
    """As many open files as the system lets us: every stream is one. Raises `LoadtestError` where they will not do."""
    needed = streams + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise LoadtestError(
            f"open files: expected room for {needed} ({streams} streams and what Locust needs), got a limit of {hard};"
            f" raise it (ulimit -n {needed}), or share the streams out with --processes"
        )


_events.init_command_line_parser.add_listener(_add_options)
_events.init.add_listener(_init)
