"""One value for each setting of an engine that is not its default, and one that the contract refuses."""

from typing import Any

EXAMPLES: dict[str, tuple[Any, Any]] = {
    "context_tokens": (65536, 8),
    "memory_fraction": (0.8, 1.0),
    "max_running_requests": (64, 0),
    "kv_dtype": ("fp8", 8),
    "quantisation_kernel": ("awq_marlin", None),
    "reasoning_parser": ("deepseek_r1", ""),
    "seed": (1, -1),
    "prefix_caching": (False, 1),
    "yarn": (True, "yes"),
}
