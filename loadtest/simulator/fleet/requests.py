"""The requests of a day as columns: what each asks for, when it comes, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from loadtest.errors import UsageError

Times: TypeAlias = npt.NDArray[np.float64]
Ids: TypeAlias = npt.NDArray[np.int64]
Tokens: TypeAlias = npt.NDArray[np.int32]
Seconds: TypeAlias = npt.NDArray[np.float32]

NOBODY = -1


@dataclass(slots=True, eq=False)
class Requests:
    """One row a request, by id. `arrival_s` is nan until it is known; `ttft_s` and `final_s` until the engine has said.

    `ttft_s`: from arrival to the first token; `final_s`: from arrival to the last one. `prompt_tokens` and `output_tokens`
    change for a request that is preempted: what it has generated becomes part of what must be computed again. `after` links
    the queue of a replica.
    """

    arrival_s: Times
    prompt_tokens: Tokens
    output_tokens: Tokens
    after: npt.NDArray[np.int32]
    ttft_s: Seconds
    final_s: Seconds

    @property
    def count(self) -> int:
        return len(self.arrival_s)


def table(arrival_s: Times, prompt_tokens: Tokens, output_tokens: Tokens) -> Requests:
    """Requests of which nothing has happened yet.

    >>> table(np.array([0.5]), np.array([8], np.int32), np.array([2], np.int32)).count
    1
    """
    if len(prompt_tokens) and (int(prompt_tokens.min()) < 1 or int(output_tokens.min()) < 1):
        raise UsageError("requests of a fleet: expected at least one prompt and one output token each")
    count = len(arrival_s)
    return Requests(
        arrival_s=arrival_s,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        after=np.full(count, NOBODY, np.int32),
        ttft_s=np.full(count, np.nan, np.float32),
        final_s=np.full(count, np.nan, np.float32),
    )
