"""Bursts: streams that begin together, each with a text of its own of about so many tokens, and a forced output.

While all of them decode, a step reads a known context; two or three contexts tell how long a step takes at any
(`decision.step_line`), without waiting for a long answer. Nothing here knows a study: whoever has a workload, a contract
and a concurrency can send bursts. `number` of a burst tells its text; another `round` has other texts, so that no prefix
cache holds them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from loadtest.errors import UsageError
from loadtest.records.schema import Phase
from loadtest.workload.contract import Contract
from loadtest.workload.prompts import Prompt
from loadtest.workload.script import Item, prepare
from loadtest.workload.workload import Workload

CONTEXTS_TOKENS = (200, 1500, 5000)
OUTPUT_TOKENS = 256  # two halves of 128, each a point of the line: one prompt is processed for both
WARMUP_TOKENS = 32  # of output, before anything is measured
LONE_TOKENS = 8  # of output, where only the wait for the first token is of interest
LONE_PROMPTS = 4

# Short words of English: with its space each is one token of the simulator, and of most tokenizers; of others more, which
# the server's count of the warm-up tells (`tokens_per_word`).
_TEXT = (
    "the and for are but not you all any can had her was one our out day get has him his how man new now old see two way"
    " who boy did its let put say she too use dad mom car cat dog eye far few got hot job law low may men off own pay per"
    " red run set six sun ten top try war yes yet"
)
_WORDS = tuple(_TEXT.split())
_WORD_CHARS = 4
_REQUEST = "Continue this list of words:"
_TYPICAL_TEMPLATE = 32  # tokens that a chat template adds to a prompt


@dataclass(frozen=True, slots=True)
class Burst:
    """Requests that begin together: one for each stream. `number`: of a burst whose steps are measured; None: a lone
    request, for its first token, or the warm-up."""

    phase: Phase
    number: int | None
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BurstPlan:
    """What one pass of bursts sends: a warm-up, lone requests with prompts of the workload, and one burst per context.

    `contexts_tokens` are prompts of about that size; what they really are, the server's usage tells. Raises UsageError:
    fewer than two contexts, as a line needs two.
    """

    concurrency: int
    round: int = 1
    contexts_tokens: tuple[int, ...] = CONTEXTS_TOKENS
    output_tokens: int = OUTPUT_TOKENS
    seed: int = 0

    def __post_init__(self) -> None:
        if len(set(self.contexts_tokens)) < 2 or min(self.contexts_tokens) < 1:
            got = ",".join(map(str, self.contexts_tokens))
            raise UsageError(f"contexts: expected two or more different numbers of tokens from 1 up, got {got}")
        if self.output_tokens < 2:
            raise UsageError(f"burst_tokens: expected at least 2, got {self.output_tokens}")

    @property
    def requests(self) -> int:
        """Measured requests of the pass."""
        return LONE_PROMPTS + len(self.contexts_tokens) * self.concurrency

    def tokens_per_word(self, prompt_tokens: int | None) -> float:
        """By the server's count of a warm-up prompt, less a typical chat template; 1 where it does not count.

        >>> BurstPlan(concurrency=1).tokens_per_word(230), BurstPlan(concurrency=1).tokens_per_word(432)
        (1.0, 2.0)
        """
        return 1.0 if prompt_tokens is None else max(1.0, (prompt_tokens - _TYPICAL_TEMPLATE) / min(self.contexts_tokens))

    def bursts(
        self, workload: Workload, contract: Contract, *, model: str, engine: str, tokens_per_word: float = 1.0
    ) -> tuple[Burst, ...]:
        """The bursts in order, every body prepared."""
        forced = replace(contract, mode="equal-work", max_tokens=max(self.output_tokens, WARMUP_TOKENS))
        least = min(self.contexts_tokens)
        streams = range(self.concurrency)
        warmup = [self._filler(-1, least, stream, WARMUP_TOKENS) for stream in streams]
        rows: list[tuple[Phase, int | None, list[Prompt]]] = [("warmup", None, warmup)]
        rows += [("measure", None, [self._lone(place, one)]) for place, one in enumerate(typical_prompts(workload.prompts))]
        for number, tokens in enumerate(self.contexts_tokens):
            fillers = [self._filler(number, tokens, one, self.output_tokens, tokens_per_word) for one in streams]
            rows.append(("measure", number, fillers))
        made = list[Burst]()
        index: dict[Phase, int] = {"warmup": 0, "measure": 0}
        for phase, burst, prompts in rows:
            items = [
                Item(phase, index[phase] + place, prepare(prompt, forced, model, engine), burst=burst)
                for place, prompt in enumerate(prompts)
            ]
            index[phase] += len(items)
            made.append(Burst(phase, burst, tuple(items)))
        return tuple(made)

    def _lone(self, place: int, prompt: Prompt) -> Prompt:
        """A prompt of the workload behind a line that no other request of the run has, so that no prefix cache knows it."""
        first, *others = prompt.messages
        line = f"({self.concurrency}.{self.round}.{place})"
        messages = ({**first, "content": f"{line} {first['content']}"}, *others)
        return replace(
            prompt, messages=messages, answer=None, answer_format="none", thinking_tokens=0, answer_tokens=LONE_TOKENS,
            max_tokens=None,
        )  # fmt: skip

    def _filler(self, number: int, tokens: int, stream: int, output_tokens: int, tokens_per_word: float = 1.0) -> Prompt:
        """A text of about so many tokens that no other request of the run begins with."""
        random = Random(f"burst/{self.seed}/{self.concurrency}/{self.round}/{number}/{stream}")
        words = random.choices(_WORDS, k=max(1, round(tokens / tokens_per_word) - len(_REQUEST) // _WORD_CHARS))
        text = f"{' '.join(words)}\n{_REQUEST}"
        return Prompt(
            id=f"burst-{tokens}-c{self.concurrency:02d}-r{self.round}-{stream}",
            messages=({"role": "user", "content": text},),
            thinking_tokens=0,
            answer_tokens=output_tokens,
        )


def typical_prompts(prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """Prompts of the workload whose lengths are spread as all of them are; some twice where there are too few."""
    ranked = sorted(prompts, key=lambda prompt: (prompt.chars, prompt.id))
    return tuple(ranked[math.floor((place + 0.5) * len(ranked) / LONE_PROMPTS)] for place in range(LONE_PROMPTS))


def contexts_within(
    room_tokens: int | None, concurrency: int, kv_tokens: int | None, output_tokens: int = OUTPUT_TOKENS
) -> tuple[int, ...]:
    """Contexts that a server can hold: as `CONTEXTS_TOKENS`, in proportion smaller where its context (`room_tokens`, prompt
    and output) or 80 % of its KV cache over all streams is smaller. Raises UsageError where it holds no burst.

    >>> contexts_within(32768, 8, 500_000), contexts_within(32768, 8, 30_000)
    ((200, 1500, 5000), (110, 823, 2744))
    """
    limits = [CONTEXTS_TOKENS[-1]]
    if room_tokens is not None:
        limits.append(room_tokens - _TEMPLATE_TOKENS - output_tokens)
    if kv_tokens is not None:
        limits.append(int(KV_SHARE * kv_tokens / concurrency) - output_tokens)
    largest = min(limits)
    if largest < _LEAST_LARGEST:
        raise UsageError(
            f"concurrency {concurrency}: expected room for prompts of {_LEAST_LARGEST} tokens and {output_tokens} of"
            f" output in each stream, got {max(0, largest)}; lower the level or take mode natural"
        )
    return tuple(round(largest * one / CONTEXTS_TOKENS[-1]) for one in CONTEXTS_TOKENS)


KV_SHARE = 0.8
_TEMPLATE_TOKENS = 128  # as `contract.within` allows for the chat template
_LEAST_LARGEST = 64
