"""What a study asks of its cells: the contract that holds for all, and how each engine is started under it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from loadtest.client import thinking
from loadtest.client.reply import token_counter
from loadtest.errors import FitError, UsageError
from loadtest.metrics.slo import parse_slo
from loadtest.perfmodel import gpus, memory
from loadtest.servers import preflight, settings
from loadtest.servers.flags import LaunchSpec
from loadtest.study import locust_pass
from loadtest.study.schema import Cell, Study
from loadtest.workload.apis import check_api
from loadtest.workload.contract import Contract, check_format, check_lengths, from_table, within
from loadtest.workload.prompts import Prompt
from loadtest.workload.workload import Workload
from loadtest.workload.workload import load as load_workload

YARN_PROMPT_TOKENS = 8192  # QwQ's model card: prompts above this need YaRN

_CHARS_PER_TOKEN = 4  # English text


def asked(study: Study) -> tuple[Workload, Contract]:
    """What a study asks and how: the contract with YaRN where the prompts need it and the study does not say otherwise, and
    with room for the longest prompt in the smallest context of the cells. Raises `UsageError` where either is wrong.
    """
    locust_pass.scenario_path(study.scenario)
    if (tokenizer := study.scenario_options.get("tokenizer")) is not None:
        token_counter(str(tokenizer))
    workload = load_workload(study.workload)
    contract = from_table({"mode": study.lengths, "seed": study.seed, **(study.contract or {})})
    check_format(contract, workload.prompts)
    _check_bursts(study, workload)
    if "yarn" not in (study.contract or {}):
        contract = replace(contract, yarn=needs_yarn(workload.prompts))
    contexts = [known for cell in study.cells if (known := context_tokens(cell, contract)) is not None]
    if contexts:
        contract = within(contract, workload.prompts, min(contexts))
    check_lengths(contract, workload.prompts)
    for cell in study.cells:
        check_api(cell.api, cell.mode or study.lengths, workload.prompts)
    return workload, contract


def _check_bursts(study: Study, workload: Workload) -> None:
    """Raise `UsageError` where bursts should have a form: they are text of a forced length."""
    formed = next((prompt.id for prompt in workload.prompts if prompt.tools or prompt.response_format), None)
    if study.decides and formed is not None:
        raise UsageError(
            f'mode: expected natural, as bursts have no form and {formed!r} asks for one, got decision; add mode = "natural"'
        )


def too_few_requests(study: Study) -> list[str]:
    """The SLOs that levels of the study will have too few requests for, in words; none where their number is not known."""
    if study.duration_s is not None:
        return []
    found = []
    for text in study.slo:
        needed = parse_slo(text).requests_needed or 0
        short = [level for level in study.levels if study.requests(level) * study.repeats < needed]
        if short:
            levels = ", ".join(map(str, short))
            sent = study.requests(short[0]) * study.repeats
            found.append(
                f"{text} needs {needed} requests at a level; concurrency {levels} will have {sent} or more: too few"
            )
    return found


def needs_yarn(prompts: Iterable[Prompt]) -> bool:
    """Is any prompt longer than 8,192 tokens, at four characters a token?

    >>> needs_yarn([Prompt(id="a", messages=({"role": "user", "content": "word " * 10_000},))])
    True
    """
    longest = max(prompt.prompt_tokens or prompt.chars / _CHARS_PER_TOKEN for prompt in prompts)
    return longest > YARN_PROMPT_TOKENS


def context_tokens(cell: Cell, contract: Contract) -> int | None:
    """Prompt and output together that a cell serves; None where it is unknown: another's server, a model not known here."""
    stated = cell.context_tokens or contract.context_tokens
    if stated is not None or cell.base_url is not None:
        return stated
    if stretches(cell, contract):
        return settings.YARN_CONTEXT_TOKENS
    model = preflight.shape(cell.model)
    return None if model is None else model.native_context_tokens


def stretches(cell: Cell, contract: Contract) -> bool:
    """Is YaRN on? Told of the cell, or of the contract for a model that has the window of Qwen2.5 and needs it."""
    if cell.yarn or not contract.yarn:
        return cell.yarn
    model = preflight.shape(cell.model)
    return model is None or model.native_context_tokens <= settings.YARN_ORIGINAL_TOKENS


def engine_settings(cell: Cell, contract: Contract) -> settings.EngineSettings:
    """The settings of a cell's engine: those of the cell where it has its own, else the contract's."""
    return replace(
        settings.EngineSettings(**settings.setting_values(contract)),
        context_tokens=cell.context_tokens or contract.context_tokens,
        yarn=stretches(cell, contract),
        memory_fraction=memory_fraction(cell, contract),
        reasoning_parser=contract.reasoning_parser if may_think(cell.model) else None,
    )


def launch_spec(cell: Cell, contract: Contract, port: int) -> LaunchSpec:
    """How a cell's engine is to be started under a contract."""
    return LaunchSpec(
        engine=cell.engine,
        model=cell.model,
        tp=cell.tp,
        gpu=cell.gpu,
        port=port,
        clock_speed=cell.clock_speed,
        extra_args=(*_prediction_args(cell), *cell.args),
        executable=cell.executable,
        variables=cell.env,
        **settings.setting_values(engine_settings(cell, contract)),
    )


def _prediction_args(cell: Cell) -> list[str]:
    """What the simulator is told of the machine; a real engine is on it."""
    if not cell.simulated:
        return []
    told = (("--interconnect", preflight.topology_named(cell.interconnect)), ("--calibration", cell.calibration))
    return [word for flag, value in told if value is not None for word in (flag, value)]


def memory_fraction(cell: Cell, contract: Contract) -> float:
    """Share of a GPU that the engine of a cell may use in all: the cell's own setting, else the contract's."""
    return contract.memory_fraction if cell.memory_fraction is None else cell.memory_fraction


def may_think(model: str) -> bool:
    """Is it no instruct model? Such a model never thinks, and vLLM's parsers would take its answers for thinking."""
    return "instruct" not in model.lower() or thinking.opens_in_prompt(model)


def fit_of(cell: Cell, contract: Contract, concurrency: int = 1) -> memory.Fit | None:
    """Does one stream of the cell's context fit its GPUs, and do `concurrency` of them?

    None where the GPUs are not ours or not named, or the model is not known here.
    """
    if cell.gpu is None or cell.base_url is not None:
        return None
    model = preflight.shape(cell.model)
    if model is None:
        return None
    fraction = memory_fraction(cell, contract)
    deployment = memory.Deployment(model, gpus.gpu(cell.gpu), cell.tp, memory_fraction=fraction)
    context = context_tokens(cell, contract) or model.native_context_tokens
    return memory.fit(deployment, context_tokens=context, concurrency=concurrency)


def refuse_misfit(cell: Cell, contract: Contract) -> None:
    """Raise `FitError` with the arithmetic where the cell cannot fit its GPUs."""
    fit = fit_of(cell, contract)
    if fit is not None and not fit.fits:
        raise FitError(f"does not fit: {fit.reason}")
