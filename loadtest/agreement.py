"""Did two cells really run alike: what their runtimes said of themselves, and what they counted of the same prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from loadtest.records import CellRecords

TEMPLATE = "template"  # a key beside those of the contract


def apart(a: CellRecords, b: CellRecords) -> dict[str, tuple[Any, Any]]:
    """Every key in which two cells ran differently, with both values; what either does not tell is no difference.

    Keys of the contract by `contract.effective` of engine.json, both runtimes in the contract's words ("auto": the runtime's
    own choice, which is no difference). `template`: see `template`.
    """
    ours, theirs = _effective(a), _effective(b)
    found = {
        key: (ours[key], theirs[key])
        for key in ours
        if key in theirs and ours[key] != theirs[key] and "auto" not in (ours[key], theirs[key])
    }
    return found | template(a, b)


def _effective(cell: CellRecords) -> Mapping[str, Any]:
    said = (cell.engine.get("contract") or {}).get("effective")
    return said if isinstance(said, Mapping) else {}


def template(a: CellRecords, b: CellRecords) -> dict[str, tuple[Any, Any]]:
    """Under `template`, the first prompt of which the two servers counted different numbers of tokens: their chat templates,
    or tokenizers, put something else before the model. Empty where all prompts that both counted agree."""
    ours, theirs = _prompt_tokens(a), _prompt_tokens(b)
    for prompt_id in sorted(ours.keys() & theirs.keys()):
        counts = (ours[prompt_id], theirs[prompt_id])
        if counts[0] != counts[1]:
            return {TEMPLATE: (f"{counts[0]} tokens of {prompt_id}", f"{counts[1]}")}
    return {}


def _prompt_tokens(cell: CellRecords) -> dict[str, int]:
    """Tokens of each prompt as the server counted them, of requests that are the workload's own: no later turn of a task, no
    second endpoint."""
    return {
        request.prompt_id: request.prompt_tokens
        for level in cell.levels
        for request in level.requests
        if request.prompt_tokens is not None and not request.turn and request.endpoint is None
    }


def templates(cells: Sequence[CellRecords]) -> dict[frozenset[str], str]:
    """Every two cells of one run and one model, by their ids, that were served through templates that differ: what keeps
    them from being compared, in words."""
    pairs = ((a, b) for a, b in combinations(cells, 2) if a.engine.get("model") == b.engine.get("model"))
    return {
        frozenset((a.id, b.id)): f"{a.id} and {b.id}: template: {x} against {y}: not the same prompts, so not a comparison"
        " of runtimes"
        for a, b in pairs
        for x, y in template(a, b).values()
    }
