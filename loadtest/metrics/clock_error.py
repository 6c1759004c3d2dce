"""The error that a fast simulated clock adds to the measured times.

The simulator knows in virtual time when each token left; the client stamps when it arrived, in wall time multiplied by
the speed of the clock. So a wall delay of 0.1 ms counts as 2 ms of simulated time at speed 20. Here the two are compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

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


def measure_clock_error(requests: Iterable[RequestRecord], truth: Sequence[TrueTimes]) -> ClockError:
    """Relative error of the mean of each time (a share: 0.01 is 1 %), client against simulator, over the same requests.

    `truth` rows hold `request_id, arrival_s, first_token_s, finished_s, completion_tokens` in simulated seconds.
    Population: measured requests that ended by themselves (`ok`, `no_answer`, `truncated`) and that both sides know.
    Formula: `sum(measured) / sum(true) - 1`. None where no request, or no time, is left to compare.
    """
    known = {str(row["request_id"]): row for row in truth}
    pairs = [
        (one, known[_id(one)])
        for one in requests
        if one.phase == "measure" and one.outcome in ("ok", "no_answer", "truncated") and _id(one) in known
    ]
    measured = [_measured(one) for one, _ in pairs]
    true = [_true(row) for _, row in pairs]
    return ClockError(
        n=len(pairs),
        ttft_s=_relative([one.ttft_s for one in measured], [one.ttft_s for one in true]),
        tpot_s=_relative([one.tpot_s for one in measured], [one.tpot_s for one in true]),
        time_to_final_answer_s=_relative(
            [one.time_to_final_answer_s for one in measured], [one.time_to_final_answer_s for one in true]
        ),
    )


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


def _relative(measured: Sequence[float], true: Sequence[float]) -> float | None:
    total = sum(true)
    return sum(measured) / total - 1 if total > 0 else None


def worst(error: ClockError) -> float | None:
    """The largest share, up or down, by which any time is off; None where nothing was compared.

    >>> worst(ClockError(n=2, ttft_s=-0.012, tpot_s=0.001, time_to_final_answer_s=None))
    0.012
    """
    shares = (error.ttft_s, error.tpot_s, error.time_to_final_answer_s)
    return max((abs(share) for share in shares if share is not None), default=None)


def pool_clock_errors(errors: Sequence[ClockError]) -> ClockError | None:
    """The errors of several cells as one, each weighted by its requests; None where nothing was compared.

    >>> two = [ClockError(n=n, ttft_s=off, tpot_s=None, time_to_final_answer_s=None) for n, off in ((1, 0.03), (2, 0.0))]
    >>> pool_clock_errors(two)
    ClockError(n=3, ttft_s=0.01, tpot_s=None, time_to_final_answer_s=None)
    """
    if not errors:
        return None
    return ClockError(
        n=sum(one.n for one in errors),
        ttft_s=_mean([(one.n, one.ttft_s) for one in errors]),
        tpot_s=_mean([(one.n, one.tpot_s) for one in errors]),
        time_to_final_answer_s=_mean([(one.n, one.time_to_final_answer_s) for one in errors]),
    )


def _mean(weighted: Sequence[tuple[int, float | None]]) -> float | None:
    known = [(n, share) for n, share in weighted if share is not None]
    total = sum(n for n, _ in known)
    return sum(n * share for n, share in known) / total if total else None
