"""The parser of the command line: commands, their groups of options, and the commands that read runs and prompts."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loadtest.commands.help import completer, epilog, group_of

WORKLOADS = (
    "a generator with its options (math, ledger:n=64,seed=7, ...), a JSONL, CSV or Parquet file, hf:ID, or trace:FILE"
)
Command = Callable[..., Callable[..., Any]]


def path_of(text: str) -> Path:
    """The path of a file or folder, there or not; refused where the system could have none of that name."""
    try:
        os.lstat(text)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"expected a path, got {text[:40]!r}: {error}"[:200]) from None
    return Path(text)


_HOURS = {"h": 1.0, "min": 1 / 60, "": 1.0}


def hours_of(text: str) -> float:
    """
    >>> hours_of("2h"), hours_of("90min"), hours_of("0.5")
    (2.0, 1.5, 0.5)
    """
    unit = next(unit for unit in _HOURS if text.endswith(unit))
    try:
        return float(text.removesuffix(unit)) * _HOURS[unit]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected hours, such as 2h or 90min, got {text[:40]!r}") from None


def percent_of(text: str) -> float:
    """
    >>> percent_of("3%"), percent_of("3")
    (3.0, 3.0)
    """
    try:
        return float(text.removesuffix("%"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a percentage, such as 3%, got {text[:40]!r}") from None


class CommandParser(argparse.ArgumentParser):
    """Of loadtest or one of its commands; the examples are read when the help is printed."""

    def __init__(self, **how: Any) -> None:
        super().__init__(allow_abbrev=False, **how)
        self._groups: dict[str, argparse._ArgumentGroup] = {}

    @property
    def name(self) -> str:
        """Of the command, such as `workload show`; empty of loadtest itself."""
        return self.prog.partition(" ")[2]

    def add(self, *names: str, **how: Any) -> argparse.Action:
        """Add an argument, an option to the group that it belongs to."""
        title = group_of(self.name, names[-1])
        if title is None:
            place: argparse._ActionsContainer = self
        else:
            place = self._groups.get(title) or self._groups.setdefault(title, self.add_argument_group(title))
        action = place.add_argument(*names, **how)
        vars(action)["completer"] = completer(str(how.get("metavar")) if names[0][0] != "-" else names[-1])
        return action

    def format_help(self) -> str:
        return f"{super().format_help()}\n{epilog(self.name)}\n"


def commands_of(parser: CommandParser) -> Command:
    """Gives a parser commands: the function returned adds one, and returns what adds an argument to it."""
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=CommandParser)

    def command(name: str, handler: str | None, about: str) -> Callable[..., Any]:
        one = commands.add_parser(name, help=about, description=f"{about[:1].upper()}{about[1:]}.")
        if handler is None:
            return commands_of(one)
        one.set_defaults(handler=handler)
        return one.add

    return command


def add_headers(add: Callable[..., argparse.Action]) -> None:
    """Headers with secrets."""
    add(
        "--header",
        action="append",
        default=[],
        metavar="NAME=ENV_VAR",
        help="send a header whose value is in this environment variable; it is shown and recorded nowhere (repeatable)",
    )


def add_route(add: Callable[..., argparse.Action]) -> None:
    """The way to the server."""
    add(
        "--proxy",
        metavar="URL",
        help="send requests through this HTTP proxy, such as http://10.0.0.1:3128; USER:PASSWORD for it comes from"
        " LOADTEST_PROXY_AUTH (default: none; for https:// that of https_proxy)",
    )
    add("--insecure", action="store_true", help="do not verify the server's certificate; the page says so (default: verify)")


def add_keys(add: Callable[..., argparse.Action]) -> None:
    """Options that say where a file of one's own holds prompt and answer."""
    add("--prompt-key", metavar="KEY", help="column or key of the file that holds the prompt (default: by its format)")
    add("--answer-key", metavar="KEY", help="column or key that holds the answer (default: by its format)")


def add_limits(add: Callable[..., Any], *, study: bool = False) -> None:
    """Where a search begins and how far it goes; `study`: what a study does not say itself."""
    add("--rates", action="store_true", help="search the largest rate of Poisson arrivals instead of a concurrency")
    add("--start", type=float, metavar="N", help="a search's first level: users, or requests/s (default: predicted)")
    add("--max-concurrency", type=int, metavar="N", help="most users of a search, or most in flight (default: 256)")
    if study:
        add("--requests", type=int, metavar="N", help="most requests of a searched level (default: by the SLOs)")
    else:
        add("--budget", type=hours_of, metavar="HOURS", help="hours that a search may take (default: any)")
        add("--calibration", metavar="FILE", help="what calibrate wrote, for a search's first level (default: none)")


def add_file_commands(command: Command) -> None:
    add = command("analyze", "analyze.analyze", "compute metrics.json and metrics.csv from the records of a run")
    add("run", type=path_of, metavar="RUN")
    add(
        "--run-programs",
        action="store_true",
        help="first run the programs that the model wrote, each in a sandbox, and judge their output",
    )
    add("--json", action="store_true", help="print metrics.json instead of the table")

    add = command("report", "analyze.report", "write one self-contained HTML page, and each plot as PNG and SVG")
    add(
        "runs",
        type=path_of,
        nargs="+",
        metavar="RUN",
        help="one run; several runs, the first as baseline; or a folder of runs",
    )
    add(
        "-o",
        "--output",
        type=path_of,
        metavar="FILE",
        help="page to write (default: report.html in RUN, comparison.html beside it, or index.html)",
    )
    add(
        "--templates",
        type=path_of,
        metavar="DIR",
        help="your edited templates, as init copies them (DIR/reports/templates; default: the built-in ones)",
    )


def add_handing_on_commands(command: Command) -> None:
    add = command("export", "handing_on.export", "write the requests of a run, or its figures, for other programs")
    add("run", type=path_of, metavar="RUN")
    add(
        "-o",
        "--output",
        type=path_of,
        required=True,
        metavar="FILE",
        help="new file; .parquet or .csv: a row for each request; .prom: the figures as OpenMetrics",
    )

    add = command(
        "bundle", "handing_on.bundle", "pack a run into one file, which report, compare, check, plan and export take"
    )
    add("run", type=path_of, metavar="RUN")
    add("-o", "--output", type=path_of, metavar="FILE", help="new file (default: RUN.loadtest)")
    add("--redact", action="store_true", help="replace names of machines, addresses and home folders")
    add("--hide", action="append", default=[], metavar="WORD", help="replace this word too (repeatable)")


def add_import_command(command: Command) -> None:
    add = command("import", "importing.import_results", "make a run of result files of another tool, or of a bundle")
    add("files", type=path_of, nargs="+", metavar="FILE",
        help="of one tool and one server: a level for each concurrency, a repeat for each further file of it; or a bundle",
    )  # fmt: skip
    add("--out", type=path_of, metavar="RUN", help="folder to make (default: runs/import-NAME-TIME)")
    engines = ("sglang", "vllm", "sglang-sim", "vllm-sim", "other")
    add("--engine", choices=engines, metavar="ENGINE", help="sglang, vllm or other (default: as the files tell, or other)")
    add("--model", metavar="M", help="model that was served (default: as the files tell)")
    add("--tp", type=int, metavar="N", help="GPUs that served it (default: as the files tell, or unknown)")
    add("--gpu", metavar="G", help="registry name of the GPU (default: unknown)")
    add("--mode", choices=("natural", "equal-work"), metavar="MODE",
        help="equal-work: the tool forced every length, as --ignore-eos does; or natural (default: unknown)")  # fmt: skip
    add("--concurrency", type=int, metavar="C", help="level of files that do not tell theirs (default: none)")
    add("--json", action="store_true", help="print metrics.json instead of the table")


def add_gate_commands(command: Command) -> None:
    add = command(
        "compare", "decide.compare", "compare two runs, level by level and metric by metric; exit 3 on a regression"
    )
    add("baseline", type=path_of, metavar="BASELINE")
    add("candidate", type=path_of, metavar="CANDIDATE")
    add(
        "--tolerance",
        type=percent_of,
        default=0.0,
        metavar="PCT",
        help="allow regressions up to this percentage (default: 0)",
    )
    add("--start-sd", metavar="PCT|RUN", help="how much starts vary, or a run that tells it (default: what both show)")
    add("--allow", action="append", default=[], metavar="KEY", help="compare although this key differs (repeatable)")
    _add_gate_files(add)
    add("--json", action="store_true", help="print JSON instead of text")

    add = command("check", "decide.check", "a gate for CI: exit 3 if a run does not meet its requirements")
    add("run", type=path_of, metavar="RUN")
    add(
        "--require", action="append", required=True, metavar="METRIC:pQ<VALUE", help="SLO, such as ttft_s:p90<2 (repeatable)"
    )
    add("--concurrency", type=int, metavar="C", help="judge only this level (default: each level)")
    add("--allow-unhealthy", action="store_true", help="judge although the run's health checks failed")
    _add_gate_files(add)
    add("--json", action="store_true", help="print JSON instead of text")


def _add_gate_files(add: Callable[..., Any]) -> None:
    add("--junit", type=path_of, metavar="FILE", help="also write the result as JUnit XML, for a CI system (default: none)")
    add("--summary", type=path_of, metavar="FILE", help="also write it as Markdown, for a pull request (default: none)")


def add_workload_commands(command: Command) -> None:
    within = command("workload", None, "list, show and validate workloads, or make one from a run")
    add = within("list", "workloads.list_all", "list the built-in workloads")
    add("--json", action="store_true", help="print JSON instead of text")
    add = within("show", "workloads.show", "show the prompts of a workload")
    add("workload", metavar="SPEC", help=WORKLOADS)
    add_keys(add)
    add("--json", action="store_true", help="print JSON instead of text")
    add = within("validate", "workloads.validate", "check a workload file; errors name the line")
    add("file", type=path_of, metavar="FILE")
    add_keys(add)
    add("--json", action="store_true", help="print JSON instead of text")
    add = within("from-run", "workloads.from_run", "make a workload from a finished run, to replay it")
    add("run", type=path_of, metavar="RUN")
    add("-o", "--output", type=path_of, required=True, metavar="FILE", help="workload file to write")
    add("--cell", metavar="CELL", help="cell to take the requests from (default: the first that finished any)")
    add("--concurrency", type=int, metavar="C", help="level to take the requests from (default: the lowest)")


def add_setup_commands(command: Command) -> None:
    add = command("init", "machine.setup.init", "copy scenarios, studies, launchers and templates into DIR, for editing")
    add("directory", type=path_of, metavar="DIR")

    add = command(
        "verify", "machine.setup.verify", "hold the instrument against known times on this machine, in half a minute"
    )
    add("--concurrency", type=int, default=8, metavar="C", help="requests in flight at once (default: %(default)s)")
    add("--json", action="store_true", help="print JSON instead of text")

    add = command(
        "accept", "machine.acceptance.accept", "on a machine with GPUs: check all that was never run on one, in 20 minutes"
    )
    add("--engine", action="append", choices=("sglang", "vllm", "sglang-sim", "vllm-sim"), metavar="ENGINE",
        help="sglang, vllm, or to rehearse sglang-sim, vllm-sim (repeatable; default: sglang and vllm)")  # fmt: skip
    add(
        "--model",
        default="Qwen/Qwen3-0.6B",
        metavar="MODEL",
        help="a small model, or its directory (default: %(default)s)",
    )
    add("--gpu", metavar="GPU", help="registry name or TOML file (default: as nvidia-smi says)")
    add("--minutes", type=float, default=20.0, metavar="M", help="stop what runs after M minutes (default: %(default)g)")
    add("--dry-run", action="store_true", help="show the exact commands; start nothing")
    add("--out", type=path_of, metavar="DIR", help="folder to make (default: runs/acceptance-TIME)")
    add("--json", action="store_true", help="print JSON instead of text")

    add = command(
        "doctor", "machine.setup.doctor", "list what this machine has, what is missing, and the command that installs it"
    )
    add("--json", action="store_true", help="print JSON instead of text")
