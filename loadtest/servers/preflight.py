"""Checks before an engine is started: is it installed, is the model there, are there enough GPUs, is the port free.

Each refusal is one line with its next step. NVML (the `[gpu]` extra) counts the GPUs, else `nvidia-smi`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

from loadtest.errors import EngineError, UsageError
from loadtest.perfmodel import config_file, gpus, models
from loadtest.perfmodel.architecture import Model
from loadtest.perfmodel.interconnect import TOPOLOGIES, Topology, from_matrix
from loadtest.servers.flags import HOST, LaunchSpec, hub_name, program

_CURES = {
    "vllm": "python3 -m venv vllm-env && vllm-env/bin/pip install vllm, then LOADTEST_VLLM=$PWD/vllm-env/bin/vllm",
    "sglang": "python3 -m venv sglang-env && sglang-env/bin/pip install sglang, then "
    'LOADTEST_SGLANG="$PWD/sglang-env/bin/python -m sglang.launch_server"',
}
_TIMEOUT_S = 20.0
HERE = "here"  # the interconnect of this machine
_OTHER_HUBS = ("VLLM_USE_MODELSCOPE", "SGLANG_USE_MODELSCOPE")  # asked in place of Hugging Face
_LISTENING = "0A"  # state of a socket in /proc/net/tcp


def check_launch(spec: LaunchSpec) -> None:
    """Raise `EngineError` or `UsageError` where this machine cannot start `spec`; the port is not checked.

    GPUs are required where the spec names one, or where the machine has any: without either the engine may run on a CPU.
    """
    if spec.simulated:
        return
    found = gpu_count()
    if spec.gpu is not None or found:
        check_gpus(spec.tp, found)
    check_installed(spec.engine, spec.executable)
    check_model(spec.model, offline=_is_offline(spec))


def check_installed(engine: str, executable: str | None = None) -> None:
    """Raise `EngineError`, with the next step, unless the program that starts this engine is there. It may stand behind
    another program, such as `numactl -m 0` or `taskset -c 0`. `executable`: the cell's own, in place of this machine's."""
    words = _without_settings(program(engine, executable))
    missing = None
    if not words or shutil.which(words[0]) is None:
        missing = words[0] if words else "the command"
    elif not all(_has_module(python, module) for python, module in _modules(words)):
        missing = " ".join(words)
    if missing is not None and executable is not None:
        raise EngineError(f"{engine}: {missing}: not found; name another executable in the cell")
    if missing is not None:
        raise EngineError(f"{engine}: {missing}: not found; {_CURES[engine]}, or LOADTEST_{engine.upper()} for where it is")


def _without_settings(words: list[str]) -> list[str]:
    """A command without `env A=1 B=2` before it.

    >>> _without_settings(["env", "A=1", "vllm"])
    ['vllm']
    """
    if not words or Path(words[0]).name != "env":
        return words
    return words[next((n for n, word in enumerate(words) if n and "=" not in word), len(words)) :]


def _modules(words: list[str]) -> list[tuple[str, str]]:
    """What a command runs by `python -m`: that Python, and the package.

    >>> _modules(["numactl", "-m", "0", "python3", "-m", "sglang.launch_server"])
    [('python3', 'sglang')]
    """
    found = zip(words, words[1:], words[2:], strict=False)
    return [(who, name.partition(".")[0]) for who, m, name in found if m == "-m" and "python" in Path(who).name]


def _has_module(python: str, module: str) -> bool:
    here = "import sys; sys.path = [*filter(None, sys.path)]"  # not the current folder
    code = f"{here}; import importlib.util; sys.exit(importlib.util.find_spec({module!r}) is None)"
    try:
        return subprocess.run([python, "-c", code], capture_output=True, timeout=_TIMEOUT_S, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _is_offline(spec: LaunchSpec) -> bool:
    """Will this engine refuse to download? By our environment, or by the one that its command or its cell sets."""
    words = program(spec.engine, spec.executable)
    settings = {**dict(word.partition("=")[::2] for word in words if "=" in word), **spec.variables}
    said = settings.get("HF_HUB_OFFLINE") or os.environ.get("HF_HUB_OFFLINE", "")
    return said.lower() in ("1", "on", "yes", "true")


def check_model(model: str, *, offline: bool) -> None:
    """Raise `EngineError` where a directory holds no model, or a hub name is not in the cache and may not be fetched."""
    name = hub_name(model)
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise EngineError(f"{name}: expected a model's directory with config.json, found none; name the right one")
    elif offline and cached_snapshot(name) is None:
        raise EngineError(
            f"{name}: HF_HUB_OFFLINE is set, and the model is not in {_hub_cache()}; unset it, or `hf download {name}` first"
        )


def _hub_cache() -> Path:
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")


def cached_snapshot(hub: str) -> Path | None:
    """The directory of a hub model in the local cache, the newest where there are several; None where there is none."""
    folder = _hub_cache() / f"models--{hub.replace('/', '--')}" / "snapshots"
    found = [path.parent for path in folder.glob("*/config.json")] if os.path.isdir(folder) else []
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def shape(model: str) -> Model | None:
    """The shape of any model: of the registry, of a directory, or of a hub model that is in the cache; else None.

    Raises `UsageError` where there is a config.json, but of an architecture that is not modelled.

    >>> shape("qwq-32b").layers, shape("someone/never-downloaded")
    (64, None)
    """
    try:
        return models.model(model)
    except UsageError:
        if os.path.isfile(Path(model) / "config.json"):  # no error where it could name none: too long, or with a NUL
            raise
    snapshot = cached_snapshot(model)
    return config_file.from_config(snapshot) if snapshot is not None else None


def check_reachable(model: str) -> None:
    """Raise `EngineError` where a hub model is not in the cache, and the hub cannot be reached or does not have it."""
    import httpx

    name = hub_name(model)
    if Path(name).is_dir() or cached_snapshot(name) is not None or any(map(os.environ.get, _OTHER_HUBS)):
        return
    hub = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    try:
        status = httpx.get(f"{hub}/{name}/resolve/main/config.json", timeout=_TIMEOUT_S).status_code
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        why = f"{hub} cannot be reached ({error or type(error).__name__})"
    else:
        if status != httpx.codes.NOT_FOUND:
            return
        why = f"{hub} does not have it"
    raise EngineError(f"{name}: not in {_hub_cache()}, and {why}; name a model's directory with --model")


def gpu_count() -> int:
    """GPUs that an engine may use here: by NVML, else `nvidia-smi`, narrowed by CUDA_VISIBLE_DEVICES."""
    found = gpus_by_nvml()
    found = len(gpu_names()) if found is None else found
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found
    return min(found, len([one for one in visible.split(",") if one.strip() not in ("", "-1")]))


def gpus_by_nvml() -> int | None:
    """How many GPUs NVML counts: None without its bindings, 0 without a driver."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        return int(pynvml.nvmlDeviceGetCount())
    finally:
        pynvml.nvmlShutdown()


def gpu_names() -> tuple[str, ...]:
    """Product names of this machine's GPUs: lines `GPU 0: NVIDIA L20 (UUID: …)` of `nvidia-smi -L`; none where it is missing
    or fails."""
    return tuple(re.findall(r"^GPU \d+: (.+?)(?: \(UUID.*)?$", _smi("-L"), re.MULTILINE))


def gpu_here() -> str | None:
    """The registry name of this machine's first GPU, by `nvidia-smi -L`; None where there is none that we know."""
    names = gpu_names()
    words = set(re.split(r"[\s_-]+", names[0].lower())) if names else set[str]()
    known = [name for name in gpus.GPUS if set(name.split("-")) <= words]
    return max(known, key=len, default=None)


def _smi(*arguments: str) -> str:
    """What `nvidia-smi` says; nothing where it is missing or fails."""
    try:
        done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def topology() -> Topology | None:
    """How the GPUs here reach each other, by `nvidia-smi topo`; None where it is missing or there is only one."""
    return from_matrix(_smi("topo", "-m"), _smi("topo", "-p2p", "r"))


def topology_named(name: str | None) -> str | None:
    """The topology of that name; `here` is what `topology` finds. Raises UsageError where it finds none."""
    if name != HERE:
        return name
    found = topology()
    if found is None:
        raise UsageError(
            "interconnect here: expected nvidia-smi and two GPUs or more on this machine, found neither; "
            f"name one of {', '.join(TOPOLOGIES)}"
        )
    return found


def check_gpus(tp: int, found: int) -> None:
    """Raise `EngineError` where there are fewer GPUs than `tp`."""
    if found < tp:
        step = "see nvidia-smi" if not found else "lower tp"
        raise EngineError(f"needs {tp} GPU{'s' if tp > 1 else ''}, this machine has {found}; {step}")


def free_port() -> int:
    """A free port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def check_port_free(port: int) -> None:
    """Raise `EngineError` where this port of 127.0.0.1 is taken; the message names the process where /proc tells it."""
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((HOST, port))
        except OSError as error:
            holder = _holder(port)
            by = f" by process {holder}" if holder else ""
            step = f"choose another --port{' or stop it' if holder else ''}"
            raise EngineError(f"{HOST}:{port}: expected a free port: {error.strerror}{by}; {step}") from None


def _holder(port: int) -> str | None:
    """`PID (command)` of the process that listens on a port; None where /proc hides it, as for another user's process."""
    sockets = _listening(port)
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(os.readlink(handle) in sockets for handle in (process / "fd").iterdir()):
                words = (process / "cmdline").read_bytes().split(b"\0")
                return f"{process.name} ({b' '.join(words).decode('utf-8', 'replace').strip()[:80]})"
    return None


def _listening(port: int) -> set[str]:
    """Sockets that listen on a port, as /proc/PID/fd names them."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            rows = [line.split() for line in Path(table).read_text().splitlines()[1:]]
            found |= {f"socket:[{row[9]}]" for row in rows if row[1].endswith(f":{port:04X}") and row[3] == _LISTENING}
    return found
