"""What we have and what other tools have, feature by feature: the tables of docs/peers.md.

Each tool was read in its package of the version named, and run against a server of known times
(`tests/benchmarks/peers.py`). A cell names an option, a file or a few words; "—": not found there.
"""

from dataclasses import dataclass

NONE = "—"


@dataclass(frozen=True)
class Tool:
    """A tool: its key in a row, its name and version, where its code was read, and what `import` reads of it."""

    key: str
    name: str
    version: str
    read: str


TOOLS = (
    Tool("vllm", "vLLM bench", "0.32.0", "`vllm/benchmarks`"),
    Tool("sglang", "SGLang bench_serving", "0.5.15.post1", "`sglang/benchmark`"),
    Tool("genai", "genai-bench", "0.0.5", "`genai_bench`"),
    Tool("aiperf", "AIPerf", "0.13.0", "`aiperf`"),
    Tool("guidellm", "GuideLLM", "0.8.1", "`guidellm`"),
    Tool("perf", "inference-perf", "0.7.0", "`inference_perf`"),
    Tool("evalscope", "evalscope perf", "1.14.0", "`evalscope/perf`"),
)


@dataclass(frozen=True)
class Feature:
    """One row: what we have, and each other tool that has it, by its key, with how."""

    name: str
    ours: str
    theirs: dict[str, str]


def table():
    """A row for each feature, a column for each tool."""
    head = ["feature", "loadtest", *(f"{tool.name} {tool.version}" for tool in TOOLS)]
    rows = [[one.name, one.ours, *(one.theirs.get(tool.key, NONE) for tool in TOOLS)] for one in FEATURES]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


FEATURES = (
    Feature(
        "time to first token ends at",
        "the first text, thinking included",
        {
            "vllm": "the first chunk, also of the role alone",
            "sglang": "the first text, thinking included",
            "perf": "the first text of the answer",
        },
    ),
    Feature(
        "thinking told from the answer",
        "by field and by `<think>`",
        {"guidellm": "by field", "aiperf": "by field, not `<think>`"},
    ),
    Feature(
        "without the server's count, tokens are",
        "those of `--tokenizer`, else chunks; said",
        {"vllm": "those of its tokenizer", "sglang": "those asked for"},
    ),
    Feature(
        "requests that run on at the end",
        "kept, as censored",
        {"vllm": "waited for", "sglang": "waited for", "genai": "ended, in no file"},
    ),
    Feature(
        "times of tokens in its files",
        "each chunk",
        {
            "vllm": "each gap (`--save-detailed`)",
            "sglang": "each gap (`--output-details`)",
            "guidellm": "first and last, spread evenly",
        },
    ),
    Feature("a verdict on two runs, with an interval", "`compare`, `duel`", {}),
    Feature("fails a run in which it was the bottleneck", "load generator's gate", {}),
    Feature("reads the results of others", "`import`", {}),
    Feature("several servers in one run", "`--base-url` repeated, by session", {"aiperf": "`--url` repeated, by session"}),
    Feature("a server on a Unix socket", "`unix:///FILE`", {}),
    Feature(
        "TLS without verification",
        "`--insecure`, marked",
        {"vllm": "`--insecure`", "aiperf": "`AIPERF_HTTP_SSL_VERIFY`", "guidellm": "by default"},
    ),
    Feature("multi-modal inputs", NONE, {"vllm": "image, audio, video", "sglang": "image"}),
    Feature("LoRA adapters", NONE, {"vllm": "`--lora-modules`", "sglang": "`--lora-name`"}),
)
