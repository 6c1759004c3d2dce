"""From a deployment to what the simulator needs: the engine's configuration, what is served, and the time of a step.

The process behind HTTP and a study that is fast-forwarded are set up by this one function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from loadtest.errors import FitError
from loadtest.perfmodel import memory, step_time
from loadtest.perfmodel.architecture import Model
from loadtest.perfmodel.memory import Deployment
from loadtest.perfmodel.step_time import StepWork
from loadtest.simulator.core.behaviour import Behaviour, behaviour
from loadtest.simulator.core.chat import Served
from loadtest.simulator.core.engine import EngineConfig

# A reasoning model serves an output of its native context after a prompt of up to this without YaRN (Qwen's own advice:
# YaRN for prompts over 8,192 tokens, outputs up to 32,768).
_PROMPT_ROOM_TOKENS = 8192
# vLLM 0.32.0 as seen: this parser tells 0 reasoning tokens where the opening tag came with the prompt, as it does for QwQ.
_COUNTS_NO_THINKING = (("vllm-sim", "deepseek_r1"),)
_REASONING = ("qwq", "qwen3", "r1", "think", "reason", "gpt-oss", "magistral", "glm-z1", "glm-4.5")


@dataclass(frozen=True, slots=True)
class Simulation:
    """A simulated engine, ready to run."""

    config: EngineConfig
    served: Served
    step_time_s: Callable[[StepWork], float]


def simulate(
    deployment: Deployment,
    *,
    served_name: str | None = None,
    context_tokens: int | None = None,
    kv_tokens: int | None = None,
    max_running: int | None = None,
    max_queued: int | None = None,
    prefill_budget_tokens: int | None = None,
    prefix_cache: bool = True,
    reasoning_parser: str = "qwen3",
    seed: int = 0,
    length_scale: float = 1.0,
    invalid_share: float = 0.0,
) -> Simulation:
    """Simulate the deployment's engine, `vllm-sim` or `sglang-sim`; what is not given is the engine's or the GPU's own.

    Raises FitError where the model does not fit the GPUs, in the words of the engine; UsageError for an engine that is not
    a simulator.

    >>> from loadtest.perfmodel.gpus import gpu
    >>> from loadtest.perfmodel.models import model
    >>> simulate(Deployment(model("qwq-32b-awq"), gpu("l20"), 1, "sglang-sim")).served.context_tokens
    40960
    """
    like = behaviour(deployment.engine)
    context = context_tokens or default_context_tokens(deployment.model)
    room = kv_tokens or _kv_tokens(deployment, context)
    _check_room(like, context, room)
    config = EngineConfig(
        behaviour=like,
        kv_tokens=room,
        max_running=max_running or (like.max_running_large if step_time.is_large(deployment.gpu) else like.max_running),
        max_queued=max_queued,
        prefill_budget_tokens=prefill_budget_tokens or step_time.chunk_tokens(deployment, context),
        prefix_cache=prefix_cache,
        speculation=deployment.speculation,
    )
    served = Served(
        behaviour=like,
        model=served_name or deployment.model.name,
        context_tokens=context,
        kv_tokens=room,
        seed=seed,
        thinks=_thinks(deployment.model),
        separates=reasoning_parser != "none",
        counts_thinking=(like.name, reasoning_parser) not in _COUNTS_NO_THINKING,
        length_scale=length_scale,
        invalid_share=invalid_share,
    )
    return Simulation(config, served, lambda work: step_time.step_time_s(deployment, work))


def default_context_tokens(model: Model) -> int:
    """Prompt and output together (tokens): the native context, and 8,192 more for a reasoning model that serves so many."""
    native = model.native_context_tokens
    return min(native + _PROMPT_ROOM_TOKENS, max(native, model.context_tokens)) if _thinks(model) else native


def _thinks(model: Model) -> bool:
    return any(mark in model.name.lower() for mark in _REASONING)


def _kv_tokens(deployment: Deployment, context: int) -> int:
    fit = memory.fit(deployment, context_tokens=context, concurrency=1)
    if fit.kv_capacity_tokens < 1:
        raise FitError(out_of_memory(deployment.engine, fit.reason))
    return fit.kv_capacity_tokens


def out_of_memory(engine: str, reason: str) -> str:
    """The line that an engine ends with when its GPUs are too small."""
    return f"torch.OutOfMemoryError: CUDA out of memory (simulated, {engine}). {reason}"


def _check_room(like: Behaviour, context: int, kv_tokens: int) -> None:
    """The vLLM-like refuses a cache that does not hold one request of full context, as the engine does."""
    kv_tokens -= kv_tokens % like.page_tokens
    if like.needs_room_for_context and kv_tokens < context:
        raise FitError(
            f"ValueError: To serve at least one request with the model's max seq len ({context}), more KV cache is needed "
            f"than the {kv_tokens} tokens that are available (simulated, {like.name}); lower --context-length or add GPUs"
        )
