"""The options that our scenarios add to the command line of Locust."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any, get_args

from loadtest.records.schema import Api

_default_workload = "math"


def default_workload(spec: str) -> None:
    """Set the default of `--workload`; a scenario calls this when it is loaded."""
    global _default_workload
    _default_workload = spec


def add_options(parser: Any) -> None:
    """Our options, beside Locust's own (`-u`, `-r`, `--run-time`, `--host`, ...)."""
    group = parser.add_argument_group("loadtest: what to ask, of whom, and where the records go")
    group.add_argument("--model", help="what the server calls the model (default: ask it)")
    group.add_argument(
        "--engine",
        choices=("sglang", "vllm", "sglang-sim", "vllm-sim", "other"),
        help="which engine it is (default: find out)",
    )
    group.add_argument(
        "--tp", type=_from(1), help="tensor-parallel size of the server, for the cell's name (default: ask, else 1)"
    )
    group.add_argument("--cell", type=_folder, help="name of the cell (default: ENGINE_MODEL_tpN)")
    group.add_argument("--repeat", type=_from(1), help="which pass over this level it is (default: the next free one)")
    group.add_argument("--level", type=_from(1), help="number of the level, where it is not the number of users")
    group.add_argument("--run-id", help="a run that somebody else opened and will close in --out")
    group.add_argument(
        "--workload",
        default=_default_workload,
        help="a generator (math:n=64,seed=7), a JSONL, CSV or Parquet file, hf:ID, or trace:FILE (default: %(default)s)",
    )
    group.add_argument("--speed-up", type=float, help="send a trace:FILE so many times as fast (default: 1)")
    group.add_argument("--prompt-key", help="column or key of the file that holds the prompt (default: by its format)")
    group.add_argument("--answer-key", help="column or key that holds the answer (default: by its format)")
    group.add_argument(
        "--requests", type=_from(1), help="measured requests of this level; it ends when they have (default: --duration)"
    )
    group.add_argument("--api", choices=get_args(Api), default="chat", help="endpoint to ask (default: %(default)s)")
    group.add_argument(
        "--header", action="append", metavar="NAME=ENV_VAR", help="header whose value is in this variable (repeatable)"
    )
    group.add_argument(
        "--replica", action="append", metavar="URL", help="a further server that takes turns with --host (repeatable)"
    )
    group.add_argument("--proxy", metavar="URL", help="send requests through this HTTP proxy (default: none)")
    group.add_argument("--insecure", action="store_true", help="do not verify the server's certificate")
    group.add_argument("--prompts", type=_from(1), help="ask the first N prompts in whole rounds, each with a cache_salt")
    group.add_argument("--duration", type=_seconds, help="seconds of the run's clock, from the start of the users on")
    group.add_argument(
        "--warmup-requests",
        type=_from(0),
        default=1,
        help="requests of each user before the measured ones (default: %(default)s)",
    )
    group.add_argument("--max-tokens", type=_from(1), help="most tokens of one output, thinking included (default: 32768)")
    group.add_argument(
        "--mode",
        choices=("natural", "equal-work"),
        help="stop naturally, or force recorded lengths (default: as the workload)",
    )
    group.add_argument(
        "--seed",
        type=int,
        default=0,
        help="orders the prompts; also sent to the server (default: %(default)s)",
    )
    group.add_argument("--grammar", choices=("on", "off"), help="off: ask for tools and JSON in words alone (default: on)")
    group.add_argument("--clock-speed", type=float, help="simulated seconds per second, of a simulator (default: ask it)")
    group.add_argument("--tokenizer", help="tokenizer.json or its folder, to count tokens of a server that never tells")
    group.add_argument("--out", help="run folder (default: runs/TIME-ENGINE)")


def _from(least: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not re.fullmatch("[0-9]{1,18}", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} up, got {text[:40]!r}")
        return int(text)

    return whole


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < 1e8:
        raise argparse.ArgumentTypeError(f"expected seconds above 0, and below 1e8, got {text[:40]}")
    return seconds


def _folder(text: str) -> str:
    """The name of a cell, which is also the name of its folder."""
    if not re.fullmatch(r"\w[\w.,=+-]{0,199}", text):
        raise argparse.ArgumentTypeError(f"expected letters, digits and . , = + - _, got {text[:40]!r}")
    return text
