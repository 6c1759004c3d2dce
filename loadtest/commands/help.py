"""What the help of each command says beside its options: examples, exit codes, SLOs; its groups; completions of a shell.

Read when a help is printed or a word is completed, so that every other command starts without it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "demo": ("loadtest demo", "loadtest demo --out runs/demo --quiet"),
    "run": (
        "loadtest run scenarios/studies/demo.toml --dry-run",
        "loadtest run study.toml --out runs/mine",
        "loadtest run study.toml --out runs/mine --resume",
        "loadtest run study.toml --only engine=vllm --only concurrency=8",
    ),
    "attach": (
        "loadtest attach --base-url http://127.0.0.1:8000",
        "loadtest attach --base-url http://127.0.0.1:8000 --concurrency 1-16 --slo 'ttft_s:p90<2'",
        "loadtest attach --base-url https://api.groq.com/openai --model qwen-qwq-32b --concurrency 1",
        "loadtest attach --base-url http://127.0.0.1:8000 --rate 0.5 --requests 100",
        "loadtest attach --resume runs/attach-20261126-103000",
    ),
    "search": (
        "loadtest search --base-url http://127.0.0.1:8000 --slo 'ttft_s:p90<2' --slo 'tokens_per_s_per_user:p10>15'",
        "loadtest search --resume runs/search-20261126-103000",
    ),
    "duel": ("loadtest duel http://127.0.0.1:8000 http://127.0.0.1:8001",),
    "serve": (
        "loadtest serve vllm --model qwq-32b-awq --gpu l20 --print",
        "loadtest serve sglang --model qwq-32b --tp 2 -- --schedule-conservativeness 0.8",
    ),
    "analyze": ("loadtest analyze runs/mine", "loadtest analyze runs/mine --json"),
    "report": ("loadtest report runs/mine", "loadtest report runs/before runs/after -o change.html", "loadtest report runs"),
    "export": ("loadtest export runs/mine -o requests.parquet", "loadtest export runs/mine -o figures.prom"),
    "import": (
        "loadtest import vllm-c8.json vllm-c16.json --engine vllm",
        "loadtest import bench.jsonl --model qwq-32b --mode equal-work",
    ),
    "bundle": ("loadtest bundle runs/mine", "loadtest bundle runs/mine --redact -o mine.loadtest"),
    "fit": ("loadtest fit --model qwq-32b --gpu l20 --tp 2 --context 32768",),
    "predict": (
        "loadtest predict --model qwq-32b-awq --gpu l20 --prompt-tokens 500 --output-tokens 4000 --concurrency 8",
        "loadtest predict --study study.toml",
    ),
    "calibrate": ("loadtest calibrate runs/mine --out machine.toml",),
    "compare": ("loadtest compare runs/before runs/after --tolerance 3",),
    "check": (
        "loadtest check runs/mine --require 'ttft_s:p90<2' --concurrency 8",
        "loadtest check runs/mine --require 'tokens_per_s_per_user:p10>15' --junit junit.xml --summary summary.md",
    ),
    "plan": (
        "loadtest plan --users 50 --slo 'time_to_final_answer_s:p90<120' --from runs/mine",
        "loadtest plan --users 500 --think-time 60 --model qwq-32b-awq",
        "loadtest plan --arrivals-per-hour 200 --peak-factor 3",
    ),
    "workload list": ("loadtest workload list",),
    "workload show": ("loadtest workload show math:n=8,seed=7",),
    "workload validate": ("loadtest workload validate prompts.jsonl",),
    "workload from-run": ("loadtest workload from-run runs/mine -o replay.jsonl",),
    "init": ("loadtest init mine",),
    "doctor": ("loadtest doctor",),
    "accept": (
        "loadtest accept --dry-run",
        "loadtest accept --model models/Qwen3-0.6B",
        "loadtest accept --engine vllm-sim --engine sglang-sim --gpu l20",
    ),
    "verify": ("loadtest verify --concurrency 8",),
}

START = """start with:
  loadtest demo
  loadtest attach --base-url http://127.0.0.1:8000
  loadtest COMMAND --help

completion in bash and zsh: eval "$(register-python-argcomplete loadtest)\""""

_EXIT_CODES = "0 done, 1 could not measure, 2 usage error, 130 interrupted"
_ACCEPTANCE = "0 done, 1 could not measure, 2 usage error, 3 a check failed, 130 interrupted"
_GATE = "0 done, 1 could not be judged, 2 usage error, 3 a gate is not met"
_WITH_SLO = ("attach", "search", "check", "plan")

# Options by what they are about, for a command with more than a dozen; an option of none is among the others.
_GROUPS: Mapping[str, tuple[str, ...]] = {
    "the server": ("--base-url", "--api", "--header", "--proxy", "--insecure", "--model", "--engine", "--engine-version",
                   "--tp", "--gpu", "--interconnect", "--calibration", "--memory-fraction", "--speculation",
                   "--expert-parallel"),
    "the load": ("--concurrency", "--rate", "--arrivals", "--speed-up", "--requests", "--duration", "--warmup-requests",
                 "--workers", "--prompt-tokens", "--output-tokens", "--study", "--start", "--max-concurrency", "--find-max"),
    "what is asked": ("--workload", "--prompt-key", "--answer-key", "--mode", "--max-tokens", "--tokenizer", "--extra-body",
                      "--seed"),
    "what is measured and judged": ("--only", "--force", "--budget", "--precision", "--until-decided", "--slo", "--dry-run",
                                    "--verify"),
    "the demand": ("--users", "--answers-per-hour", "--arrivals-per-hour", "--sessions-per-day", "--requests-per-session",
                   "--think-time", "--session-length", "--peak-factor"),
    "where it goes": ("--out", "--resume", "--json", "--plain", "--quiet", "--verbose"),
}  # fmt: skip
_GROUPED = ("attach", "search", "duel", "run", "predict", "plan")


def group_of(command: str, option: str) -> str | None:
    """The title of the group that an option of a command is listed in; None: with the others.

    >>> group_of("attach", "--rate"), group_of("attach", "--help"), group_of("doctor", "--json")
    ('the load', None, None)
    """
    if command not in _GROUPED:
        return None
    return next((title for title, options in _GROUPS.items() if option in options), None)


def epilog(command: str) -> str:
    """Examples, SLOs and exit codes of a command (`workload show`); of loadtest itself, where to start."""
    if not command:
        return START
    parts = []
    if command in EXAMPLES:
        parts.append("\n".join(["examples:", *(f"  {line}" for line in EXAMPLES[command])]))
    if command in _WITH_SLO:
        parts.append(_slos())
    codes = {"check": _GATE, "compare": _GATE, "accept": _ACCEPTANCE}
    parts.append(f"exit codes: {codes.get(command, _EXIT_CODES)}")
    return "\n\n".join(parts)


def _slos() -> str:
    """Every metric that an SLO may limit, by what may be limited of it."""
    from loadtest.metrics.catalogue import METRICS, OBJECTIVES, statistics_of

    kinds: dict[tuple[str, ...], list[str]] = {}
    for name in OBJECTIVES:
        kinds.setdefault(statistics_of(name), []).append(f"{name}{'<' if METRICS[name].better == 'less' else '>'}")
    lines = ["an SLO is METRIC:STATISTIC<LIMIT, such as ttft_s:p90<2, ttft_s:p90<=500ms or tokens_per_s_per_user:p10>15"]
    for statistics, names in kinds.items():
        told = "without a statistic" if statistics == ("value",) else f"with {', '.join(statistics)}"
        lines += textwrap.wrap(f"{told}: {', '.join(names)}", 98, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines)


# Completions ---------------------------------------------------------------------------------------------------------


def completer(option: str) -> Any:
    """What completes the value of an option; None: files."""
    return {"--gpu": _gpus, "--model": _models, "--workload": _workloads, "SPEC": _workloads}.get(option)


def _gpus(**_: Any) -> list[str]:
    from loadtest.perfmodel import gpus

    return sorted(gpus.GPUS)


def _models(**_: Any) -> list[str]:
    from loadtest.perfmodel import models

    return sorted(models.MODELS)


def _workloads(**_: Any) -> list[str]:
    from loadtest.workload import generators

    return sorted(generators.GENERATORS)
