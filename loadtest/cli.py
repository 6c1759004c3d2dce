"""The command line: options in, one decision and its files out. The only module that prints."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TextIO, cast

from loadtest import __version__
from loadtest.commands.parser import (
    WORKLOADS,
    Command,
    CommandParser,
    add_file_commands,
    add_gate_commands,
    add_handing_on_commands,
    add_headers,
    add_import_command,
    add_keys,
    add_limits,
    add_route,
    add_setup_commands,
    add_workload_commands,
    commands_of,
    hours_of,
    path_of,
    percent_of,
)
from loadtest.credentials import keep_from_dumps, redacted
from loadtest.errors import Interrupted, LoadtestError, UsageError

if TYPE_CHECKING:
    from io import TextIOWrapper

    from loadtest.report.live import LevelStatus, LiveView
    from loadtest.study.execution import Audience

_GPUS = "a registry name (such as l20, rtx-4090, a100-80gb, h20, h100, h200, b200, mi300x) or a TOML file"
_MODELS = "a registry name, a hub name, or a directory with config.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 could not measure, 2 usage, 3 gate not met, 130 interrupted."""
    _open_streams()
    keep_from_dumps()
    os.environ.pop("MPLBACKEND", None)  # nothing of ours is drawn on a screen, and a notebook's may be none here
    for number in (signal.SIGTERM, signal.SIGHUP):  # a polite kill keeps what was measured, as Ctrl-C does
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, signal.default_int_handler)
    try:
        arguments = _parse(list(sys.argv[1:] if argv is None else argv))
        with contextlib.closing(_progress(arguments)) as progress:
            done = _handler(arguments.handler)(arguments, progress)
        return 0 if _say(done, sys.stdout) or _is_on_disk(arguments) else _failed(LoadtestError(_UNSAID))
    except SystemExit:  # of argparse, after its help
        _say("", sys.stdout, end="")
        raise
    except KeyboardInterrupt:
        return _failed(Interrupted("interrupted"))
    except LoadtestError as error:
        if error.said:
            _say(error.said, sys.stdout)
        return _failed(error)
    except OSError as error:
        return _failed(LoadtestError(f"the system refused: {error}"))
    except ImportError as error:
        cause = str(error.__cause__ or error).strip().partition("\n")[0]
        return _failed(LoadtestError(f"cannot load a library: {cause}; is there memory left (ulimit -v)?"))
    except MemoryError:
        return _failed(LoadtestError("out of memory; free some, or raise the limit (ulimit -v)"))


_LIBRARIES_BYTES = 512 * 2**20  # of address space
_THREAD_BYTES = 40 * 2**20  # of a library's thread: its stack and its buffers, one thread a core
_UNSAID = "standard output: closed or full before everything was written"


def _open_streams() -> None:
    """Open those of the standard streams that are closed, so that no file of a run takes their place."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        cast("TextIOWrapper", stream).reconfigure(errors="backslashreplace")  # for a terminal without UTF-8


def _say(text: str, stream: TextIO, end: str = "\n") -> bool:
    """Print at once; whether somebody takes it. After the first refusal the stream leads nowhere."""
    try:
        print(printable(text), end=end, file=stream, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return False
    return True


def _is_on_disk(arguments: argparse.Namespace) -> bool:
    """Is what the command prints in the page of a run as well?"""
    measures = arguments.handler in ("measure.demo", "measure.run", "measure.attach", "measure.search", "duel.duel")
    return measures and not getattr(arguments, "json", False) and not getattr(arguments, "dry_run", False)


def _parse(argv: list[str]) -> argparse.Namespace:
    """Arguments of one command; what follows `--` belongs to the engine."""
    ours, theirs = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what may come next
        import argcomplete

        argcomplete.autocomplete(parser)
    arguments = parser.parse_args(ours)
    if theirs and arguments.handler != "measure.serve":
        parser.error(f"unrecognized arguments after --: {' '.join(theirs)}; only `serve` hands arguments on")
    arguments.engine_args = theirs
    return _of_attach(parser, arguments, ours) if arguments.handler in _ATTACHING else arguments


_ATTACHING = {"measure.attach": "attach", "measure.search": "search", "duel.duel": "duel"}


def _of_attach(parser: argparse.ArgumentParser, given: argparse.Namespace, argv: list[str]) -> argparse.Namespace:
    """Arguments of `attach`, `search` or `duel`; with --resume those that began it, and what is given now."""
    name = _ATTACHING[given.handler]
    places = ("url_a", "url_b") if name == "duel" else ("base_url",)
    named = [place for place in places if getattr(given, place) is not None]
    if given.resume is None:
        if len(named) < len(places):
            where = "URL_A URL_B" if name == "duel" else "--base-url URL"
            parser.error(f"{name}: expected {where}, or --resume RUN for an unfinished run")
        return given
    from loadtest.commands import resumed

    options = resumed.began_options(given.resume, name)
    began = parser.parse_args([name, *options])
    if began.resume is not None or None in (getattr(began, place) for place in places):
        raise UsageError(f"{given.resume}: --resume: expected the command that began it to name its server, got none")
    servers = resumed.servers_of(given, named)
    resumed.check_way(given.resume, began, given)
    resumed.check_servers(given.resume, name, resumed.servers_of(began, places), servers)
    both = parser.parse_args([name, *options, *(word for word in argv[1:] if name != "duel" or word not in servers)])
    for repeated in ("header",) if name == "duel" else ("header", "base_url", "slo"):
        setattr(both, repeated, getattr(given, repeated) or getattr(began, repeated))
    resumed.check_same(given.resume, began, both)
    both.out = given.resume
    return both


def _failed(error: LoadtestError) -> int:
    line = str(error).replace("\n", "\\n")  # of a file's name, or of what a server said: still one line
    _say(f"loadtest: {line}", sys.stderr)
    return error.exit_code


def printable(text: str) -> str:
    """Text from a server or a model, made safe for a terminal: no key in it, control characters are shown, not obeyed.

    >>> printable("a\\x1b[31mb")
    'a\\\\x1b[31mb'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in redacted(text))


class Progress:
    """Tells on standard error how far a run is; every line starts with the time since it began (wall clock).

    `live`: a few more lines are redrawn in place while a level runs; without, a line comes every 15 s. `quiet`: nothing is
    told at all. `verbose`: commands, files and Locust's log as well.
    """

    def __init__(self, *, live: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self._started_s = time.monotonic()
        self._quiet, self._verbose = quiet, verbose
        self._view = _live_view() if live else None
        self._next_s = 0.0

    def __call__(self, line: str) -> None:
        passed_s = int(time.monotonic() - self._started_s)
        text = f"[{passed_s // 60:02d}:{passed_s % 60:02d}] {line}"
        if self._view is not None:
            self._view.line(text)
        elif not self._quiet:
            _say(text, sys.stderr)

    @property
    def audience(self) -> Audience:
        """What a study tells beside lines."""
        from loadtest.study.execution import Audience

        return Audience(watch=self._watch, detail=self if self._verbose else lambda _: None)

    def _watch(self, status: LevelStatus | None) -> None:
        from loadtest.report.live import PLAIN_EVERY_S, plain_line

        if self._view is not None:
            self._view.show(status)
        elif status is None:
            self._next_s = 0.0
        elif time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + PLAIN_EVERY_S
            self(plain_line(status))

    def close(self) -> None:
        """Leave the terminal as it was; what is told from now on comes as lines."""
        if self._view is not None:
            self._view.close()
        self._view = None


def _live_view() -> LiveView:
    from loadtest.report.live import LiveView

    return LiveView(sys.stderr, printable)


def _progress(arguments: argparse.Namespace) -> Progress:
    """How a command tells how far it is: as asked, else live where standard error is a terminal."""
    if not hasattr(arguments, "plain"):
        return Progress()
    from loadtest.report.live import can_be_live

    live = not arguments.plain and not arguments.quiet and can_be_live(sys.stderr)
    return Progress(live=live, quiet=arguments.quiet, verbose=arguments.verbose)


def _add_telling(add: Callable[..., argparse.Action]) -> None:
    """Options of the commands that measure: what is told meanwhile."""
    add("--plain", action="store_true", help="lines instead of a live view (default: where it is no terminal, and in CI)")
    add("-q", "--quiet", action="store_true", help="print the result alone")
    add("-v", "--verbose", action="store_true", help="tell commands, files and Locust's log too")


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="loadtest", description="Load tests for long-reasoning models on SGLang and vLLM.")
    parser.add_argument("--version", action="version", version=f"loadtest {__version__}")
    command = commands_of(parser)
    _measuring_commands(command)
    _attaching_commands(command)
    _serving_command(command)
    add_file_commands(command)
    _model_commands(command)
    add_gate_commands(command)
    _deciding_commands(command)
    add_handing_on_commands(command)
    add_import_command(command)
    add_workload_commands(command)
    add_setup_commands(command)
    return parser


def _handler(name: str) -> Callable[[argparse.Namespace, Progress], str]:
    """The function of `commands` (`module.function`) that does the work and returns what to print."""
    module, _, function = name.rpartition(".")
    _check_memory()
    group = importlib.import_module(f"loadtest.commands.{module}")  # only when a command runs: `--help` stays instant
    handler: Callable[[argparse.Namespace, Progress], str] = getattr(group, function)
    return handler


def _check_memory() -> None:
    """Raise `LoadtestError` under a tight `ulimit -v`, where the libraries of algebra would spin, or interrupt us."""
    limit_bytes, _ = resource.getrlimit(resource.RLIMIT_AS)
    needed_bytes = _LIBRARIES_BYTES + _THREAD_BYTES * (os.cpu_count() or 1)
    if limit_bytes != resource.RLIM_INFINITY and limit_bytes < needed_bytes:
        limits = f"{needed_bytes // 1024} KiB or more, got {limit_bytes // 1024}"
        raise LoadtestError(f"ulimit -v: expected {limits}; raise the limit")


def _measuring_commands(command: Command) -> None:
    add = command("demo", "measure.demo", "measure, analyse and report against the built-in simulator, in about a minute")
    add("--out", type=path_of, metavar="DIR", help="run folder to make (default: runs/demo-TIME)")
    _add_telling(add)

    add = command("run", "measure.run", "start the engine of each cell, measure it at every level, stop it, analyse, report")
    add("study", type=path_of, metavar="STUDY.toml")
    add("--out", type=path_of, metavar="DIR", help="run folder to make (default: runs/NAME-TIME)")
    add("--resume", action="store_true", help="continue the unfinished run in --out; finished levels are kept")
    add("--dry-run", action="store_true", help="show the plan, the fit and the exact commands; start nothing")
    add(
        "--force",
        action="store_true",
        help="start a cell although it does not fit or GPUs are missing, and record how it fails",
    )
    add("--only", action="append", default=[], metavar="KEY=VALUE", help="keep matching cells or levels (repeatable)")
    add("--workers", type=int, metavar="N", help="Locust processes that share the users (default: the study's, else 1)")
    add("--budget", type=hours_of, metavar="HOURS", help="start nothing that would end later, as 2h or 90min (default: any)")
    add("--mode", choices=("natural", "equal-work", "decision"), help="measure in this mode (default: the study's)")
    add("--precision", type=percent_of, metavar="PCT", help="repeat until every interval is so narrow (default: any)")
    add("--find-max", action="store_true", help="search each cell for the largest concurrency within the study's SLOs")
    add_limits(add, study=True)
    add("--until-decided", action="store_true", help="after two to six repeats stop measuring pairs with a certain verdict")
    add("--verify", action="store_true", help="hold the instrument against known times first, at the highest concurrency")
    add("--json", action="store_true", help="print metrics.json instead of the table")
    _add_telling(add)


def _attaching_commands(command: Command) -> None:
    add = command("attach", "measure.attach", "measure a server that is already running, local or hosted")
    _add_server(add)
    _add_load(add)
    add("--workload", default="math", metavar="W", help=f"{WORKLOADS} (default: %(default)s)")
    add_keys(add)
    _add_requests(add)
    add("--find-max", action="store_true", help="search for the largest concurrency within the SLOs, as `search` does")
    add_limits(add)
    _add_ending(add, "attach")

    add = command("search", "measure.search", "find the largest concurrency within SLOs on a server that is already running")
    _add_server(add)
    add("--requests", type=int, metavar="N", help="most requests of a level, then it is undecided (default: by the SLOs)")
    add("--warmup-requests", type=int, metavar="N", help="warm-up requests of each user at each level (default: 1)")
    add_limits(add)
    add("--workload", default="math:n=1024", metavar="W", help=f"{WORKLOADS} (default: %(default)s)")
    add_keys(add)
    _add_requests(add)
    _add_ending(add, "search")

    add = command("duel", "duel.duel", "have two running servers take turns until it is certain which is faster")
    add("url_a", nargs="?", metavar="URL_A")
    add("url_b", nargs="?", metavar="URL_B")
    add_headers(add)
    add_route(add)
    add("--model", metavar="M", help="served model name (default: the one that both serve)")
    add("--concurrency", default="1,8", metavar="1,8", help="lowest and highest users of the bursts (default: %(default)s)")
    add(
        "--matters", type=percent_of, default=5.0, metavar="PCT", help="smaller differences are equal (default: %(default)g)"
    )
    add("--start-sd", metavar="PCT|RUN", help="how much starts vary, or a run that tells it (default: as they stand)")
    add("--budget", type=hours_of, metavar="HOURS", help="start no round that would end later (default: any)")
    add("--workload", default="math", metavar="W", help=f"{WORKLOADS} (default: %(default)s)")
    add_keys(add)
    add("--max-tokens", type=int, metavar="N", help="most output tokens of a request (default: 32768)")
    add("--seed", type=int, default=0, metavar="N", help="seed of the workload's order and of sampling (default: 0)")
    _add_ending(add, "duel")


def _add_server(add: Callable[..., argparse.Action]) -> None:
    """Options of a server that already runs: where, and what it is."""
    add(
        "--base-url",
        action="append",
        metavar="URL",
        help="such as http://127.0.0.1:8000 or unix:///run/vllm.sock; several take turns (repeatable; the key comes from"
        " LOADTEST_API_KEY)",
    )
    add_headers(add)
    add_route(add)
    add("--model", metavar="M", help="served model name (default: the one in /v1/models)")
    add(
        "--engine",
        choices=("sglang", "vllm", "sglang-sim", "vllm-sim", "other"),
        help="which engine it is (default: detected)",
    )
    add("--tp", type=int, metavar="N", help="tensor-parallel size: GPUs that the server uses (default: detected, else 1)")
    add(
        "--api",
        choices=("chat", "completions", "responses", "messages"),
        default="chat",
        help="endpoint to ask; messages is Anthropic's (default: %(default)s)",
    )
    add("--gpu", metavar="G", help=f"{_GPUS}: adds the bound of memory bandwidth to the figures (default: detected)")


def _add_requests(add: Callable[..., argparse.Action]) -> None:
    """Options of what is sent to it."""
    add(
        "--mode",
        choices=("natural", "equal-work"),
        help="equal-work forces the output lengths that the workload records (default: natural; synthetic: equal-work)",
    )
    add("--max-tokens", type=int, metavar="N", help="most output tokens of a request (default: 32768)")
    add(
        "--tokenizer",
        metavar="PATH",
        help="tokenizer.json or its folder, to count tokens where the server reports none (default: none)",
    )
    add(
        "--extra-body", metavar="JSON", help="JSON object merged into the body of each request, and recorded (default: none)"
    )
    add("--slo", action="append", default=[], metavar="METRIC:pQ<VALUE", help="SLO, such as ttft_s:p90<2 (repeatable)")
    add("--workers", type=int, default=1, metavar="N", help="Locust processes that share the users (default: %(default)s)")
    add(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of the workload's order and of sampling (default: %(default)s)",
    )


def _add_ending(add: Callable[..., argparse.Action], name: str) -> None:
    """Options of where the run goes, and of what is told."""
    add("--out", type=path_of, metavar="DIR", help=f"run folder to make (default: runs/{name}-TIME)")
    add(
        "--resume",
        type=path_of,
        metavar="RUN",
        help="continue an unfinished run with its own options; what is finished is kept",
    )
    add("--json", action="store_true", help="print metrics.json instead of the table")
    _add_telling(add)


def _add_load(add: Callable[..., argparse.Action]) -> None:
    """Options of `attach`: how many requests, and when."""
    add(
        "--concurrency",
        metavar="1-8",
        help="levels, such as 4, 1,2,4,8 or 1-8 (default: 1,2,4,8); with --rate the most in flight (default: 128)",
    )
    add("--rate", type=float, metavar="R", help="instead: send R requests per second by the clock, an open loop")
    add(
        "--arrivals",
        choices=("poisson", "constant", "recorded"),
        help="spacing of an open loop; recorded: as the workload says (default: poisson; of a trace recorded)",
    )
    add("--speed-up", type=float, metavar="F", help="send a trace:FILE so many times as fast (default: 1)")
    add(
        "--requests",
        type=int,
        metavar="N",
        help="measured requests per level (default: 2 per user, at least 8; with --rate 40)",
    )
    add(
        "--duration",
        type=float,
        metavar="S",
        help="seconds per level instead; requests that are still running then are recorded cut_off (default: by requests)",
    )
    add(
        "--warmup-requests",
        type=int,
        metavar="N",
        help="warm-up requests of each user before the measured ones (default: 1; with --rate 0)",
    )


def _serving_command(command: Command) -> None:
    add = command("serve", "measure.serve", "start one engine in the foreground; arguments after -- go to it unchanged")
    add("engine", choices=("sglang", "vllm", "sglang-sim", "vllm-sim"))
    add("--model", required=True, metavar="M", help=_MODELS)
    add("--tp", type=int, default=1, metavar="N", help="tensor-parallel size: number of GPUs (default: %(default)s)")
    add("--gpu", metavar="G", help=f"{_GPUS}: check first that the model fits (default: no check)")
    add("--port", type=int, default=8000, metavar="P", help="port to listen on (default: %(default)s)")
    add("--context", type=int, metavar="T", help="context length in tokens (default: the model's own)")
    add(
        "--yarn",
        action="store_true",
        help="extend the context to 131072 tokens: only for prompts over 8192 tokens, it slows shorter ones",
    )
    add("--memory-fraction", type=float, metavar="F", help="share of each GPU's memory that it may use (default: 0.9)")
    add("--reasoning-parser", metavar="R", help="such as qwen3, or none (default: qwen3; none for an instruct model)")
    add("--no-prefix-caching", action="store_true", help="turn prefix caching off (default: on)")
    add("--served-name", metavar="NAME", help="what the server calls the model (default: the last part of its name)")
    add("--seed", type=int, default=0, metavar="N", help="the engine's random seed (default: %(default)s)")
    add("--force", action="store_true", help="start it although it does not fit or GPUs are missing")
    add("--print", action="store_true", help="print the exact command and start nothing")


def _model_commands(command: Command) -> None:
    add = command(
        "fit", "predict.fit", "whether a model fits the GPUs, the memory left for KV cache, the bound on one request's speed"
    )
    _add_deployment(add)
    add("--context", type=int, default=16384, metavar="T", help="tokens of context per request (default: %(default)s)")
    add("--concurrency", type=int, default=1, metavar="C", help="requests that must fit at once (default: %(default)s)")
    add("--json", action="store_true", help="print JSON instead of text")

    add = command("predict", "predict.predict", "what the performance model expects (a prediction, not a measurement)")
    add("--model", metavar="M", help=_MODELS)
    add("--gpu", metavar="G", help=_GPUS)
    add("--tp", type=int, metavar="N", help="tensor-parallel size: number of GPUs (default: 1)")
    add(
        "--engine",
        choices=("sglang", "vllm"),
        help="how prompts are cut and share steps with decoding (default: as most engines)",
    )
    add("--engine-version", metavar="V", help="such as 0.10.1: its generation's overheads (default: current)")
    add(
        "--interconnect",
        choices=("nvlink", "pcie-p2p", "pcie-host", "here"),
        help="how several GPUs reach each other; here: as nvidia-smi says (default: as the GPU's data sheet, a wider range)",
    )
    add("--memory-fraction", type=float, metavar="F", help="share of each GPU's memory that the engine takes (default: 0.9)")
    add(
        "--speculation",
        metavar="A,T,S",
        help="tokens accepted a step, tokens drafted, drafting passes; such as 3.2,16,4 (default: none)",
    )
    add(
        "--expert-parallel", nargs="?", const="all-reduce", choices=("all-reduce", "all-to-all"),
        help="each GPU holds whole experts (vLLM --enable-expert-parallel, SGLang --ep-size), whose answers an all-reduce"
        " adds up; all-to-all: tokens are sent to them (SGLang --moe-a2a-backend; default: each GPU holds a part of each)",
    )  # fmt: skip
    add("--calibration", type=path_of, metavar="FILE", help="what loadtest calibrate wrote of this machine (default: none)")
    add("--prompt-tokens", type=int, metavar="P", help="tokens of each prompt (with a model, required)")
    add("--output-tokens", type=int, metavar="O", help="tokens of each output (with a model, required)")
    add("--concurrency", type=int, metavar="C", help="streams (default: 1)")
    add("--study", type=path_of, metavar="STUDY.toml", help="instead: fast-forward a whole study to its records and page")
    add("--find-max", action="store_true", help="with --study: search each cell for the largest concurrency within its SLOs")
    add_limits(add, study=True)
    add("--out", type=path_of, metavar="DIR", help="with --study: run folder to make (default: runs/predicted-NAME-TIME)")
    add("--json", action="store_true", help="print JSON: the prediction, or with --study metrics.json")

    add = command("calibrate", "calibrate.calibrate", "fit the performance model to runs measured on this machine")
    add("runs", type=path_of, nargs="+", metavar="RUN", help="run folder of real engines, a few levels of one cell or more")
    add("--out", type=path_of, metavar="FILE", help="file to write, which must not exist (default: machine.toml)")
    add(
        "--interconnect",
        choices=("nvlink", "pcie-p2p", "pcie-host", "here"),
        help="how the GPUs reach each other (default: as the data sheet)",
    )
    add("--json", action="store_true", help="print JSON instead of text")


def _deciding_commands(command: Command) -> None:
    add = command("plan", "plan.plan", "how many replicas and GPUs a number of users needs within the SLOs")
    add(
        "--users",
        type=int,
        metavar="U",
        help="requests in flight at once; with --think-time: users at work at once; with --sessions-per-day: users of a day",
    )
    add("--answers-per-hour", type=float, metavar="N", help="finished answers per hour to deliver instead")
    _add_arrivals(add)
    add("--slo", action="append", default=[], metavar="METRIC:pQ<VALUE", help="SLO, such as ttft_s:p90<2 (repeatable)")
    add(
        "--from",
        dest="source",
        type=path_of,
        metavar="RUN",
        help="measured run to plan from (default: predict with the performance model)",
    )
    add(
        "--study",
        type=path_of,
        metavar="STUDY.toml",
        help="without --from: the study to predict (default: the published one)",
    )
    add(
        "--model",
        metavar="M",
        help="this model only: its name, or a part of it; with --gpu also one of no study (default: all)",
    )
    add("--engine", choices=("sglang", "vllm", "other"), help="this engine only (default: all)")
    add("--tp", type=int, metavar="N", help="this tensor-parallel size only (default: all)")
    add("--gpu", metavar="G", help="this GPU only (default: all)")
    add("--gpu-hour-price", type=float, metavar="P", help="price of one GPU for one hour (default: the run's)")
    add(
        "--headroom",
        type=float,
        metavar="SHARE",
        help="share of each replica to keep free (default: 0.2; with arrivals 0)",
    )
    add("--out", type=path_of, metavar="FILE", help="with arrivals: chart to write, .png or .svg")
    add("--json", action="store_true", help="print JSON instead of text")


def _add_arrivals(add: Callable[..., argparse.Action]) -> None:
    """Options of `plan` for requests that come when they come, however many are still in flight."""
    add("--arrivals-per-hour", type=float, metavar="N", help="requests that arrive per hour, mean of the day")
    add("--sessions-per-day", type=float, metavar="S", help="sessions that each of the users begins per day")
    add("--requests-per-session", type=float, metavar="R", help="requests of a session, one after another (default: 1)")
    add("--think-time", type=float, metavar="S", help="mean seconds from an answer to the next request (default: 60)")
    add(
        "--peak-factor",
        type=float,
        metavar="P",
        help="highest rate of the day over its mean (default: 2; of users at work: 1)",
    )
    routers = ("random", "round-robin", "least-loaded", "all")
    add("--router", choices=routers, help="how requests are spread over replicas (default: least-loaded)")


def _add_deployment(add: Callable[..., argparse.Action]) -> None:
    add("--model", required=True, metavar="M", help=_MODELS)
    add("--gpu", required=True, metavar="G", help=_GPUS)
    add("--tp", type=int, default=1, metavar="N", help="tensor-parallel size: number of GPUs (default: %(default)s)")


if __name__ == "__main__":
    sys.exit(main())
