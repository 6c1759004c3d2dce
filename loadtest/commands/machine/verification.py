"""The instrument held against known times: our own server through the whole path of this machine, in half a minute."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import msgspec

from loadtest.analysis.instrument import instrument_error
from loadtest.errors import EngineError, LoadtestError
from loadtest.records import read
from loadtest.records.instrument import InstrumentError, Sent
from loadtest.servers.process import Guarded, open_log, python
from loadtest.study.execution import Say
from loadtest.study.run import execute
from loadtest.study.schema import Cell, Study

FIRST_S, GAP_S, TOKENS = 0.2, 0.02, 100  # of each answer; a quarter of it is thinking
REQUESTS = 100  # at least: the 99th percentile is one of them
_START_S = 30.0
_GRACE_S = 2.0


def verify(concurrency: int, say: Say) -> InstrumentError:
    """What the instrument is worth here, now, at this concurrency: 50 tokens/s each, as many requests as a p99 needs.

    Requests, Locust, client and records are those of a study. Raises `LoadtestError` if they could not be carried out.
    """
    say(f"the instrument against known times: concurrency {concurrency}, about {_seconds(concurrency):.0f} s")
    with tempfile.TemporaryDirectory(prefix="loadtest-verify-") as place:
        with _server(Path(place)) as port:
            problems = execute(_study(port, concurrency), Path(place) / "run", say=lambda _: None)
            if problems:
                raise LoadtestError(f"the instrument could not be verified: {problems[0]}")
            sends = _log(port)
        levels = read.read_run(Path(place) / "run").cells[0].levels
        return instrument_error([r for level in levels for r in level.requests], sends, concurrency, 1 / GAP_S)


def _requests(concurrency: int) -> int:
    return concurrency * max(2, -(-REQUESTS // concurrency))


def _seconds(concurrency: int) -> float:
    return 5 + _requests(concurrency) / concurrency * (FIRST_S + TOKENS * GAP_S)


def _study(port: int, concurrency: int) -> Study:
    cell = Cell(engine="other", model="known", base_url=f"http://127.0.0.1:{port}")
    study = Study(name="instrument", workload=f"math:n={2 * _requests(concurrency)}", cells=(cell,), levels=(concurrency,))
    return replace(study, min_requests=_requests(concurrency), requests_per_stream=1, warmup_requests=1)


@contextlib.contextmanager
def _server(place: Path) -> Iterator[int]:
    """The server of known times; its port."""
    argv = [*python("loadtest.simulator.known_times"), "--port", "0", "--first", str(FIRST_S), "--gap", str(GAP_S)]
    argv += ["--tokens", str(TOKENS), "--thinking", str(TOKENS // 4), "--continuous-usage", "--out-of-step"]
    log = place / "server.log"
    with open_log(log) as stream:
        running = Guarded(argv, stream, grace_s=_GRACE_S, environment=os.environ)
    try:
        yield _port(log, running)
    finally:
        running.stop()


def _port(log: Path, running: Guarded) -> int:
    until_s = time.monotonic() + _START_S
    while time.monotonic() < until_s and running.poll() is None:
        if port := re.match(rb"(\d+)\n", log.read_bytes()):
            return int(port[1])
        time.sleep(0.02)
    said = log.read_text(errors="replace")[-300:]
    raise EngineError(f"the server of known times did not start: {said or 'it said nothing'}")


class _Log(msgspec.Struct):
    requests: list[Sent]


def _log(port: int) -> list[Sent]:
    """What the server sent. Raises EngineError: it is gone, or another process took its port."""
    try:
        answer = httpx.get(f"http://127.0.0.1:{port}/log", timeout=_START_S, trust_env=False)
        return msgspec.json.decode(answer.content, type=_Log).requests
    except (httpx.HTTPError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EngineError(f"the server of known times does not tell what it sent: {type(error).__name__}: {error}") from None
