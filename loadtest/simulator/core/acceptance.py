"""How many tokens each step of speculative decoding yields: one, and as many more as drafts are accepted in a row."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field

from loadtest.perfmodel.memory import Speculation


class Acceptance:
    """Draws the tokens of each step. Their mean over steps is the `accepted_tokens` that the performance model divides by.

    Each draft of a row is accepted with the same probability p, as in Leviathan, Kalman and Matias (2023): n tokens and no
    more with p^(n - 1) (1 - p), the mean is 1 + p + ... + p^depth. `depth` is the longest row: one draft a pass, where
    that explains the mean, else all drafts. A draw depends on the prompt and the place in the output alone.

    >>> steps = [Acceptance(Speculation(2.5, 4, 4)).draw("why?", n) for n in range(4000)]
    >>> min(steps), max(steps), round(sum(steps) / 4000, 1)
    (1, 5, 2.5)
    """

    def __init__(self, speculation: Speculation) -> None:
        passes = min(speculation.draft_tokens, speculation.draft_steps)
        self.depth = passes if speculation.accepted_tokens <= passes + 1 else speculation.draft_tokens
        self.probability = _probability(speculation.accepted_tokens, self.depth)

    def draw(self, prompt: str, generated: int) -> int:
        """Tokens of the step that begins after so many tokens of output."""
        if self.probability >= 1:
            return self.depth + 1
        if self.probability <= 0:
            return 1
        digest = hashlib.blake2b(f"{generated}\0{prompt}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        uniform = (int.from_bytes(digest, "big") + 0.5) / 2**64
        return 1 + min(self.depth, int(math.log(uniform) / math.log(self.probability)))


@dataclass(slots=True)
class Drafts:
    """What became of all drafts since the start, counted as both engines count: before an end cuts a row short.

    `rows`: streams that decoded, summed over steps; each verifies one row of drafts. `accepted_at`: rows by how many drafts
    were accepted. SGLang tells means of the last steps alone, `log_steps` at a time: `last_rows` and `last_accepted` are of
    those.
    """

    rows: int = 0
    accepted_at: dict[int, int] = field(default_factory=dict)
    last_rows: int = 0
    last_accepted: int = 0
    _steps: int = 0
    _rows_before: int = 0
    _accepted_before: int = 0

    @property
    def accepted_tokens(self) -> int:
        """Drafts accepted since the start."""
        return sum(accepted * rows for accepted, rows in self.accepted_at.items())

    def accepted_beyond(self, position: int) -> int:
        """Rows whose draft at this position was accepted; 0 is the first."""
        return sum(rows for accepted, rows in self.accepted_at.items() if accepted > position)

    def count(self, accepted: list[int], log_steps: int) -> None:
        """One step: the drafts accepted of each of its rows."""
        self.rows += len(accepted)
        for one in accepted:
            self.accepted_at[one] = self.accepted_at.get(one, 0) + 1
        self._steps += 1
        if self._steps % log_steps == 0:
            self.last_rows, self.last_accepted = self.rows - self._rows_before, self.accepted_tokens - self._accepted_before
            self._rows_before, self._accepted_before = self.rows, self.accepted_tokens


def _probability(accepted_tokens: float, depth: int) -> float:
    """The p of which 1 + p + ... + p^depth is the mean, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(middle**n for n in range(depth + 1)) < accepted_tokens else (low, middle)
    return high if accepted_tokens > 1 else 0.0
