"""Why an engine did not start or died, from the messages that vLLM and SGLang print into their logs.

A row is a pattern over one line, what it means, and the next step. Rows are ordered by how near they are to the cause: the
first that matches anywhere in the log wins, because the last lines of a log mostly tell consequences.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable
from dataclasses import dataclass

UNBOUND = "error while attempting to bind on address"  # by asyncio; not every engine ends after it
_TAIL_LINES = 400
_BY_THE_KERNEL = "the kernel may have killed it for lack of memory, see dmesg"
_LEFT_NO_CAUSE = f"its log names no cause; {_BY_THE_KERNEL}"
_LINE_CHARS = 300


@dataclass(frozen=True, slots=True)
class Cause:
    """One way to fail: a stable `kind`, the pattern that tells it, what happened, what to do next."""

    kind: str
    pattern: re.Pattern[str]
    meaning: str
    next_step: str


def _cause(kind: str, pattern: str, meaning: str, next_step: str) -> Cause:
    return Cause(kind, re.compile(pattern, re.IGNORECASE), meaning, next_step)


CAUSES: tuple[Cause, ...] = (
    _cause(
        "port",
        rf"address already in use|{UNBOUND}|"
        r"port \d+ is (?:already )?(?:in use|not available|unavailable)",
        "the port is taken",
        "choose another --port, or stop what listens there",
    ),
    _cause(
        "arguments",
        r"unrecognized arguments|invalid choice|error: argument |the following arguments are required",
        "the engine does not know an argument",
        "check the arguments against this version of the engine",
    ),
    _cause(
        "missing-model",
        r"is not a local folder and is not a valid model identifier|repositorynotfounderror|localentrynotfounderror|"
        r"can't load (?:the configuration|the tokenizer)|couldn't connect to .*huggingface|gatedrepoerror|"
        r"no such file or directory: .*(?:config\.json|safetensors)|invalid repository id or local directory",
        "the model was not found",
        "download it first, or name its directory",
    ),
    _cause(
        "gpus",
        r"invalid device ordinal|no cuda gpus are available|is larger than the (?:number of )?available gpus|"
        r"world size \(\d+\) is larger|cuda_visible_devices|found no nvidia driver|device string must not be empty|"
        r"failed to infer device type|no accelerator|not enough allowed numa nodes",
        "not enough GPUs, or none that the engine can use",
        "lower --tp, or check nvidia-smi",
    ),
    _cause(
        "kv-cache",
        r"no available memory for the cache blocks|larger than the available kv cache memory|"
        r"is larger than the maximum number of tokens that can be stored in kv cache|"
        r"not enough memory\. please try to increase|"
        r"kv cache (?:is )?(?:too small|needed)|max_total_num_tokens.*(?:too small|<= ?0)|"
        r"loading the model took up all|leave no gpu memory for the kv cache|out of kv cache",
        "the KV cache is too small for the context that was asked for",
        "lower the context (context_tokens), raise memory_fraction, or add GPUs",
    ),
    _cause(
        "gpu-memory",
        r"cuda out of memory|torch\.(?:cuda\.)?outofmemoryerror|hip out of memory|cuda error: out of memory|"
        r"cublas_status_alloc_failed|"
        r"free memory on device .* is less than desired gpu memory utilization",
        "CUDA out of memory",
        "see `loadtest fit`; use a quantised model, more GPUs, or a lower memory_fraction where activations need room",
    ),
    _cause(
        "host-memory",
        r"defaultcpuallocator: can't allocate memory|cannot allocate memory|memoryerror|std::bad_alloc|"
        r"not enough available memory|no space left on device.*shm|/dev/shm",
        "the machine is out of memory",
        "free memory, give the container more (--shm-size, --ipc host), or load a smaller model",
    ),
    _cause(
        "missing-kernel",
        r"no kernel image is available|not supported on this (?:gpu|device|platform|cpu)|minimum capability|"
        r"sgl_kernel|could not run '.*' with arguments from the '.*' backend|has no attribute '\w+(?:gemm|awq|marlin)\w*'|"
        r"is not (?:currently )?supported (?:by|for|on) (?:the )?(?:current|this|cpu)|awq.*not (?:implemented|supported)",
        "a kernel is missing for this hardware or this quantisation",
        "use another quantisation, another attention backend, or an engine built for this GPU",
    ),
    _cause(
        "not-installed",
        r"modulenotfounderror|importerror|no module named|command not found|cannot open shared object file",
        "the engine's installation is incomplete",
        "reinstall the engine in its own environment",
    ),
    _cause(
        "nccl",
        r"nccl error|ncclsystemerror|ncclunhandledcudaerror|gloo.*connect|distnetworkerror",
        "the GPUs could not communicate",
        "run with NCCL_DEBUG=INFO; in a container add --ipc host",
    ),
    _cause(
        "killed",
        r"crashed with exit code -9|\bsigkill\b|exit ?code:? ?-9|out of memory: killed process",
        "a process was killed",
        _BY_THE_KERNEL,
    ),
    _cause(
        "engine-died",
        r"enginedeaderror|enginecore.*(?:died|failed)|engine core proc .* died|engine core initialization failed|"
        r"scheduler hit an exception|subprocess .* crashed|watchdog timeout|detokenizermanager hit an exception|"
        r"child process unexpectedly failed",
        "the engine's own process died",
        "read the log",
    ),
)


def find_cause(log: str) -> tuple[Cause, str] | None:
    """The likeliest cause in a log, with the line that tells it; None where the log has no known message.

    >>> cause, line = find_cause("INFO ok\\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 540.00 MiB.")
    >>> cause.kind
    'gpu-memory'
    """
    lines = [line for line in log.splitlines() if not _is_noise(line)]
    for cause in CAUSES:
        matching = [line for line in lines if cause.pattern.search(line)]
        if matching:
            return cause, shorten(next((line for line in matching if "Error: " in line), matching[0]))
    return None


_NOISE = re.compile(
    r"server_args=|non-default args|^\W*(?:\(.*?\) )?\s*File \"|\w+Warning: |\braise \w+|Ignore import error|"
    r"\bWARNING\b|\bINFO\b"
)


def _is_noise(line: str) -> bool:
    """Lines that quote settings or code, or only inform or warn: they may contain any word."""
    return _NOISE.search(line) is not None or len(line) > 4000


def explain(log: str, exit_code: int | None) -> str:
    """One line: what happened, the engine's own words, the next step.

    `exit_code` as Python gives it: negative for a signal, None where a part of the engine died and the rest still runs.
    SGLang ends itself with SIGKILL, so the kernel is suspected only where the log names no cause.
    """
    ending = describe_exit(exit_code)
    found = find_cause(log)
    if found is not None:
        cause, line = found
        root = _root(log) if cause.kind == "engine-died" else line
        return f"{ending}: {cause.meaning} ({root or line}); {cause.next_step if root else _LEFT_NO_CAUSE}"
    last = last_error(log.splitlines()[-_TAIL_LINES:])
    hint = f"; {_BY_THE_KERNEL}" if exit_code == -signal.SIGKILL else ""
    return (f"{ending}: {shorten(last)}" if last else f"{ending}, with nothing in its log") + hint


def _root(log: str) -> str:
    """The first exception that is not itself a consequence of the death."""
    consequence = next(cause for cause in CAUSES if cause.kind == "engine-died").pattern
    for line in log.splitlines():
        if re.search(r"\w(?:Error|Exception): ", line) and not _is_noise(line) and not consequence.search(line):
            return shorten(line)
    return ""


def describe_exit(exit_code: int | None) -> str:
    """How a process ended, in words.

    >>> describe_exit(-9), describe_exit(1)
    ('killed by SIGKILL', 'exited with code 1')
    """
    if exit_code is None:
        return "died"
    if exit_code >= 0:
        return f"exited with code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    return f"killed by {name}"


_ERROR_LINE = re.compile(r"\b\w*(?:Error|Exception)\b:? |\berror\b:|\bfatal\b|\bCRITICAL\b", re.IGNORECASE)


def last_error(lines: Iterable[str]) -> str:
    """The last line that names an error, else the last that is not empty, else nothing."""
    written = [line for line in lines if line.strip()]
    errors = [line for line in written if _ERROR_LINE.search(line)]
    return (errors or written or [""])[-1]


def shorten(line: str) -> str:
    """A log line without colours, prefix and excess."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", line)
    plain = re.sub(r"^\((?:\w+ )?pid=\d+\)\s*", "", plain.strip())
    plain = re.sub(r"^(?:ERROR|CRITICAL|WARNING|INFO) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\]\s*", "", plain)
    return plain if len(plain) <= _LINE_CHARS else plain[: _LINE_CHARS - 1] + "…"
