"""How far measured times are off those of the simulator that answered.

The simulator knows in virtual time when each token left; the client stamps when it arrived, in wall time multiplied by
the speed of the clock. So a wall delay of 0.1 ms counts as 2 ms of simulated time at speed 20. Here the two are compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from loadtest.records.engine_facts import ClockError
from loadtest.records.folder import level_name, request_id
from loadtest.records.schema import RequestRecord

if TYPE_CHECKING:
    from loadtest.servers.probe import TrueTimes


class _Times(NamedTuple):
    """The times of one request, or of one kind for many."""

    ttft_s: float
    tpot_s: float
    time_to_final_answer_s: float


# What is not an error: a wait up to 5 ms off, a time per token up to 0.1 ms off, whatever share of the time that is.
TOLERANCE_S = {"ttft_s": 0.005, "tpot_s": 0.0001, "time_to_final_answer_s": 0.005}
TITLES = {"ttft_s": "TTFT", "tpot_s": "time per token", "time_to_final_answer_s": "time to final answer"}


def measure_clock_error(requests: Iterable[RequestRecord], truth: Sequence[TrueTimes]) -> ClockError:
    """Error of the mean of each time, client against simulator, over the same requests: a share (0.01 is 1 %) and seconds.

    `truth` rows hold `request_id, arrival_s, first_token_s, finished_s, completion_tokens` in simulated seconds.
    Population: measured requests that ended by themselves (`ok`, `no_answer`, `truncated`) and that both sides know.
    Formula: `sum(measured) / sum(true) - 1`, and the same difference / n. None where no request, or no time, is left to
    compare.
    """
    known = {str(row["request_id"]): row for row in truth}
    pairs = [
        (_measured(one), _true(known[_id(one)]))
        for one in requests
        if one.phase == "measure" and one.outcome in ("ok", "no_answer", "truncated") and _id(one) in known
    ]
    sums = {name: (sum(getattr(m, name) for m, _ in pairs), sum(getattr(t, name) for _, t in pairs)) for name in TITLES}
    shares = {name: measured / true - 1 if true > 0 else None for name, (measured, true) in sums.items()}
    off_s = {
        f"{name[:-2]}_off_s": (measured - true) / len(pairs) if pairs else None for name, (measured, true) in sums.items()
    }
    return msgspec.convert({"n": len(pairs)} | shares | off_s, ClockError)


def _id(one: RequestRecord) -> str:
    return request_id(one.run_id, one.cell, level_name(one.concurrency, one.repeat), one.phase, one.seq)


def _measured(one: RequestRecord) -> _Times:
    sent_s = one.sent_s or 0.0
    first_s, last_s = (one.chunk_s[0], one.chunk_s[-1]) if one.chunk_s else (sent_s, sent_s)
    tokens = one.completion_tokens or 0
    return _Times(first_s - sent_s, (last_s - first_s) / (tokens - 1) if tokens > 1 else 0.0, last_s - sent_s)


def _true(row: TrueTimes) -> _Times:
    tokens = int(row["completion_tokens"])
    tpot_s = (row["finished_s"] - row["first_token_s"]) / (tokens - 1) if tokens > 1 else 0.0
    return _Times(row["first_token_s"] - row["arrival_s"], tpot_s, row["finished_s"] - row["arrival_s"])


class TimeError(NamedTuple):
    """The error of one time: its name, as a share of the simulator's mean, and in seconds (None: an older record)."""

    name: str
    share: float
    off_s: float | None

    @property
    def counts(self) -> bool:
        """Is it more than the absolute tolerance?"""
        return self.off_s is None or abs(self.off_s) > TOLERANCE_S[self.name]

    def __str__(self) -> str:
        """
        >>> print(TimeError("ttft_s", 0.04, 0.002))
        TTFT +4.0 % (+2 ms)
        """
        off = "" if self.off_s is None else f" ({self.off_s * 1e3:+.3g} ms)"
        return f"{TITLES[self.name]} {100 * self.share:+.1f} %{off}"


def time_errors(error: ClockError) -> list[TimeError]:
    """The error of each time that was compared."""
    found = [(name, getattr(error, name), getattr(error, f"{name[:-2]}_off_s")) for name in TITLES]
    return [TimeError(name, share, off_s) for name, share, off_s in found if share is not None]


def worst(error: ClockError) -> TimeError | None:
    """The largest error as a share, of those beyond the absolute tolerance; None where there is none.

    >>> worst(ClockError(n=2, ttft_s=0.04, tpot_s=0.001, time_to_final_answer_s=None, ttft_off_s=0.002, tpot_off_s=0.00002))
    """
    return max((one for one in time_errors(error) if one.counts), key=lambda one: abs(one.share), default=None)


def pool_clock_errors(errors: Sequence[ClockError]) -> ClockError | None:
    """The errors of several cells as one, each weighted by its requests; None where nothing was compared.

    >>> two = [ClockError(n=n, ttft_s=off, tpot_s=None, time_to_final_answer_s=None) for n, off in ((1, 0.03), (2, 0.0))]
    >>> pool_clock_errors(two).ttft_s
    0.01
    """
    if not errors:
        return None
    names = [name for name in ClockError.__struct_fields__ if name != "n"]
    means = {name: _mean([(one.n, getattr(one, name)) for one in errors]) for name in names}
    return msgspec.convert({"n": sum(one.n for one in errors)} | means, ClockError)


def _mean(weighted: Sequence[tuple[int, float | None]]) -> float | None:
    known = [(n, share) for n, share in weighted if share is not None]
    total = sum(n for n, _ in known)
    return sum(n * share for n, share in known) / total if total else None
