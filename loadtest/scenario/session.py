"""What one process does in a Locust test: alone, as a master, or as a worker."""

from __future__ import annotations

import logging
import os
import secrets
import signal
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, cast

import gevent
import locust
import msgspec
from locust.env import Environment
from locust.runners import LocalRunner, MasterRunner, WorkerRunner

from loadtest import credentials
from loadtest.client.connection import allow_files
from loadtest.client.exchange import Endpoint
from loadtest.client.level import Level
from loadtest.client.pass_options import PassOptions
from loadtest.client.reply import token_counter
from loadtest.client.thinking import prompt_opens
from loadtest.client.transport import SocketTransport
from loadtest.errors import LoadtestError, RecordError, UsageError
from loadtest.records.folder import PassKind
from loadtest.records.pass_facts import Failure, FailureKind, LevelSummary
from loadtest.records.schema import RequestRecord
from loadtest.records.shipping import Outbox, WorkerEnd, is_masters
from loadtest.scenario import options as scenario_options
from loadtest.scenario import run_folder, statistics
from loadtest.scenario.admission import PROOF, PROVE, REFUSED, Admission, limit_messages, proof_of
from loadtest.scenario.shipping import BATCH, KEPT, Shipper
from loadtest.scenario.workers import DONE, FAILED, FINAL, FINISH, Workers
from loadtest.servers import route
from loadtest.workload import workload as workloads
from loadtest.workload.script import Script, slots_of
from loadtest.workload.workload import Workload

logger = logging.getLogger("loadtest")

_events: Any = locust.events


class Asking(Protocol):
    """What a session needs of a user class (`scenario.user.ReasoningUser`) before a level begins."""

    turns: int
    kind: PassKind

    @classmethod
    def check_options(cls, options: Any, workload: Workload) -> None: ...

    @classmethod
    def second_endpoint(cls, options: Any, asked: PassOptions, workload: Workload) -> Endpoint | None: ...


class Session:
    """What this process does in a Locust test: its level, or (master) the watch over the workers and the manifest."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.runner: Any = environment.runner
        self.options: Any = environment.parsed_options
        self.level: Level | None = None
        self.opening: run_folder.Opening | None = None
        self.workers: Workers | None = None
        self.shipper: Shipper | None = None
        self.admission = Admission(environment, self.runner) if isinstance(self.runner, MasterRunner) else None
        self.failure: Failure | None = None
        self.shutting_down = False
        self.ended = False
        self._time_limit: gevent.Greenlet[..., None] | None = None
        self._end: gevent.Greenlet[..., None] | None = None

    # --- the start and the end of a level

    def start(self) -> None:
        runner = self.runner
        self._stop_shipping()
        self.failure, self.ended, self.level, self.workers = None, False, None, None
        if self.admission is not None:
            self.admission.close()
        try:
            if not isinstance(runner, WorkerRunner):
                self._open_run()
            if isinstance(runner, MasterRunner):
                self._deal(runner)
            else:
                self._open_level(runner)
            if isinstance(runner, WorkerRunner):
                self._ship(runner)
            self._limit_duration()
        except LoadtestError as error:
            kind: FailureKind = "records" if isinstance(error, RecordError) else "start"
            self.fail(Failure(kind=kind, message=str(error), exit_code=error.exit_code))
        except Exception as error:
            self.fail(Failure(kind="bug", message=f"a bug: the start of the test ended with {error!r}"))
            raise  # Locust logs it with its traceback; by itself it would go on for ever without a request

    def _open_run(self) -> None:
        """Open the run folder and resolve the pass. Locust sends its options, with the pass, to the workers."""
        options = self.options
        users = max(self.runner.target_user_count or 0, options.num_users or 0, *_steps(options), 1)
        self.opening = run_folder.open_run(options, self.environment.host, users, self._kind)
        options.loadtest_pass = self.opening.asked.to_table()

    def _limit_duration(self) -> None:
        """End the level when its time is over; Locust's own `--run-time` also counts the start, in whole seconds."""
        if self.opening is not None and self.options.duration is not None:
            wall_s = self.options.duration / self.opening.asked.clock_speed
            self._time_limit = gevent.spawn_later(wall_s, self.quit)

    def _deal(self, runner: MasterRunner) -> None:
        """Share the users out among the workers, and take in their records."""
        assert self.opening is not None
        options, token = self.options, secrets.token_hex(16)
        self.opening.mark(token)
        self.workers = Workers(runner, self.fail, self.opening.asked.folder, token)
        options.loadtest_workers, options.loadtest_token = self.workers.names, token
        gevent.spawn(self.workers.watch)

    def _ship(self, runner: WorkerRunner) -> None:
        """Ship the records of this worker, unless it writes into the master's own folder."""
        assert self.level is not None
        folder, token = self.level.options.folder, self.options.loadtest_token
        if not is_masters(folder, token):
            self.shipper = Shipper(runner, Outbox(folder, self.level.recorder.files, token))

    def _stop_shipping(self) -> None:
        if self.shipper is not None and self.level is not None and (left_bytes := self.shipper.stop()):
            folder = self.level.options.folder
            logger.error("%d bytes of records did not reach the master; they are here, in %s", left_bytes, folder)
        self.shipper = None

    def _open_level(self, runner: LocalRunner | WorkerRunner) -> None:
        options = self.options
        asked = PassOptions.from_table(options.loadtest_pass)
        credentials.declare(asked.headers)
        route.take(asked.route)
        names = [None] if isinstance(runner, LocalRunner) else options.loadtest_workers
        number = 0 if isinstance(runner, LocalRunner) else names.index(runner.client_id)
        slots = slots_of(number, len(names), asked.concurrency)
        workload = workloads.load(asked.workload)
        if workload.identity != asked.workload_identity:
            wanted = f"the master's prompts ({asked.workload_identity}), got {workload.identity}"
            raise UsageError(f"{asked.workload}: expected {wanted}; copy them to every host")
        classes = self._user_classes
        for cls in classes:
            cls.check_options(options, workload)
        allow_files(len(slots) * len(asked.urls))
        second = filter(None, (cls.second_endpoint(options, asked, workload) for cls in classes))
        self.level = Level(
            asked,
            slots,
            *_endpoints(asked, workload),
            kept=self._on_record,
            failed=self.fail,
            count_tokens=token_counter(asked.tokenizer),
            turns=1 if workload.has_steps else max((cls.turns for cls in classes), default=1),
            second=next(second, None),
        )
        self.level.open()
        logger.info("opened %d connections in %.3f s", len(slots), self.level.connected_wall_s)
        if self.level.finished:
            self.done()

    @property
    def _user_classes(self) -> list[type[Asking]]:
        """Our user classes; a locustfile may have others."""
        return [cast("type[Asking]", cls) for cls in self.environment.user_classes if hasattr(cls, "second_endpoint")]

    @property
    def _kind(self) -> PassKind:
        return next((cls.kind for cls in self._user_classes), "level")

    def stopping(self) -> None:
        """The test is about to stop. A master has its workers finish first and waits for their summaries."""
        if self.workers is not None and not self.workers.finishing:
            self.workers.finish(self.environment.stop_timeout)

    def finish(self) -> None:
        """The users have stopped: close the level, and tell the master or the manifest."""
        runner = self.runner
        self.ended = True
        if self._time_limit is not None:
            self._time_limit.kill()
        summary: LevelSummary | None = None
        if self.level is not None:
            self.level.close()
            summary = self.level.summary()
        if isinstance(runner, WorkerRunner):
            files = self.shipper.close() if self.shipper is not None else ()
            runner.send_message(FINAL, msgspec.to_builtins(WorkerEnd(summary, files)))
            if self.shipper is not None and self.shutting_down:  # by itself: the master does not wait
                self.shipper.wait()
            return
        if self.workers is not None:
            self._reconcile(self._taken_in(self.workers), self.workers.summaries)
        else:
            self._reconcile([], {summary.worker: summary} if summary else {})
        if self.opening is not None:
            self.opening.close(self.failure, interrupted=self.shutting_down)
        if self.admission is not None:
            self.admission.open()

    def _taken_in(self, workers: Workers) -> list[str]:
        """Close the files of the workers' records; what is missing in them."""
        try:
            return workers.close()
        except RecordError as error:
            return [str(error)]

    def _reconcile(self, problems: list[str], summaries: Mapping[str, LevelSummary]) -> None:
        """Every request that was started has its record, in every process."""
        for name, summary in summaries.items():
            if summary.failure:
                problems.append(f"worker {name}: {summary.failure}")
            elif summary.started != summary.written:
                problems.append(f"worker {name}: {summary.started} requests were started, {summary.written} recorded")
        if problems:
            self.fail(Failure(kind="workers", message="; ".join(problems)))
        elif self.opening is not None and self.failure is None:
            try:
                self.opening.count_lines(summaries.values())
            except LoadtestError as error:
                self.fail(Failure(kind="workers", message=str(error)))

    # --- ending

    def done(self) -> None:
        """All measured requests of this process have ended."""
        runner = self.runner
        if isinstance(runner, WorkerRunner):
            runner.send_message(DONE, {})
        else:
            self.quit()

    def fail(self, failure: Failure) -> None:
        """End the test: the measurement cannot go on or cannot be trusted."""
        if self.failure is not None:
            return
        self.failure = failure
        logger.error(failure.message)
        self.environment.process_exit_code = failure.exit_code
        if self.opening is not None:
            self.opening.keep(failure)
        runner = self.runner
        if isinstance(runner, WorkerRunner):
            runner.send_message(FAILED, msgspec.to_builtins(failure))
        elif not self.ended:
            self.quit()

    def _on_record(self, record: RequestRecord) -> None:
        statistics.add_rows(self.environment, record)
        if self.level is not None and self.level.finished and record.phase == "measure":
            self.done()

    def quit(self) -> None:
        """Stop the test from a greenlet of its own, because stopping may kill the caller's; not a second time, which would
        end the process while the first closes its files."""
        if self.shutting_down or self._end:
            return
        self._end = gevent.spawn(self.runner.quit if self.options.headless else self.runner.stop)

    def hear(self, kind: str, data: dict[str, Any], sender: str) -> None:
        """Handle a message: FINISH, KEPT, PROVE and REFUSED come from the master, the others from workers."""
        if kind == FINISH:
            gevent.spawn(self.runner.stop)
        elif kind == KEPT:
            if self.shipper is not None:
                self.shipper.hear(data)
        elif kind == PROVE:
            self.runner.send_message(PROOF, msgspec.to_builtins(proof_of(self.environment)))
        elif kind == REFUSED:
            self.fail(Failure(kind="workers", message=str(data.get("message"))))
            gevent.spawn(self.runner.quit)
        elif self.workers is not None:
            self.workers.hear(kind, data, sender)
            if kind == DONE and self.workers.done:
                self.quit()

    # --- exit code

    def quitting(self) -> None:
        """Set the exit code before Locust does: 130 if a level was interrupted. A level that ends by itself ends first: a
        signal that came meanwhile would leave its files open."""
        if self._end is not None:
            if self.workers is not None:
                self.workers.hurried = True
            self._end.join()
            if self.options.headless and gevent.getcurrent().parent is not None:
                gevent.event.Event().wait()  # a signal's greenlet: the main one waited for the same end, and exits by itself
        self.shutting_down = True
        if self.admission is not None:
            self.admission.dismiss()
        is_cut = (self.level is not None or self.workers is not None) and not self.ended
        if is_cut and self.environment.process_exit_code is None:
            self.environment.process_exit_code = 130
        if isinstance(self.runner, WorkerRunner):
            self._leave()

    def _leave(self) -> None:
        """A worker ends. By itself, it closes its level and ships what is left before Locust tells the master."""
        if self.level is not None and not self.ended:
            self.runner.stop()
        self._stop_shipping()


def _steps(options: Any) -> list[int]:
    """Users at each step of a ramp (`scenarios/concurrency_ramp.py`); none elsewhere."""
    return [int(part) for part in getattr(options, "steps", "").split(",") if part.strip().isdigit()]


def _endpoints(asked: PassOptions, workload: Workload) -> Iterator[Endpoint]:
    """One for each server; all ask the same."""
    model, engine, api = asked.model, asked.engine, asked.api
    script = Script(workload, asked.contract, model=model, engine=engine, seed=asked.seed, rounds=asked.rounds, api=api)
    opened = api != "completions" and prompt_opens(asked.contract, model)
    key, headers = credentials.api_key(), credentials.extra_headers()
    for url in asked.request_urls:
        transport = SocketTransport(url, api_key=key, headers=headers, speed=asked.clock_speed)
        replica = route.place(url) if asked.more_urls else None
        yield Endpoint(transport=transport, script=script, opened=opened, api=api, replica=replica)


_sessions: dict[int, Session] = {}


def session_of(environment: Environment) -> Session:
    """The session of a Locust environment."""
    return _sessions[id(environment)]


def current_level(environment: Environment) -> Level | None:
    """The level that runs in this process now; None on a master, and where the start failed."""
    session = _sessions.get(id(environment))
    return None if session is None or session.failure is not None else session.level


def _add_options(parser: Any) -> None:
    scenario_options.add_options(parser)


def _init(environment: Environment, **_: Any) -> None:
    session = Session(environment)
    statistics.count_final_answers(environment.stats)
    _sessions[id(environment)] = session
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # not under nohup; Locust knows SIGTERM alone
        gevent.signal_handler(signal.SIGHUP, os.kill, os.getpid(), signal.SIGTERM)
    fired: Any = environment.events
    fired.test_start.add_listener(lambda **_: session.start())
    fired.test_stopping.add_listener(lambda **_: session.stopping())
    fired.test_stop.add_listener(lambda **_: session.finish())
    fired.quitting.add_listener(lambda **_: session.quitting())
    fired.quit.add_listener(lambda **_: statistics.finish_csv(environment))
    fired.user_error.add_listener(
        lambda exception, **_: session.fail(Failure(kind="bug", message=f"a bug: a user ended with {exception!r}"))
    )
    for kind in (FINISH, FINAL, DONE, FAILED, BATCH, KEPT, PROVE, REFUSED):
        session.runner.register_message(kind, _hand_over(session, kind))
    if isinstance(session.runner, WorkerRunner):
        session.hear(PROVE, {}, "")


def _hand_over(session: Session, kind: str) -> Any:
    def listener(environment: Environment, msg: Any, **_: Any) -> None:
        session.hear(kind, msg.data or {}, msg.node_id)

    return listener


limit_messages()
_events.init_command_line_parser.add_listener(_add_options)
_events.init.add_listener(_init)
