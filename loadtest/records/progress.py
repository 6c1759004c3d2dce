"""How far a level is, read from what its processes append to their files while it runs."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from loadtest.records.schema import FAILED, HealthSample, Outcome, Phase

LATEST_SAMPLES = 5  # one a second: what "now" means

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class LevelProgress:
    """What a level has done so far. Speeds are of the last seconds and for the eye; figures come from the records.

    `tokens_per_s` counts reads of responses and takes each for as many tokens as the chunks of ended requests had (one,
    before any has ended); `ttft_s` is the mean of the requests whose first text came in these seconds, else of the last.
    """

    warmups: int = 0  # warm-up requests that have ended
    requests: int = 0  # measured ones
    failed: int = 0  # of the measured ones
    in_flight: int = 0
    tokens_per_s: float | None = None
    ttft_s: float | None = None

    @property
    def ended(self) -> int:
        """Requests that have ended, warm-up included."""
        return self.warmups + self.requests


class _Ended(msgspec.Struct, frozen=True):
    """Of a request's record, what counts here."""

    phase: Phase
    outcome: Outcome
    chunk_s: list[float] = []
    completion_tokens: int | None = None


class ProgressReader:
    """Reads the files of a level's folder, each time only what was appended since."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read_bytes: dict[Path, int] = {}
        self._samples: dict[str, deque[HealthSample]] = {}
        self._counts = {"warmup": 0, "measure": 0}
        self._failed = self._tokens = self._chunks = 0
        self._ttft_s: float | None = None

    def read(self) -> LevelProgress:
        for one in self._appended("requests-*.jsonl", _Ended):
            self._count(one)
        for sample in self._appended("client_health-*.jsonl", HealthSample):
            self._samples.setdefault(sample.worker, deque(maxlen=LATEST_SAMPLES)).append(sample)
        ttfts = [one.ttft_s for latest in self._samples.values() for one in latest if one.ttft_s is not None]
        self._ttft_s = sum(ttfts) / len(ttfts) if ttfts else self._ttft_s
        return LevelProgress(
            warmups=self._counts["warmup"],
            requests=self._counts["measure"],
            failed=self._failed,
            in_flight=sum(latest[-1].in_flight for latest in self._samples.values()),
            tokens_per_s=self._tokens_per_s(),
            ttft_s=self._ttft_s,
        )

    def _count(self, one: _Ended) -> None:
        self._counts[one.phase] += 1
        self._failed += one.phase == "measure" and one.outcome in FAILED
        if one.completion_tokens and one.chunk_s:
            self._tokens += one.completion_tokens
            self._chunks += len(one.chunk_s)

    def _tokens_per_s(self) -> float | None:
        if not self._samples:
            return None
        per_read = self._tokens / self._chunks if self._chunks else 1.0
        rates = (
            sum(one.reads for one in latest) / max(1e-9, sum(one.interval_s * one.clock_speed for one in latest))
            for latest in self._samples.values()
        )
        return per_read * sum(rates)

    def _appended(self, pattern: str, kind: type[_T]) -> Iterator[_T]:
        """The values of new whole lines; a damaged one is left to the analysis, which names it."""
        for path in self._folder.glob(pattern):
            for line in appended_lines(path, self._read_bytes):
                with contextlib.suppress(msgspec.MsgspecError, UnicodeError):
                    yield msgspec.json.decode(line, type=kind)


def appended_lines(path: Path, read_bytes: dict[Path, int]) -> list[bytes]:
    """The whole lines that a file got since it was last read; `read_bytes` keeps how far that was. None: no file yet."""
    try:
        with path.open("rb") as stream:
            stream.seek(read_bytes.get(path, 0))
            whole, newline, _ = stream.read().rpartition(b"\n")
    except FileNotFoundError:
        return []
    if not newline:
        return []
    read_bytes[path] = read_bytes.get(path, 0) + len(whole) + 1
    return whole.split(b"\n")
