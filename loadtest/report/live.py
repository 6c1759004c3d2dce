"""A level while it runs: as a line for a log, and as a few lines that a terminal redraws every second."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from loadtest.records.engine_facts import SearchedKind
from loadtest.records.progress import LevelProgress
from loadtest.report.formatting import DASH, at_load, clean, number, place_of, spoken

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

PLAIN_EVERY_S = 15.0
_QUIET_S = 2.0  # a line said so long ago is repeated with the time: it still holds


@dataclass(frozen=True, slots=True)
class LevelStatus:
    """A level that runs. `place`: which one of how many. Times are wall seconds; None: not known yet.

    `asked`, `warmups_asked`: requests of the level (None: it ends by the clock).
    """

    cell: str
    concurrency: int
    place: str
    asked: int | None
    warmups_asked: int
    progress: LevelProgress
    elapsed_s: float
    level_left_s: float | None
    study_left_s: float | None
    of: SearchedKind = "users"  # what its concurrency stands for

    @property
    def name(self) -> str:
        return f"{clean(self.cell)} at {place_of(self.concurrency, self.of)}"

    @property
    def done(self) -> str:
        return f"{self.progress.requests} of {self.asked}" if self.asked is not None else f"{self.progress.requests}"

    @property
    def warmup(self) -> str:
        """Warm-up requests done of asked; empty where none are asked."""
        return f"{self.progress.warmups} of {self.warmups_asked}" if self.warmups_asked else ""


def plain_line(status: LevelStatus) -> str:
    """How far a level is, in one line.

    >>> plain_line(LevelStatus("vllm_m_tp1", 4, "", 12, 4, LevelProgress(4, 3, 0, 4, 92.31, 0.4), 30.0, 60.0, 600.0))
    'vllm_m_tp1 at  4  3 of 12 requests, 4 running, 92.3 tokens/s, TTFT 0.40 s, about 60 s left (study: 10 min)'
    """
    progress = status.progress
    parts = [f"{status.done} requests"]
    if status.warmup and progress.warmups < status.warmups_asked:
        parts.append(f"warm-up {status.warmup}")
    parts += [f"{progress.failed} failed"] if progress.failed else []
    parts += [f"{progress.in_flight} running"] if progress.in_flight else []
    parts += [f"{number(progress.tokens_per_s)} tokens/s"] if progress.tokens_per_s else []
    parts += [f"TTFT {number(progress.ttft_s, 2)} s"] if progress.ttft_s is not None else []
    if status.level_left_s is not None:
        more = status.study_left_s not in (None, status.level_left_s)
        study = f" (study: {spoken(status.study_left_s or 0.0)})" if more else ""
        parts.append(f"about {spoken(status.level_left_s)} left{study}")
    return f"{status.name}  {', '.join(parts)}"


def can_be_live(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can redraw lines, and no job of a CI."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "") and not os.environ.get("CI")


class LiveView:
    """Lines that stay, above a few that are redrawn once a second; `safe` makes a text fit for a terminal.

    The cursor stays visible and no other screen is used, so that nothing has to be restored, however this process ends.
    """

    def __init__(self, stream: TextIO, safe: Callable[[str], str]) -> None:
        from rich.console import Console
        from rich.live import Live

        self._safe = safe
        self._status: LevelStatus | None = None
        self._seen_s = self._said_s = time.monotonic()
        self._said = "starting"
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._live = Live(
            console=self._console,
            get_renderable=self._drawn,
            refresh_per_second=1,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )
        self._live.start()
        self._console.show_cursor(True)

    def line(self, text: str) -> None:
        """A line that stays."""
        self._said, self._said_s = self._safe(text), time.monotonic()
        self._console.print(self._said)

    def show(self, status: LevelStatus | None) -> None:
        """What is redrawn from now on; None: no level runs."""
        self._status, self._seen_s = status, time.monotonic()
        self._live.refresh()

    def close(self) -> None:
        self._status, self._said = None, ""
        self._live.stop()

    def _drawn(self) -> RenderableType:
        if self._status is not None:
            return panel(self._status, time.monotonic() - self._seen_s, self._safe)
        waited_s = time.monotonic() - self._said_s
        return _line(f"{self._said} ({_clock(waited_s)})", "dim") if self._said and waited_s > _QUIET_S else ""


def panel(status: LevelStatus, since_s: float, safe: Callable[[str], str]) -> Group:
    """A level in four lines, `since_s` after its status was taken."""
    from rich.console import Group
    from rich.table import Table

    progress, line = status.progress, Table.grid(padding=(0, 2))
    line.add_row(_bar(status), _line(f"{status.done} requests"), _running(progress), _failed(progress.failed))
    rate = progress.tokens_per_s
    each = f" ({number(rate / progress.in_flight)} per user)" if rate and progress.in_flight else ""
    ttft = DASH if progress.ttft_s is None else f"{number(progress.ttft_s, 2)} s"
    now = [f"tokens/s {number(rate)}{each}", f"TTFT {ttft}"]
    now += [f"warm-up {status.warmup}"] if status.warmup else []
    return Group(
        _line(safe(f"{clean(status.cell)}, {at_load(status.concurrency, status.of)} ({status.place})"), "bold"),
        line,
        _line("   ".join(now)),
        _line(_times(status, since_s), "dim"),
    )


def _bar(status: LevelStatus) -> RenderableType:
    """The share of the requests, or of the time, that is done."""
    from rich.progress_bar import ProgressBar

    left_s = status.level_left_s
    if status.asked is not None:
        return ProgressBar(total=status.asked, completed=status.progress.requests, width=30)
    return ProgressBar(total=status.elapsed_s + (left_s or 0.0), completed=status.elapsed_s, width=30)


def _running(progress: LevelProgress) -> RenderableType:
    return _line(f"{progress.in_flight} running")


def _failed(n: int) -> RenderableType:
    return _line(f"{n} failed", "bold red" if n else "")


def _times(status: LevelStatus, since_s: float) -> str:
    told = f"{_clock(status.elapsed_s + since_s)} in this level"
    if status.level_left_s is None:
        return f"{told}; the time left is known when a request has ended"
    left = f"about {spoken(max(0.0, status.level_left_s - since_s))} left"
    if status.study_left_s in (None, status.level_left_s):
        return f"{told}, {left}"
    return f"{told}, {left}; study: about {spoken(max(0.0, (status.study_left_s or 0.0) - since_s))} left"


def _clock(seconds: float) -> str:
    """
    >>> _clock(65.2)
    '1:05'
    """
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _line(text: str, style: str = "") -> RenderableType:
    from rich.text import Text

    return Text(text, style=style, no_wrap=True, overflow="ellipsis")
