"""`--resume RUN` of `attach`, `search`, `duel`: the command line that began it; does the one given now measure the same?"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from loadtest.errors import UsageError
from loadtest.records import read
from loadtest.servers.probe import is_loopback
from loadtest.servers.route import Route

_MEASURED = (
    "base_url", "api", "header", "proxy", "insecure", "model", "engine", "tp", "gpu", "concurrency", "rate", "arrivals",
    "speed_up", "requests", "duration", "workload", "prompt_key", "answer_key",
    "mode", "max_tokens", "tokenizer", "extra_body", "warmup_requests", "seed", "find_max", "rates",
)  # fmt: skip
_OF_ATTACH = ("concurrency", "rate", "arrivals", "speed_up", "requests", "duration", "find_max")
_SEARCHED = tuple(name for name in _MEASURED if name not in _OF_ATTACH)
_BY_COMMAND = {
    "measure.attach": _MEASURED,
    "measure.search": _SEARCHED,
    "duel.duel": (
        "header",
        "proxy",
        "insecure",
        "model",
        "concurrency",
        "workload",
        "prompt_key",
        "answer_key",
        "max_tokens",
        "seed",
    ),
}


def began_options(run: Path, name: str) -> list[str]:
    """The options of the command (`name`) that began a run, as its manifest has them.

    Raises `UsageError`: another command did.
    """
    commands = read.read_manifest(run / "manifest.json").commands
    try:
        words = shlex.split(commands[0]) if commands else []
    except ValueError as error:
        raise UsageError(f"{run}: --resume: expected the command that began it, got one of another shape: {error}") from None
    if words[1:2] != [name]:
        began = f"loadtest {words[1]}" if len(words) > 1 else "another program"
        raise UsageError(f"{run}: --resume: expected a run of loadtest {name}, got one of {began}")
    return words[2:]


def servers_of(arguments: argparse.Namespace, places: Sequence[str]) -> list[str]:
    """The servers that arguments name in these places; an option that is repeated names several."""
    values = [getattr(arguments, place) for place in places]
    return [url for value in values for url in (value if isinstance(value, list) else [value])]


def named_again(name: str, servers: list[str], proxy: str | None = None, insecure: bool = False) -> str:
    """What names the servers of a run once more on a command line with --resume, and the way to them; nothing where all are
    on this machine."""
    return _servers_again(name, servers) + _way(proxy, insecure)


def _servers_again(name: str, servers: list[str]) -> str:
    if all(map(is_loopback, servers)):
        return ""
    return "".join(f" {'' if name == 'duel' else '--base-url '}{shlex.quote(one)}" for one in servers)


def _way(proxy: str | None, insecure: bool) -> str:
    """The options that let others read what is sent, a key too."""
    through = "" if proxy is None or is_loopback(proxy) else f" --proxy {shlex.quote(proxy)}"
    return f"{through} --insecure" if insecure else through


def check_way(run: Path, began: argparse.Namespace, given: argparse.Namespace) -> None:
    """Raise `UsageError` unless a proxy beyond this machine, and a server that is not verified, are the user's wish too."""
    Route(proxy=began.proxy)
    if (again := _way(began.proxy, began.insecure)) and (given.proxy, given.insecure) != (began.proxy, began.insecure):
        raise UsageError(f"{run}: --resume: this run sends requests, with your key, where others can read them; if it is "
                         f"yours, repeat with{again}")  # fmt: skip


def check_servers(run: Path, name: str, began: list[str], given: list[str]) -> None:
    """Raise `UsageError` unless servers beyond this machine are named by the user too: a run folder may be a stranger's, and
    whoever is asked gets the user's key."""
    if name == "duel" and given not in ([], began):  # of the others `check_same` says it
        raise UsageError(f"{run}: --resume: expected the run's own {' '.join(began)}, got {' '.join(given)}; start anew")
    if not given and (again := _servers_again(name, began)):
        raise UsageError(f"{run}: --resume: this run sends requests, with your key, to {' '.join(began)}; if it is yours, "
                         f"repeat with{again}")  # fmt: skip


def check_same(run: Path, began: argparse.Namespace, given: argparse.Namespace) -> None:
    """Raise `UsageError` where an option that is given now would measure something else than the run did."""
    for name in _SEARCHED if getattr(began, "find_max", False) else _BY_COMMAND[began.handler]:
        expected, got = getattr(began, name), getattr(given, name)
        if expected != got:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{run}: --resume: {option}: expected the run's own ({_shown(expected)}), got {_shown(got)}; "
                             "start anew")  # fmt: skip


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)
