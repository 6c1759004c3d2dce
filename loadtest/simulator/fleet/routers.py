"""Which replica a request goes to: by chance, in turns, or where the fewest requests are in flight."""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from loadtest.errors import UsageError

Kind: TypeAlias = Literal["random", "round-robin", "least-loaded"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Rows: TypeAlias = npt.NDArray[np.intp]

BATCH_SHARE = 8  # a least-loaded router asks replicas for their state after one arrival for every so many of them
LARGEST_SHARE = 4  # of a thousand replicas and more; between, the share grows with the replicas
LARGE_REPLICAS = 1000
LOOKS = 8  # and between two such times looks so often at what that state and its own choices make of the loads
_MOST_EACH = 4  # arrivals between two looks that one replica can get
_EACH = np.arange(_MOST_EACH)


class Router(Protocol):
    """Sends arrivals to replicas. `batch` is how many it may be asked for at once; None where loads do not matter."""

    @property
    def batch(self) -> int | None: ...

    def choose(self, arrivals: int, load: npt.NDArray[np.int64]) -> Rows: ...
    def keep(self, alive: Rows) -> None: ...


class RandomRouter:
    """Each request to any replica, with equal chances."""

    batch = None

    def __init__(self, alive: Rows, seed: int) -> None:
        self._alive, self._rng = alive, np.random.default_rng(seed)

    def choose(self, arrivals: int, load: npt.NDArray[np.int64]) -> Rows:
        return self._alive[(self._rng.random(arrivals) * len(self._alive)).astype(np.intp)]

    def keep(self, alive: Rows) -> None:
        self._alive = alive


class RoundRobinRouter:
    """Each request to the next replica in turn."""

    batch = None

    def __init__(self, alive: Rows) -> None:
        self._alive, self._next = alive, 0

    def choose(self, arrivals: int, load: npt.NDArray[np.int64]) -> Rows:
        turns = (self._next + np.arange(arrivals)) % len(self._alive)
        self._next = (self._next + arrivals) % len(self._alive)
        return self._alive[turns]

    def keep(self, alive: Rows) -> None:
        self._alive, self._next = alive, 0


class LeastLoadedRouter:
    """Each request to the replica with the fewest in flight; among equals the next in turn.

    Loads within a batch are predicted, as nothing is asked of the replicas while it arrives. Up to 15
    replicas a batch is one arrival, so that every load is that of the instant.
    """

    def __init__(self, alive: Rows) -> None:
        self.keep(alive)

    def keep(self, alive: Rows) -> None:
        self._alive, self._next = alive, 0
        self.batch: int | None = _batch(len(alive))
        self._turns = np.tile(np.arange(len(alive)) / len(alive), 2)  # from any place on, who is next among equals

    def choose(self, arrivals: int, load: npt.NDArray[np.int64]) -> Rows:
        key = load[self._alive] + self._turns[len(self._alive) - self._next :][: len(self._alive)]
        if arrivals == 1:
            picked = np.array([key.argmin()])
        else:
            few = key.argpartition(arrivals - 1)[:arrivals] if arrivals < len(key) else np.arange(len(key))
            keys = (key[few, None] + _EACH).ravel()  # the next arrivals at each of the least loaded
            picked = few[keys.argsort()[:arrivals] // _MOST_EACH]
        self._next = int(picked[-1] + 1) % len(self._alive)
        chosen: Rows = self._alive[picked]
        return chosen


def _batch(replicas: int) -> int:
    """Arrivals of one batch of the least-loaded router.

    >>> [_batch(replicas) for replicas in (4, 8, 32, 1000, 4000)]
    [1, 1, 4, 250, 1000]
    """
    growing = replicas**2 // (LARGEST_SHARE * LARGE_REPLICAS)
    return max(1, min(replicas // LARGEST_SHARE, max(replicas // BATCH_SHARE, growing)))


def router(kind: str, replicas: int, seed: int = 0) -> Router:
    """A router of this kind over all replicas.

    >>> router("round-robin", 3).choose(4, np.zeros(3, np.int64)).tolist()
    [0, 1, 2, 0]
    """
    alive = np.arange(replicas)
    if kind == "random":
        return RandomRouter(alive, seed)
    if kind == "round-robin":
        return RoundRobinRouter(alive)
    if kind == "least-loaded":
        return LeastLoadedRouter(alive)
    raise UsageError(f"--router: expected one of {', '.join(KINDS)}, got {kind!r}")
