"""What this machine has for load tests, what is missing, and the command that installs it. Nothing is started or changed."""

from __future__ import annotations

import importlib.util
import os
import platform
import resource
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from loadtest import __version__, credentials
from loadtest.client.priority import Precedence
from loadtest.errors import EngineError
from loadtest.servers import preflight

MachineState = Literal["ok", "missing", "broken"]
_PIP = f"{shlex.quote(sys.executable)} -m pip install"  # into this environment, whichever is on the path
_STREAMS = 1000
_FREE_BYTES = 2 * 10**9
_CLOCK = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
_SLOW_CLOCKS = ("hpet", "acpi_pm", "jiffies")


@dataclass(frozen=True, slots=True)
class MachineCheck:
    """One thing looked at. "missing": something cannot be done without it; "broken": no load can be generated here."""

    name: str
    state: MachineState
    found: str
    cure: str | None = None


def examine(port: int = 8000) -> tuple[MachineCheck, ...]:
    """Look at everything; `port`: where an engine would listen."""
    return (*_load_generator(), *_machine(port), *_engines(), *_secrets())


def _load_generator() -> Iterator[MachineCheck]:
    yield MachineCheck("loadtest", "ok", f"{__version__} on Python {platform.python_version()}")
    for package in ("locust", "gevent", "numpy", "matplotlib"):
        try:
            yield MachineCheck(package, "ok", metadata.version(package))
        except metadata.PackageNotFoundError:
            yield MachineCheck(package, "broken", "not installed", f"{_PIP} {package}")
    yield _extra("tokenizers", "tokenizers", "to count tokens where the server reports none")


def _machine(port: int) -> Iterator[MachineCheck]:
    cores = len(os.sched_getaffinity(0))
    yield MachineCheck("cores", "ok" if cores > 1 else "missing", str(cores), None if cores > 1 else _ONE_CORE)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = hard == resource.RLIM_INFINITY or hard > _STREAMS
    allowed = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    yield MachineCheck("open files", "ok" if enough else "missing", allowed, None if enough else f"ulimit -n {4 * _STREAMS}")
    free = shutil.disk_usage(".").free
    room = MachineCheck("disk here", "ok", f"{free / 1e9:.0f} GB free")
    yield (
        room
        if free > _FREE_BYTES
        else MachineCheck("disk here", "missing", f"{free / 1e9:.1f} GB free", "--out on another disk")
    )
    priority = Precedence.permitted()
    yield MachineCheck("priority", "missing" if priority == "normal" else "ok", priority, _PRIORITY.get(priority))
    clock = _CLOCK.read_text().strip() if _CLOCK.is_file() else "unknown"
    slow = f"echo tsc | sudo tee {_CLOCK} (reading {clock} costs a system call for each token)"
    yield MachineCheck(
        "clock source", "missing" if clock in _SLOW_CLOCKS else "ok", clock, slow if clock in _SLOW_CLOCKS else None
    )
    yield _tried(f"port {port}", "free", lambda: preflight.check_port_free(port), "serve --port with another one")


_PRIORITY = {
    "normal": "to read in time on a busy machine: ulimit -r 1 (in a systemd unit LimitRTPRIO=1), docker run --ulimit"
    " rtprio=1, or capabilities: add: [SYS_NICE] in a pod's securityContext"
}
_ONE_CORE = "run the load generator on another host: an engine on this one would take its CPU time"


def _engines() -> Iterator[MachineCheck]:
    gpus = preflight.gpu_count()
    none = "QwQ-32B needs two of 48 GB, or one with AWQ; without: loadtest demo, or attach to a server elsewhere"
    yield MachineCheck("GPUs", "ok" if gpus else "missing", str(gpus), None if gpus else none)
    if gpus:
        yield _extra("pynvml", "nvidia-ml-py", "to measure power: joules per answer")
    for engine in ("vllm", "sglang"):
        yield _tried(engine, "installed", lambda engine=engine: preflight.check_installed(engine), None)  # type: ignore[misc]


def _secrets() -> Iterator[MachineCheck]:
    """Whether a key is set, never which."""
    for variable, purpose in ((credentials.KEY_VARIABLES[0], "of a hosted endpoint"), ("HF_TOKEN", "of gated models")):
        yield MachineCheck(
            variable, "ok", f"set (the key {purpose})" if os.environ.get(variable) else "not set, fine without one"
        )


def _extra(module: str, package: str, purpose: str) -> MachineCheck:
    if importlib.util.find_spec(module) is not None:
        return MachineCheck(module, "ok", "installed")
    return MachineCheck(module, "missing", f"not installed ({purpose})", f"{_PIP} {package}")


def _tried(name: str, well: str, check: Callable[[], None], cure: str | None) -> MachineCheck:
    """A check that raises where something is missing; its message says what, and the cure where none is given."""
    try:
        check()
    except EngineError as error:
        what, _, step = str(error).partition("; ")
        return MachineCheck(name, "missing", what, cure or step or None)
    return MachineCheck(name, "ok", well)
