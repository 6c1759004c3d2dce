"""A search against a server: passes of Locust that end as soon as their level is decided."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from loadtest.analysis.search.level_test import LevelTest
from loadtest.metrics.request_arrays import pass_arrays
from loadtest.records import read
from loadtest.records.folder import PASS_NAME, level_path
from loadtest.records.read import LevelRecords
from loadtest.records.schema import RequestRecord
from loadtest.report.formatting import place_of
from loadtest.study import estimate, locust_pass
from loadtest.study.engine_file import EngineFile
from loadtest.study.execution import Execution
from loadtest.study.passes import is_finished, run_pass
from loadtest.study.plan import asked
from loadtest.study.schema import AskedPass, Cell
from loadtest.study.search.asked import search_pass, study_of_pass
from loadtest.study.search.cell_search import cell_search, progress_words
from loadtest.study.search.start import start_of
from loadtest.workload.workload import Workload

_TELL_EVERY_S = 15.0


def search_cell(
    execution: Execution, cell: Cell, target: locust_pass.Target, died: Callable[[], str | None], engine: EngineFile
) -> None:
    """Search one cell whose server runs; what it found is in the records, and how it ended in engine.json."""
    workload, _ = asked(execution.study)
    driver = LocustDriver(execution, workload, cell, target, died)
    begun = start_of(execution.study, cell, workload, execution.contract)
    cell_search(execution.study, begun, engine, driver, execution.say).carry_out()


@dataclass(slots=True)
class LocustDriver:
    """Passes of Locust over the levels of one cell."""

    execution: Execution
    workload: Workload
    cell: Cell
    target: locust_pass.Target
    died: Callable[[], str | None]

    def tried(self) -> Sequence[int]:
        return levels_on_disk(self.execution.out, self.cell.id)

    def on_disk(self, level: int) -> Sequence[LevelRecords]:
        found: list[LevelRecords] = []
        while (folder := self._folder(level, len(found) + 1)).exists():
            if not is_finished(self.execution, self.cell, AskedPass(concurrency=level), len(found) + 1):
                break
            found.append(read.read_level(folder))
        return found

    def so_far(self, level: int) -> Sequence[LevelRecords]:
        return [read.read_level(self._folder(level, repeat)) for repeat in range(1, self._next_repeat(level))]

    def measure(self, level: int, requests: int, test: LevelTest) -> None:
        repeat = self._next_repeat(level)
        one = search_pass(self.execution.study, level, requests)
        ordered = study_of_pass(self.execution.study, one, repeat)
        remaining = estimate.Remaining(ordered, self.workload, self.execution.contract)
        live = LiveTest(self._folder(level, repeat), test, self.is_out_of_time, self._teller(level))
        execution = replace(self.execution, study=ordered, remaining=remaining)
        run_pass(execution, self.cell, self.target, self.died, one, repeat, live)

    def is_out_of_time(self) -> bool:
        return self.execution.is_out_of_time()

    def _next_repeat(self, level: int) -> int:
        return next(repeat for repeat in itertools.count(1) if not self._folder(level, repeat).exists())

    def _folder(self, level: int, repeat: int) -> Path:
        return level_path(self.execution.out, self.cell.id, level, repeat)

    def _teller(self, level: int) -> Callable[[LevelTest], None]:
        told_s = time.monotonic()
        search = self.execution.study.search
        place = place_of(level, "users" if search is None else search.of)

        def tell(test: LevelTest) -> None:
            nonlocal told_s
            if time.monotonic() - told_s >= _TELL_EVERY_S:
                told_s = time.monotonic()
                known = progress_words(test.objectives)
                self.execution.say(f"{self.cell.id} at {place}  {test.n:>4} requests judged: {known}")

        return tell


def levels_on_disk(out: Path, cell_id: str) -> list[int]:
    """The levels of a cell that have passes."""
    names = (PASS_NAME.fullmatch(path.name) for path in (out / "cells" / cell_id).glob("c*"))
    return sorted({int(match[2]) for match in names if match is not None})


@dataclass(slots=True)
class LiveTest:
    """Whether a pass has shown enough: its records are judged as they are written."""

    folder: Path
    test: LevelTest
    is_out_of_time: Callable[[], bool]
    tell: Callable[[LevelTest], None]
    anchor_unix_s: float | None = None
    read_bytes: dict[Path, int] = field(default_factory=dict)

    def __call__(self) -> bool:
        records = self._appended()
        if records:
            if self.anchor_unix_s is None:
                self.anchor_unix_s = records[0].clock_anchor_unix_s
            self.test.take(pass_arrays(level_of(self.folder, records), self.anchor_unix_s))
        self.tell(self.test)
        return self.test.word != "undecided" or (self.anchor_unix_s is not None and self.is_out_of_time())

    def _appended(self) -> list[RequestRecord]:
        """The whole lines that were written since the last look."""
        found = []
        for path in sorted(self.folder.glob("requests-*.jsonl")):
            lines = read.read_from(path, self.read_bytes.get(path, 0))
            self.read_bytes[path] = self.read_bytes.get(path, 0) + len(lines)
            found += [_DECODER.decode(line) for line in lines.splitlines()]
        return found


_DECODER = msgspec.json.Decoder(RequestRecord)


def level_of(folder: Path, requests: Sequence[RequestRecord]) -> LevelRecords:
    """Requests of a pass that still runs."""
    one = requests[0]
    return LevelRecords(
        cell=one.cell,
        concurrency=one.concurrency,
        repeat=one.repeat,
        path=folder,
        requests=tuple(requests),
        server=(),
        health=(),
    )
