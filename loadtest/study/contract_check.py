"""What an engine runs against what the contract asks of it, from the server's own information."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from loadtest.client import thinking
from loadtest.servers import flags, probe
from loadtest.study.plan import context_tokens, may_think, memory_fraction, stretches
from loadtest.study.schema import Cell
from loadtest.workload.contract import Contract


def held(
    cell: Cell, contract: Contract, argv: Sequence[str], info: probe.ServerInfo, prelude: str | None = None
) -> dict[str, Any]:
    """The launcher's half of the contract against what a runtime really runs with: `{requested, effective, violations}`.

    From its command line (empty: not started by us), what SGLang tells of itself, the context that it serves, and how its
    template ends a prompt (`prelude`). One memory share and one word for a KV type stand for both runtimes, in the
    contract's sense; `requested` has them in this one's too, where it differs. What a runtime does not tell is neither
    effective nor a violation.
    """
    asked_for = _requested(cell, contract)
    in_its_words = dict(asked_for)
    if cell.engine == "sglang":
        in_its_words["memory_fraction"] = flags.sglang_memory_fraction(asked_for["memory_fraction"])
        in_its_words["kv_dtype"] = flags.sglang_kv_dtype(asked_for["kv_dtype"])
    known = () if cell.simulated else argv
    found = flags.effective(cell.engine, argv=known, server_info=info.settings, max_model_len=info.max_model_len)
    if cell.engine == "sglang":
        found = _in_common_words(found)
    if prelude is not None:
        found["thinking_prelude"] = prelude
    if cell.base_url is not None and cell.memory_fraction is None:
        found.pop("memory_fraction", None)  # of another's server: its own affair, unless the study says otherwise
    wanted = replace(contract, max_tokens=1, **{key: value for key, value in asked_for.items() if value is not None})
    open_keys = {"thinking_prelude"} if asked_for["thinking_prelude"] is None else set()
    wrong = flags.violations(wanted, {key: value for key, value in found.items() if key not in open_keys})
    differs = {key: in_its_words[key] for key in in_its_words if in_its_words[key] != asked_for[key]}
    return {
        "requested": {**asked_for, **({"in_its_words": differs} if differs else {})},
        "effective": found,
        "violations": [f"{key}: expected {expected}, got {got}" for key, (expected, got) in wrong.items()],
    }


def _in_common_words(found: dict[str, Any]) -> dict[str, Any]:
    """SGLang's settings as the contract has them: its memory share as one of everything, its word for a KV type."""
    answer = dict(found)
    if isinstance(answer.get("memory_fraction"), float):
        answer["memory_fraction"] = round(answer["memory_fraction"] / flags.SGLANG_STATIC_SHARE, 3)
    if answer.get("kv_dtype") == flags.sglang_kv_dtype("fp8"):
        answer["kv_dtype"] = "fp8"
    return answer


def _prelude(cell: Cell, contract: Contract) -> str | None:
    """How the prompt should end; null where the template decides and the model's name does not tell how it does."""
    return (
        None
        if contract.thinking_prelude == "template" and not thinking.opens_in_prompt(cell.model)
        else contract.thinking_prelude
    )


def _requested(cell: Cell, contract: Contract) -> dict[str, Any]:
    """What a cell's runtime is asked to be."""
    stretched = stretches(cell, contract) if cell.base_url is None else contract.yarn
    return {
        "context_tokens": context_tokens(cell, contract),
        "yarn": stretched,
        "memory_fraction": memory_fraction(cell, contract),
        "reasoning_parser": contract.reasoning_parser if may_think(cell.model) else None,
        "thinking_prelude": _prelude(cell, contract),
        "prefix_caching": contract.prefix_caching,
        "kv_dtype": contract.kv_dtype,
        "quantisation_kernel": contract.quantisation_kernel,
    }
