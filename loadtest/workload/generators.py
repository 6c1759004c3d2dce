"""Built-in workloads: problems with one correct answer, generated from a seed, without any download.

A spec is `NAME` or `NAME:key=value,...` with `n` (prompts, 64), `seed` (0), `difficulty` (1 to 5, 3); for `retrieval` and
`shared`, `tokens` (size of the context or of the shared system prompt, about 4 characters a token, 4000); and for `mixed`,
`easy` (the share of easy prompts in percent, 70). Problem i depends on the seed, the difficulty and i
alone: `n=64` is the beginning of `n=128`. No two prompts of a workload are the same text. `synthetic`, `tool_calls` and
`structured` have options of their own (`loadtest.workload.synthetic`, `loadtest.workload.forms.generator`).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from loadtest.errors import UsageError
from loadtest.workload import synthetic
from loadtest.workload.forms import generator as formed
from loadtest.workload.problems import MATH_KINDS, PROBLEM_KINDS, Problem
from loadtest.workload.prompts import BOXED_INSTRUCTION, JSON_INSTRUCTION, Prompt

_ATTEMPTS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of a spec. `tokens` counts about 4 characters each, `easy` is a share in percent."""

    n: int = 64
    seed: int = 0
    difficulty: int = 3
    tokens: int = 4000
    easy: int = 70


_BOUNDS = {"n": (1, 100_000), "seed": (0, 2**63 - 1), "difficulty": (1, 5), "tokens": (200, 1_000_000), "easy": (0, 100)}

GENERATORS: dict[str, str] = {
    "math": f"mathematics of every kind in turn: {', '.join(MATH_KINDS)}",
    **{name: kind.title for name, kind in PROBLEM_KINDS.items()},
    "shared": "mathematics behind one long system prompt that all prompts share",
    "mixed": "easy arithmetic among hard mathematics, each marked for a router",
    **formed.TITLES,
    synthetic.NAME: "words without sense, prompts and outputs of exact lengths (isl=1024,osl=1024,prefix=512,spread=0.2)",
}


def options(spec: str) -> Options:
    """The options of a spec, checked.

    >>> options("math:n=3,seed=7")
    Options(n=3, seed=7, difficulty=3, tokens=4000, easy=70)
    """
    _, _, text = spec.partition(":")
    values: dict[str, int] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, _, value = item.partition("=")
        values[key] = _value(spec, key, value)
    return Options(**values)


def _value(spec: str, key: str, value: str) -> int:
    if key not in _BOUNDS:
        near = difflib.get_close_matches(key, list(_BOUNDS), n=1)
        step = f"did you mean {near[0]!r}?" if near else "remove it"
        raise UsageError(f"workload {spec!r}: {key}: expected one of {', '.join(_BOUNDS)}, got {key!r}; {step}")
    low, high = _BOUNDS[key]
    if not value.isascii() or not value.isdigit() or len(value) > 20 or not low <= int(value) <= high:
        raise UsageError(f"workload {spec!r}: {key}: expected a whole number from {low} to {high}, got {value!r}; change it")
    return int(value)


def prompts(spec: str) -> tuple[Prompt, ...]:
    """The prompts of a built-in generator.

    >>> [prompt.id for prompt in prompts("ledger:n=2,seed=7")]
    ['ledger-0001', 'ledger-0002']
    """
    name = spec.partition(":")[0]
    if name == synthetic.NAME:
        return synthetic.exact_prompts(spec)
    if formed.is_formed(spec):
        return formed.formed_prompts(spec)
    chosen = options(spec)
    names = (name,) if name in PROBLEM_KINDS else MATH_KINDS
    seen: set[str] = set()
    if name == "mixed":
        return tuple(_mixed(names[i % len(names)], i, chosen, seen, spec) for i in range(chosen.n))
    plain = (_prompt(names[i % len(names)], i, chosen, seen, spec) for i in range(chosen.n))
    if name == "shared":
        system = {"role": "system", "content": _handbook(chosen)}
        return tuple(replace(prompt, messages=(system, *prompt.messages)) for prompt in plain)
    return tuple(plain)


def _mixed(kind: str, index: int, chosen: Options, seen: set[str], spec: str) -> Prompt:
    """Easy or hard by a draw of its own: arithmetic of the least difficulty, or mathematics of the chosen one."""
    if Random(f"mixed/{chosen.seed}/{index}").random() * 100 < chosen.easy:
        prompt = _prompt("arithmetic", index, replace(chosen, difficulty=1), seen, spec)
        return replace(prompt, id=f"easy-{index + 1:04d}", difficulty="easy")
    return replace(_prompt(kind, index, chosen, seen, spec), id=f"hard-{index + 1:04d}", difficulty="hard")


def _handbook(chosen: Options) -> str:
    """A system prompt of about `tokens` tokens: rules and a register, as a product's assistant is given."""
    register = PROBLEM_KINDS["retrieval"].make(Random(f"shared/{chosen.seed}"), 1, chosen.tokens).text.rpartition("\n")[0]
    return f"You are a careful assistant. Answer the question; use the register only where it is asked about.\n{register}"


def _prompt(kind: str, index: int, chosen: Options, seen: set[str], spec: str) -> Prompt:
    """Problem `index`, drawn again for as long as it repeats an earlier one."""
    make_problem: Callable[[Random, int, int], Problem] = PROBLEM_KINDS[kind].make
    for attempt in range(_ATTEMPTS):
        random = Random(f"{kind}/{chosen.seed}/{chosen.difficulty}/{chosen.tokens}/{index}/{attempt}")
        problem = make_problem(random, chosen.difficulty, chosen.tokens)
        if problem.text not in seen:
            seen.add(problem.text)
            return _worded(kind, index, problem)
    raise UsageError(f"workload {spec!r}: n: expected at most {len(seen)} different problems, got n={chosen.n}; lower n")


_INSTRUCTIONS = {"boxed": f"\n{BOXED_INSTRUCTION}", "json": f"\n{JSON_INSTRUCTION}", "program": "", "none": ""}


def _worded(kind: str, index: int, problem: Problem) -> Prompt:
    text = problem.text + _INSTRUCTIONS[problem.answer_format]
    return Prompt(
        id=f"{kind}-{index + 1:04d}",
        messages=({"role": "user", "content": text},),
        answer=problem.answer,
        answer_format=problem.answer_format,
    )
