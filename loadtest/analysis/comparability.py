"""Did two cells run alike: what their engines report of themselves, and how many tokens they count in the same prompts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from loadtest.records.engine_facts import EngineFacts
from loadtest.records.manifest import Manifest
from loadtest.records.read import CellRecords
from loadtest.servers.flags import settings_named
from loadtest.workload import contract

Values = tuple[object, object]  # of a key in which two sides differ: a's, b's

TEMPLATE = "template"  # keys beside those of the contract
TOOL = "tool"


def apart(a: CellRecords, b: CellRecords) -> dict[str, Values]:
    """Every key in which two cells ran differently, with both values; a key that either does not report is no difference.

    Keys of the contract by `contract.effective` of engine.json, both engines in the contract's words ("auto": the engine's
    own choice, which is no difference). What the arguments of a named configuration say is no difference either: it is what
    is compared. `template`: see `template`.
    """
    ours, theirs = _effective(a), _effective(b)
    meant = settings_named([word for cell in (a, b) if cell.engine.name is not None for word in cell.engine.args])
    found = {
        key: (ours[key], theirs[key])
        for key in ours
        if key in theirs and key not in meant and ours[key] != theirs[key] and "auto" not in (ours[key], theirs[key])
    }
    return found | template(a, b)


def _effective(cell: CellRecords) -> Mapping[str, object]:
    return {} if cell.engine.contract is None else cell.engine.contract.effective


def template(a: CellRecords, b: CellRecords) -> dict[str, Values]:
    """Under `template`, the first prompt that the two servers counted differently: their chat templates,
    or tokenizers, put something else before the model. Empty where all prompts that both counted agree."""
    ours, theirs = _prompt_tokens(a), _prompt_tokens(b)
    for prompt_id in sorted(ours.keys() & theirs.keys()):
        counts = (ours[prompt_id], theirs[prompt_id])
        if counts[0] != counts[1]:
            return {TEMPLATE: (f"{counts[0]} tokens of {prompt_id}", f"{counts[1]}")}
    return {}


def _prompt_tokens(cell: CellRecords) -> dict[str, int]:
    """Tokens of each prompt as the server counted them, of requests that are the workload's own: no later turn of a task, no
    second endpoint, no prompt that nobody names."""
    return {
        request.prompt_id: request.prompt_tokens
        for level in cell.levels
        for request in level.requests
        if request.prompt_tokens is not None
        and not request.turn
        and request.endpoint is None
        and "prompt" not in request.lacks
    }


def templates(cells: Sequence[CellRecords]) -> dict[frozenset[str], str]:
    """Pairs of cells of one run and one model, by their ids, whose chat templates differ: the reason, in words, why they are
    not compared."""
    pairs = ((a, b) for a, b in combinations(cells, 2) if a.engine.model == b.engine.model)
    return {
        frozenset((a.id, b.id)): f"{a.id} and {b.id}: template: {x} against {y}: not the same prompts, so not a comparison"
        " of engines"
        for a, b in pairs
        for x, y in template(a, b).values()
    }


def unlike(cells: Sequence[CellRecords]) -> dict[frozenset[str], tuple[str, ...]]:
    """Pairs of cells of one run and one model, by their ids, that ran differently: the keys (`apart`)."""
    pairs = ((a, b) for a, b in combinations(cells, 2) if a.engine.model == b.engine.model)
    return {frozenset((a.id, b.id)): tuple(keys) for a, b in pairs if (keys := apart(a, b))}


OF_RUN = ("mode", "scenario", "scenario_options", "clock_speed")

OF_PROMPTS = frozenset({"workload", "scenario", "scenario_options", "thinking_prelude"})  # what the server is given to count

OF_CELL = ("model", "tp", "gpu", "simulated", "n_servers", "proxy", "clock_speed")


def manifest_differences(a: Manifest, b: Manifest) -> dict[str, Values]:
    """Keys in which two runs were asked for different things, with both values: the workload, the mode, the
    scenario, the clock, and every key of the inference contract; and the tools that measured them, whose definitions differ.

    >>> manifest_differences(Manifest(run_id="a", mode="natural"), Manifest(run_id="b", mode="equal-work"))
    {'mode': ('natural', 'equal-work')}
    """
    identities = [one.workload and one.workload.identity for one in (a, b)]
    found: dict[str, Values] = {} if identities[0] == identities[1] else {"workload": (_workload(a), _workload(b))}
    found |= {key: (getattr(a, key), getattr(b, key)) for key in OF_RUN if getattr(a, key) != getattr(b, key)}
    if a.tool != b.tool:
        found[TOOL] = (a.tool, b.tool)
    if a.imported is not None and b.imported is not None:
        return found  # neither tells its contract: no difference is known
    contracts = [contract.from_table(one.contract) for one in (a, b)]
    return contract.contract_differences(*contracts) | found


def _workload(manifest: Manifest) -> str:
    workload = manifest.workload
    return "unknown" if workload is None else f"{workload.source} ({workload.identity[:8]})"


def matched(old: Sequence[CellRecords], new: Sequence[CellRecords]) -> list[tuple[CellRecords, CellRecords]]:
    """Which cell is held against which: those of one id; of the others, those that alone on each side have a model, tp,
    GPU and mode (so that engines may differ); and, where that pairs none, the only cell of each run."""
    by_id = {cell.id: cell for cell in new}
    pairs = [(cell, by_id[cell.id]) for cell in old if cell.id in by_id]
    taken = {cell.id for cell, _ in pairs}
    sides = [_by_place(cell for cell in side if cell.id not in taken) for side in (old, new)]
    for place in sides[0].keys() & sides[1].keys():
        if len(sides[0][place]) == len(sides[1][place]) == 1:
            pairs.append((sides[0][place][0], sides[1][place][0]))
    if not pairs and len(old) == len(new) == 1:
        pairs = [(old[0], new[0])]
    return sorted(pairs, key=lambda pair: (pair[0].id, pair[1].id))


def _by_place(side: Iterator[CellRecords]) -> dict[tuple[str, ...], list[CellRecords]]:
    found: dict[tuple[str, ...], list[CellRecords]] = defaultdict(list)
    for cell in side:
        place = (_model(cell.engine), str(cell.engine.tp), str(cell.engine.gpu), str(cell.engine.mode))
        found[place].append(cell)
    return found


def _model(facts: EngineFacts) -> str:
    return str(facts.model).rstrip("/").rsplit("/", 1)[-1].lower()


def all_differences(old: CellRecords, new: CellRecords) -> dict[str, Values]:
    """Every key in which two cells differ, with both values: what they are, and how they ran."""
    found = {key: (getattr(old.engine, key), getattr(new.engine, key)) for key in different(old.engine, new.engine)}
    ran = apart(old, new)
    if "model" in found:
        ran.pop(TEMPLATE, None)  # another model may have another template
    return found | ran


def different(a: EngineFacts, b: EngineFacts) -> tuple[str, ...]:
    """Keys in which two cells differ, apart from the engine and its version; one model under two names is the same."""
    apart = [key for key in OF_CELL if key != "model" and getattr(a, key) != getattr(b, key)]
    return (*(["model"] if _model(a) != _model(b) else []), *apart)
