"""An open loop: requests arrive by a clock, not when earlier ones end."""

from __future__ import annotations

import hashlib
import math
from typing import Any
from weakref import WeakKeyDictionary

import gevent
import locust

from loadtest.client.level import Level
from loadtest.errors import UsageError
from loadtest.scenario.user import ReasoningUser
from loadtest.workload.script import Item
from loadtest.workload.workload import Workload


class Arrivals:
    """When request i arrives (s after the first). It depends on the seed and i only, not on earlier requests.

    "constant": i / rate. "poisson": the sum of i exponential gaps of mean 1 / rate.

    >>> Arrivals(2.0, "constant", seed=0).at_s(3)
    1.5
    """

    def __init__(self, rate_per_s: float, kind: str, seed: int) -> None:
        if not 0 < rate_per_s < 1e6:
            raise UsageError(f"--rate: expected requests per second, above 0, got {rate_per_s}")
        self._rate_per_s = rate_per_s
        self._kind = kind
        self._seed = seed
        self._known_s = [0.0]

    def at_s(self, index: int) -> float:
        while len(self._known_s) <= index:
            self._known_s.append(self._known_s[-1] + self._gap_s(len(self._known_s)))
        return self._known_s[index]

    def _gap_s(self, index: int) -> float:
        if self._kind == "constant":
            return 1 / self._rate_per_s
        digest = hashlib.sha256(f"{self._seed}/arrival/{index}".encode()).digest()
        share = (int.from_bytes(digest[:8], "big") + 0.5) / 2**64
        return -math.log(share) / self._rate_per_s


class Recorded:
    """The recorded arrivals of a workload made from a run. At its end they repeat, a mean gap after the last.

    >>> recorded = Recorded((0.0, 1.0, 4.0))
    >>> [recorded.at_s(i) for i in range(5)]
    [0.0, 1.0, 4.0, 6.0, 7.0]
    """

    def __init__(self, arrivals_s: tuple[float, ...]) -> None:
        if not arrivals_s:
            raise UsageError(
                "--arrivals recorded: expected a workload whose prompts all have arrival_s, got another; make one with"
                " loadtest workload from-run RUN -o FILE"
            )
        self._arrivals_s = arrivals_s
        n = len(arrivals_s)
        self._period_s = arrivals_s[-1] * n / (n - 1) if n > 1 else 0.0

    def at_s(self, index: int) -> float:
        number, place = divmod(index, len(self._arrivals_s))
        return number * self._period_s + self._arrivals_s[place]


class OpenLoopUser(ReasoningUser):
    """Requests arrive by the clock (`--rate`, `--arrivals`); `-u` bounds how many run at once.

    When all users are busy a request waits here: `sent_s` minus `scheduled_s` is that wait, kept apart from latency.
    """

    abstract = True

    @classmethod
    def check_options(cls, options: Any, workload: Workload) -> None:
        _arrivals(options, workload.arrivals_s, seed=0)

    def due_s(self, level: Level, item: Item) -> float:
        plan = _plans.get(level)
        if plan is None:
            arrivals = _arrivals(self.environment.parsed_options, level.script.arrivals_s, level.options.seed)
            plan = _plans[level] = (level.clock.now_s() - arrivals.at_s(item.index), arrivals)
        due_s = plan[0] + plan[1].at_s(item.index)
        wait_s = due_s - level.clock.now_s()
        if wait_s > 0:
            gevent.sleep(wait_s / level.clock.speed)
        return due_s


_plans: WeakKeyDictionary[Level, tuple[float, Arrivals | Recorded]] = WeakKeyDictionary()


def _arrivals(options: Any, arrivals_s: tuple[float, ...], seed: int) -> Arrivals | Recorded:
    return Recorded(arrivals_s) if options.arrivals == "recorded" else Arrivals(options.rate, options.arrivals, seed)


def add_open_loop_options(parser: Any) -> None:
    group = parser.add_argument_group("open loop")
    group.add_argument("--rate", type=float, default=1.0, help="requests per second (of the run's clock)")
    group.add_argument(
        "--arrivals",
        choices=("poisson", "constant", "recorded"),
        default="poisson",
        help="how they are spaced; recorded: as the workload says, whatever the rate",
    )


def with_options(add: Any) -> None:
    """Register options of a scenario."""
    events: Any = locust.events
    events.init_command_line_parser.add_listener(add)
