"""Load tests for long-reasoning models on SGLang and vLLM: every token timed, every long request kept."""

__version__ = "0.1.0"
