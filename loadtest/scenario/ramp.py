"""A ramp of concurrency in steps, as a Locust load shape."""

from __future__ import annotations

import argparse
import math
from typing import Any

from locust import LoadTestShape

from loadtest.errors import UsageError


class Stairs(LoadTestShape):
    """Concurrency in steps (`--steps 1,2,4,8 --step-time 60`): one level, recorded under its highest step."""

    abstract = True

    def tick(self) -> tuple[int, float] | None:
        options: Any = self.runner.environment.parsed_options if self.runner else None
        steps = parse_steps(options.steps)
        elapsed_s: float = self.get_run_time()  # type: ignore[no-untyped-call]
        number = int(elapsed_s // options.step_time)
        return None if number >= len(steps) else (steps[number], 100.0)


def parse_steps(text: str) -> tuple[int, ...]:
    """Users at each step.

    >>> parse_steps("1,2,4")
    (1, 2, 4)
    """
    try:
        steps = tuple(int(part) for part in text.split(","))
    except ValueError:
        steps = ()
    if not steps or min(steps) < 1:
        raise UsageError(f"--steps: expected numbers of users such as 1,2,4,8, got {text!r}")
    return steps


def add_stairs_options(parser: Any) -> None:
    group = parser.add_argument_group("stairs of concurrency")
    group.add_argument("--steps", type=_steps_text, default="1,2,4,8", help="users at each step")
    group.add_argument("--step-time", type=_seconds, default=60.0, help="wall seconds of each step")


def _steps_text(text: str) -> str:
    """Refuse wrong steps on the command line: Locust reports success when a load shape fails."""
    try:
        parse_steps(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text}")
    return seconds
