"""The clock of a run: monotonic offsets in seconds, tied once to the wall clock.

A real run has `speed` 1. Against a simulated engine whose clock runs faster, the same offsets count *simulated*
seconds: `speed` of them pass in one second of wall time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from loadtest.errors import UsageError


@dataclass(frozen=True, slots=True)
class Clock:
    """Offsets of one process (s), with the wall-clock time (Unix s) at which its offset is 0.

    `now_s()` is `(monotonic - origin) * speed`. Two processes of one run are aligned by
    `offset + (anchor_unix_s - earliest anchor_unix_s) * speed`.
    """

    origin_monotonic_s: float
    anchor_unix_s: float
    speed: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.speed < 1e6:
            raise UsageError(f"clock speed: expected a number above 0 and below 1e6, got {self.speed}")

    @classmethod
    def start(cls, speed: float = 1.0) -> Clock:
        """A clock whose offset 0 is now."""
        return cls(origin_monotonic_s=time.monotonic(), anchor_unix_s=time.time(), speed=speed)

    def now_s(self) -> float:
        """Offset of this moment, in seconds of the run (simulated ones where `speed` is not 1)."""
        return (time.monotonic() - self.origin_monotonic_s) * self.speed

    def offset_s(self, monotonic_s: float) -> float:
        """Offset of a reading of `time.monotonic()`, in seconds of the run."""
        return (monotonic_s - self.origin_monotonic_s) * self.speed
