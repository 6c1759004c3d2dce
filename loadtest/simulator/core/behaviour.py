"""How the two simulated engines differ, as data: one row each, every difference with its source.

None of this is a verdict on speed. Where no difference is known both rows hold the same value, and the time of a step
comes from one performance model for both. Sources, by short name:

vllm-docs      vLLM documentation, "Optimization and Tuning" and "SchedulerConfig" (V1 scheduler)
vllm-seen      vLLM 0.32.0, its own answers and `/metrics` on a CPU
sglang-seen    SGLang 0.5.15 and 0.5.23, their own answers, `/server_info` and `/metrics` on a CPU
sglang-code    SGLang `managers/schedule_policy.py` and `managers/schedule_batch.py`, environment defaults
"""

from __future__ import annotations

from dataclasses import dataclass

from loadtest.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """One simulated engine: scheduling, cache and the shape of its answers."""

    name: str
    # Scheduling. vllm-docs: running requests first, prefill in what is left of the budget, in one mixed batch; sglang-seen:
    # `enable_mixed_chunk: false`, so a batch is prefill or decode, and prefill goes first.
    mixed_batches: bool
    # vllm-docs: max_num_batched_tokens 2048; sglang-seen: chunked_prefill_size 4096 on this size of memory.
    prefill_budget_tokens: int
    # vLLM's arg_utils.py: max_num_seqs of a server, and on a large GPU; sglang-seen: max_running_requests 4096
    max_running: int
    max_running_large: int
    page_tokens: int  # vllm-docs: 16 on GPUs; sglang-seen: page_size 1
    radix: bool  # sglang-seen: radix tree; vllm-docs: hashes of blocks
    # Admission. sglang-code: a share of the output still allowed to running requests is held back, from 0.7 down to 0.098
    # over 600 decode steps, counting at most 4096 tokens a request; vLLM holds nothing back and preempts instead.
    reserves_output: bool
    # Answers.
    thinking_field: str  # vllm-seen: reasoning; sglang-seen: reasoning_content
    knows_its_models: bool  # vllm-seen: 404 on an unknown model; sglang-seen: served anyway
    clamps_max_tokens: bool  # vllm-seen: prompt + max_tokens over the context is cut silently; sglang-seen: 400
    needs_room_for_context: bool  # vllm-docs: refuses to start when one request of full context does not fit the cache
    version: str  # the version whose answers it copies


RESERVE_RATIO_START = 0.7  # sglang-seen: `sglang:new_token_ratio` 0.7 at rest; sglang-code: SGLANG_INIT_NEW_TOKEN_RATIO
RESERVE_RATIO_LOW = 0.7 * 0.14  # sglang-code: SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR
RESERVE_DECAY_STEPS = 600  # sglang-code: SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS
RESERVE_CLIP_TOKENS = 4096  # sglang-code: SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION
RETRACT_AHEAD_STEPS = 20  # sglang-code: SGLANG_RETRACT_DECODE_STEPS
LOG_STEPS = 40  # sglang-code: decode_log_interval, over which it averages what became of drafts

_VLLM = Behaviour(
    name="vllm-sim",
    mixed_batches=True,
    prefill_budget_tokens=2048,
    max_running=256,
    max_running_large=1024,
    page_tokens=16,
    radix=False,
    reserves_output=False,
    thinking_field="reasoning",
    knows_its_models=True,
    clamps_max_tokens=True,
    needs_room_for_context=True,
    version="0.32.0",
)

_SGLANG = Behaviour(
    name="sglang-sim",
    mixed_batches=False,
    prefill_budget_tokens=4096,
    max_running=4096,
    max_running_large=4096,
    page_tokens=1,
    radix=True,
    reserves_output=True,
    thinking_field="reasoning_content",
    knows_its_models=False,
    clamps_max_tokens=False,
    needs_room_for_context=False,
    version="0.5.23",
)

BEHAVIOURS = {behaviour.name: behaviour for behaviour in (_VLLM, _SGLANG)}


def behaviour(name: str) -> Behaviour:
    """The row of a simulated engine.

    >>> behaviour("sglang-sim").thinking_field
    'reasoning_content'
    """
    try:
        return BEHAVIOURS[name]
    except KeyError:
        raise UsageError(f"--engine: expected one of {', '.join(BEHAVIOURS)}, got {name!r}") from None
