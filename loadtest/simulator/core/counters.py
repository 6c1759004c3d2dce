"""The engine's own counters and histograms, before they are shown in anyone's format."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate

from loadtest.simulator.core.sequence import Sequence

_VLLM_TTFT = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
    640,
    2560,
)

_VLLM_ITL = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)

_VLLM_E2E = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)

_SGLANG_TTFT = (0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 200, 400)

SGLANG_ITL: tuple[float, ...] = (0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.06, 0.08, 0.1)

_SGLANG_E2E = (*_SGLANG_TTFT, 600, 1200, 1800, 2400)

SGLANG_QUEUE: tuple[float, ...] = (0, 0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.5, *range(1, 6), 10, 15, *range(20, 101, 10))

_LATE = (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)


class Histogram:
    """Counts under fixed upper bounds (s), with sum and count."""

    __slots__ = ("bounds", "buckets", "count", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)
        self.count = 0
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value."""
        self.buckets[bisect_left(self.bounds, value)] += times
        self.count += times
        self.sum += value * times

    def lines(self, name: str, labels: str) -> list[str]:
        """The series of this histogram, cumulative as Prometheus wants them."""
        rows = [*self.cumulative(), ("+Inf", float(self.count))]
        out = [f'{name}_bucket{{{labels},le="{bound}"}} {total}' for bound, total in rows]
        return [*out, f"{name}_sum{{{labels}}} {self.sum}", f"{name}_count{{{labels}}} {float(self.count)}"]

    def cumulative(self) -> tuple[tuple[float, float], ...]:
        """(upper bound in s, values up to it) of each finite bound."""
        return tuple(zip(map(float, self.bounds), map(float, accumulate(self.buckets)), strict=False))


@dataclass(slots=True)
class Observations:
    """What the server saw its engine do: latencies in simulated seconds, ends by reason; its own lateness (wall s)."""

    vllm: bool
    ttft: Histogram = field(init=False)
    itl: Histogram = field(init=False)
    e2e: Histogram = field(init=False)
    queue: Histogram = field(init=False)
    finished: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("stop", "length", "abort", "error", "repetition"), 0)
    )
    finished_prompt_tokens: int = 0  # of requests that ended by themselves, as the SGLang-like counts them
    finished_tokens: int = 0
    finished_verified_steps: int = 0
    rejected: int = 0
    late: Histogram = field(default_factory=lambda: Histogram(_LATE))
    late_max_s: float = 0.0
    overruns: int = 0
    sent_tokens: int = 0

    def __post_init__(self) -> None:
        self.ttft = Histogram(_VLLM_TTFT if self.vllm else _SGLANG_TTFT)
        self.itl = Histogram(_VLLM_ITL if self.vllm else SGLANG_ITL)
        self.e2e = Histogram(_VLLM_E2E if self.vllm else _SGLANG_E2E)
        self.queue = Histogram(_VLLM_E2E if self.vllm else SGLANG_QUEUE)

    def first_token(self, sequence: Sequence) -> None:
        """A request got its first token."""
        assert sequence.first_token_s is not None
        self.ttft.observe(sequence.first_token_s - sequence.arrival_s)
        self.queue.observe((sequence.scheduled_s or sequence.arrival_s) - sequence.arrival_s)

    def end(self, sequence: Sequence, reason: str) -> None:
        """A request ended, by itself or not."""
        self.finished[reason] += 1
        if reason != "abort":
            self.e2e.observe(sequence.last_token_s - sequence.arrival_s)
            self.finished_prompt_tokens += sequence.prompt_tokens
            self.finished_tokens += sequence.generated
            self.finished_verified_steps += sequence.verified_steps
