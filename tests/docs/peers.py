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
            "sglang": "the first text, of `reasoning_content` too",
            "genai": "the first text, thinking included",
            "aiperf": "the first text, thinking included",
            "guidellm": "the first text, thinking included",
            "perf": "the first text of the answer",
            "evalscope": "the first text, thinking included",
        },
    ),
    Feature(
        "time to the first text of the answer",
        "by field and by `<think>`",
        {"aiperf": "by field", "guidellm": "by field", "perf": "by field (as its first token)"},
    ),
    Feature(
        "tokens thought",
        "server's count, else by chunk",
        {"genai": "server's count, else its tokenizer", "aiperf": "server's count, else its tokenizer"},
    ),
    Feature(
        "tokens where the server counts none",
        "`--tokenizer`, else chunks; the page says so",
        {
            "vllm": "its tokenizer",
            "sglang": "the length asked for",
            "genai": "its tokenizer",
            "aiperf": "its tokenizer",
            "guidellm": "chunks",
            "perf": "its tokenizer",
            "evalscope": "its tokenizer",
        },
    ),
    Feature(
        "requests under way at the end",
        "kept as censored, Kaplan-Meier",
        {"vllm": "waited for", "sglang": "waited for", "genai": "ended, in no file",
         "aiperf": "a grace period, then ended", "guidellm": "kept as incomplete", "perf": "a grace period, then ended",
         "evalscope": "waited for"},
    ),
    Feature(
        "times in its files, by request",
        "every chunk, by the kernel's stamps",
        {
            "vllm": "every gap (`--save-detailed`)",
            "sglang": "every gap (`--output-details`), no start",
            "genai": "first and last, no start",
            "aiperf": "every gap",
            "guidellm": "first, answer and last",
            "perf": "every chunk of the answer",
            "evalscope": "every gap (SQLite)",
        },
    ),
    Feature("intervals of its figures", "every figure", {"aiperf": "means over runs", "guidellm": "means of requests"}),
    Feature("a verdict on two servers, with an interval", "`compare`, `duel`, studies", {}),
    Feature("fails a run whose load generator was too slow", "gate, by kernel stamps", {"guidellm": "warns of late data"}),
    Feature("its counts against the server's", "gate, every level", {"aiperf": "`usage` alone", "perf": "`usage` alone"}),
    Feature("reads the results of other tools", "`import`, all of these", {}),
    Feature("starts the engines", "vLLM, SGLang", {"vllm": "`sweep serve`"}),
    Feature(
        "configurations of one engine, varied",
        "`vary` in a study, with effects",
        {"vllm": "`sweep serve`", "aiperf": "of the load"},
    ),
    Feature(
        "largest load within SLOs",
        "`search`, with an interval",
        {"vllm": "`sweep serve_workload`, no SLO", "aiperf": "search recipes", "guidellm": "sweep", "perf": "sweep",
         "evalscope": "`--sla-auto-tune`"},
    ),
    Feature(
        "stops when certain",
        "`--until-decided`, `search`, `duel`",
        {"aiperf": "convergence of one figure", "guidellm": "over-saturation"},
    ),
    Feature(
        "open loop",
        "`--rate`",
        {"vllm": "`--request-rate`", "sglang": "`--request-rate`", "aiperf": "yes", "guidellm": "yes", "perf": "yes",
         "evalscope": "yes"},
    ),
    Feature(
        "public traces",
        "Mooncake, Bailian, Azure, BurstGPT",
        {"vllm": "BurstGPT, timed", "sglang": "Mooncake", "aiperf": "Mooncake, Bailian, BurstGPT, Weka, SageMaker",
         "guidellm": "Mooncake, Weka, OTel", "perf": "OTel, Weka"},
    ),
    Feature(
        "speculative decoding",
        "drafts by position, by level",
        {"vllm": "drafts by position", "sglang": "accepted length", "aiperf": "accepted share and length (vLLM)",
         "evalscope": "estimated from chunks"},
    ),
    Feature(
        "endpoints beside chat",
        "completions, Responses, Anthropic messages",
        {"vllm": "completions, Responses, embeddings, audio", "sglang": "completions, own", "genai": "clouds, embeddings",
         "aiperf": "completions, Responses, messages, many more", "guidellm": "completions, Responses, audio, WebSocket",
         "perf": "completions, messages", "evalscope": "Responses, embeddings"},
    ),
    Feature("several servers in one run", "`--base-url` repeated, by session", {"aiperf": "`--url` repeated, by session"}),
    Feature("a server on a Unix socket", "`unix:///FILE`", {}),
    Feature(
        "TLS without verification",
        "`--insecure`, marked",
        {"vllm": "`--insecure`", "aiperf": "`AIPERF_HTTP_SSL_VERIFY`", "guidellm": "by default"},
    ),
    Feature(
        "tool calls and JSON by a schema as work",
        "valid and right calls; cost of a grammar",
        {"aiperf": "sessions of agents", "guidellm": "tool calls", "perf": "`response_format`", "sglang": "`agentic_trace`"},
    ),
    Feature("prices and GPUs for a demand", "`plan`", {}),
    Feature("right answers graded", "with intervals", {"aiperf": "accuracy suites"}),
    Feature("GPU power", "NVML, joules per answer", {"aiperf": "DCGM, NVML"}),
    Feature(
        "a page",
        "one HTML file, offline",
        {"vllm": "plots", "genai": "Excel, plots", "aiperf": "plots, MLflow, W&B", "guidellm": "HTML", "evalscope": "HTML"},
    ),
    Feature(
        "images, sound or video as input",
        NONE,
        {"vllm": "all three", "sglang": "images", "genai": "images", "aiperf": "all three", "guidellm": "all three",
         "perf": "all three", "evalscope": "images"},
    ),
    Feature("LoRA adapters", NONE, {"vllm": "`--lora-modules`", "sglang": "`--lora-name`", "perf": "`lora_traffic_split`"}),
)  # fmt: skip
