"""What the hardware allows: does a model fit its cards, how fast could it decode, and how fast it probably will.

Pure arithmetic on the rows of `hardware` and `models`. `fit` counts bytes. `step_time_s` adds up one engine step from
memory traffic, arithmetic, launches and all-reduces, each slowed by one constant of `calibration`; `predict` sums the steps of
a request. Everything `predict` says is a prediction, never a measurement. How the constants were found, and how far off they
are, is in docs/performance-model.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadtest.calibration import CONSTANTS, Constants
from loadtest.errors import UsageError
from loadtest.hardware import Gpu
from loadtest.models import Model

DEFAULT_MEMORY_FRACTION = 0.9  # vLLM's gpu_memory_utilization before 0.92 became its default; SGLang's is near it
ACTIVATION_TOKENS = 2048  # tokens of one prefill chunk whose activations must fit beside the weights
RUNTIME_BYTES = 0.5e9  # graphs and workspaces a card, inside the share of memory the runtime takes

_ENGINES = ("sglang", "vllm", "other")


@dataclass(frozen=True, slots=True)
class Deployment:
    """A model on `tp` cards of one kind under one engine, which takes `memory_fraction` of each card's memory.

    Raises UsageError: a `tp` that does not divide the heads, a fraction outside (0, 1], an unknown engine.
    """

    model: Model
    gpu: Gpu
    tp: int
    engine: str = "other"
    memory_fraction: float = DEFAULT_MEMORY_FRACTION

    def __post_init__(self) -> None:
        if self.tp < 1 or self.model.heads % self.tp:
            raise UsageError(f"tp {self.tp}: expected a divisor of the {self.model.heads} attention heads of {self.model.title}")
        if not 0 < self.memory_fraction <= 1:
            raise UsageError(f"memory fraction {self.memory_fraction}: expected more than 0 and at most 1")
        if self.engine.removesuffix("-sim") not in _ENGINES:
            raise UsageError(f"engine {self.engine!r} is not known: expected sglang, vllm, sglang-sim, vllm-sim or other")

    @property
    def kv_bytes_per_token_per_card(self) -> float:
        """KV cache of one token on one card: KV heads are shared out, and copied where there are fewer than cards."""
        heads_per_card = max(1.0, self.model.kv_heads / self.tp)
        return self.model.kv_bytes_per_token * heads_per_card / self.model.kv_heads

    @property
    def title(self) -> str:
        """`QwQ-32B-AWQ on 2 x NVIDIA L20`."""
        return f"{self.model.title} on {self.tp} x {self.gpu.title}"


@dataclass(frozen=True, slots=True)
class Fit:
    """Bytes a card, tokens of KV cache over all cards, streams of `context_tokens`, and the single-stream bound.

    `fits` says that the weights and at least one stream of `context_tokens` fit; `fits_concurrency` that `concurrency` of them
    do at once. `kv_capacity_tokens` is 0 where not even the weights fit. `reason` is empty when it fits.
    `bound_tokens_per_s` reads all weights for each token; `bound_without_embedding_tokens_per_s` leaves the input embedding out,
    of which only a row is looked up. `lines` is the arithmetic for a reader.
    """

    fits: bool
    reason: str
    context_tokens: int
    concurrency: int
    fits_concurrency: bool
    max_streams: int
    memory_bytes_per_card: float
    usable_bytes_per_card: float
    weight_bytes_per_card: float
    overhead_bytes_per_card: float
    kv_bytes_per_card: float
    kv_bytes_per_token: float
    kv_capacity_tokens: int
    bound_tokens_per_s: float
    bound_without_embedding_tokens_per_s: float
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StepWork:
    """What one engine step computes.

    `prefill_tokens` prompt tokens processed, `prefill_pairs` query-key pairs they attend to (n tokens after c cached or already
    processed ones: n x c + n x (n + 1) / 2), `decode_streams` streams that gain one token, `kv_read_tokens` sum of their contexts.
    """

    prefill_tokens: int = 0
    prefill_pairs: int = 0
    decode_streams: int = 0
    kv_read_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """A predicted value with the range that the model's error on unseen models allows."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """What `concurrency` equal streams see, each with a prompt of `prompt_tokens` and an output of `output_tokens`.

    `ttft_s`, `tpot_s` (mean gap after the first token; null for one token), `tokens_per_s_per_user` = 1 / tpot_s,
    `output_tokens_per_s` over all streams, prefill included, `time_to_final_answer_s` of one stream, from send to last token.
    """

    simulated: bool
    ttft_s: Estimate
    tpot_s: Estimate | None
    tokens_per_s_per_user: Estimate | None
    output_tokens_per_s: Estimate
    time_to_final_answer_s: Estimate
    lines: tuple[str, ...]


def single_stream_bound_tokens_per_s(deployment: Deployment) -> float:
    """The most tokens a second that one stream can decode: bandwidth x tp / weight bytes, all weights read for each token.

    This is the arithmetic that published figures are held against. An untied input embedding is only looked up, so the strict
    bound is higher by its share (2 % for a 32B model at 16 bit, 9 % at 4 bit): `Fit.bound_without_embedding_tokens_per_s`.
    """
    return deployment.gpu.bandwidth_bytes_per_s * deployment.tp / deployment.model.weight_bytes


def fit(deployment: Deployment, *, context_tokens: int, concurrency: int = 1) -> Fit:
    """Count the bytes: weights, activations and KV cache of `concurrency` streams of `context_tokens` tokens each.

    Raises UsageError for counts below 1. A model that does not fit is an answer (`fits` false), not an error.
    """
    if context_tokens < 1 or concurrency < 1:
        raise UsageError(f"context of {context_tokens} tokens at concurrency {concurrency}: expected both at least 1")
    model, gpu = deployment.model, deployment.gpu
    usable = gpu.memory_bytes * deployment.memory_fraction
    weights = model.weight_bytes / deployment.tp
    overhead = _overhead_bytes_per_card(deployment)
    kv_bytes = max(0.0, usable - weights - overhead)
    capacity = int(kv_bytes // deployment.kv_bytes_per_token_per_card)
    streams = capacity // context_tokens
    answer = Fit(
        fits=streams >= 1,
        reason=_misfit(deployment, usable - weights - overhead, capacity, context_tokens),
        context_tokens=context_tokens,
        concurrency=concurrency,
        fits_concurrency=streams >= concurrency,
        max_streams=streams,
        memory_bytes_per_card=gpu.memory_bytes,
        usable_bytes_per_card=usable,
        weight_bytes_per_card=weights,
        overhead_bytes_per_card=overhead,
        kv_bytes_per_card=kv_bytes,
        kv_bytes_per_token=deployment.kv_bytes_per_token_per_card * deployment.tp,
        kv_capacity_tokens=capacity,
        bound_tokens_per_s=single_stream_bound_tokens_per_s(deployment),
        bound_without_embedding_tokens_per_s=gpu.bandwidth_bytes_per_s * deployment.tp / model.weight_bytes_read_per_token,
        lines=(),
    )
    return _with_lines(deployment, answer)


def _overhead_bytes_per_card(deployment: Deployment) -> float:
    """Activations of one prefill chunk (hidden state four times over, gate and up projections) and the runtime's own."""
    model = deployment.model
    widths = 4 * model.hidden + 2 * model.intermediate / deployment.tp
    return ACTIVATION_TOKENS * widths * 2 + RUNTIME_BYTES


def _misfit(deployment: Deployment, left_bytes: float, capacity: int, context_tokens: int) -> str:
    if left_bytes < 0:
        usable = deployment.gpu.memory_bytes * deployment.memory_fraction
        need = usable - left_bytes
        return (
            f"{deployment.title} needs {need / 1e9:.1f} GB a card for weights and activations, and {usable / 1e9:.1f} GB of "
            f"{deployment.gpu.memory_bytes / 1e9:.0f} GB may be used; use more or larger cards, or a quantised model"
        )
    if capacity < context_tokens:
        return (
            f"{deployment.title} leaves KV cache for {capacity:,} tokens, and one stream of {context_tokens:,} was asked for; "
            "lower the context, or use more cards"
        )
    return ""


def _with_lines(deployment: Deployment, answer: Fit) -> Fit:
    from dataclasses import replace

    model, gpu, tp = deployment.model, deployment.gpu, deployment.tp
    gb = 1e9
    lines = [
        f"{deployment.title}, tp {tp}: {'fits' if answer.fits else 'does not fit'}",
        f"  weights      {model.weight_bytes / gb:.1f} GB ({model.parameters / gb:.2f} B parameters, {model.quantisation})"
        f" / {tp} = {answer.weight_bytes_per_card / gb:.1f} GB a card",
        f"  usable       {gpu.memory_bytes / gb:.0f} GB x {deployment.memory_fraction:g} = {answer.usable_bytes_per_card / gb:.1f} GB a card",
        f"  overhead     {answer.overhead_bytes_per_card / gb:.1f} GB a card (activations of {ACTIVATION_TOKENS} tokens, graphs)",
        f"  KV cache     {answer.kv_bytes_per_card / gb:.1f} GB a card, {answer.kv_bytes_per_token:,.0f} bytes a token over all cards"
        f" = {answer.kv_capacity_tokens:,} tokens",
        f"  streams      {answer.kv_capacity_tokens:,} / {answer.context_tokens:,} tokens = {answer.max_streams} at once"
        f" ({answer.concurrency} asked for)",
        f"  bound        {gpu.bandwidth_bytes_per_s / gb:,.0f} GB/s x {tp} / {model.weight_bytes / gb:.1f} GB"
        f" = {answer.bound_tokens_per_s:.1f} tokens/s for one stream"
        f" ({answer.bound_without_embedding_tokens_per_s:.1f} without the input embedding)",
    ]
    if answer.reason:
        lines.append(f"  {answer.reason}")
    return replace(answer, lines=tuple(lines))


def step_time_s(deployment: Deployment, work: StepWork, constants: Constants = CONSTANTS) -> float:
    """Seconds of one engine step over the whole batch; 0 for a step without work.

    fixed + layers x launch + max(weights read, matrix arithmetic) + KV read + prefill attention + all-reduces.
    """
    tokens = work.prefill_tokens + work.decode_streams
    if not tokens:
        return 0.0
    return (
        _fixed_s(deployment, constants)
        + _matrices_s(deployment, tokens, constants)
        + _attention_s(deployment, work, constants)
        + _all_reduce_s(deployment, tokens, constants)
    )


def _fixed_s(deployment: Deployment, constants: Constants) -> float:
    return constants.step_s + deployment.model.layers * constants.layer_s


def _matrices_s(deployment: Deployment, tokens: int, constants: Constants) -> float:
    model, gpu, tp = deployment.model, deployment.gpu, deployment.tp
    read_s = model.weight_bytes_read_per_token / tp / (gpu.bandwidth_bytes_per_s * constants.memory_efficiency)
    compute_s = 2 * model.linear_parameters * tokens / tp / (gpu.bf16_flop_per_s * constants.prefill_efficiency)
    return max(read_s, compute_s)


def _attention_s(deployment: Deployment, work: StepWork, constants: Constants) -> float:
    gpu, tp = deployment.gpu, deployment.tp
    kv_bytes = work.kv_read_tokens * deployment.kv_bytes_per_token_per_card
    flop = work.prefill_pairs * deployment.model.attention_flop_per_pair / tp
    return kv_bytes / (gpu.bandwidth_bytes_per_s * constants.memory_efficiency) + flop / (
        gpu.bf16_flop_per_s * constants.attention_efficiency
    )


def _all_reduce_s(deployment: Deployment, tokens: int, constants: Constants) -> float:
    """Two all-reduces a layer: a fixed time, and a ring's 2 (tp - 1) / tp of the hidden states over the link."""
    model, gpu, tp = deployment.model, deployment.gpu, deployment.tp
    if tp == 1:
        return 0.0
    latency = constants.all_reduce_nvlink_s if gpu.interconnect == "nvlink" else constants.all_reduce_pcie_s
    traffic = 2 * (tp - 1) / tp * tokens * model.hidden * 2 / gpu.interconnect_bytes_per_s
    return 2 * model.layers * (latency + traffic)


def prefill_s(deployment: Deployment, prompt_tokens: int, constants: Constants = CONSTANTS) -> float:
    """Seconds from the first step of a lone prompt to its first token, in one step: nothing is cached, nothing else runs."""
    pairs = prompt_tokens * (prompt_tokens + 1) // 2
    return step_time_s(deployment, StepWork(prefill_tokens=prompt_tokens, prefill_pairs=pairs), constants)


def decode_s(deployment: Deployment, prompt_tokens: int, tokens: int, streams: int, constants: Constants = CONSTANTS) -> float:
    """Seconds of `tokens` decoding steps of `streams` equal streams after prompts of `prompt_tokens`; the context grows by one a step.

    A step's time is linear in the context, so the sum is `tokens` times the step at the mean context.
    """
    if tokens < 1:
        return 0.0
    total = streams * (2 * prompt_tokens + tokens + 1)  # twice the mean context of all streams
    even = step_time_s(deployment, StepWork(decode_streams=streams, kv_read_tokens=total // 2), constants)
    odd = step_time_s(deployment, StepWork(decode_streams=streams, kv_read_tokens=total - total // 2), constants)
    return tokens * (even + odd) / 2


def predict(deployment: Deployment, *, prompt_tokens: int, output_tokens: int, concurrency: int = 1) -> Prediction:
    """Predict `concurrency` equal requests that start together; those that the KV cache cannot hold at once wait their turn.

    Prompts are prefilled one after another, then all decode in one batch. Raises UsageError for counts below 1, FitError where
    not even one stream fits.
    """
    for name, count in (("prompt", prompt_tokens), ("output", output_tokens), ("concurrency", concurrency)):
        if count < 1:
            raise UsageError(f"{name} {count}: expected at least 1")
    prefill = prefill_s(deployment, prompt_tokens) * concurrency
    decode = decode_s(deployment, prompt_tokens, output_tokens - 1, concurrency)
    total = prefill + decode
    tpot = decode / (output_tokens - 1) if output_tokens > 1 else None
    return Prediction(
        simulated=True,
        ttft_s=_estimate(prefill),
        tpot_s=None if tpot is None else _estimate(tpot),
        tokens_per_s_per_user=None if tpot is None else _estimate(1 / tpot),
        output_tokens_per_s=_estimate(concurrency * output_tokens / total),
        time_to_final_answer_s=_estimate(total),
        lines=(),
    )


def _estimate(value: float) -> Estimate:
    return Estimate(value, value / (1 + CONSTANTS.relative_error), value * (1 + CONSTANTS.relative_error))
