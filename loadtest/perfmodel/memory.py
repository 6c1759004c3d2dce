"""Does a model fit the GPUs, and how many tokens of KV cache remain."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from loadtest.errors import UsageError
from loadtest.perfmodel.architecture import Model
from loadtest.perfmodel.constants import Constants, Machine, constants_of
from loadtest.perfmodel.gpus import Gpu
from loadtest.perfmodel.interconnect import Topology, check

DEFAULT_MEMORY_FRACTION = 0.9  # vLLM's gpu_memory_utilization before 0.92 became its default; SGLang's is near it

ACTIVATION_TOKENS = 2048  # tokens of one prefill chunk whose activations must fit beside the weights

ENGINE_BYTES = 0.5e9  # graphs and workspaces of a GPU, inside the share of memory the engine takes

MOST_TOKENS = 10**9  # tokens, or streams: beyond that a float no longer tells one more

_ENGINES = ("sglang", "vllm", "other")


@dataclass(frozen=True, slots=True)
class Speculation:
    """Speculative decoding: `draft_steps` passes of a small head draft `draft_tokens` for each stream, one step verifies
    them.

    `accepted_tokens` is the mean number of tokens that a step yields, the one that costs nothing included: measured, as it
    depends on the drafts and on what is asked. Raises UsageError: fewer than 1 token accepted, or more than were drafted and
    1.
    """

    accepted_tokens: float
    draft_tokens: int
    draft_steps: int

    def __post_init__(self) -> None:
        if self.draft_tokens < 1 or self.draft_steps < 1:
            raise UsageError(f"speculation: expected drafts of at least 1 token in 1 step, got {self}")
        if not 1 <= self.accepted_tokens <= self.draft_tokens + 1:
            raise UsageError(
                f"speculation: expected 1 to {self.draft_tokens + 1} accepted tokens a step, got {self.accepted_tokens:g}"
            )


def read_speculation(text: str) -> Speculation:
    """Speculation from `A,T,S`: tokens accepted a step, tokens drafted, drafting passes. Raises UsageError.

    >>> read_speculation("3.2,16,4")
    Speculation(accepted_tokens=3.2, draft_tokens=16, draft_steps=4)
    """
    try:
        accepted, tokens, steps = text.split(",")
        return Speculation(float(accepted), int(tokens), int(steps))
    except ValueError:
        raise UsageError(
            f"--speculation {text}: expected tokens accepted a step, tokens drafted and drafting passes, such as 3.2,16,4"
        ) from None


@dataclass(frozen=True, slots=True)
class Deployment:
    """A model on `tp` GPUs of one kind under one engine, which takes `memory_fraction` of each GPU's memory.

    `engine_version` as the engine says it ("": current). `interconnect` is how the GPUs reach each other (None: what the
    GPU's data sheet tells). `machine` is how this machine differs from the model. `speculation` is None without.
    `expert_parallel`: whole experts on each GPU, not a slice of all (vLLM `--enable-expert-parallel`, SGLang `--ep-size`);
    `all_to_all`: each token is sent to the GPUs of its experts and back (SGLang `--moe-a2a-backend`), where else each GPU
    has all tokens and an all-reduce adds up what its experts say.
    Raises UsageError: a `tp` that does not divide the heads, a fraction outside (0, 1], an unknown engine or interconnect,
    expert parallel without experts.
    """

    model: Model
    gpu: Gpu
    tp: int
    engine: str = "other"
    memory_fraction: float = DEFAULT_MEMORY_FRACTION
    engine_version: str = ""
    interconnect: str | None = None
    machine: Machine = field(default_factory=Machine)
    speculation: Speculation | None = None
    expert_parallel: bool = False
    all_to_all: bool = False

    def __post_init__(self) -> None:
        if self.expert_parallel and not self.model.experts:
            raise UsageError(f"expert parallel: expected a mixture of experts, got {self.model.title}, which has none")
        if self.all_to_all and not self.expert_parallel:
            raise UsageError("all-to-all: expected it with expert parallel, as experts that are sliced need no token sent")
        if self.tp < 1 or self.model.heads % self.tp:
            raise UsageError(
                f"tp {self.tp}: expected a divisor of the {self.model.heads} attention heads of {self.model.title}"
            )
        if not 0 < self.memory_fraction <= 1:
            raise UsageError(f"memory fraction {self.memory_fraction}: expected more than 0 and at most 1")
        if self.engine.removesuffix("-sim") not in _ENGINES:
            raise UsageError(f"engine {self.engine!r} is not known: expected sglang, vllm, sglang-sim, vllm-sim or other")
        if self.interconnect is not None:
            check(self.interconnect)

    @property
    def topology(self) -> Topology:
        """How the GPUs reach each other: as told, else as the data sheet says."""
        return self.gpu.interconnect if self.interconnect is None else check(self.interconnect)

    @property
    def constants(self) -> Constants:
        """The constants of this GPU, engine and machine."""
        return constants_of(self.gpu.name, self.engine, self.engine_version, self.machine)

    @property
    def kv_share(self) -> float:
        """Share of the KV cache that one GPU holds: heads are shared out, and copied where there are fewer than GPUs.

        A latent cache is copied to every GPU.
        """
        if self.model.kv_lora_rank:
            return 1.0
        return max(1.0, self.model.kv_heads / self.tp) / self.model.kv_heads

    @property
    def kv_bytes_per_token_per_gpu(self) -> float:
        """KV cache of one token on one GPU."""
        return self.model.kv_bytes_per_token * self.kv_share

    @property
    def window_bytes_per_gpu(self) -> float:
        """KV cache of one stream's layers with a window, on one GPU; 0 for models without."""
        return self.model.window_bytes * self.kv_share

    @property
    def title(self) -> str:
        """`QwQ-32B-AWQ on 2 x NVIDIA L20`."""
        return f"{self.model.title} on {self.tp} x {self.gpu.title}"


@dataclass(frozen=True, slots=True)
class Fit:
    """Bytes a GPU (`..._per_card`), tokens of KV cache over all GPUs, streams of `context_tokens`, and the single-stream
    bound.

    `fits` says that the weights and at least one stream of `context_tokens` fit; `fits_concurrency` that `concurrency` of
    them do at once. `kv_capacity_tokens` is 0 where not even the weights fit. `reason` is empty when it fits.
    `bound_tokens_per_s` reads all weights for each token; `bound_without_embedding_tokens_per_s` leaves out the input
    embedding, of which only a row is looked up. `lines` is the arithmetic for a reader.
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
    lines: tuple[str, ...] = ()


def single_stream_bound_tokens_per_s(deployment: Deployment) -> float:
    """The most tokens a second that one stream can decode: bandwidth x tp / weight bytes, all weights read for each token.

    This is the arithmetic that published figures are held against. An untied input embedding is only looked up, so the
    strict bound is higher by its share (2 % for a 32B model at 16 bit, 9 % at 4 bit): see `Fit`. Of a mixture of experts
    only the experts of one token are read.
    """
    model = deployment.model
    idle = model.routed_parameters * model.bits_per_weight / 8 - model.routed_bytes_read(1)
    return deployment.gpu.bandwidth_bytes_per_s * deployment.tp / (model.weight_bytes - idle)


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
    token_bytes, window_bytes = deployment.kv_bytes_per_token_per_gpu, deployment.window_bytes_per_gpu
    windows = int(kv_bytes // (context_tokens * token_bytes + window_bytes)) * window_bytes if window_bytes else 0.0
    capacity = int((kv_bytes - windows) // token_bytes)
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
        kv_bytes_per_token=deployment.kv_bytes_per_token_per_gpu * deployment.tp,
        kv_capacity_tokens=capacity,
        bound_tokens_per_s=single_stream_bound_tokens_per_s(deployment),
        bound_without_embedding_tokens_per_s=gpu.bandwidth_bytes_per_s * deployment.tp / model.weight_bytes_read_per_token,
    )
    return replace(answer, lines=_fit_lines(deployment, answer))


def _overhead_bytes_per_card(deployment: Deployment) -> float:
    """Activations of one prefill chunk (hidden state four times over, gate and up projections) and the engine's own."""
    model = deployment.model
    used = model.experts_per_token * model.expert_intermediate + model.shared_intermediate
    widths = 4 * model.hidden + 2 * max(model.intermediate, used) / deployment.tp
    return ACTIVATION_TOKENS * widths * 2 + ENGINE_BYTES


def _misfit(deployment: Deployment, left_bytes: float, capacity: int, context_tokens: int) -> str:
    if left_bytes < 0:
        usable = deployment.gpu.memory_bytes * deployment.memory_fraction
        need = usable - left_bytes
        return (
            f"{deployment.title} needs {need / 1e9:.1f} GB a GPU for weights and activations, and {usable / 1e9:.1f} GB "
            f"of {deployment.gpu.memory_bytes / 1e9:.0f} GB may be used; use more or larger GPUs, or a quantised model"
        )
    if capacity < context_tokens:
        return (
            f"{deployment.title} leaves KV cache for {capacity:,} tokens, and one stream of {context_tokens:,} was asked "
            "for; lower the context, or use more GPUs"
        )
    return ""


def _fit_lines(deployment: Deployment, answer: Fit) -> tuple[str, ...]:
    """The arithmetic of a fit for a reader."""
    model, gpu, tp = deployment.model, deployment.gpu, deployment.tp
    return (
        f"{deployment.title}: {'fits' if answer.fits else 'does not fit'}",
        f"  weights      {model.parameters / 1e9:.2f} B parameters as {model.quantisation}"
        f" = {model.weight_bytes / 1e9:.1f} GB, / {tp} = {answer.weight_bytes_per_card / 1e9:.1f} GB a GPU",
        f"  usable       {gpu.memory_bytes / 1e9:.0f} GB x {deployment.memory_fraction:g}"
        f" = {answer.usable_bytes_per_card / 1e9:.1f} GB a GPU",
        f"  overhead     {answer.overhead_bytes_per_card / 1e9:.1f} GB a GPU"
        f" (activations of {ACTIVATION_TOKENS:,} tokens, graphs)",
        f"  KV cache     {answer.kv_bytes_per_card / 1e9:.1f} GB a GPU x {tp}"
        f" / {answer.kv_bytes_per_token:,.0f} bytes a token = {answer.kv_capacity_tokens:,} tokens",
        f"  streams      {answer.kv_capacity_tokens:,} / {answer.context_tokens:,} tokens = {answer.max_streams} at once"
        f" ({answer.concurrency} asked for)",
        f"  bound        {gpu.bandwidth_bytes_per_s / 1e9:,.0f} GB/s x {tp}"
        f" / {gpu.bandwidth_bytes_per_s * tp / answer.bound_tokens_per_s / 1e9:.1f} GB"
        f" = {answer.bound_tokens_per_s:.1f} tokens/s for one stream"
        f" ({answer.bound_without_embedding_tokens_per_s:.1f} without the input embedding)",
        *([f"  {answer.reason}"] if answer.reason else []),
    )
