"""What a study asks of its cells: the contract that holds for all, and how each runtime is started under it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from loadtest import engines, hardware, launch, passes, preflight, roofline, settings, thinking
from loadtest.contract import Contract, check_format, from_table, within
from loadtest.errors import FitError
from loadtest.prompts import Prompt
from loadtest.reply import token_counter
from loadtest.study import Cell, Study
from loadtest.workload import Workload
from loadtest.workload import load as load_workload

YARN_PROMPT_TOKENS = 8192  # QwQ's model card: prompts above this need YaRN
_YARN_CONTEXT_TOKENS = int(launch.YARN_FACTOR * launch.YARN_ORIGINAL_TOKENS)
_CHARS_PER_TOKEN = 4  # English text


def asked(study: Study) -> tuple[Workload, Contract]:
    """What a study asks and how: the contract with YaRN where the prompts need it and the study does not say otherwise, and
    with room for the longest prompt in the smallest context of the cells. Raises `UsageError` where either is wrong.
    """
    passes.scenario_path(study.scenario)
    if (tokenizer := study.scenario_options.get("tokenizer")) is not None:
        token_counter(str(tokenizer))
    workload = load_workload(study.workload)
    contract = from_table({"mode": study.mode, "seed": study.seed, **(study.contract or {})})
    check_format(contract, workload.prompts)
    if "yarn" not in (study.contract or {}):
        contract = replace(contract, yarn=needs_yarn(workload.prompts))
    contexts = [known for cell in study.cells if (known := context_tokens(cell, contract)) is not None]
    return workload, within(contract, workload.prompts, min(contexts)) if contexts else contract


def needs_yarn(prompts: Iterable[Prompt]) -> bool:
    """Is any prompt longer than 8,192 tokens, at four characters a token?

    >>> needs_yarn([Prompt(id="a", messages=({"role": "user", "content": "word " * 10_000},))])
    True
    """
    longest = max(sum(len(message["content"]) for message in prompt.messages) for prompt in prompts)
    return longest / _CHARS_PER_TOKEN > YARN_PROMPT_TOKENS


def context_tokens(cell: Cell, contract: Contract) -> int | None:
    """Prompt and output together that a cell serves; null where nobody says: a server that runs, a model not known here."""
    stated = cell.context_tokens or contract.context_tokens
    if stated is not None or cell.base_url is not None:
        return stated
    if _stretches(cell, contract):
        return _YARN_CONTEXT_TOKENS
    model = preflight.shape(cell.model)
    return None if model is None else model.native_context_tokens


def _stretches(cell: Cell, contract: Contract) -> bool:
    """Is YaRN on? Told of the cell, or of the contract for a model that has the window of Qwen2.5 and needs it."""
    if cell.yarn or not contract.yarn:
        return cell.yarn
    model = preflight.shape(cell.model)
    return model is None or model.native_context_tokens <= launch.YARN_ORIGINAL_TOKENS


def launch_spec(cell: Cell, contract: Contract, port: int) -> engines.LaunchSpec:
    """How a cell's runtime is to be started under a contract."""
    return engines.LaunchSpec(
        engine=cell.engine,
        model=cell.model,
        tp=cell.tp,
        gpu=cell.gpu,
        port=port,
        context_tokens=cell.context_tokens or contract.context_tokens,
        yarn=_stretches(cell, contract),
        memory_fraction=memory_fraction(cell, contract),
        reasoning_parser=contract.reasoning_parser if _may_think(cell.model) else None,
        prefix_caching=contract.prefix_caching,
        kv_dtype=contract.kv_dtype,
        quantisation_kernel=contract.quantisation_kernel,
        seed=contract.seed,
        clock_speed=cell.clock_speed,
        extra_args=cell.args,
    )


def memory_fraction(cell: Cell, contract: Contract) -> float:
    """Share of a card that the runtime of a cell may use in all: its own setting, else the contract's."""
    return contract.memory_fraction if cell.memory_fraction is None else cell.memory_fraction


def _may_think(model: str) -> bool:
    """Is it other than an instruct model, which never thinks? vLLM's parsers would take all that one says for thinking."""
    return "instruct" not in model.lower() or thinking.opens_in_prompt(model)


def fit_of(cell: Cell, contract: Contract, concurrency: int = 1) -> roofline.Fit | None:
    """Does one stream of the cell's context fit its cards, and do `concurrency` of them?

    Null where cards are not ours or not named, or the model is not known here.
    """
    if cell.gpu is None or cell.base_url is not None:
        return None
    model = preflight.shape(cell.model)
    if model is None:
        return None
    fraction = memory_fraction(cell, contract)
    deployment = roofline.Deployment(model, hardware.gpu(cell.gpu), cell.tp, memory_fraction=fraction)
    context = context_tokens(cell, contract) or model.native_context_tokens
    return roofline.fit(deployment, context_tokens=context, concurrency=concurrency)


def refuse_misfit(cell: Cell, contract: Contract) -> None:
    """Raise `FitError` with the arithmetic where the cell cannot fit its cards."""
    fit = fit_of(cell, contract)
    if fit is not None and not fit.fits:
        raise FitError(f"does not fit: {fit.reason}")


def held(
    cell: Cell, contract: Contract, argv: Sequence[str], info: engines.ServerInfo, prelude: str | None = None
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
        in_its_words["memory_fraction"] = launch.sglang_memory_fraction(asked_for["memory_fraction"])
        in_its_words["kv_dtype"] = launch.sglang_kv_dtype(asked_for["kv_dtype"])
    known = () if cell.simulated else argv
    found = settings.effective(cell.engine, argv=known, server_info=info.settings, max_model_len=info.max_model_len)
    if cell.engine == "sglang":
        found = _in_common_words(found)
    if prelude is not None:
        found["thinking_prelude"] = prelude
    if cell.base_url is not None and cell.memory_fraction is None:
        found.pop("memory_fraction", None)  # of another's server: its own affair, unless the study says otherwise
    wanted = replace(contract, max_tokens=1, **{key: value for key, value in asked_for.items() if value is not None})
    open_keys = {"thinking_prelude"} if asked_for["thinking_prelude"] is None else set()
    wrong = settings.violations(wanted, {key: value for key, value in found.items() if key not in open_keys})
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
        answer["memory_fraction"] = round(answer["memory_fraction"] / launch.SGLANG_STATIC_SHARE, 3)
    if answer.get("kv_dtype") == launch.sglang_kv_dtype("fp8"):
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
    stretched = _stretches(cell, contract) if cell.base_url is None else contract.yarn
    return {
        "context_tokens": context_tokens(cell, contract),
        "yarn": stretched,
        "memory_fraction": memory_fraction(cell, contract),
        "reasoning_parser": contract.reasoning_parser if _may_think(cell.model) else None,
        "thinking_prelude": _prelude(cell, contract),
        "prefix_caching": contract.prefix_caching,
        "kv_dtype": contract.kv_dtype,
        "quantisation_kernel": contract.quantisation_kernel,
    }
