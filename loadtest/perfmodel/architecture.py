"""A decoder's shape, and what follows from it: weights, KV cache, arithmetic, and the experts that a batch touches.

Dense or mixture of experts; grouped-query attention, sliding windows on some layers, or a latent KV cache (MLA). Sizes are
checked against published parameter counts in the tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, get_args

from loadtest.errors import UsageError

Quantisation = Literal["bf16", "fp8", "int4-awq", "int4-gptq", "int8-gptq", "mxfp4", "nvfp4"]

BITS: dict[str, float] = {"bf16": 16, "fp8": 8, "int4-awq": 4, "int4-gptq": 4, "int8-gptq": 8, "mxfp4": 4, "nvfp4": 4}
_KV_BYTES = 2  # one 16-bit number; engines keep the KV cache at 16 bit unless told otherwise

_AT_LEAST_1 = (
    "layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "vocabulary", "context_tokens", "group_size",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Model:
    """One decoder with gated MLPs, in one quantisation.

    Shape as in `config.json`. `qkv_bias`, `qk_norm` and `full_bias` (gpt-oss: a bias on every matrix, a sink on every head)
    are the small terms in which families differ. `group_size` weights share a scale; `context_tokens` is what it serves with
    YaRN, `native_context_tokens` without. Linear layers are quantised (of gpt-oss only the experts, `experts_only`);
    embeddings, LM head, routers and norms stay at 16 bit.

    Experts: `experts` routed ones a layer (0: dense), `experts_per_token` of them used, each `expert_intermediate` wide;
    `shared_intermediate` is the width of the experts that every token uses; the first `dense_layers` layers have none.
    Latent attention: `kv_lora_rank` numbers a token are cached, and `rope_head_dim`; `q_lora_rank`, `value_head_dim`.
    `window_layers` layers attend to the last `window_tokens` tokens alone. A window of all layers counts as none: contexts
    beyond it are rare, and `window_layers` is 0.

    `norms` of a layer (GLM-4: four). `source` of the shape.
    """

    name: str
    title: str
    hub: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied_embeddings: bool
    context_tokens: int
    native_context_tokens: int
    quantisation: Quantisation = "bf16"
    group_size: int = 128
    qkv_bias: bool = False
    qk_norm: bool = False
    full_bias: bool = False
    experts: int = 0
    experts_per_token: int = 0
    expert_intermediate: int = 0
    shared_intermediate: int = 0
    dense_layers: int = 0
    kv_lora_rank: int = 0
    q_lora_rank: int = 0
    rope_head_dim: int = 0
    value_head_dim: int = 0
    window_tokens: int = 0
    window_layers: int = 0
    experts_only: bool = False
    norms: int = 2
    source: str = ""

    def __post_init__(self) -> None:
        if self.quantisation not in get_args(Quantisation):
            raise UsageError(f"{self.name}: quantisation {self.quantisation!r} is not modelled; known: {', '.join(BITS)}")
        for key in _AT_LEAST_1:
            if getattr(self, key) < 1:
                raise UsageError(f"{self.name}: {key} must be at least 1, got {getattr(self, key)}")
        if self.heads % self.kv_heads:
            raise UsageError(f"{self.name}: {self.heads} query heads cannot share {self.kv_heads} KV heads evenly")
        if self.experts and not 1 <= self.experts_per_token <= self.experts:
            raise UsageError(f"{self.name}: {self.experts_per_token} of {self.experts} experts for a token cannot be")
        if not 0 <= self.window_layers < self.layers:
            raise UsageError(f"{self.name}: {self.window_layers} window layers: expected fewer than {self.layers} layers")

    # -- weights -----------------------------------------------------------------------------------------------------

    @property
    def moe_layers(self) -> int:
        """Layers with routed experts."""
        return self.layers - self.dense_layers if self.experts else 0

    @property
    def attention_parameters(self) -> int:
        """Weights of the attention matrices of one layer."""
        if not self.kv_lora_rank:
            return 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim
        query = self.head_dim + self.rope_head_dim
        from_hidden = self.q_lora_rank + self.kv_lora_rank + self.rope_head_dim if self.q_lora_rank else (
            self.heads * query + self.kv_lora_rank + self.rope_head_dim
        )  # fmt: skip
        widened = self.q_lora_rank * self.heads * query + self.kv_lora_rank * self.heads * (self.head_dim + self._value_dim)
        return self.hidden * from_hidden + widened + self.heads * self._value_dim * self.hidden

    @property
    def _value_dim(self) -> int:
        return self.value_head_dim or self.head_dim

    @property
    def expert_parameters(self) -> int:
        """Weights of one routed expert."""
        return 3 * self.hidden * self.expert_intermediate

    @property
    def routed_parameters(self) -> int:
        """Weights of all routed experts of all layers."""
        return self.moe_layers * self.experts * self.expert_parameters

    @property
    def always_parameters(self) -> int:
        """Weights of the matrices that every token passes: attention, dense MLPs and shared experts of all layers."""
        dense = (self.layers - self.moe_layers) * 3 * self.hidden * self.intermediate
        return self.layers * self.attention_parameters + dense + self.moe_layers * 3 * self.hidden * self.shared_intermediate

    @property
    def linear_parameters(self) -> int:
        """Weights of all matrices that can be quantised; dense: layers x hidden x (2 (heads + KV heads) head_dim + 3 x
        intermediate)."""
        return self.always_parameters + self.routed_parameters

    @property
    def active_parameters(self) -> int:
        """Of `linear_parameters`, those that one token passes: the arithmetic of a token is twice as many operations."""
        return self.always_parameters + self.moe_layers * self.experts_per_token * self.expert_parameters

    @property
    def embedding_parameters(self) -> int:
        """One vocabulary x hidden table; an untied model has two (input embedding and LM head)."""
        return self.vocabulary * self.hidden

    @property
    def small_parameters(self) -> int:
        """Biases, norms and routers, at 16 bit in every quantisation."""
        width = (self.heads + 2 * self.kv_heads) * self.head_dim
        norms = self.norms * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        if self.kv_lora_rank:
            norms += self.q_lora_rank + self.kv_lora_rank
        bias = width if self.qkv_bias or self.full_bias else 0
        router = self.experts * self.hidden + (self.experts if self.kv_lora_rank or self.shared_intermediate else 0)
        if self.full_bias:
            bias += self.hidden + self.heads
            router += self.experts * (1 + 2 * self.expert_intermediate + self.hidden)
        return self.layers * (bias + norms) + self.moe_layers * router + self.hidden

    @property
    def parameters(self) -> int:
        """All weights; a tied table counts once."""
        tables = 1 if self.tied_embeddings else 2
        return self.linear_parameters + tables * self.embedding_parameters + self.small_parameters

    @property
    def bits_per_weight(self) -> float:
        """Bits stored for one quantised weight, with its share of the scales.

        Integers: a 16-bit scale and a zero point of a weight's width a group. MXFP4: 8 bits for 32 weights, NVFP4: 8 bits
        for 16. FP8 keeps one 32-bit scale for a block of 128 x 128, which is not counted.
        """
        bits = BITS[self.quantisation]
        if self.quantisation == "mxfp4":
            return bits + 8 / 32
        if self.quantisation == "nvfp4":
            return bits + 8 / 16
        return bits if self.quantisation in ("bf16", "fp8") else bits + (16 + bits) / self.group_size

    @property
    def always_bytes(self) -> float:
        """Bytes of `always_parameters`."""
        return self.always_parameters * (2 if self.experts_only else self.bits_per_weight / 8)

    @property
    def linear_bytes(self) -> float:
        """Bytes of all layers' matrices."""
        return self.always_bytes + self.routed_parameters * self.bits_per_weight / 8

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weights, over all GPUs."""
        return self.linear_bytes + 2 * (self.parameters - self.linear_parameters)

    @property
    def head_bytes(self) -> float:
        """Bytes that every step reads beside the layers' matrices: LM head, norms, biases, routers."""
        return 2 * (self.parameters - self.linear_parameters) - (
            0 if self.tied_embeddings else 2 * self.embedding_parameters
        )

    def distinct_experts(self, tokens: int) -> float:
        """Expected number of different experts of a layer that a batch of tokens is sent to, if all are equally likely.

        E (1 - (1 - k / E)^tokens) with E experts of which each token takes k.
        """
        return self.experts * (1 - (1 - self.experts_per_token / self.experts) ** tokens) if self.experts else 0.0

    def busiest_share(self, tokens: int, gpus: int) -> float:
        """Experts that a batch touches on the busiest of GPUs that hold whole experts, over their mean on a GPU (1 or more).

        Each of a GPU's n = E / gpus experts is touched with q = 1 - (1 - k / E)^tokens. The largest of several such counts
        is expected z standard deviations, sqrt(n q (1 - q)), above the mean n q, with z that of the largest of as many
        normal values (Blom's approximation), and at most n.
        """
        if not self.experts or gpus == 1:
            return 1.0
        own = self.experts / gpus
        touched = self.distinct_experts(tokens) / self.experts
        above = NormalDist().inv_cdf((gpus - 0.375) / (gpus + 0.25)) * math.sqrt(own * touched * (1 - touched))
        return min(own, own * touched + above) / (own * touched)

    def other_gpus(self, gpus: int) -> float:
        """Expected number of the other GPUs that hold an expert of a token, if all are equally likely.

        (gpus - 1) (1 - (1 - 1 / gpus)^k) with k experts a token.
        """
        return (gpus - 1) * (1 - (1 - 1 / gpus) ** self.experts_per_token)

    def routed_bytes_read(self, tokens: int) -> float:
        """Bytes of routed experts that a step over this many tokens reads."""
        expert_bytes = self.expert_parameters * self.bits_per_weight / 8
        return self.moe_layers * self.distinct_experts(tokens) * expert_bytes

    @property
    def weight_bytes_read_per_token(self) -> float:
        """Bytes that a step of one token reads: all weights but the experts not used and an untied input embedding."""
        return self.always_bytes + self.routed_bytes_read(1) + self.head_bytes

    # -- attention ---------------------------------------------------------------------------------------------------

    @property
    def kv_bytes_per_token(self) -> int:
        """KV cache that one more token of context takes, over all GPUs, at 16 bit: 2 x layers x kv_heads x head_dim x 2
        bytes.

        Layers with a window grow no further (`window_bytes`). A latent cache holds kv_lora_rank + rope_head_dim numbers a
        layer.
        """
        return (self.layers - self.window_layers) * self.kv_bytes_per_token_and_layer

    @property
    def kv_bytes_per_token_and_layer(self) -> int:
        """KV cache of one token in one layer (bytes)."""
        latent = self.kv_lora_rank + self.rope_head_dim
        return _KV_BYTES * (latent if self.kv_lora_rank else 2 * self.kv_heads * self.head_dim)

    @property
    def window_bytes(self) -> int:
        """KV cache of the layers with a window, of one stream whose context is longer than the window (bytes)."""
        return self.window_layers * self.window_tokens * self.kv_bytes_per_token_and_layer

    @property
    def attention_flop_per_pair(self) -> int:
        """Arithmetic of one query token against one key token: 4 x layers x heads x head_dim (scores and values)."""
        layers = self.layers - self.window_layers
        if not self.kv_lora_rank:
            return 4 * layers * self.heads * self.head_dim
        return 2 * layers * self.heads * (self.head_dim + self.rope_head_dim + self._value_dim)
