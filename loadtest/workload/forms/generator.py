"""Built-in workloads whose outputs have a form: `tool_calls` and `structured`.

==============  ====================================================================================================
tool_calls      tools (offered with each prompt, 4), choice (required, auto, or named: that tool and no other); or calls:
                sums of so many calls one after another, and the answer in a box
structured      items (of the order that is to become JSON, 3); or tokens: a list that is not over before so many
                tokens, and forced to so many: the work with which a grammar is priced
==============  ====================================================================================================

Both have `n` (64) and `seed` (0).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from random import Random
from typing import Any

from loadtest.errors import UsageError
from loadtest.workload.forms import tasks
from loadtest.workload.forms.tools import made_format
from loadtest.workload.prompts import Prompt

TOOL_CALLS, STRUCTURED = "tool_calls", "structured"
TITLES: Mapping[str, str] = {
    TOOL_CALLS: "tasks for one of some tools, with the right call (tools=4,choice=required), or for several (calls=3)",
    STRUCTURED: "orders to be written as JSON by a schema (items=3), or long lists of forced length (tokens=256)",
}
_BOUNDS: Mapping[str, tuple[int, int]] = {
    "n": (1, 100_000),
    "seed": (0, 2**63 - 1),
    "tools": (1, len(tasks.TASKS)),
    "calls": (1, 16),
    "items": (1, tasks.MOST_ITEMS),
    "tokens": (8, 8192),
}
_KEYS: Mapping[str, tuple[str, ...]] = {
    TOOL_CALLS: ("n", "seed", "tools", "choice", "calls"),
    STRUCTURED: ("n", "seed", "items", "tokens"),
}
_CHOICES = ("required", "auto", "named")


def is_formed(spec: str) -> bool:
    """Does a spec name one of these workloads?"""
    return spec.partition(":")[0] in TITLES


def is_forced(spec: str) -> bool:
    """Does it ask for outputs of a forced length?

    >>> is_forced("structured:tokens=256"), is_forced("structured:items=3")
    (True, False)
    """
    return is_formed(spec) and "tokens" in _options(spec)


def formed_prompts(spec: str) -> tuple[Prompt, ...]:
    """The prompts of a spec.

    >>> prompts = formed_prompts("tool_calls:n=2,tools=3,choice=auto")
    >>> [(p.id, len(p.tools), p.tool_choice, p.answer_format) for p in prompts]
    [('tool_calls-0001', 3, 'auto', 'call'), ('tool_calls-0002', 3, 'auto', 'call')]
    """
    name, chosen = spec.partition(":")[0], _options(spec)
    seed = chosen.get("seed", 0)
    calls, documents = _chain if "calls" in chosen else _call, _list if "tokens" in chosen else _order
    make = calls if name == TOOL_CALLS else documents
    return tuple(
        make(f"{name}-{index + 1:04}", Random(f"{name}/{seed}/{index}"), chosen) for index in range(chosen.get("n", 64))
    )


def _call(prompt_id: str, draw: Random, chosen: Mapping[str, Any]) -> Prompt:
    offered = draw.sample(sorted(tasks.TASKS), chosen.get("tools", 4))
    wanted = draw.choice(offered)
    task, choice = tasks.TASKS[wanted], chosen.get("choice", "required")
    arguments = task.draw(draw)
    return Prompt(
        id=prompt_id,
        messages=({"role": "user", "content": tasks.asked_in_words(task, arguments)},),
        answer=json.dumps({"name": wanted, "arguments": arguments}),
        answer_format="call",
        tools=tuple(tasks.TASKS[one].tool for one in offered),
        tool_choice=wanted if choice == "named" else choice,
    )


_WITH_TOOLS = "Work this out with the tools, one call at a time, each with the result of the one before."


def _chain(prompt_id: str, draw: Random, chosen: Mapping[str, Any]) -> Prompt:
    """A sum whose every operation is a call, and whose answer is asked for at the end."""
    words, steps, result = tasks.drawn_chain(draw, chosen["calls"])
    text = f"{_WITH_TOOLS} {words} Then put the final result within \\boxed{{}}."
    return Prompt(
        id=prompt_id,
        messages=({"role": "user", "content": text},),
        answer=str(result),
        answer_format="boxed",
        tools=tuple(tool for tool, _, _ in tasks.SUMS.values()),
        tool_choice="auto" if chosen.get("choice") == "auto" else "required",
        steps=tuple(steps),
    )


_AS_JSON = "Write this order as JSON, and nothing else, by this schema:"
_AS_LIST = "Write random whole numbers from 0 to 999 as JSON, and nothing else, by this schema:"


def _order(prompt_id: str, draw: Random, chosen: Mapping[str, Any]) -> Prompt:
    items = chosen.get("items", 3)
    schema = tasks.order_schema(items)
    words, value = tasks.drawn_order(draw, items)
    return Prompt(
        id=prompt_id,
        messages=({"role": "user", "content": f"{_AS_JSON}\n{json.dumps(schema)}\n\n{words}"},),
        answer=json.dumps(value),
        answer_format="value",
        response_format=made_format("order", schema),
    )


def _list(prompt_id: str, draw: Random, chosen: Mapping[str, Any]) -> Prompt:
    """A list that has at least as many numbers as tokens are forced: it is cut off in it, with a grammar and without."""
    schema = tasks.numbers_schema(chosen["tokens"])
    first = f"Begin with {draw.randint(0, 999)}, {draw.randint(0, 999)}, {draw.randint(0, 999)}."
    return Prompt(
        id=prompt_id,
        messages=({"role": "user", "content": f"{_AS_LIST}\n{json.dumps(schema)}\n\n{first}"},),
        thinking_tokens=0,
        answer_tokens=chosen["tokens"],
        response_format=made_format("numbers", schema),
    )


def _options(spec: str) -> dict[str, Any]:
    name, _, text = spec.partition(":")
    values: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, _, value = item.partition("=")
        values[key] = _value(spec, _KEYS[name], key, value)
    for one, other in (("tools", "calls"), ("items", "tokens")):
        if one in values and other in values:
            raise UsageError(f"workload {spec!r}: {one}: expected none with {other}, got {values[one]}; remove one")
    if "calls" in values and values.get("choice") == "named":
        raise UsageError(f"workload {spec!r}: choice: expected required or auto with calls, got named; change it")
    return values


def _value(spec: str, keys: tuple[str, ...], key: str, value: str) -> int | str:
    if key not in keys:
        near = difflib.get_close_matches(key, keys, n=1)
        step = f"did you mean {near[0]!r}?" if near else "remove it"
        raise UsageError(f"workload {spec!r}: {key}: expected one of {', '.join(keys)}, got {key!r}; {step}")
    if key == "choice":
        if value not in _CHOICES:
            raise UsageError(f"workload {spec!r}: choice: expected one of {', '.join(_CHOICES)}, got {value!r}; change it")
        return value
    low, high = _BOUNDS[key]
    if not value.isascii() or not value.isdigit() or len(value) > 20 or not low <= int(value) <= high:
        raise UsageError(f"workload {spec!r}: {key}: expected a whole number from {low} to {high}, got {value!r}; change it")
    return int(value)
