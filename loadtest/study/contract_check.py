"""What an engine runs with against what the contract asks of it, by its command line and its own information."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from loadtest.client import thinking
from loadtest.records.engine_facts import ContractFacts
from loadtest.servers import flags, probe, settings
from loadtest.study.plan import context_tokens, engine_settings
from loadtest.study.schema import Cell
from loadtest.workload.contract import Contract

_COMPARED = tuple(row.key for row in settings.SETTINGS if row.compared)


def check_contract(
    cell: Cell, contract: Contract, argv: Sequence[str], info: probe.ServerInfo, prelude: str | None = None
) -> ContractFacts:
    """The engine's half of the contract against what the engine really runs with.

    From its command line (empty: not started by us), what it tells of itself, the context that it serves, and how its
    template ends a prompt (`prelude`). Values are in the contract's sense; `requested` has under `in_its_words` those for
    which this engine has another word or number. What an engine does not tell is neither effective nor a violation.
    """
    asked = _requested(cell, contract)
    known = () if cell.simulated else argv
    found = flags.effective(cell.engine, argv=known, server_info=info.settings, max_model_len=info.max_model_len)
    if prelude is not None:
        found["thinking_prelude"] = prelude
    if cell.base_url is not None and cell.memory_fraction is None:
        found.pop("memory_fraction", None)  # another's server may use what it likes, unless the study says otherwise
    if cell.name is not None:  # a configuration of its own: what its arguments say is what is asked of it
        told = flags.effective(cell.engine, argv=cell.args)
        asked |= {key: told[key] for key in flags.settings_named(cell.args) if key in told}
    wanted = settings.setting_values(contract) | {key: value for key, value in asked.items() if value is not None}
    wrong = flags.disagreements(wanted, found)
    words = flags.engine_words(cell.engine, asked)
    return ContractFacts(
        requested=asked | ({"in_its_words": words} if words else {}),
        effective=found,
        violations=tuple(f"{key}: expected {expected}, got {got}" for key, (expected, got) in wrong.items()),
    )


def _requested(cell: Cell, contract: Contract) -> dict[str, Any]:
    """What a cell's engine is asked to be; another's server is asked for no more than the contract says."""
    asked = replace(engine_settings(cell, contract), context_tokens=context_tokens(cell, contract))
    if cell.base_url is not None:
        asked = replace(asked, yarn=contract.yarn)
    return {key: getattr(asked, key) for key in _COMPARED} | {"thinking_prelude": _prelude(cell, contract)}


def _prelude(cell: Cell, contract: Contract) -> str | None:
    """How the prompt should end; None where the template decides and the model's name does not tell how."""
    if contract.thinking_prelude == "template" and not thinking.opens_in_prompt(cell.model):
        return None
    return contract.thinking_prelude
