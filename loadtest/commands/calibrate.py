"""`calibrate`: how this machine differs from the performance model, by runs measured on it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from loadtest.commands.finish import as_json, read_metrics
from loadtest.errors import UsageError
from loadtest.records import write

if TYPE_CHECKING:
    from loadtest.metrics.level_schema import LevelFigures
    from loadtest.metrics.schema import CellFigures
    from loadtest.perfmodel.constants import Machine
    from loadtest.perfmodel.machine_fit import RunLevel
    from loadtest.perfmodel.memory import Deployment
    from loadtest.study.execution import Say

_LEVELS = (1, 2, 4, 8, 16, 32, 64)  # predicted where they were not measured
_DEFAULT_OUT = Path("machine.toml")
_TPOT_S = (1e-6, 1e3)  # what a run can have
_VERSION = re.compile(r"v?\d+\.\d+")


def calibrate(arguments: argparse.Namespace, say: Say) -> str:
    """Fit the machine to runs, write its file, and say what it predicts that was not measured."""
    from loadtest.perfmodel import machine_fit

    levels = [level for run in arguments.runs for level in _measured(run, arguments.interconnect)]
    names = {level.deployment.gpu.name for level in levels}
    if len(names) > 1:
        raise UsageError(f"runs: expected runs on one kind of GPU, got {', '.join(sorted(names))}; calibrate each apart")
    source = f"{len(levels)} levels of {', '.join(run.name for run in arguments.runs)}"
    machine = machine_fit.fit_machine(levels, source)
    out = arguments.out or _DEFAULT_OUT
    write.write_new(out, machine_fit.as_toml(machine).encode())
    if arguments.json:
        return as_json(msgspec.to_builtins(machine))
    return "\n".join([*_factors(machine), *_residuals(levels, machine), *_predictions(levels, machine), f"wrote {out}"])


def _measured(run: Path, interconnect: str | None) -> Iterator[RunLevel]:
    """The levels of a run that have a time per token, on a GPU and of a model that are known.

    Levels whose figures the load generator may have distorted are left out. Raises `UsageError`, with the file and the cell:
    a GPU, tp or engine that is not known, a figure that cannot be.
    """
    path = run / "metrics.json"
    for cell in read_metrics(path).cells:
        try:
            deployment = _deployment(cell, interconnect)
            levels = [] if deployment is None else [_level(deployment, level) for level in cell.levels]
        except UsageError as error:
            raise UsageError(f"{path}: {cell.id}: {error}") from None
        yield from filter(None, levels)


def _deployment(cell: CellFigures, interconnect: str | None) -> Deployment | None:
    from loadtest.perfmodel import gpus, memory
    from loadtest.servers import preflight

    model = preflight.shape(cell.model) if cell.model else None
    if model is None or cell.gpu is None:
        return None
    told = cell.engine_version or ""
    version = told if _VERSION.match(told) and not cell.simulated else ""
    return memory.Deployment(
        model,
        gpus.gpu(cell.gpu),
        cell.tp or 1,
        cell.engine,
        engine_version=version,
        interconnect=preflight.topology_named(interconnect),
    )


def _level(deployment: Deployment, level: LevelFigures) -> RunLevel | None:
    from loadtest.perfmodel.machine_fit import RunLevel
    from loadtest.perfmodel.memory import MOST_TOKENS

    if level.client_health.status == "fail":
        return None
    tpot, context = level.tpot_s.mean, level.context_tokens.value
    thinking, answer = level.reasoning_tokens.mean, level.answer_tokens.mean
    if tpot is None or context is None or thinking is None or answer is None:
        return None
    counts = {"concurrency": level.concurrency, "context": context, "reasoning tokens": thinking, "answer tokens": answer}
    for name, count in counts.items():
        if not 0 <= count <= MOST_TOKENS:
            raise UsageError(f"concurrency {level.concurrency}: {name}: expected 0 to {MOST_TOKENS:,}, got {count:g}")
    if not _TPOT_S[0] <= tpot <= _TPOT_S[1]:
        raise UsageError(f"concurrency {level.concurrency}: time per token: expected 0.001 ms to 1,000 s, got {tpot:g} s")
    output = round(thinking + answer)
    if output < 2 or not level.concurrency:
        return None
    return RunLevel(deployment, level.concurrency, max(1, round(context) - output), output, tpot)


def _factors(machine: Machine) -> list[str]:
    from loadtest.perfmodel.constants import FACTORS

    told = ", ".join(f"{key} x{getattr(machine, key):.2f}" for key in FACTORS)
    return [f"this machine against the model: {told}", f"range of its predictions: x{1 + (machine.range or 0):.2f}"]


def _residuals(levels: Sequence[RunLevel], machine: Machine) -> list[str]:
    from loadtest.perfmodel import machine_fit

    return [
        f"  {one.title}: measured {one.tpot_s * 1e3:.2f} ms per token, {machine_fit.residual(one, machine):+.1%} predicted"
        for one in levels
    ]


def _predictions(levels: Sequence[RunLevel], machine: Machine) -> list[str]:
    """The levels of each deployment that were not measured and whose KV cache fits."""
    from loadtest.perfmodel import machine_fit, memory

    lines = []
    for deployment in dict.fromkeys(one.deployment for one in levels):
        own = [one for one in levels if one.deployment == deployment]
        room = memory.fit(deployment, context_tokens=own[-1].prompt_tokens + own[-1].output_tokens).max_streams
        for concurrency in _LEVELS:
            if concurrency <= room and concurrency not in {one.concurrency for one in own}:
                other = replace(own[-1], concurrency=concurrency)
                lines.append(f"  {other.title}: predicted {machine_fit.tpot_s(other, machine) * 1e3:.2f} ms per token")
    return ["not measured:", *lines] if lines else []
