"""Prompts and outputs of exact lengths: `synthetic:isl=1024,osl=1024[,prefix=512][,spread=0.2][,n=256][,seed=0]`.

`isl` counts the tokens of a whole prompt as the server's usage does, the chat template included. How many tokens the
template takes, and which words are one token each, only the server can tell: `fit_prompts` asks it with a few texts of its
own, and returns the same spec with `template` and `words` added. A spec with these makes the same prompts everywhere.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from loadtest.errors import EngineError, UsageError
from loadtest.workload.prompts import Prompt

NAME = "synthetic"

CountPrompt = Callable[[str], int]  # tokens of a prompt with this text, by the server's own count

OPENING = "Go on with these words:"
# With its space a word is one token of most tokenizers. Letters name groups of eight: `a` to `h`, then `i` to `k`.
_LONG = (
    "the and for are but not you all any can had her was one our out day get has him his how man new now old see two way"
    " who boy did its let put say she too use dad mom car cat dog eye far few got hot job law low may men off own pay per"
    " red run set six sun ten top try"
)
_SHORT = "to of in is it on at as by we he be or an if me my up so no go us am do"
_GROUP = 8
FAMILIES = ("abcdefgh", "ijk")
_GROUPS = {
    letter: tuple(words.split()[_GROUP * n : _GROUP * (n + 1)])
    for family, words in zip(FAMILIES, (_LONG, _SHORT), strict=True)
    for n, letter in enumerate(family)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a spec asks for. `isl`, `osl`: mean tokens of prompt and output; `prefix`: words at the start that all prompts
    share; `spread`: each length is drawn evenly from this share below to this share above. `template`: tokens of a prompt
    without any word, None before `fit_prompts`; `words`: groups of words that are one token each."""

    isl: int
    osl: int
    prefix: int = 0
    spread: float = 0.0
    n: int = 256
    seed: int = 0
    template: int | None = None
    words: str = FAMILIES[0]

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return vocabulary_of(self.words)

    def longest(self, mean_tokens: int) -> int:
        return round(mean_tokens * (1 + self.spread))

    def shortest(self, mean_tokens: int) -> int:
        return max(1, round(mean_tokens * (1 - self.spread)))


_BOUNDS: dict[str, tuple[float, float]] = {
    "isl": (1, 1_000_000),
    "osl": (1, 131_072),
    "prefix": (0, 1_000_000),
    "spread": (0, 0.99),
    "n": (1, 100_000),
    "seed": (0, 2**63 - 1),
    "template": (1, 1_000_000),
}


def is_synthetic(spec: str) -> bool:
    """Does a spec ask for exact lengths, so that its outputs are forced?"""
    return spec.partition(":")[0] == NAME


def shape_of(spec: str) -> Shape:
    """The options of a spec, checked.

    >>> shape_of("synthetic:isl=1024,osl=128,spread=0.2").longest(1024)
    1229
    """
    _, _, text = spec.partition(":")
    values: dict[str, int | float | str] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, _, value = item.partition("=")
        values[key] = _value(spec, key, value)
    for key in ("isl", "osl"):
        if key not in values:
            raise UsageError(f"workload {spec!r}: {key}: expected a number of tokens, got none; add {key}=1024")
    made = Shape(**values)  # type: ignore[arg-type]
    room = made.shortest(made.isl) - (made.template or 0)
    if made.prefix >= room:
        template = "" if made.template is None else f" beside the {made.template} tokens of the chat template"
        raise UsageError(
            f"workload {spec!r}: prefix: expected less than the shortest prompt holds ({room} tokens){template},"
            f" got {made.prefix}; raise isl"
        )
    return made


def _value(spec: str, key: str, value: str) -> int | float | str:
    if key == "words":
        return checked_words(spec, value)
    if key not in _BOUNDS:
        near = difflib.get_close_matches(key, list(_BOUNDS), n=1)
        step = f"did you mean {near[0]!r}?" if near else "remove it"
        raise UsageError(f"workload {spec!r}: {key}: expected one of {', '.join(_BOUNDS)}, got {key!r}; {step}")
    return checked_number(spec, key, value, _BOUNDS[key], whole=key != "spread")


def checked_words(spec: str, value: str) -> str:
    """Letters of groups of words. Raises `UsageError`."""
    if not value or set(value) - set(_GROUPS) or len(set(value)) < len(value):
        raise UsageError(f"workload {spec!r}: words: expected letters of {''.join(FAMILIES)}, got {value!r}; remove it")
    return value


def checked_number(spec: str, key: str, value: str, bounds: tuple[float, float], *, whole: bool) -> int | float:
    """A number within bounds. Raises `UsageError`."""
    try:
        number: float | None = (int if whole else float)(value) if value.isascii() else None
    except ValueError:
        number = None
    if number is None or not bounds[0] <= number <= bounds[1]:
        expected = f"a {'whole ' * whole}number from {bounds[0]:g} to {bounds[1]:g}"
        raise UsageError(f"workload {spec!r}: {key}: expected {expected}, got {value!r}; change it")
    return number


def vocabulary_of(letters: str) -> tuple[str, ...]:
    """The words of these groups."""
    return tuple(word for letter in letters for word in _GROUPS[letter])


def exact_prompts(spec: str) -> tuple[Prompt, ...]:
    """The prompts of a spec. Before `fit_prompts` a template of no tokens is assumed: they are somewhat too long then.

    >>> [(p.prompt_tokens, p.forced_tokens) for p in exact_prompts("synthetic:isl=64,osl=8,n=2")]
    [(64, 8), (64, 8)]
    """
    chosen = shape_of(spec)
    shared = _words(chosen, Random(f"{NAME}/{chosen.seed}/prefix"), chosen.prefix)
    return tuple(_prompt(chosen, shared, index) for index in range(chosen.n))


def _prompt(chosen: Shape, shared: list[str], index: int) -> Prompt:
    draw = Random(f"{NAME}/{chosen.seed}/{index}")
    prompt_tokens, output_tokens = (
        draw.randint(chosen.shortest(mean), chosen.longest(mean)) for mean in (chosen.isl, chosen.osl)
    )
    own = _words(chosen, draw, prompt_tokens - (chosen.template or 0) - len(shared))
    return Prompt(
        id=f"{NAME}-{index + 1:04d}",
        messages=({"role": "user", "content": " ".join([OPENING, *shared, *own])},),
        prompt_tokens=prompt_tokens,
        thinking_tokens=0,
        answer_tokens=output_tokens,
    )


def _words(chosen: Shape, draw: Random, n: int) -> list[str]:
    return draw.choices(chosen.vocabulary, k=n)


# Asking the server ---------------------------------------------------------------------------------------------------

_CHECKED_TOKENS = 8192  # the longest text that is asked about: longer ones only repeat what it tells


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedWords:
    """What a server's count says of a prompt: tokens without any word, groups of words of one token each, and how many
    requests it took to find out."""

    template_tokens: int
    letters: str
    requests: int


def fit_words(name: str, longest_tokens: int, count: CountPrompt) -> FittedWords:
    """How to make prompts of up to so many tokens by this count. `name`: of the workload, for messages.

    No text that is measured later is asked about, so that no prefix cache holds any of it. Raises `EngineError`: the server
    counts none of our words as one token, or a long text is not of the length that follows.

    >>> fit_words("synthetic", 64, lambda text: 20 + len(text.split()))
    FittedWords(template_tokens=25, letters='abcdefgh', requests=3)
    """
    asked = 0

    def counted(text: str) -> int:
        nonlocal asked
        asked += 1
        return count(text)

    template = counted(OPENING)
    letters = _single_words(counted, template)
    longest = max(min(longest_tokens, _CHECKED_TOKENS), template + 1)
    words = Random(f"{NAME}/check").choices(vocabulary_of(letters), k=longest - template)
    if (got := counted(" ".join([OPENING, *words]))) != longest:
        raise EngineError(
            f"workload {name!r}: expected a prompt of {longest} tokens by the server's count, got {got}: its tokenizer joins"
            " words; exact lengths are not possible here"
        )
    return FittedWords(template_tokens=template, letters=letters, requests=asked)


def _single_words(count: CountPrompt, template: int) -> str:
    """The groups whose words are one token each: all long words if they are, else such groups, else short ones."""

    def are_single(letters: str) -> bool:
        words = [word for letter in letters for word in _GROUPS[letter]]
        return count(" ".join([OPENING, *words, *reversed(words)])) == template + 2 * len(words)

    def groups() -> Iterator[str]:
        for family in FAMILIES:
            yield family if are_single(family) else "".join(filter(are_single, family))

    found = next(filter(None, groups()), None)
    if found is None:
        raise EngineError(f"workload {NAME}: expected a server that counts a short word as one token, found no such word")
    return found
