"""The constants of the performance model: what kernels reach of a data sheet, and what an engine adds to each step.

Fitted by `python -m loadtest.perfmodel.calibration` to published measurements, of which a part was held back (`held_back`);
what those cannot show has its source beside it. docs/performance-model.md says how far off they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from loadtest.errors import UsageError
from loadtest.perfmodel.interconnect import LINKS, Link

QUERY_TILE = 128  # query rows that one attention block works on (FlashAttention-2 and later)
PAGED_BLOCKS = 512  # streams x heads a GPU up to which PagedAttention splits contexts
SMOOTHNESS = 3  # of the roofline: (memory^3 + unpacking^3 + arithmetic^3)^(1/3); held against Marlin's own table


@dataclass(frozen=True, slots=True)
class EngineConstants:
    """What one generation of engines adds to a step (seconds).

    `step_s` a step (scheduling, sampling), `layer_s` a layer (launches, small kernels), `stream_s` a stream in the batch,
    `context_s` a token of context in the batch (block tables built anew each step). With several GPUs also
    `parallel_step_s` x log2(tp) a step, `parallel_context_s` a token of context, and `all_reduce_s` an all-reduce.
    """

    step_s: float
    layer_s: float
    stream_s: float
    source: str
    context_s: float = 0.0
    parallel_step_s: float = 0.0
    parallel_context_s: float = 0.0
    all_reduce_s: float = 0.0


@dataclass(frozen=True, slots=True)
class GpuConstants:
    """What kernels reach on one GPU.

    `bytes_per_cycle`: 16-bit weights that a multiprocessor takes in a clock cycle. `kv_efficiency`: share of the bandwidth
    at which the KV cache is read. `prefill_efficiency`: share of the tensor rate in matrix products. `attention_efficiency`:
    the same in prompt attention when it fills the GPU.
    """

    bytes_per_cycle: float
    kv_efficiency: float
    prefill_efficiency: float
    attention_efficiency: float
    source: str


@dataclass(frozen=True, slots=True)
class KernelConstants:
    """What holds on every GPU.

    `memory_efficiency`: share of the bandwidth at which weights stream where nothing else is in the way.
    `weights_per_cycle_*`: weights that a multiprocessor unpacks in a clock cycle (Marlin-class kernels; FP8 by its own).
    `products_*`: share of the 16-bit kernel's efficiency (FP8: of the FP8 rate) in matrix products. `quantised_layer_s`: a
    layer's extra launches. `draft_step_s`: a pass of a head that drafts. `paged_attention`: how many times as long as
    FlashAttention vLLM's own kernel took to read the KV cache where it split contexts; `paged_bytes_per_s`: where it did
    not, with one copy for each query head.
    """

    memory_efficiency: float
    weights_per_cycle_4bit: float
    weights_per_cycle_8bit: float
    weights_per_cycle_fp8: float
    products_4bit: float
    products_8bit: float
    products_fp8: float
    quantised_layer_s: float
    draft_step_s: float
    paged_attention: float
    paged_bytes_per_s: float


FACTORS = ("overhead", "streams", "weights", "kv", "all_reduce", "prefill")
WIDEST_RANGE = 10  # of a machine's predictions


@dataclass(frozen=True, slots=True)
class Machine:
    """How one machine differs from the model: factors that `loadtest calibrate` found from its own runs; 1 is no difference.

    `overhead` of what an engine adds to a step and a layer, `streams` of what it adds for each stream, `weights` of reading
    them, `kv` of reading the KV cache, `all_reduce`, `prefill` of matrix products and attention. `range` is the half-width
    that its residuals leave (None: the model's own).
    """

    overhead: float = 1.0
    streams: float = 1.0
    weights: float = 1.0
    kv: float = 1.0
    all_reduce: float = 1.0
    prefill: float = 1.0
    range: float | None = None
    source: str = ""

    def __post_init__(self) -> None:
        for key in FACTORS:
            if not 0.01 <= getattr(self, key) <= 1000:
                raise UsageError(f"{key}: expected a factor from 0.01 to 1000, got {getattr(self, key)!r}")
        if self.range is not None and not 0 < self.range < WIDEST_RANGE:
            raise UsageError(f"range: expected a ratio above 0 and below {WIDEST_RANGE}, got {self.range!r}")


@dataclass(frozen=True, slots=True)
class Constants:
    """All constants of one deployment."""

    engine: EngineConstants
    gpu: GpuConstants
    kernels: KernelConstants
    machine: Machine = field(default_factory=Machine)
    links: Mapping[str, Link] = field(default_factory=lambda: LINKS)


# HTTP, chat template, tokeniser and scheduler of one request (s): median time to first token of prompts of 233 tokens on
# H100 less the prefill; vLLM 0.11 at 1, 4 and 8 streams, SGLang 0.5.3 at 4 (github.com/gpustack/gpustack).
_REQUEST_S = {"vllm": 0.05, "sglang": 0.03}


def request_overhead_s(engine: str) -> float:
    """Seconds that an engine adds to each request, whatever its length."""
    return _REQUEST_S.get(engine.removesuffix("-sim"), 0.04)


VLLM_0_5, VLLM_0_6, VLLM_0_8, SGLANG_0_4, CURRENT = "vLLM 0.5", "vLLM 0.6", "vLLM 0.8", "SGLang 0.4", "current"

GENERATIONS: dict[str, EngineConstants] = {
    VLLM_0_5: EngineConstants(
        step_s=0.00191,
        layer_s=3e-05,
        stream_s=6.38e-05,
        context_s=7.11e-09,
        parallel_step_s=0.000149,
        parallel_context_s=1.4e-08,
        all_reduce_s=7.97e-06,
        source="vLLM before 0.6: scheduling, sampling and the model one after the other",
    ),
    VLLM_0_6: EngineConstants(
        step_s=0.0021,
        layer_s=1.14e-05,
        stream_s=6.38e-05,
        context_s=7.11e-09,
        parallel_step_s=0.000149,
        parallel_context_s=1.4e-08,
        all_reduce_s=7.97e-06,
        source="vLLM 0.6 and 0.7 (V0): less time between steps; several streams as in versions before",
    ),
    VLLM_0_8: EngineConstants(
        step_s=0.00162,
        layer_s=1.24e-05,
        stream_s=4.66e-05,
        source="vLLM 0.8 to 0.13 (V1): the scheduler waits for each step",
    ),
    SGLANG_0_4: EngineConstants(
        step_s=0.000863,
        layer_s=4.83e-05,
        stream_s=1.72e-05,
        source="SGLang 0.4: the next step is scheduled during this one; several streams as in later versions",
    ),
    CURRENT: EngineConstants(
        step_s=0.000794,
        layer_s=2.89e-05,
        stream_s=1.72e-05,
        source="vLLM 0.14 and SGLang 0.5 or later: the next step is scheduled during this one; the same for both",
    ),
}

GPU_CONSTANTS: dict[str, GpuConstants] = {
    "a100-80gb": GpuConstants(12.8, 0.95, 0.707, 0.635, "A100: vLLM 0.6 and 0.10, BF16"),
    "h100": GpuConstants(21.6, 0.95, 0.755, 0.597, "H100 SXM: vLLM V0 and 0.11, SGLang 0.5.3, BF16"),
    "h20": GpuConstants(10.3, 0.318, 0.656, 0.92, "H20: SGLang 0.4.6.post1, BF16"),
    "rtx-4090": GpuConstants(12.8, 0.775, 0.707, 0.635, "RTX 4090: vLLM 0.19, decoding in BF16; the rest as the A100"),
}

_SAME_CHIP = {"a100-40gb": "a100-80gb", "a100-80gb-pcie": "a100-80gb", "gh200": "h100"}  # other memory, same multiprocessors
_ALIKE = {
    "h100-pcie": "h100", "h200": "h100", "b200": "h100",
    "l20": "rtx-4090", "l4": "rtx-4090", "l40s": "rtx-4090", "rtx-6000-ada": "rtx-4090",
    "rtx-5090": "rtx-4090", "rtx-pro-6000": "rtx-4090", "a10": "rtx-4090",
}  # fmt: skip
_DEFAULT = "a100-80gb"  # for GPUs that nobody has calibrated

KERNELS = KernelConstants(
    memory_efficiency=0.929,
    weights_per_cycle_4bit=14.5,
    weights_per_cycle_8bit=10.6,
    weights_per_cycle_fp8=12.5,
    products_4bit=0.707,
    products_8bit=0.814,
    products_fp8=0.753,  # Qwen3-14B-FP8 on H20 after 63,488 tokens (34.0 tokens/s)
    quantised_layer_s=1.06e-05,
    draft_step_s=0.000998,
    paged_attention=1.40,
    paged_bytes_per_s=2.62e12,
)


def generation(engine: str, version: str = "") -> str:
    """The generation of an engine: its overheads; without a version the current one, which both engines share.

    vLLM 0.6 cut the time between steps, 0.8 made V1 the default, 0.14 asynchronous scheduling (its pull request 27614).

    >>> generation("vllm", "0.10.1"), generation("sglang", "0.4.6.post1"), generation("vllm-sim")
    ('vLLM 0.8', 'SGLang 0.4', 'current')
    """
    number, name = _numbers(version)[:2], engine.removesuffix("-sim")
    if not number or name not in ("vllm", "sglang"):
        return CURRENT
    if name == "sglang":
        return SGLANG_0_4 if number < (0, 5) else CURRENT
    for below, before in (((0, 6), VLLM_0_5), ((0, 8), VLLM_0_6), ((0, 14), VLLM_0_8)):
        if number < below:
            return before
    return CURRENT


def _numbers(version: str) -> tuple[int, ...]:
    """(0, 6, 3) of `0.6.3.post1`; () of none. Raises UsageError for a version without numbers."""
    found = re.match(r"v?(\d{1,9})\.(\d{1,9})(?:\.(\d{1,9}))?", version)
    if version and not found:
        raise UsageError(f"engine version {version!r}: expected numbers as in 0.19.0")
    return tuple(int(number) for number in found.groups(default="0")) if found else ()


def reads_windows_by_pages(engine: str, version: str) -> bool:
    """Did this engine read the KV cache of models with a sliding window by its own PagedAttention, not by FlashAttention?

    vLLM 0.4.3 to 0.6.3 did (its pull requests 3648 and 9403).

    >>> reads_windows_by_pages("vllm", "0.6.2"), reads_windows_by_pages("vllm", "0.6.4")
    (True, False)
    """
    number = _numbers(version) or (0, 0, 0)
    # A version of two numbers may be any of its releases.
    return engine.removesuffix("-sim") == "vllm" and (0, 4, 3) <= number < (0, 6, 4)


def is_calibrated(gpu_name: str) -> bool:
    """Were this GPU's multiprocessors measured?"""
    return _SAME_CHIP.get(gpu_name, gpu_name) in GPU_CONSTANTS


def gpu_constants(gpu_name: str) -> GpuConstants:
    """The constants of a GPU: its own, those of the same chip, or those of the likeliest other one.

    >>> gpu_constants("a100-40gb") is gpu_constants("a100-80gb"), gpu_constants("l20") is gpu_constants("rtx-4090")
    (True, True)
    """
    name = _SAME_CHIP.get(gpu_name) or _ALIKE.get(gpu_name, gpu_name)
    return GPU_CONSTANTS.get(name, GPU_CONSTANTS[_DEFAULT])


def constants_of(gpu_name: str, engine: str = "other", version: str = "", machine: Machine | None = None) -> Constants:
    """All constants of a deployment."""
    return Constants(GENERATIONS[generation(engine, version)], gpu_constants(gpu_name), KERNELS, machine or Machine())


def scaled(engine: EngineConstants, factor: float) -> EngineConstants:
    """An engine whose overheads take `factor` times as long."""
    keys = ("step_s", "layer_s", "stream_s", "context_s", "parallel_step_s", "parallel_context_s")
    return replace(engine, **{key: getattr(engine, key) * factor for key in keys})
