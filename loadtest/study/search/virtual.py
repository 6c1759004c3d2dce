"""A search in virtual time: passes of the simulator that end as soon as their level is decided."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loadtest.analysis.search.level_test import LevelTest
from loadtest.metrics.request_arrays import pass_arrays
from loadtest.records import read
from loadtest.records.folder import level_path
from loadtest.records.read import LevelRecords
from loadtest.records.schema import RequestRecord
from loadtest.study.schema import AskedPass, Study
from loadtest.study.search.asked import search_pass
from loadtest.study.search.live import level_of

# One pass: what is asked, its number, and what says after each record whether it is enough.
RunPass = Callable[[AskedPass, int, Callable[[RequestRecord], bool]], None]


@dataclass(slots=True)
class VirtualDriver:
    """Passes in virtual time over the levels of one cell of the run in `out`."""

    out: Path
    cell_id: str
    study: Study
    run_pass: RunPass
    passes: dict[int, int] = field(default_factory=dict)

    def tried(self) -> Sequence[int]:
        return sorted(self.passes)

    def on_disk(self, level: int) -> Sequence[LevelRecords]:
        return [self._read(level, repeat) for repeat in range(1, self.passes.get(level, 0) + 1)]

    def so_far(self, level: int) -> Sequence[LevelRecords]:
        return [*self.on_disk(level), self._read(level, self.passes.get(level, 0) + 1)]

    def measure(self, level: int, requests: int, test: LevelTest) -> None:
        repeat = self.passes.get(level, 0) + 1
        folder = level_path(self.out, self.cell_id, level, repeat)

        def is_enough(record: RequestRecord) -> bool:
            test.take(pass_arrays(level_of(folder, [record]), record.clock_anchor_unix_s))
            return test.word != "undecided"

        self.run_pass(search_pass(self.study, level, requests), repeat, is_enough)
        self.passes[level] = repeat

    def is_out_of_time(self) -> bool:
        return False

    def _read(self, level: int, repeat: int) -> LevelRecords:
        return read.read_level(level_path(self.out, self.cell_id, level, repeat))
