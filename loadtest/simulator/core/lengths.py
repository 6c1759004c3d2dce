"""How long a simulated model thinks and answers, and the words it fills that with.

Lengths depend on the prompt and the seed alone, so that both engines do the same work for the same prompt.
"""

from __future__ import annotations

import hashlib
import math
import re
import statistics
from dataclasses import dataclass
from typing import Literal

from loadtest.simulator.core.cache import TOKEN_CHARS

# A reasoning model thinks for thousands of tokens and answers in hundreds. Medians and spreads of this simulator's own
# choosing, not a measurement of any model.
THINKING_MEDIAN_TOKENS = 1500
THINKING_SIGMA = 0.6
ANSWER_MEDIAN_TOKENS = 220
ANSWER_SIGMA = 0.4

_NORMAL = statistics.NormalDist()


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of a natural end: thinking with its closing tag, answer with the end-of-text token; both of these count."""

    thinking_tokens: int
    answer_tokens: int


def draw_lengths(prompt: str, seed: int, *, scale: float = 1.0) -> Lengths:
    """Log-normal lengths by a hash of prompt and seed.

    >>> draw_lengths("2 + 2?", 0) == draw_lengths("2 + 2?", 0)
    True
    """
    digest = hashlib.sha256(f"{seed}\0{prompt}".encode("utf-8", "surrogatepass")).digest()
    thinking = _lognormal(digest[:8], THINKING_MEDIAN_TOKENS * scale, THINKING_SIGMA)
    answer = _lognormal(digest[8:16], ANSWER_MEDIAN_TOKENS * scale, ANSWER_SIGMA)
    return Lengths(thinking_tokens=max(2, thinking), answer_tokens=max(2, answer))


def _lognormal(digest: bytes, median: float, sigma: float) -> int:
    uniform = (int.from_bytes(digest, "big") + 0.5) / 2**64
    return round(median * math.exp(sigma * _NORMAL.inv_cdf(uniform)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What one request will emit: tokens in all, how many of them think (closing tag included), and how it ends."""

    output_tokens: int
    thinking_tokens: int
    closes_thinking: bool  # the last thinking token is `</think>`
    finish_reason: Literal["stop", "length"]  # stop: the last token is the end of text; length: the limit cut it

    @property
    def first_answer_token(self) -> int | None:
        """Which token (1 is the first) carries the first answer text; None where there is none."""
        texts = self.output_tokens - self.thinking_tokens - (self.finish_reason == "stop")
        return self.thinking_tokens + 1 if texts > 0 else None


def limit_lengths(lengths: Lengths, *, max_tokens: int, min_tokens: int = 0, ignore_eos: bool = False) -> Output:
    """Apply the limits of a request: at least `min_tokens`, at most `max_tokens`, and exactly those with `ignore_eos`.

    >>> limit_lengths(Lengths(10, 5), max_tokens=12)
    Output(output_tokens=12, thinking_tokens=10, closes_thinking=True, finish_reason='length')
    """
    natural = max(lengths.thinking_tokens + lengths.answer_tokens, min_tokens)
    total = max_tokens if ignore_eos else min(natural, max_tokens)
    return Output(
        output_tokens=total,
        thinking_tokens=min(lengths.thinking_tokens, total),
        closes_thinking=0 < lengths.thinking_tokens <= total,
        finish_reason="stop" if not ignore_eos and natural <= max_tokens else "length",
    )


# About four characters a token, leading space included. No digit and no backslash: nothing here can be taken for an answer.
_WORDS = (
    " so let me try the next step and see if it does hold then turn back wait that part may need more care now"
    " take one case note what this says check the sign once more again okay but maybe use some other way here"
)
THINKING_WORDS: tuple[str, ...] = tuple(re.findall(" [a-z]+", _WORDS))
ANSWER_WORDS = (
    " [simulated",
    " answer]",
    " this",
    " text",
    " was",
    " made",
    " by",
    " the",
    " simulator",
    ",",
    " not",
    " a",
    " model",
    ".",
)


def thinking_word(index: int) -> str:
    """The text of thinking token `index`."""
    return THINKING_WORDS[index % len(THINKING_WORDS)]


def answer_word(index: int) -> str:
    """The text of answer token `index`."""
    return ANSWER_WORDS[index % len(ANSWER_WORDS)]


def prompt_key(messages: list[tuple[str, str]], salt: str = "") -> str:
    """Chat messages as the engine's prompt: four characters a token, each message begun by four tokens of template.

    A `salt` changes the first token, so that a prefix cache tells it from the same messages with another salt.

    >>> len(prompt_key([("user", "12345")])) // TOKEN_CHARS
    9
    """
    parts = []
    for role, text in messages:
        parts.append(f"<|{role}|>".ljust(4 * TOKEN_CHARS)[: 4 * TOKEN_CHARS])
        parts.append(text + " " * (-len(text) % TOKEN_CHARS))
    parts.append("<|assistant|".ljust(3 * TOKEN_CHARS))
    key = "".join(parts)
    return (
        key
        if not salt
        else hashlib.sha256(salt.encode("utf-8", "surrogatepass")).hexdigest()[:TOKEN_CHARS] + key[TOKEN_CHARS:]
    )
