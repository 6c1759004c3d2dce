"""What other tools have and what we have, feature by feature: the table of docs/peers.md.

Each was looked at in its package of the version named, and in a run of it against a server of known times
(`tests/benchmarks/peers.py`). A cell says how, or by which option; None: not found there.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Peer:
    """A tool: its key in a row, its name, its version, and where its code was read."""

    key: str
    name: str
    version: str
    read: str


PEERS = (
    Peer("vllm", "vLLM bench", "0.32.0", "`vllm/benchmarks`"),
    Peer("sglang", "SGLang bench_serving", "0.5.15.post1", "`sglang/benchmark`"),
    Peer("genai", "genai-bench", "0.0.5", "`genai_bench`"),
    Peer("aiperf", "AIPerf", "0.13.0", "`aiperf`"),
    Peer("guidellm", "GuideLLM", "0.8.1", "`guidellm`"),
    Peer("perf", "inference-perf", "0.7.0", "`inference_perf`"),
    Peer("evalscope", "evalscope perf", "1.14.0", "`evalscope/perf`"),
)
