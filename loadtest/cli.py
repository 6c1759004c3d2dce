"""The command line: options in, one decision and its files out. The only module that prints."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from loadtest import __version__
from loadtest.credentials import redacted
from loadtest.errors import GateError, Interrupted, LoadtestError

if TYPE_CHECKING:
    from io import TextIOWrapper

_GPUS = "a registry name (l20, l40s, a10, rtx-4090, rtx-6000-ada, a100-80gb, h20, h100, h200) or a TOML file"
_Command = Callable[..., Callable[..., Any]]
_MODELS = "a registry name, a hub name, or a directory with config.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 could not measure, 2 usage, 3 gate not met, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        cast("TextIOWrapper", stream).reconfigure(errors="backslashreplace")  # for a terminal without UTF-8
    os.environ.pop("MPLBACKEND", None)  # nothing of ours is drawn on a screen, and a notebook's may be none here
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill keeps what was measured, as Ctrl-C does
    try:
        arguments = _parse(list(sys.argv[1:] if argv is None else argv))
        print(printable(_handler(arguments.handler)(arguments, Progress())))
    except KeyboardInterrupt:
        return _failed(Interrupted("interrupted"))
    except GateError as error:
        if error.said:
            print(printable(error.said))
        return _failed(error)
    except LoadtestError as error:
        return _failed(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone: nothing more to say
        return 0
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    """Arguments of one command; what stands after `--` is the runtime's own."""
    ours, theirs = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    parser = _parser()
    arguments = parser.parse_args(ours)
    if theirs and arguments.handler != "measure.serve":
        parser.error(f"unrecognized arguments after --: {' '.join(theirs)}; only `serve` hands arguments on")
    arguments.engine_args = theirs
    return arguments


def _failed(error: LoadtestError) -> int:
    line = printable(str(error)).replace("\n", "\\n")  # of a file's name, or of what a server said: still one line
    print(f"loadtest: {line}", file=sys.stderr)
    return error.exit_code


def printable(text: str) -> str:
    """Text from a server or a model, made safe for a terminal: no key in it, control characters are shown, not obeyed.

    >>> printable("a\\x1b[31mb")
    'a\\\\x1b[31mb'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in redacted(text))


def _path(text: str) -> Path:
    """The path of a file or folder, there or not; refused where the system could have none of that name."""
    try:
        os.lstat(text)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"expected a path, got {text[:40]!r}: {error}"[:200]) from None
    return Path(text)


class Progress:
    """Tells on standard error how far a run is; every line starts with the time since it began (wall clock)."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()

    def __call__(self, line: str) -> None:
        passed_s = int(time.monotonic() - self._started_s)
        print(f"[{passed_s // 60:02d}:{passed_s % 60:02d}] {printable(line)}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="loadtest", description="Load tests for long-reasoning models on SGLang and vLLM.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"loadtest {__version__}")
    command = _commands_of(parser)
    _measuring_commands(command)
    _serving_command(command)
    _file_commands(command)
    _model_commands(command)
    _deciding_commands(command)
    _workload_commands(command)
    _setup_commands(command)
    return parser


def _commands_of(parser: argparse.ArgumentParser) -> _Command:
    """Gives a parser commands: the function returned adds one, and returns what adds an argument to it."""
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, handler: str | None, about: str) -> Callable[..., Any]:
        one = commands.add_parser(name, help=about, description=f"{about[:1].upper()}{about[1:]}.", allow_abbrev=False)
        if handler is None:
            return _commands_of(one)
        one.set_defaults(handler=handler)
        return one.add_argument

    return command


def _handler(name: str) -> Callable[[argparse.Namespace, Progress], str]:
    """The function of `commands` (`module.function`) that does the work and returns what to print."""
    module, function = name.split(".")
    group = importlib.import_module(f"loadtest.commands.{module}")  # only when a command runs: `--help` stays instant
    handler: Callable[[argparse.Namespace, Progress], str] = getattr(group, function)
    return handler


def _measuring_commands(command: _Command) -> None:
    add = command("demo", "measure.demo", "the whole job against the embedded simulator, in about a minute")
    add("--out", type=_path, metavar="DIR", help="run folder to make (default: runs/demo-TIME)")

    add = command("run", "measure.run", "start each cell's runtime, drive it at every level, stop it, analyse, report")
    add("study", type=_path, metavar="STUDY.toml")
    add("--out", type=_path, metavar="DIR", help="run folder to make (default: runs/NAME-TIME)")
    add("--resume", action="store_true", help="go on with an unfinished run in --out; finished levels are kept")
    add("--dry-run", action="store_true", help="show the plan, the fit and the exact commands; start nothing")
    add(
        "--force",
        action="store_true",
        help="start a cell although it does not fit or cards are missing, to record how it fails",
    )
    add("--only", action="append", default=[], metavar="KEY=VALUE", help="keep matching cells or levels (repeatable)")
    add("--workers", type=int, metavar="N", help="processes of Locust that share the streams (default: the study's, else 1)")
    add("--json", action="store_true", help="print metrics.json instead of the table")

    add = command("attach", "measure.attach", "the same measurement of a server that already runs, local or hosted")
    add(
        "--base-url",
        required=True,
        metavar="URL",
        help="such as http://127.0.0.1:8000 (the key comes from LOADTEST_API_KEY)",
    )
    add("--model", metavar="M", help="served name (default: what /v1/models says)")
    add("--engine", choices=("sglang", "vllm", "sglang-sim", "vllm-sim", "other"), help="default: found out")
    add("--tp", type=int, metavar="N", help="cards the server uses (default: found out, else 1)")
    add("--gpu", metavar="G", help=f"{_GPUS}: draws the bound beside the figures")
    add("--concurrency", default="1,2,4,8", metavar="1-8", help="levels: 4, 1,2,4,8, or 1-8 for each of them")
    add("--requests", type=int, metavar="N", help="measured requests a level (default: 2 a stream, at least 8)")
    add("--duration", type=float, metavar="S", help="seconds a level instead; what still runs then is recorded as cut_off")
    add("--workload", default="math", metavar="W", help="math, ledger, choice, ..., with :n=64,seed=7; or a JSONL file")
    add("--mode", choices=("natural", "equal-work"), default="natural")
    add("--max-tokens", type=int, metavar="N", help="output limit of a request (default: the contract's 32768)")
    add("--tokenizer", metavar="PATH", help="tokenizer.json or its folder, to count tokens of a server that never tells")
    add("--extra-body", metavar="JSON", help="fields merged into each request's body, recorded with the contract")
    add("--slo", action="append", default=[], metavar="METRIC:pQ<VALUE", help="such as ttft_s:p90<2 (repeatable)")
    add("--warmup-requests", type=int, default=1, metavar="N", help="requests of each stream before the measured ones")
    add("--workers", type=int, default=1, metavar="N", help="processes of Locust that share the streams (default: 1)")
    add("--seed", type=int, default=0)
    add("--out", type=_path, metavar="DIR", help="run folder to make (default: runs/attach-TIME)")
    add("--json", action="store_true", help="print metrics.json instead of the table")


def _serving_command(command: _Command) -> None:
    add = command("serve", "measure.serve", "start one runtime in the foreground; what follows -- goes to it as it is")
    add("engine", choices=("sglang", "vllm", "sglang-sim", "vllm-sim"))
    add("--model", required=True, metavar="M", help=_MODELS)
    add("--tp", type=int, default=1, metavar="N", help="tensor-parallel size: how many cards")
    add("--gpu", metavar="G", help=f"{_GPUS}: checks the fit first")
    add("--port", type=int, default=8000, metavar="P")
    add("--context", type=int, metavar="T", help="context length in tokens (default: the model's own)")
    add(
        "--yarn",
        action="store_true",
        help="stretch the context to 131072: for prompts over 8192 tokens only, it slows others",
    )
    add("--memory-fraction", type=float, metavar="F", help="share of a card it may use in all, on both alike (default: 0.9)")
    add("--reasoning-parser", metavar="R", help="on both alike, or none (default: qwen3, or none for an instruct model)")
    add("--no-prefix-caching", action="store_true", help="turn prefix caching off; on both it is on")
    add("--served-name", metavar="NAME", help="what the server calls the model (default: the last part of its name)")
    add("--seed", type=int, default=0, metavar="N")
    add("--force", action="store_true", help="start it although it does not fit or cards are missing, to see how it fails")
    add("--print", action="store_true", help="show the exact command and start nothing")


def _file_commands(command: _Command) -> None:
    add = command("analyze", "analyze.analyze", "records to metrics.json and metrics.csv")
    add("run", type=_path, metavar="RUN")
    add(
        "--run-programs",
        action="store_true",
        help="run the programs that the model wrote, each in a sandbox, and judge what they print",
    )
    add("--json", action="store_true", help="print metrics.json instead of the table")

    add = command("report", "analyze.report", "one self-contained HTML page, and each plot as PNG and SVG")
    add("runs", type=_path, nargs="+", metavar="RUN", help="one run; several, the first as baseline; or a folder of runs")
    add(
        "-o",
        "--output",
        type=_path,
        metavar="FILE",
        help="default: report.html in RUN, or comparison.html beside it, or index.html",
    )
    add("--templates", type=_path, metavar="DIR", help="your edited templates, as init copies them (DIR/reports/templates)")


def _model_commands(command: _Command) -> None:
    add = command(
        "fit", "predict.fit", "does a model fit the cards, what is left for KV cache, how fast could one stream be"
    )
    _add_deployment(add)
    add("--context", type=int, default=16384, metavar="T", help="tokens of context a stream (default: %(default)s)")
    add("--concurrency", type=int, default=1, metavar="C", help="streams that must fit (default: %(default)s)")
    add("--json", action="store_true")

    add = command("predict", "predict.predict", "what the performance model expects (a prediction, not a measurement)")
    add("--model", metavar="M", help=_MODELS)
    add("--gpu", metavar="G", help=_GPUS)
    add("--tp", type=int, metavar="N", help="tensor-parallel size: how many cards (default: 1)")
    add("--engine", choices=("sglang", "vllm"), help="where the constants differ by runtime")
    add("--prompt-tokens", type=int, metavar="P")
    add("--output-tokens", type=int, metavar="O")
    add("--concurrency", type=int, metavar="C", help="streams (default: 1)")
    add("--study", type=_path, metavar="STUDY.toml", help="instead: fast-forward a whole study to its records and page")
    add("--out", type=_path, metavar="DIR", help="with --study: run folder to make (default: runs/predicted-NAME-TIME)")
    add("--json", action="store_true", help="print JSON: the prediction, or with --study metrics.json")


def _deciding_commands(command: _Command) -> None:
    add = command(
        "compare", "decide.compare", "paired verdict for every level and metric of two runs; exit 3 on a regression"
    )
    add("baseline", type=_path, metavar="BASELINE")
    add("candidate", type=_path, metavar="CANDIDATE")
    add("--tolerance", type=float, default=0.0, metavar="PCT", help="a regression up to this many percent is let pass")
    add("--start-sd", type=float, metavar="PCT", help="how much starts of a server differ, where the runs do not say")
    add("--allow", action="append", default=[], metavar="KEY", help="compare although this key of the contract differs")
    add("--json", action="store_true")

    add = command("check", "decide.check", "a gate for CI: exit 3 when a run does not meet what is required")
    add("run", type=_path, metavar="RUN")
    add("--require", action="append", required=True, metavar="METRIC:pQ<VALUE", help="such as ttft_s:p90<2 (repeatable)")
    add("--concurrency", type=int, metavar="C", help="judge this level alone (default: each level)")
    add("--allow-unhealthy", action="store_true", help="judge although the run's own health failed")
    add("--json", action="store_true")

    add = command("plan", "decide.plan", "how many replicas and cards hold so many users under an SLO")
    add("--users", type=int, metavar="U", help="concurrent users to hold")
    add("--answers-per-hour", type=float, metavar="N", help="finished answers an hour instead")
    add("--slo", action="append", default=[], metavar="METRIC:pQ<VALUE", help="such as ttft_s:p90<2 (repeatable)")
    add(
        "--from",
        dest="source",
        type=_path,
        metavar="RUN",
        help="measurements (default: the performance model, said plainly)",
    )
    add(
        "--study",
        type=_path,
        metavar="STUDY.toml",
        help="without --from: cells and workload to predict (default: the published)",
    )
    add("--gpu-hour-price", type=float, metavar="P", help="price of one card for one hour (default: the run's)")
    add(
        "--headroom", type=float, default=0.2, metavar="SHARE", help="share of each replica kept free (default: %(default)s)"
    )
    add("--json", action="store_true")


def _workload_commands(command: _Command) -> None:
    within = command("workload", None, "workloads: list, show, validate, and turn a run into one")
    add = within("list", "workloads.list_all", "the built-in workloads")
    add("--json", action="store_true")
    add = within("show", "workloads.show", "the prompts of a workload")
    add("workload", metavar="SPEC", help="math, ledger, choice, ..., with :n=64,seed=7; or a JSONL file")
    add("--json", action="store_true")
    add = within("validate", "workloads.validate", "is a file a workload; errors with their line")
    add("file", type=_path, metavar="FILE")
    add("--json", action="store_true")
    add = within("from-run", "workloads.from_run", "a finished run as a workload to replay")
    add("run", type=_path, metavar="RUN")
    add("-o", "--output", type=_path, required=True, metavar="FILE")
    add("--cell", metavar="CELL", help="which cell's requests (default: the first that finished any)")
    add("--concurrency", type=int, metavar="C", help="which level's requests (default: the lowest)")


def _setup_commands(command: _Command) -> None:
    add = command("init", "setup.init", "scenarios, studies, launchers and templates, copied for editing")
    add("directory", type=_path, metavar="DIR")

    add = command("doctor", "setup.doctor", "what this machine has, what is missing, and the command that cures it")
    add("--json", action="store_true")


def _add_deployment(add: Callable[..., argparse.Action]) -> None:
    add("--model", required=True, metavar="M", help=_MODELS)
    add("--gpu", required=True, metavar="G", help=_GPUS)
    add("--tp", type=int, default=1, metavar="N", help="tensor-parallel size: how many cards")


if __name__ == "__main__":
    sys.exit(main())
