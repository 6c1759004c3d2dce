"""An engine of ours: started, watched and stopped.

with Server(spec, log) as server:
    server.wait_ready()
    ...  # send requests to server.base_url; server.died() says why it no longer works
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from loadtest.credentials import WITHHELD
from loadtest.errors import EngineError
from loadtest.servers import failure_causes, preflight
from loadtest.servers.flags import HOST, LaunchSpec, launch_command
from loadtest.servers.process import Guarded, open_log
from loadtest.servers.supervisor import descendants

READY_TIMEOUT_S = 1800.0  # 65 GB of weights from a slow disk, then compilation and graph capture
STOP_GRACE_S = 30.0
_POLL_S = 0.1
_GENERATION_TIMEOUT_S = 300.0  # a cold engine may compile a kernel for its first request
_DEATH_FOLLOWS_S = 5.0  # an engine that fails its first request often takes some seconds to die of it
_LOG_BYTES = 400_000
_DIED_OF_IT = "was healthy, but died of its first request"
_LAST_WORDS_S = 1.0  # how long to wait until a front says that its scheduler has ended
# Processes that an engine cannot work without, by the titles they give themselves.
_VITAL = ("VLLM::EngineCore", "VLLM::Worker", "sglang::scheduler", "sglang::detokenizer")


class Server:
    """One engine, from start to stop; leaving the `with` block stops it, and so does our own death.

    `log` receives everything it prints (None: our own standard output). `exit_code` is known once it has ended. It does not
    inherit the variables in `withheld`, nor those that are known to hold keys.
    """

    def __init__(self, spec: LaunchSpec, log: Path | None, withheld: Collection[str] = ()) -> None:
        self.spec = spec
        self._withheld = {*WITHHELD, *withheld}
        self.log = log
        self.base_url = f"http://{HOST}:{spec.port}"
        self.argv, self.environment = launch_command(spec)
        self.exit_code: int | None = None
        self._process: Guarded | None = None
        self._vital: dict[int, str] = {}
        self._log_start = 0

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Start the engine under its guard. Raises `EngineError`: not installed, port taken; `RecordError`: no log."""
        if not self.spec.simulated:
            preflight.check_installed(self.spec.engine, self.spec.executable)
        preflight.check_port_free(self.spec.port)
        environment = {name: value for name, value in os.environ.items() if name not in self._withheld}
        with self._open_log() as output:
            self._process = Guarded(self.argv, output, grace_s=STOP_GRACE_S, environment=environment | self.environment)

    @property
    def pid(self) -> int | None:
        """The guard's process, whose descendants are the engine's; None where nothing runs."""
        return self._process.pid if self._process is not None else None

    def _open_log(self) -> IO[Any]:
        if self.log is None:
            return open(os.dup(sys.stdout.fileno()), "wb")
        output = open_log(self.log)
        self._log_start = self._log_size()  # a later pass of a cell appends to the same file
        return output

    def _log_size(self) -> int:
        return self.log.stat().st_size if self.log is not None and self.log.exists() else 0

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until it is healthy, then until it has answered one request: a healthy server may be unable to generate.

        Raises `EngineError`, with the cause from its log, when it dies, stays silent for `timeout_s`, or cannot generate.
        """
        deadline = time.monotonic() + timeout_s
        while not _is_healthy(self.base_url):
            self._raise_if_died("did not start")
            self._raise_if_unbound()
            if time.monotonic() > deadline:
                raise EngineError(f"{self._name()}: not healthy after {timeout_s:g} s; see {self.log}")
            time.sleep(_POLL_S)
        if self._process is not None:
            self._vital = _vital_processes(self._process.pid)
        failure = self._first_answer(deadline)
        if failure is not None:
            self._await_death()
            self._raise_if_died(_DIED_OF_IT)
            raise EngineError(f"{self._name()}: healthy, but cannot generate: {failure}; see {self.log}")
        self._log_start = self._log_size()  # a later death has later causes

    def _first_answer(self, deadline: float) -> str | None:
        """What is wrong with its first generation, or None; watches its processes, as a front may outlive its scheduler."""
        failures: list[str | None] = []
        asking = threading.Thread(target=lambda: failures.append(_generate(self.base_url, self.spec.name)), daemon=True)
        asking.start()
        while asking.is_alive():
            self._raise_if_died(_DIED_OF_IT)
            if time.monotonic() > deadline:
                return "no first answer in the time that a start may take"
            asking.join(_POLL_S)
        return failures[0]

    def _await_death(self) -> None:
        deadline = time.monotonic() + _DEATH_FOLLOWS_S
        while self.died() is None and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def _raise_if_died(self, what: str) -> None:
        reason = self.died()
        if reason is not None:
            raise EngineError(f"{self._name()}: {what}: {reason}")

    def _raise_if_unbound(self) -> None:
        """SGLang does not end when its port is taken: it waits for its own shutdown forever."""
        log = self._read_log()
        found = failure_causes.find_cause(log) if failure_causes.UNBOUND in log else None
        if found is not None:
            cause, line = found
            raise EngineError(f"{self._name()}: did not start: {cause.meaning} ({line}); {cause.next_step}")

    def _name(self) -> str:
        return f"{self.spec.engine} {self.spec.name}"

    def died(self) -> str | None:
        """Why it no longer works, or None while it does. Cheap: call it every second.

        Also notices a scheduler or worker that has ended while the front still answers.
        """
        if self._process is None:
            return "not started" if self.exit_code is None else failure_causes.explain(self._read_log(), self.exit_code)
        self.exit_code = self._process.poll()
        if self.exit_code is not None:
            return failure_causes.explain(self._read_log(), self.exit_code)
        gone = [title for pid, title in self._vital.items() if _title(pid) != title]
        return f"{' and '.join(gone)} {failure_causes.explain(self._last_words(), None)}" if gone else None

    def _last_words(self) -> str:
        """The log once it tells a cause: a front whose scheduler has ended mostly says so within a second."""
        deadline = time.monotonic() + _LAST_WORDS_S
        while failure_causes.find_cause(log := self._read_log()) is None and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return log

    def stop(self) -> int | None:
        """SIGTERM, up to 30 s to end, SIGKILL to what is left; returns the exit code. Safe to call twice."""
        if self._process is not None:
            self.exit_code = self._process.stop()
            self._process = None
        return self.exit_code

    def _read_log(self) -> str:
        if self.log is None:
            return ""
        try:
            with self.log.open("rb") as stream:
                size = stream.seek(0, os.SEEK_END)
                stream.seek(max(self._log_start, size - _LOG_BYTES))
                return stream.read().decode("utf-8", "replace")
        except OSError:
            return ""


def run_in_foreground(spec: LaunchSpec) -> str:
    """Run one engine in the foreground until it ends or is interrupted; returns how it ended, in words.

    Raises `EngineError` where it could not start or ended by itself with an error.
    """
    with Server(spec, None) as server:
        try:
            while server.died() is None:
                time.sleep(_POLL_S)
        except KeyboardInterrupt:
            server.stop()
            return f"{spec.engine} stopped: {failure_causes.describe_exit(server.exit_code)}"
    if server.exit_code:
        raise EngineError(f"{spec.engine}: {failure_causes.describe_exit(server.exit_code)}; see its messages above")
    return f"{spec.engine} ended"


def _is_healthy(base_url: str) -> bool:
    import httpx

    try:
        return httpx.get(f"{base_url}/health", timeout=5.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _generate(base_url: str, model: str) -> str | None:
    """Ask for four tokens; what went wrong, or None."""
    import httpx

    body = {"model": model, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4}
    try:
        answer = httpx.post(f"{base_url}/v1/chat/completions", json=body, timeout=_GENERATION_TIMEOUT_S, trust_env=False)
        if answer.status_code != 200:
            return f"HTTP {answer.status_code}: {answer.text[:200]}"
        tokens = answer.json().get("usage", {}).get("completion_tokens", 0)
    except (httpx.HTTPError, OSError, MemoryError, ValueError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None if tokens else "an answer without a token"


def _vital_processes(guard_pid: int) -> dict[int, str]:
    titles = {pid: _title(pid) for pid in descendants(guard_pid)}
    return {pid: title for pid, title in titles.items() if title.startswith(_VITAL)}


def _title(pid: int) -> str:
    """Title of a process; empty where it has ended, collected or not."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0 ").decode("utf-8", "replace")
    except OSError:
        return ""
