"""The embedded simulator: an OpenAI-compatible server that behaves like vLLM or SGLang and says that it is neither."""
