"""Other load generators and ours in front of one server whose times are known: fidelity, cost, start-up, and the noise.

    python tests/benchmarks/peers.py                                # every tool that is installed, 8 streams, 3 passes
    python tests/benchmarks/peers.py --only evalscope,aiperf --concurrency 64 --passes 5

The server names the field of thinking as the tool knows it (vLLM's `reasoning`, or SGLang's `reasoning_content`) and
sends its role-only chunk with the first token, as both runtimes do. An error is what the tool reports minus what the
server did, in ms (tokens/s in per cent). The smallest run is one request: its wall time, less what the server took for the
answer, and the most that its processes hold. CPU is user and system time of all processes, less that of the smallest run,
over the tokens between the two; what a tool computes before and after its load counts too. Each figure is the median of
the passes, with their least and most in brackets: the noise. A request that a tool sends before its own start, as a
trial, is not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness as h
from startup import held_bytes

PEERS = h.ROOT / ".peers"
ENGINES = h.ROOT / ".engines"
TOKENIZER = ENGINES / "tiny-qwq"
PROMPT_TOKENS = 20
LOOK_S = 0.05
LIMIT_S = 600
PR_SET_CHILD_SUBREAPER = 36
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


@dataclass(frozen=True)
class Load:
    """What is asked of a tool: the server, streams at once, requests, tokens of each, a folder for what it writes."""

    url: str
    streams: int
    requests: int
    tokens: int
    out: Path


@dataclass(frozen=True)
class Said:
    """What a tool reports (s, tokens/s); null where it does not."""

    ttft_mean_s: float | None
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    e2e_mean_s: float | None
    tokens_per_s: float | None


@dataclass(frozen=True)
class Tool:
    """How a tool is started and how its own result is read.

    `program` says whether it is installed, `thinking_field` in which field of a delta it looks for thinking.
    """

    program: Path
    command: Callable[[Load], Sequence[object]]
    said: Callable[[Path], Said]
    environment: dict[str, str]
    thinking_field: str = "reasoning"


def only(folder, pattern):
    """The one JSON file (or the first line of JSON) that a tool has written."""
    text = next(folder.rglob(pattern)).read_text()
    return json.loads(text.splitlines()[0] if pattern.endswith(".jsonl") else text)


def ours(load):
    asked = ["--users", load.streams, "--spawn-rate", load.streams, "--requests", load.requests, "--warmup-requests", 0]
    known = ["--host", load.url, "--engine", "other", "--model", "known", "--workload", "math:n=2000"]
    return ["-m", "locust", "-f", h.SCENARIO, "--headless", "--only-summary", *asked, *known, "--out", load.out / "run"]


def ours_said(out):
    from loadtest.analysis import export
    from loadtest.analysis.run import analyze
    from loadtest.records import read

    (level,) = analyze(read.read_run(out / "run")).cells[0].levels
    frame = export.to_frame(read.read_run(out / "run"))
    ttft = frame.ttft_s
    e2e_mean_s = frame.time_to_final_answer_s.mean()
    return Said(ttft.mean(), ttft.median(), ttft.quantile(0.99), e2e_mean_s, level.output_tokens_per_s.value)


def vllm(load):
    asked = ["--num-prompts", load.requests, "--max-concurrency", load.streams, "--ignore-eos", "--disable-tqdm"]
    data = ["--dataset-name", "random", "--random-input-len", PROMPT_TOKENS, "--random-output-len", load.tokens]
    kept = ["--save-result", "--result-dir", load.out, "--result-filename", "vllm.json"]
    known = ["--backend", "openai-chat", "--endpoint", "/v1/chat/completions", "--base-url", load.url, "--model", "known"]
    wanted = ["--tokenizer", TOKENIZER, "--percentile-metrics", "ttft,e2el"]
    return ["bench", "serve", *known, *asked, *data, *kept, *wanted]


def vllm_said(out):
    got = only(out, "vllm.json")
    ttft_s = [got[f"{name}_ttft_ms"] / 1e3 for name in ("mean", "median", "p99")]
    return Said(*ttft_s, got["mean_e2el_ms"] / 1e3, got["output_throughput"])


def sglang(load):
    asked = ["--num-prompts", load.requests, "--max-concurrency", load.streams, "--disable-tqdm", "--warmup-requests", 0]
    data = ["--dataset-name", "random-ids", "--random-input-len", PROMPT_TOKENS, "--random-output-len", load.tokens]
    known = ["--backend", "sglang-oai-chat", "--base-url", load.url, "--model", TOKENIZER, "--served-model-name", "known"]
    wanted = ["--random-range-ratio", 1, "--output-file", load.out / "sglang.jsonl"]
    return ["-m", "sglang.bench_serving", *known, *asked, *data, *wanted]


def sglang_said(out):
    got = only(out, "sglang.jsonl")
    ttft_s = [got[f"{name}_ttft_ms"] / 1e3 for name in ("mean", "median", "p99")]
    return Said(*ttft_s, got["mean_e2e_latency_ms"] / 1e3, got["output_throughput"])


def genai_bench(load):
    known = ["--api-backend", "openai", "--api-base", load.url, "--api-key", "none", "--api-model-name", "known"]
    asked = ["--num-concurrency", load.streams, "--max-requests-per-run", load.requests, "--max-time-per-run", 10]
    data = [
        "--task",
        "text-to-text",
        "--traffic-scenario",
        f"D({PROMPT_TOKENS},{load.tokens})",
        "--model-tokenizer",
        TOKENIZER,
    ]
    return ["benchmark", *known, *asked, *data, "--experiment-base-dir", load.out, "--experiment-folder-name", "genai"]


def genai_bench_said(out):
    got = only(out, "D*_text-to-text_*.json")["aggregated_metrics"]
    ttft, e2e = got["stats"]["ttft"], got["stats"]["e2e_latency"]
    return Said(ttft["mean"], ttft["p50"], ttft["p99"], e2e["mean"], got["mean_output_throughput_tokens_per_s"])


def aiperf(load):
    known = ["--model", "known", "--url", load.url, "--endpoint-type", "chat", "--streaming", "--tokenizer", TOKENIZER]
    asked = ["--concurrency", load.streams, "--request-count", load.requests, "--isl", PROMPT_TOKENS, "--osl", load.tokens]
    return ["profile", *known, *asked, "--output-artifact-dir", load.out, "--ui-type", "none"]


def aiperf_said(out):
    got = only(out, "profile_export_aiperf.json")
    ttft_s = [got["time_to_first_token"][name] / 1e3 for name in ("avg", "p50", "p99")]
    return Said(*ttft_s, got["request_latency"]["avg"] / 1e3, got["output_token_throughput"]["avg"])


def guidellm(load):
    known = ["--backend", f"kind=openai_http,target={load.url},model=known"]
    asked = ["--profile", f"kind=concurrent,streams={load.streams}"]
    ends = ["--constraint", f"kind=max_requests,count={load.requests}", "--disable-console"]
    data = ["--data", f"kind=synthetic_text,prompt_tokens={PROMPT_TOKENS},output_tokens={load.tokens}"]
    wanted = ["--tokenizer", f"kind=huggingface_auto,model={TOKENIZER}", "--output", f"kind=json,path={load.out}/said.json"]
    return ["run", *known, *asked, *ends, *data, *wanted]


def guidellm_said(out):
    got = only(out, "said.json")["benchmarks"][0]["metrics"]
    ttft = got["time_to_first_token_ms"]["successful"]
    ttft_s = [value / 1e3 for value in (ttft["mean"], ttft["median"], ttft["percentiles"]["p99"])]
    return Said(*ttft_s, got["request_latency"]["successful"]["mean"], got["output_tokens_per_second"]["successful"]["mean"])


def evalscope(load):
    known = ["--url", f"{load.url}/v1/chat/completions", "--api", "openai", "--model", "known", "--stream"]
    asked = ["--parallel", load.streams, "--number", load.requests, "--min-tokens", load.tokens, "--max-tokens", load.tokens]
    data = ["--dataset", "random", "--tokenizer-path", TOKENIZER, "--prefix-length", 0]
    size = ["--min-prompt-length", PROMPT_TOKENS, "--max-prompt-length", PROMPT_TOKENS]
    return ["perf", *known, *asked, *data, *size, "--outputs-dir", load.out, "--no-test-connection"]


def evalscope_said(out):
    got, quantiles = only(out, "benchmark_summary.json"), only(out, "benchmark_percentile.json")
    ttft_s = {row["Percentiles"]: row["TTFT (ms)"] / 1e3 for row in quantiles}
    mean_s, rate = got["Avg TTFT (ms)"] / 1e3, got["Output Throughput (tok/s)"]
    return Said(mean_s, ttft_s["50%"], ttft_s["99%"], got["Avg Latency (s)"], rate)


def inference_perf(load):
    """Its options are a file; of its synthetic data only `mock` asks for a chat, the others for completions."""
    asked = {
        "api": {"type": "chat", "streaming": True},
        "data": {"type": "mock"},
        "load": {
            "type": "concurrent",
            "num_workers": 1,
            "stages": [{"num_requests": load.requests, "concurrency_level": load.streams}],
        },
        "server": {"type": "vllm", "model_name": "known", "base_url": load.url, "ignore_eos": True},
        "tokenizer": {"pretrained_model_name_or_path": str(TOKENIZER)},
        "report": {"request_lifecycle": {"summary": True}},
        "storage": {"local_storage": {"path": str(load.out / "reports")}},
    }
    (load.out / "asked.json").write_text(json.dumps(asked))
    return ["--config_file", load.out / "asked.json"]


def inference_perf_said(out):
    got = only(out, "summary_lifecycle_metrics.json")["successes"]
    ttft, rate = got["latency"]["time_to_first_token"] or {}, got["throughput"]["output_tokens_per_sec"]
    ttft_s = [ttft.get(name) for name in ("mean", "median", "p99")]
    return Said(*ttft_s, got["latency"]["request_latency"]["mean"], rate or None)


def installed(name):
    return PEERS / name / "bin" / name


TOOLS = {
    "loadtest": Tool(Path(sys.executable), ours, ours_said, {}),
    "vllm": Tool(ENGINES / "vllm/bin/vllm", vllm, vllm_said, OFFLINE),
    "sglang": Tool(
        ENGINES / "sglang/bin/python", sglang, sglang_said, OFFLINE | {"SGLANG_USE_CPU_ENGINE": "1"}, "reasoning_content"
    ),
    "genai-bench": Tool(installed("genai-bench"), genai_bench, genai_bench_said, OFFLINE),
    "aiperf": Tool(installed("aiperf"), aiperf, aiperf_said, {}),  # offline, it refuses a folder as tokenizer
    "guidellm": Tool(installed("guidellm"), guidellm, guidellm_said, OFFLINE),
    "inference-perf": Tool(installed("inference-perf"), inference_perf, inference_perf_said, OFFLINE),
    "evalscope": Tool(installed("evalscope"), evalscope, evalscope_said, OFFLINE, "reasoning_content"),
}


@dataclass(frozen=True)
class Run:
    """One run of a tool: wall and CPU seconds, the most it held (MB), what it reported, and what the server did."""

    wall_s: float
    cpu_s: float
    held_mb: float
    said: Said
    log: list[dict[str, Any]]

    @property
    def tokens(self):
        return sum(len(entry["before"]) for entry in self.log)

    @property
    def own_s(self):
        """Wall seconds that a run of one request takes beyond its answers (a trial before it is one too)."""
        return self.wall_s - sum(entry["before"][-1] - entry["arrived"] for entry in self.log)


def start(tool, load):
    """A tool on the client's core, in a session of its own; what it prints goes to `output.log`."""
    shutil.rmtree(load.out, ignore_errors=True)
    load.out.mkdir(parents=True)
    argv = [str(tool.program), *map(str, tool.command(load))]
    with (load.out / "output.log").open("w") as output:
        return subprocess.Popen(
            argv,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=load.out,
            env={**os.environ, **tool.environment, "HOME": str(load.out)},
            preexec_fn=lambda: os.sched_setaffinity(0, {h.CLIENT_CORE}),
            start_new_session=True,
        )


def end(process):
    """End what still runs of a tool, and say how it ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def run(tool, port, load):
    """Start a tool, wait for its end, and read what it says; raises `RuntimeError` where it fails."""
    h.get(port, "/reset")
    before, began, most = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic(), 0
    process = start(tool, load)
    while process.poll() is None and time.monotonic() < began + LIMIT_S:
        most = max(most, held_bytes(process.pid))
        time.sleep(LOOK_S)
    wall_s = time.monotonic() - began
    if end(process) != 0:
        raise RuntimeError(f"exit {process.returncode}: {(load.out / 'output.log').read_text()[-600:]}")
    reap_children()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return Run(wall_s, cpu_s, most / 1e6, tool.said(load.out), h.get(port, "/log")["requests"])


def adopt_orphans():
    """Become the parent of every process whose own parent ends, so that its CPU seconds are counted here."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap_children():
    """Wait for what a tool left behind, killed just now; the server is a child too, and goes on."""
    time.sleep(LOOK_S)
    while os.waitpid(-1, os.WNOHANG)[0]:
        pass


def errors(of, requests, tokens):
    """What the tool reports minus what the server did: ms, and per cent for tokens/s."""
    trials = 1 if len(of.log) == requests + 1 else 0
    whole = [entry for entry in of.log[trials:] if len(entry["before"]) == tokens]
    first = [entry["before"][0] - entry["arrived"] for entry in whole]
    end = [entry["before"][-1] - entry["arrived"] for entry in whole]
    span_s = max(entry["before"][-1] for entry in whole) - min(entry["arrived"] for entry in whole)
    rate = sum(len(entry["before"]) for entry in whole) / span_s

    def ms(said, true_s):
        return None if said is None else (said - true_s) * 1e3

    said = of.said
    return {
        "TTFT mean ms": ms(said.ttft_mean_s, statistics.mean(first)),
        "TTFT p50 ms": ms(said.ttft_p50_s, statistics.median(first)),
        "TTFT p99 ms": ms(said.ttft_p99_s, h.quantile(first, 0.99)),
        "E2E mean ms": ms(said.e2e_mean_s, statistics.mean(end)),
        "tokens/s %": None if said.tokens_per_s is None else (said.tokens_per_s / rate - 1) * 100,
        "requests": float(len(of.log)),
    }


def passes(name, port, args):
    """Every pass: one smallest run, one whole; before them a smallest that does not count, to warm the disk's cache."""
    found = []
    url, out = f"http://127.0.0.1:{port}", h.scratch()
    smallest = Load(url, 1, 1, args.tokens, out / "small")
    run(TOOLS[name], port, smallest)
    for _ in range(args.passes):
        small = run(TOOLS[name], port, smallest)
        whole = run(TOOLS[name], port, Load(url, args.concurrency, args.requests, args.tokens, out / "whole"))
        cpu_us = (whole.cpu_s - small.cpu_s) / (whole.tokens - small.tokens) * 1e6
        found.append(
            errors(whole, args.requests, args.tokens)
            | {"CPU us/token": cpu_us, "smallest s": small.own_s, "smallest MB": small.held_mb}
        )
    shutil.rmtree(out)
    return found


def cell(values):
    """Median, and the least and the most where there are several passes."""
    known = [value for value in values if value is not None]
    if not known:
        return "not told"
    middle = f"{statistics.median(known):.4g}"
    return middle if len(known) == 1 else f"{middle} [{min(known):.4g}, {max(known):.4g}]"


def version(tool, name):
    """As its environment lists it."""
    package = {"vllm": r"vllm", "sglang": r"sglang[\w-]*"}.get(name, re.escape(name))
    asked = [tool.program.parent / "python", "-m", "pip", "freeze", "--all"]
    listed = subprocess.run(asked, capture_output=True, text=True).stdout
    match = re.search(rf"^{package}==(\S+)$", listed, re.MULTILINE | re.IGNORECASE)
    return match[1] if match else "of this checkout"


def row(name, cells):
    return f"| {name} | {' | '.join(cells)} |"


def server(tool, tokens, gap_s):
    asked = {"tokens": tokens, "thinking": tokens // 4, "first": 0.2, "gap": gap_s}
    return h.known_time_server(**asked, thinking_field=tool.thinking_field, role_late=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names, with commas between them")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--gap", type=float, default=0.02)
    parser.add_argument("--passes", type=int, default=3)
    args = parser.parse_args()
    adopt_orphans()
    names = args.only.split(",") if args.only else list(TOOLS)
    print(f"{args.concurrency} streams, {args.requests} requests of {args.tokens} tokens, {args.gap * 1e3:g} ms a token")
    for name in names:
        if not TOOLS[name].program.exists():
            print(f"{name}: not installed: make peers")
            continue
        with server(TOOLS[name], args.tokens, args.gap) as port:
            try:
                found = passes(name, port, args)
            except (RuntimeError, StopIteration, KeyError) as error:
                print(f"{name}: failed: {type(error).__name__}: {error}")
                continue
        if name == names[0]:
            print(row("tool", found[0]), row("---", ["---"] * len(found[0])), sep="\n")
        print(
            row(f"{name} {version(TOOLS[name], name)}", [cell([one[key] for one in found]) for key in found[0]]), flush=True
        )


if __name__ == "__main__":
    main()
