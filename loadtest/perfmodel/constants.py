"""The constants of the performance model: what kernels reach of a data sheet, and what starting them costs.

`CALIBRATED` is what `python -m loadtest.perfmodel.calibration DATA.csv...` prints for the two public tables of Qwen's speed
benchmark; docs/performance-model.md has the residuals. What single-card measurements cannot show has its source beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

ALL_REDUCE_S = {"nvlink": 10e-6, "pcie": 20e-6}
"""Seconds of one small all-reduce inside a CUDA graph, whatever its size.

PCIe with peer access: 19 to 22 us for 4 to 16 KB by NCCL (github.com/haohervchb/sglang-V100 pull request 2). NVLink:
taken as half of that.
"""

QUERY_TILE = 128  # query rows that one attention block works on (FlashAttention-2 and later)


@dataclass(frozen=True, slots=True)
class Constants:
    """One card's constants, measured under one engine.

    `step_s`: scheduling and sampling of a step. `layer_s`: launches and small kernels of one layer.
    `memory_efficiency`: share of the bandwidth at which 16-bit weights and KV cache are read; `quantised_efficiency`: the
    same for 4- and 8-bit weights. `prefill_efficiency`: share of the tensor rate in matrix products of a prompt;
    `quantised_prefill_factor`: what is left of it with quantised weights. `attention_efficiency`: share of the tensor
    rate in prompt attention when it fills the card. `source`: card, engine and version.
    """

    step_s: float
    layer_s: float
    memory_efficiency: float
    quantised_efficiency: float
    prefill_efficiency: float
    quantised_prefill_factor: float
    attention_efficiency: float
    source: str


CALIBRATED: dict[str, Constants] = {
    "a100-80gb": Constants(
        step_s=0.00198,
        layer_s=8.55e-05,
        memory_efficiency=0.918,
        quantised_efficiency=0.92,
        prefill_efficiency=0.9,
        quantised_prefill_factor=0.68,
        attention_efficiency=0.588,
        source="A100 80GB SXM, vLLM 0.6.2/0.6.3",
    ),
    "h20": Constants(
        step_s=0.000914,
        layer_s=5.64e-05,
        memory_efficiency=0.392,
        quantised_efficiency=0.281,
        prefill_efficiency=0.601,
        quantised_prefill_factor=0.68,
        attention_efficiency=0.867,
        source="H20, SGLang 0.4.6.post1",
    ),
}
DEFAULT = "a100-80gb"  # for cards that nobody has calibrated: Ampere's tensor-core instructions, which Ada has too

FP8_EFFICIENCY = {"h20": 0.548}
"""Share of the bandwidth at which FP8 weights are read, where it is known to differ from `quantised_efficiency`.

The two tables have no FP8. Solved from one published figure, Qwen3-14B-FP8 on H20 after a prompt of 1 token (97.1 tokens/s).
"""

FP8_PREFILL_FACTOR = {"h20": 0.753}
"""Share of the FP8 tensor rate, on top of `prefill_efficiency`: from the same model after 63,488 tokens (34.0 tokens/s)."""

RANGE_CALIBRATED = 0.15
"""Half-width of a prediction's range (as a ratio) on a calibrated card: 9 of 10 errors on unseen models are inside."""

RANGE_OTHER = 0.25
"""The same on other cards and on several cards: nothing there was fitted, so this is a judgement, not a measurement."""

SMALL_PARAMETERS = 2e9
RANGE_SMALL = 0.45
"""The same for models below `SMALL_PARAMETERS`: launches fitted on 7B to 14B models are too long for them."""


def constants_of(gpu_name: str) -> Constants:
    """The constants of a card, or those of the A100 where it has not been calibrated.

    >>> constants_of("l20") is constants_of("a100-80gb")
    True
    """
    return CALIBRATED.get(gpu_name, CALIBRATED[DEFAULT])
