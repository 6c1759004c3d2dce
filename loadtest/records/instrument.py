"""What the instrument was worth on the machine of a run, on the day: its times against known ones."""

from __future__ import annotations

from typing import Annotated

import msgspec

from loadtest.records.schema import about


class Sent(msgspec.Struct):
    """One request as the server of known times answered it: readings of CLOCK_MONOTONIC (s), around each token's send."""

    sha256: str
    arrived: float
    before: list[float] = []
    after: list[float] = []
    gone: bool = False  # its client closed


class InstrumentError(msgspec.Struct, frozen=True, kw_only=True):
    """Client's times less those of a server that keeps the time of every send, on this machine; absolute values."""

    concurrency: Annotated[int, about("Requests in flight at once.")]
    tokens_per_s: Annotated[float, about("Of each request.")]
    n_requests: Annotated[int, about("Requests that both sides know.")]
    n_lost: Annotated[int, about("Requests that the server answered and that the records lack.")]
    ttft_mean_s: Annotated[float, about("Time to the first token: mean error.")]
    ttft_p99_s: Annotated[float, about("The same: 99th percentile.")]
    gap_p99_s: Annotated[float, about("Time between two tokens: 99th percentile.")]
    final_answer_mean_s: Annotated[float, about("Time to the final answer: mean error.")]
    final_answer_p99_s: Annotated[float, about("The same: 99th percentile.")]
