"""How an engine is started: its command line and environment as data, and the same command line read back.

The flags of settings stand in `settings`; here is the rest. A started server listens on 127.0.0.1 only and has no API key.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtest.errors import UsageError
from loadtest.perfmodel import models
from loadtest.servers import settings
from loadtest.servers.process import python
from loadtest.servers.settings import SETTINGS, YARN_CONTEXT_TOKENS, Column, EngineSettings, SettingValue, YarnOverride

HOST = "127.0.0.1"

_SGLANG_GRPC_OFFSET = 10000  # SGLang also takes port + 10000, and dies where that is over 65535

_SGLANG_LAST_PORT = 65535 - _SGLANG_GRPC_OFFSET

# How the engine is called. The variable may name another installation, or set its environment: "env A=1 /path/bin/vllm".
_PROGRAMS = {
    "vllm": ("LOADTEST_VLLM", "vllm"),
    "sglang": ("LOADTEST_SGLANG", "python3 -m sglang.launch_server"),
}

# vLLM resets its prefix cache on request in this mode only (its own `bench sweep` starts servers so); SGLang always does.
_ENVIRONMENT = {
    "vllm": {"VLLM_NO_USAGE_STATS": "1", "VLLM_SERVER_DEV_MODE": "1"},
    "sglang": {},
    "vllm-sim": {},
    "sglang-sim": {},
}

# Both engines serve /metrics (vLLM always does) and count cached tokens, so that they do the same work.
_ALWAYS = {
    "vllm": ["--enable-prompt-tokens-details"],
    "sglang": ["--enable-cache-report", "--enable-metrics"],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec(EngineSettings):
    """One engine to start, with its settings: `model` is a registry name, a hub name or a directory, `tp` counts GPUs.

    `extra_args` go to the engine as they are, last, so that they win. `executable` starts it in place of what this machine
    has, `variables` are added to its environment. `clock_speed` is for the simulators.
    """

    engine: str
    model: str
    port: int
    tp: int = 1
    gpu: str | None = None
    served_name: str | None = None
    clock_speed: float | None = None
    extra_args: tuple[str, ...] = ()
    executable: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.engine not in _ENVIRONMENT:
            raise UsageError(
                f"engine: expected one of {', '.join(_ENVIRONMENT)}, got {self.engine!r}; only these can be started"
            )
        if self.tp < 1:
            raise UsageError(f"tp: expected a number of GPUs from 1 up, got {self.tp}")
        if not 1 <= self.port <= 65535:
            raise UsageError(f"port: expected 1 to 65535, got {self.port}")
        settings.check_settings(self)

    @property
    def simulated(self) -> bool:
        return self.engine.endswith("-sim")

    @property
    def name(self) -> str:
        """What the server calls the model: the last part of its name, unless told."""
        return self.served_name or self.model.rstrip("/").rsplit("/", 1)[-1]

    @property
    def served_context_tokens(self) -> int | None:
        """Context to ask of the engine; None leaves it to the model's own limit."""
        return self.context_tokens or (YARN_CONTEXT_TOKENS if self.yarn else None)


def launch_command(spec: LaunchSpec) -> tuple[list[str], dict[str, str]]:
    """The exact command, and the variables to add to the environment.

    >>> argv, environment = launch_command(LaunchSpec(engine="vllm", model="Qwen/QwQ-32B-AWQ", tp=2, port=8000))
    >>> argv[:8]
    ['vllm', 'serve', 'Qwen/QwQ-32B-AWQ', '--host', '127.0.0.1', '--port', '8000', '--served-model-name']
    """
    environment = {**_ENVIRONMENT[spec.engine], **spec.variables}
    if spec.simulated:
        return [*_simulator_start(spec), *_words(spec, override=False), *spec.extra_args], environment
    if spec.engine == "sglang" and spec.port > _SGLANG_LAST_PORT:
        environment["SGLANG_GRPC_PORT"] = str(spec.port - _SGLANG_GRPC_OFFSET)
    told = [*_words(spec, override=False), *_ALWAYS[spec.engine], *_words(spec, override=True)]
    return [*_start(spec), *told, *spec.extra_args], environment


def _start(spec: LaunchSpec) -> list[str]:
    model, tp = ("serve", "--tensor-parallel-size") if spec.engine == "vllm" else ("--model-path", "--tp-size")
    place = ["--host", HOST, "--port", str(spec.port), "--served-model-name", spec.name, tp, str(spec.tp)]
    return [*program(spec.engine, spec.executable), model, hub_name(spec.model), *place]


def _simulator_start(spec: LaunchSpec) -> list[str]:
    if spec.gpu is None:
        raise UsageError(f"gpu: expected the GPU to simulate for {spec.engine}, got none; add --gpu l20")
    deployment = ["--engine", spec.engine, "--model", spec.model, "--tp", str(spec.tp), "--gpu", spec.gpu]
    clock = [] if spec.clock_speed is None else ["--clock-speed", str(spec.clock_speed)]
    place = ["--port", str(spec.port), *clock, "--seed", str(spec.seed), "--served-model-name", spec.name]
    return [*program(spec.engine, spec.executable), *deployment, *place]


def _words(spec: LaunchSpec, *, override: bool) -> Iterator[str]:
    """The flags of the settings that are overrides of the model's config, or of all others."""
    told = settings.setting_values(spec) | {"context_tokens": spec.served_context_tokens}
    for row in SETTINGS:
        column = row.column(spec.engine)
        if column is not None and isinstance(column, YarnOverride) == override:
            yield from column.words(told[row.key], spec.model)


def program(engine: str, executable: str | None = None) -> list[str]:
    """How an engine is called: the `executable` of its cell, else LOADTEST_VLLM or LOADTEST_SGLANG, else what is on the
    PATH; the simulator is our own module."""
    if executable is None and engine not in _PROGRAMS:
        return python("loadtest.simulator")
    variable, default = _PROGRAMS[engine] if executable is None else ("executable", executable)
    said = default if executable is not None else os.environ.get(variable) or default
    try:
        return shlex.split(said)
    except ValueError as error:
        raise UsageError(f"{variable}: expected a command line, got {said!r}: {error}") from None


def hub_name(model: str) -> str:
    """What an engine loads: a directory or a hub name as it is, a registry name by its hub name.

    >>> hub_name("qwq-32b-awq"), hub_name("someone/Some-Model")
    ('Qwen/QwQ-32B-AWQ', 'someone/Some-Model')
    """
    if Path(model).is_dir():
        return model
    if model.startswith(("/", ".", "~")):
        raise UsageError(f"{model}: expected a directory with config.json, found none")
    return model if "/" in model else models.model(model).hub


def effective(
    engine: str,
    *,
    argv: Sequence[str] = (),
    server_info: Mapping[str, Any] | None = None,
    max_model_len: int | None = None,
) -> dict[str, Any]:
    """What an engine runs with, by key and in the sense of the table; a key that nothing tells is left out, never guessed.

    From its command line (`argv`; its defaults fill what the line does not say, so only where the line is known), then
    from its own info, then from `max_model_len` of `/v1/models`; the last one that tells it wins.

    >>> effective("vllm", argv=["vllm", "serve", "m", "--max-model-len=8192"])["context_tokens"]
    8192
    """
    found: dict[str, Any] = {}
    for key, column in _columns(engine).items():
        by_argv = (_from_argv(argv, column), column.default) if argv else ()
        told = (_from_info(server_info or {}, column), *by_argv)
        found[key] = next((value for value in told if value is not None), None)
    if max_model_len is not None:
        found["context_tokens"] = max_model_len
    return {key: value for key, value in found.items() if value is not None}


def _columns(engine: str) -> dict[str, Column]:
    """How this engine is told each setting that can be read back."""
    columns = {row.key: row.column(engine) for row in SETTINGS if row.compared}
    return {key: column for key, column in columns.items() if column is not None}


def _from_argv(argv: Sequence[str], column: Column) -> SettingValue:
    """The value on a command line, the last where there are several; None where it is not there."""
    found: SettingValue = None
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name in column.names:
            found = column.read_word(name, value if equals else following)
    return found


def _from_info(info: Mapping[str, Any], column: Column) -> SettingValue:
    told = info.get(column.told) if column.told is not None else None
    return None if told is None else column.read_told(told)


def settings_named(arguments: Sequence[str]) -> set[str]:
    """The settings that any engine's flags among these arguments tell.

    >>> settings_named(["--max-num-seqs=8", "--schedule-policy", "fcfs"])
    {'max_running_requests'}
    """
    names = {word.partition("=")[0] for word in arguments}
    columns = ((row.key, column) for row in SETTINGS for column in (row.vllm, row.sglang, row.simulator))
    return {key for key, column in columns if column is not None and names & set(column.names)}


def engine_words(engine: str, asked: Mapping[str, SettingValue]) -> dict[str, SettingValue]:
    """Those values of settings for which this engine has another word or number, as it has them.

    >>> engine_words("sglang", {"memory_fraction": 0.9, "kv_dtype": "auto"})
    {'memory_fraction': 0.85}
    """
    words = {key: column.write(asked[key]) for key, column in _columns(engine).items() if asked.get(key) is not None}
    return {key: word for key, word in words.items() if word != asked[key]}


def disagreements(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Every key in which an engine does not run as wanted: (expected, got). What it does not tell is no violation.

    "auto" and a value that is left open accept anything; a context may be larger than wanted, never smaller.

    >>> disagreements({"prefix_caching": False, "kv_dtype": "auto"}, {"prefix_caching": True, "kv_dtype": "fp8"})
    {'prefix_caching': (False, True)}
    """
    wrong = {key: (wanted.get(key), got) for key, got in found.items()}
    return {key: pair for key, pair in wrong.items() if not _agrees(key, *pair)}


def _agrees(key: str, expected: Any, got: Any) -> bool:
    row = next((row for row in SETTINGS if row.key == key), None)
    return expected in (None, "auto") or (got == expected if row is None else row.agrees(expected, got))
