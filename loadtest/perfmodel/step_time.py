"""How long one engine step takes, and the steps of a request.

Pure arithmetic on rows of data. `step_time_s` adds up memory traffic, arithmetic, launches and all-reduces, each with a
constant of `constants`. Everything here is a prediction, never a measurement. How the constants were found, and how far off
they are, is in docs/performance-model.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from loadtest.perfmodel.constants import (
    PAGED_BLOCKS,
    QUERY_TILE,
    SMOOTHNESS,
    VLLM_0_5,
    VLLM_0_6,
    Constants,
    generation,
    reads_windows_by_pages,
)
from loadtest.perfmodel.gpus import Gpu
from loadtest.perfmodel.interconnect import all_reduce_s, all_to_all_s
from loadtest.perfmodel.memory import Deployment


@dataclass(frozen=True, slots=True)
class StepWork:
    """What one engine step computes.

    `prefill_tokens` prompt tokens processed, `prefill_pairs` query-key pairs they attend to (n tokens after c cached or
    already processed ones: n x c + n x (n + 1) / 2), `decode_streams` streams that gain one token (with speculation: those
    that the step accepts of its drafts too), `kv_read_tokens` the sum of their contexts.
    """

    prefill_tokens: int = 0
    prefill_pairs: int = 0
    decode_streams: int = 0
    kv_read_tokens: int = 0


@dataclass(frozen=True, slots=True)
class StepTime:
    """What a step is made of (seconds): launches and scheduling, weights and products, KV cache, prompt attention,
    all-reduces (with all-to-alls), drafts."""

    overhead_s: float
    weights_s: float
    kv_s: float
    attention_s: float
    all_reduce_s: float
    drafts_s: float

    @property
    def total_s(self) -> float:
        """The step (s)."""
        return self.overhead_s + self.weights_s + self.kv_s + self.attention_s + self.all_reduce_s + self.drafts_s


def step_time_s(deployment: Deployment, work: StepWork, constants: Constants | None = None) -> float:
    """Seconds of one engine step over the whole batch; 0 for a step without work.

    >>> from loadtest.perfmodel.gpus import gpu
    >>> from loadtest.perfmodel.models import model
    >>> one = Deployment(model("qwq-32b-awq"), gpu("l20"), 1)
    >>> 1 / 45 < step_time_s(one, StepWork(decode_streams=1, kv_read_tokens=1000)) < 1 / 25
    True
    """
    if not work.prefill_tokens + work.decode_streams:
        return 0.0
    return step_time(deployment, work, constants or deployment.constants).total_s


def step_time(deployment: Deployment, work: StepWork, constants: Constants) -> StepTime:
    """The parts of a step that has work. With speculation it drafts for the streams that decode, and verifies the drafts."""
    speculation, machine = deployment.speculation, constants.machine
    tokens = work.prefill_tokens + work.decode_streams
    if speculation is not None:
        tokens += speculation.draft_tokens * work.decode_streams
    return StepTime(
        _overhead_s(deployment, constants) * machine.overhead + _streams_s(deployment, work, constants) * machine.streams,
        _weights_s(deployment, tokens, constants),
        _kv_s(deployment, work, constants) * machine.kv,
        _attention_s(deployment, work, constants) * machine.prefill,
        _all_reduces_s(deployment, tokens, constants) * machine.all_reduce,
        speculation.draft_steps * _draft_s(deployment, constants) if speculation and work.decode_streams else 0.0,
    )


def _overhead_s(deployment: Deployment, constants: Constants) -> float:
    """A fixed time a step and a layer."""
    engine, model = constants.engine, deployment.model
    layer_s = engine.layer_s + (0.0 if model.quantisation == "bf16" else constants.kernels.quantised_layer_s)
    return engine.step_s + engine.parallel_step_s * math.log2(deployment.tp) + model.layers * layer_s


def _streams_s(deployment: Deployment, work: StepWork, constants: Constants) -> float:
    """A time for each stream and each token of its context."""
    engine = constants.engine
    context_s = engine.context_s + (engine.parallel_context_s if deployment.tp > 1 else 0.0)
    return work.decode_streams * engine.stream_s + work.kv_read_tokens * context_s


def _weights_s(deployment: Deployment, tokens: int, constants: Constants) -> float:
    """Read, unpack and multiply the layers' weights, which overlap; then the LM head.

    Weights stream at a share of the bandwidth, and no faster than the multiprocessors take them in. Experts: those that a
    batch of this many tokens is expected to touch; with expert parallel the GPU that has most of them decides.
    """
    model, gpu, machine = deployment.model, deployment.gpu, constants.machine
    routed = model.routed_bytes_read(tokens)
    if deployment.expert_parallel:
        routed *= model.busiest_share(tokens, deployment.tp)
    read_bytes = model.always_bytes + routed
    weights = read_bytes / (2 if model.quantisation == "bf16" else model.bits_per_weight / 8)
    memory_s = read_bytes / (gpu.bandwidth_bytes_per_s * constants.kernels.memory_efficiency)
    unpack_s = weights / _weights_per_cycle(deployment, constants) / gpu.cycles_per_s
    layers_s = _overlapped(
        memory_s * machine.weights, unpack_s * machine.weights, _products_s(deployment, tokens, constants) * machine.prefill
    )
    return (layers_s + _head_s(deployment, constants) * machine.weights) / deployment.tp


def _overlapped(*times_s: float) -> float:
    """Seconds of what runs at the same time: a little more than the longest."""
    longest = max(times_s)
    return longest * math.pow(sum((one / longest) ** SMOOTHNESS for one in times_s), 1 / SMOOTHNESS)


def _head_s(deployment: Deployment, constants: Constants) -> float:
    gpu, head_bytes = deployment.gpu, deployment.model.head_bytes
    return _overlapped(
        head_bytes / (gpu.bandwidth_bytes_per_s * constants.kernels.memory_efficiency),
        head_bytes / constants.gpu.bytes_per_cycle / gpu.cycles_per_s,
    )


def _weights_per_cycle(deployment: Deployment, constants: Constants) -> float:
    """Weights that one multiprocessor takes in during a clock cycle, by the kernel of the quantisation."""
    kernels, quantisation = constants.kernels, deployment.model.quantisation
    if quantisation == "bf16":
        return constants.gpu.bytes_per_cycle / 2
    if quantisation == "fp8" and deployment.gpu.fp8_flop_per_s:
        return kernels.weights_per_cycle_fp8
    return kernels.weights_per_cycle_8bit if quantisation in ("fp8", "int8-gptq") else kernels.weights_per_cycle_4bit


def _products_s(deployment: Deployment, tokens: int, constants: Constants) -> float:
    """Two operations a weight and token; FP8 at the FP8 rate where the GPU has one, other weights widened to 16 bit."""
    model, gpu, kernels = deployment.model, deployment.gpu, constants.kernels
    rate, factor = gpu.bf16_flop_per_s, 1.0
    if model.quantisation == "fp8" and gpu.fp8_flop_per_s:
        rate, factor = gpu.fp8_flop_per_s, kernels.products_fp8
    elif model.quantisation != "bf16":
        factor = kernels.products_8bit if model.quantisation in ("fp8", "int8-gptq") else kernels.products_4bit
    return 2 * model.active_parameters * tokens / (rate * constants.gpu.prefill_efficiency * factor)


def _kv_s(deployment: Deployment, work: StepWork, constants: Constants) -> float:
    """Read the KV cache of the streams that decode: their whole contexts, and of layers with a window the windows."""
    kv_bytes = work.kv_read_tokens * deployment.kv_bytes_per_token_per_gpu
    kv_bytes += work.decode_streams * deployment.window_bytes_per_gpu
    kv_s = kv_bytes / (deployment.gpu.bandwidth_bytes_per_s * constants.gpu.kv_efficiency)
    by_pages = deployment.model.window_tokens and reads_windows_by_pages(deployment.engine, deployment.engine_version)
    return _paged_s(deployment, work, kv_bytes, kv_s, constants) if by_pages else kv_s


def _paged_s(deployment: Deployment, work: StepWork, kv_bytes: float, kv_s: float, constants: Constants) -> float:
    """The same by PagedAttention, which FlashAttention needs `kv_s` for.

    Each query head reads the keys and values that grouped heads share once more. Up to 512 streams x heads a GPU, contexts
    are split into parts of 512 tokens, which hides it; beyond, one block reads a whole context (`paged_attn.py`, `use_v1`).
    """
    kernels, heads = constants.kernels, deployment.model.heads // deployment.tp
    split_s = kv_s * kernels.paged_attention
    if work.decode_streams * heads <= PAGED_BLOCKS:
        return split_s
    copies = heads / max(1.0, deployment.model.kv_heads / deployment.tp)
    return max(split_s, kv_bytes * copies / kernels.paged_bytes_per_s)


def _attention_s(deployment: Deployment, work: StepWork, constants: Constants) -> float:
    """Prompt attention in blocks (heads x tiles of 128 queries), which run in whole rounds of one a multiprocessor.

    A chunk of few blocks leaves multiprocessors idle: of two rounds of 108, 112 blocks use 112 / 216.
    """
    if not work.prefill_tokens:
        return 0.0
    gpu, model, tp = deployment.gpu, deployment.model, deployment.tp
    blocks = model.heads // tp * -(-work.prefill_tokens // QUERY_TILE)
    filled = blocks / (gpu.multiprocessors * -(-blocks // gpu.multiprocessors))
    flop = work.prefill_pairs * model.attention_flop_per_pair / tp
    return flop / (gpu.bf16_flop_per_s * constants.gpu.attention_efficiency * filled)


def _all_reduces_s(deployment: Deployment, tokens: int, constants: Constants) -> float:
    """Two all-reduces a layer, each of the 16-bit hidden states of the batch.

    With all-to-all the second one of a layer with experts is a dispatch, at 8 bit, and a combine, at 16 bit: each GPU sends
    its share of the tokens to the other GPUs that hold their experts, and receives as much.
    """
    model, tp = deployment.model, deployment.tp
    if tp == 1:
        return 0.0
    message_bytes = tokens * model.hidden * 2
    link = deployment.gpu.interconnect_bytes_per_s
    one_s = all_reduce_s(deployment.topology, tp, message_bytes, link, constants.links) + constants.engine.all_reduce_s
    if not deployment.all_to_all:
        return 2 * model.layers * one_s
    sent = tokens / tp * model.hidden * model.other_gpus(tp)
    exchange_s = sum(all_to_all_s(deployment.topology, tp, sent * width, link, constants.links) for width in (1, 2))
    return (2 * model.layers - model.moe_layers) * one_s + model.moe_layers * exchange_s


_DRAFT_VOCABULARY = 32_000  # of EAGLE-3's heads


def _draft_s(deployment: Deployment, constants: Constants) -> float:
    """Seconds of one pass of the head that drafts: launches, one 16-bit layer of the model's shape, a small vocabulary."""
    model, gpu = deployment.model, deployment.gpu
    read_bytes = 2 * (model.active_parameters / model.layers + _DRAFT_VOCABULARY * model.hidden)
    read_s = read_bytes / (gpu.bandwidth_bytes_per_s * constants.kernels.memory_efficiency * deployment.tp)
    return constants.kernels.draft_step_s * constants.machine.overhead + read_s * constants.machine.weights


_V0 = (VLLM_0_5, VLLM_0_6)


def mixes_prefill(deployment: Deployment) -> bool:
    """Do chunks of prompts share steps with streams that decode? In vLLM since V1; SGLang and older vLLM halt the others."""
    engine = deployment.engine.removesuffix("-sim")
    return engine == "vllm" and generation(engine, deployment.engine_version) not in _V0


def chunk_tokens(deployment: Deployment, total_tokens: int) -> int:
    """Prompt tokens of one prefill step, by the engines' defaults.

    SGLang cuts prompts at 2,048 tokens below 35 GB of GPU memory, at 4,096 below 60 GB, at 8,192 below 160 GB, at 16,384
    above (its `server_args.py`); vLLM since V1 at 2,048, on Hopper and later at 8,192 from 70 GB and at 16,384 from 160 GB
    (its `arg_utils.py`). vLLM before prefilled whole prompts up to a context of 32K, and beyond that in chunks of 512 (its
    pull request 4580). `other`: as SGLang.
    """
    engine, memory_gb = deployment.engine.removesuffix("-sim"), deployment.gpu.memory_bytes / 1e9
    if engine == "vllm" and generation(engine, deployment.engine_version) in _V0:
        return 512 if total_tokens > 32768 else 32768
    if memory_gb >= 160:
        return 16384
    if engine == "vllm":
        return 8192 if is_large(deployment.gpu) else 2048
    return 2048 if memory_gb < 35 else 4096 if memory_gb < 60 else 8192


def is_large(gpu: Gpu) -> bool:
    """Does vLLM since V1 take this GPU for a large one: 70 GB or more, but no A100?"""
    return gpu.memory_bytes >= 70e9 and not gpu.name.startswith("a100")


def prefill_s(deployment: Deployment, prompt_tokens: int, chunk: int, constants: Constants | None = None) -> float:
    """Seconds from the first step of a lone prompt to its first token, in steps of `chunk` tokens; nothing is cached.

    A step is linear in its pairs, so the whole chunks take their number times the mean of the first and the last of them.
    """
    return _chunks_s(deployment, prompt_tokens, chunk, 0, 0, constants or deployment.constants)


def beside_s(
    deployment: Deployment,
    prompt_tokens: int,
    chunk: int,
    streams: int,
    context_tokens: int,
    constants: Constants | None = None,
) -> float:
    """Seconds by which one prompt delays each of `streams` streams that decode at this mean context.

    Where the engine mixes them, what its chunks add to the steps that they share; else the whole prefill, which halts them.
    """
    constants = constants or deployment.constants
    if not streams or not mixes_prefill(deployment):
        return prefill_s(deployment, prompt_tokens, chunk, constants)
    shared = _chunks_s(deployment, prompt_tokens, chunk, streams, streams * context_tokens, constants)
    alone = step_time_s(deployment, StepWork(0, 0, streams, streams * context_tokens), constants)
    return shared - -(-prompt_tokens // chunk) * alone


def _chunks_s(
    deployment: Deployment, prompt_tokens: int, chunk: int, streams: int, kv_read_tokens: int, constants: Constants
) -> float:
    """Seconds of the steps of one prompt in chunks, each beside so many decoding streams."""

    def one(done: int, tokens: int) -> float:
        pairs = tokens * done + tokens * (tokens + 1) // 2
        return step_time_s(deployment, StepWork(tokens, pairs, streams, kv_read_tokens), constants) if tokens else 0.0

    whole, rest = divmod(prompt_tokens, chunk)
    seconds = one(whole * chunk, rest)
    return seconds + whole * (one(0, chunk) + one((whole - 1) * chunk, chunk)) / 2 if whole else seconds


def decode_s(
    deployment: Deployment, prompt_tokens: int, steps: int, streams: int = 1, constants: Constants | None = None
) -> float:
    """Seconds in which each of equal streams gains `steps` tokens; the context starts at the prompt and its first token.

    It grows by one a token, and a step is linear in it: the sum is the number of steps times the step at the mean context.
    With speculation a step yields several tokens.
    """
    constants = constants or deployment.constants
    doubled = streams * (2 * prompt_tokens + steps + 1)  # twice the mean context of all streams, a whole number
    low, high = (
        step_time_s(deployment, StepWork(0, 0, streams, context), constants)
        for context in (doubled // 2, doubled - doubled // 2)
    )
    a_step = deployment.speculation.accepted_tokens if deployment.speculation is not None else 1
    return steps / a_step * (low + high) / 2


def request_s(deployment: Deployment, prompt_tokens: int, output_tokens: int, constants: Constants | None = None) -> float:
    """Seconds of one lone request, prefill included: what Qwen's tables divide their 2048 tokens by."""
    chunk = chunk_tokens(deployment, prompt_tokens + output_tokens)
    first = prefill_s(deployment, prompt_tokens, chunk, constants)
    return first + decode_s(deployment, prompt_tokens, output_tokens - 1, 1, constants)
