"""What a simulated clock that runs faster than the wall costs in truth.

The simulator knows in virtual time when each token left; the client stamps when it arrived, in wall time multiplied by
the speed of the clock. So a wall delay of 0.1 ms counts as 2 ms of simulated time at speed 20. Here the two are compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from loadtest.records.folder import request_id
from loadtest.records.schema import RequestRecord

_TIMES = ("ttft_s", "tpot_s", "time_to_final_answer_s")


def clock_error(requests: Iterable[RequestRecord], truth: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Relative error of the mean of each time (a share: 0.01 is 1 %), client against simulator, over the same requests.

    `truth` rows hold `request_id, arrival_s, first_token_s, finished_s, completion_tokens` in simulated seconds.
    Population: measured requests that ended by themselves (`ok`, `no_answer`, `truncated`) and that both sides know.
    Formula: `sum(measured) / sum(true) - 1`. Null where no request, or no time, is left to compare.
    """
    known = {str(row["request_id"]): row for row in truth}
    pairs = [
        (one, known[_id(one)])
        for one in requests
        if one.phase == "measure" and one.outcome in ("ok", "no_answer", "truncated") and _id(one) in known
    ]
    times = [(_measured(one), _true(row)) for one, row in pairs]
    errors = {key: _relative([measured[key] for measured, _ in times], [true[key] for _, true in times]) for key in _TIMES}
    return {"n": len(pairs), **errors}


def _id(one: RequestRecord) -> str:
    return request_id(one.run_id, one.cell, one.concurrency, one.repeat, one.phase, one.seq)


def _measured(one: RequestRecord) -> dict[str, float]:
    sent_s = one.sent_s or 0.0
    first_s, last_s = (one.chunk_s[0], one.chunk_s[-1]) if one.chunk_s else (sent_s, sent_s)
    tokens = one.completion_tokens or 0
    return {
        "ttft_s": first_s - sent_s,
        "tpot_s": (last_s - first_s) / (tokens - 1) if tokens > 1 else 0.0,
        "time_to_final_answer_s": last_s - sent_s,
    }


def _true(row: Mapping[str, Any]) -> dict[str, float]:
    tokens = int(row["completion_tokens"])
    return {
        "ttft_s": row["first_token_s"] - row["arrival_s"],
        "tpot_s": (row["finished_s"] - row["first_token_s"]) / (tokens - 1) if tokens > 1 else 0.0,
        "time_to_final_answer_s": row["finished_s"] - row["arrival_s"],
    }


def _relative(measured: Sequence[float], true: Sequence[float]) -> float | None:
    total = sum(true)
    return sum(measured) / total - 1 if total > 0 else None


def worst(errors: Iterable[Mapping[str, Any]]) -> float | None:
    """The largest share, up or down, by which any time of any cell is off; null where nothing was compared.

    >>> worst([{"n": 2, "ttft_s": -0.012, "tpot_s": 0.001, "time_to_final_answer_s": None}])
    0.012
    """
    shares = [abs(v) for error in errors for key, v in error.items() if key != "n" and v is not None]
    return max(shares, default=None)


def pooled(errors: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The errors of several cells as one, each weighted by its requests; null where nothing was compared.

    >>> pooled([{"n": 1, "ttft_s": 0.03, "tpot_s": None}, {"n": 2, "ttft_s": 0.0, "tpot_s": None}])
    {'n': 3, 'ttft_s': 0.01, 'tpot_s': None, 'time_to_final_answer_s': None}
    """
    if not errors:
        return None
    return {"n": sum(int(error["n"]) for error in errors), **{key: _mean(errors, key) for key in _TIMES}}


def _mean(errors: Sequence[Mapping[str, Any]], key: str) -> float | None:
    known = [(int(error["n"]), float(error[key])) for error in errors if error.get(key) is not None]
    total = sum(n for n, _ in known)
    return sum(n * value for n, value in known) / total if total else None
