"""Load tests for long-reasoning models on SGLang and vLLM: every token timed, no long request dropped, no noise called a win."""

__version__ = "0.1.0"
