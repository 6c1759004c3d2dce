"""Fit how one machine differs from the model to runs measured on it, and keep the answer in a file.

The file is TOML with the keys of `Machine`. `predict`, a study's cells and the simulator take it.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loadtest import resources
from loadtest.errors import UsageError
from loadtest.perfmodel.constants import FACTORS, WIDEST_RANGE, Machine
from loadtest.perfmodel.memory import Deployment
from loadtest.perfmodel.prediction import cycle

# How far machines differ from the model, as a ratio, before anything was measured on one. What an engine does for each
# stream depends on the host most.
_PRIOR = {"streams": 0.5} | dict.fromkeys([key for key in FACTORS if key != "streams"], 0.3)
_NOISE = 0.02  # what repeated levels scatter by
_MOST = 99.0  # factor, either way
_LEAST_RANGE = 0.08  # a machine is not known better than this from a few levels


@dataclass(frozen=True, slots=True)
class RunLevel:
    """One level of a run: so many streams of this mean size, and the mean time per token that came out (s)."""

    deployment: Deployment
    concurrency: int
    prompt_tokens: int
    output_tokens: int
    tpot_s: float

    @property
    def title(self) -> str:
        """`QwQ-32B on 2 x NVIDIA L20, 4 streams`."""
        return f"{self.deployment.title}, {self.concurrency} streams"


def tpot_s(level: RunLevel, machine: Machine) -> float:
    """What the model says that the time per token should have been on this machine (s)."""
    deployment = replace(level.deployment, machine=machine)
    times = cycle(deployment, level.prompt_tokens, level.output_tokens, level.concurrency)
    return (times.halted_s + times.decode_s) / (level.output_tokens - 1)


def fit_machine(levels: Sequence[RunLevel], source: str) -> Machine:
    """The factors that explain the levels with the least departure from the model; its range is what they leave unexplained.

    Least squares on log errors in units of 2 %, with a prior of 1 +- 30 % on each factor (`streams`: 50 %): what levels do
    not show stays 1. Raises UsageError without levels, and where no machine explains them.
    """
    from scipy.optimize import least_squares  # 0.3 s that no other command should pay

    if not levels:
        raise UsageError("nothing to calibrate on: expected runs with at least one level of a named GPU and a known model")
    measured = np.log([level.tpot_s for level in levels])

    def machine(logs: npt.NDArray[np.float64]) -> Machine:
        factors = dict(zip(FACTORS, np.exp(logs).tolist(), strict=True))
        return Machine(**factors, range=None, source=source)

    def misfit(logs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        predicted = np.log([tpot_s(level, machine(logs)) for level in levels])
        return np.concatenate([(predicted - measured) / _NOISE, logs / spreads])

    spreads, bound = np.array([_PRIOR[key] for key in FACTORS]), math.log(_MOST)
    answer = least_squares(misfit, np.zeros(len(FACTORS)), bounds=(-bound, bound))
    found = machine(answer.x)
    errors = np.array([residual(level, found) for level in levels])
    half_width = max(_LEAST_RANGE, 2 * float(np.sqrt(np.mean(errors**2))))
    if half_width >= WIDEST_RANGE:
        worst = levels[int(np.argmax(np.abs(errors)))]
        told = f"measured {worst.tpot_s * 1e3:.3g} ms per token, {tpot_s(worst, found) * 1e3:.3g} ms at the nearest"
        raise UsageError(f"no machine explains these runs: {worst.title}: {told}; are its GPU and its model named right?")
    return replace(found, range=half_width)


def residual(level: RunLevel, machine: Machine) -> float:
    """Predicted over measured time per token, less one."""
    return tpot_s(level, machine) / level.tpot_s - 1


def read_machine(path: Path) -> Machine:
    """The machine that a file describes. Raises UsageError with the file: unreadable, an unknown key, a wrong value."""
    try:
        table = tomllib.loads(resources.small_file(path).decode())
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}; expected what loadtest calibrate wrote") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: is not TOML: {error}") from None
    names = [field.name for field in fields(Machine)]
    if unknown := sorted(table.keys() - set(names)):
        raise UsageError(f"{path}: unknown key {unknown[0]!r}; expected {', '.join(names)}")
    for key, value in table.items():
        if key != "source" and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UsageError(f"{path}: {key} must be a number, got {value!r}")
    try:
        return Machine(**({"source": path.name} | table))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def as_toml(machine: Machine) -> str:
    """The file of a machine."""
    told = "".join(c if c.isprintable() else " " for c in machine.source).replace("\\", "/").replace('"', "'")
    lines = [f"{key} = {getattr(machine, key):.4g}" for key in FACTORS]
    if machine.range is not None:
        lines.append(f"range = {machine.range:.4g}")
    return "\n".join([*lines, f'source = "{told}"']) + "\n"
