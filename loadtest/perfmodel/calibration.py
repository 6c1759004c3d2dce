"""Fit the performance model's constants to measured speeds.

`python -m loadtest.perfmodel.calibration [--check] DATA.csv...` reads CSV files. A CSV has the columns `model, quantization,
gpu, gpu_count, engine, prompt_tokens, output_tokens, output_tokens_per_s`, the last being the output tokens of one lone
request over its whole time, prefill included. The command prints the constants as rows of `constants.CALIBRATED`, each
measurement's residual, and the errors when each model is predicted from the others. With `--check` nothing is fitted: the
residuals are those of the constants as they stand.

The fit minimises squared log errors (in units of 3 %, beyond two of them damped by soft L1) plus one weak prior a constant,
which decides only what the data leave open; every constant stays within physical bounds.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from loadtest.errors import LoadtestError, UsageError
from loadtest.perfmodel import gpus, models
from loadtest.perfmodel.constants import Constants, constants_of
from loadtest.perfmodel.memory import Deployment
from loadtest.perfmodel.step_time import request_s

Array = npt.NDArray[np.float64]

_COLUMNS = ("model", "quantization", "gpu", "gpu_count", "engine", "prompt_tokens", "output_tokens", "output_tokens_per_s")
_GPUS = {"a100-80gb": "a100-80gb", "h20-96gb": "h20"}


@dataclass(frozen=True, slots=True)
class Free:
    """One constant to be found: bounds, and a prior guess with its spread as a ratio (0.5: about a factor of 1.6)."""

    low: float
    high: float
    guess: float
    spread: float


SHARED = {"quantised_prefill_factor": Free(0.3, 1.0, 0.7, 0.3)}
PER_CARD = {
    "step_s": Free(0.1e-3, 3e-3, 1e-3, 1.0),
    "layer_s": Free(20e-6, 200e-6, 60e-6, 0.5),
    "memory_efficiency": Free(0.2, 0.92, 0.7, 0.5),
    "quantised_efficiency": Free(0.2, 0.92, 0.7, 0.5),
    "prefill_efficiency": Free(0.2, 0.9, 0.7, 0.3),
    "attention_efficiency": Free(0.15, 0.92, 0.7, 0.3),
}
NOISE = 0.03  # what repeated measurements of this kind scatter by


@dataclass(frozen=True, slots=True)
class Measurement:
    """One published speed: a lone request on a deployment. `family` names the model without its quantisation."""

    deployment: Deployment
    family: str
    engine: str
    prompt_tokens: int
    output_tokens: int
    output_tokens_per_s: float

    @property
    def title(self) -> str:
        """`Qwen3-8B-AWQ on 1 x NVIDIA H20, 6,144 tokens`."""
        return f"{self.deployment.title}, {self.prompt_tokens:,} tokens"


def read(path: Path) -> list[Measurement]:
    """The measurements of one CSV file. Raises UsageError with file and line: no file, a wrong column or value."""
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}; expected a CSV of measured speeds") from None
    if not rows or set(_COLUMNS) - rows[0].keys():
        raise UsageError(f"{path}: expected rows with the columns {', '.join(_COLUMNS)}")
    return [_measurement(row, f"{path}:{number}") for number, row in enumerate(rows, start=2)]


def _measurement(row: Mapping[str, str], where: str) -> Measurement:
    suffix = "" if row["quantization"] == "bf16" else f"-{row['quantization']}"
    gpu = row["gpu"].lower()
    try:
        model = models.model(row["model"] + suffix)
        card = gpus.gpu(_GPUS.get(gpu, gpu))
        deployment = Deployment(model, card, int(row["gpu_count"]), row["engine"].split()[0].lower())
        prompt, output, speed = int(row["prompt_tokens"]), int(row["output_tokens"]), float(row["output_tokens_per_s"])
    except (ValueError, IndexError, UsageError) as error:
        raise UsageError(f"{where}: {error}") from None
    if prompt < 1 or output < 1 or not 0 < speed < float("inf"):
        raise UsageError(f"{where}: expected positive tokens and speed, got {prompt}, {output}, {speed}")
    return Measurement(deployment, row["model"], row["engine"], prompt, output, speed)


def speed(measurement: Measurement, constants: Constants) -> float:
    """Predicted output tokens a second of one measurement, prefill included."""
    seconds = request_s(measurement.deployment, measurement.prompt_tokens, measurement.output_tokens, constants)
    return measurement.output_tokens / seconds


def errors(measurements: Sequence[Measurement], constants: Mapping[str, Constants]) -> Array:
    """Predicted over measured speed, less one: +0.1 is 10 % too fast; in the order given."""
    return np.array([speed(m, constants[m.deployment.gpu.name]) / m.output_tokens_per_s - 1 for m in measurements])


def calibrate(measurements: Sequence[Measurement]) -> dict[str, Constants]:
    """The constants of each card that was measured, by the card's name; `SHARED` ones are equal on all of them.

    Raises UsageError without measurements.
    """
    if not measurements:
        raise UsageError("nothing to calibrate on: expected at least one measurement")
    sources: dict[str, str] = {}
    for m in measurements:
        sources.setdefault(m.deployment.gpu.name, f"{m.deployment.gpu.title.removeprefix('NVIDIA ')}, {m.engine}")
    free = [*SHARED.values(), *(one for _ in sources for one in PER_CARD.values())]
    guesses = np.log([one.guess for one in free])
    spreads = np.array([one.spread for one in free])
    measured = np.log([m.output_tokens_per_s for m in measurements])

    def misfit(logs: Array) -> Array:
        constants = _constants(np.exp(logs), sources)
        predicted = np.log([speed(m, constants[m.deployment.gpu.name]) for m in measurements])
        return np.concatenate([(predicted - measured) / NOISE, (logs - guesses) / spreads])

    bounds = (np.log([one.low for one in free]), np.log([one.high for one in free]))
    answer = least_squares(misfit, guesses, bounds=bounds, loss="soft_l1", f_scale=2.0)
    return _constants(np.exp(answer.x), sources)


def _constants(values: Array, sources: Mapping[str, str]) -> dict[str, Constants]:
    """Values in the order shared, then each card's own, as one row a card."""
    shared = dict(zip(SHARED, values, strict=False))
    own = values[len(SHARED) :].reshape(len(sources), len(PER_CARD))
    rows: dict[str, Any] = {}
    for (card, source), row in zip(sources.items(), own, strict=True):
        keys = shared | dict(zip(PER_CARD, row, strict=True))
        rows[card] = Constants(**{key: float(value) for key, value in keys.items()}, source=source)
    return rows


def leave_one_out(measurements: Sequence[Measurement]) -> dict[str, Array]:
    """Each model's errors when the constants come from the other models alone, by family.

    A model whose card no other model was measured on cannot be predicted and is left out.
    """
    found: dict[str, Array] = {}
    for family in dict.fromkeys(m.family for m in measurements):
        rest = [m for m in measurements if m.family != family]
        unseen = [m for m in measurements if m.family == family]
        if {m.deployment.gpu.name for m in unseen} <= {m.deployment.gpu.name for m in rest}:
            found[family] = errors(unseen, calibrate(rest))
    return found


def summary(of: Array) -> str:
    """Median, ninth tenth and worst of the absolute errors, in per cent."""
    size = np.abs(of) * 100
    within = np.quantile(size, 0.9)
    return f"median {np.median(size):.1f} %, 90 % within {within:.1f} %, worst {size.max():.1f} %, n = {size.size}"


def report(measurements: Sequence[Measurement]) -> list[str]:
    """The whole answer as lines: constants, residuals, errors on unseen models."""
    constants = calibrate(measurements)
    lines = [f'    "{card}": {_row(row)},' for card, row in constants.items()]
    lines += residuals(measurements, constants)
    unseen = leave_one_out(measurements)
    lines += [f"without {family}: {summary(of)}" for family, of in unseen.items()]
    if unseen:
        lines.append(f"unseen models together: {summary(np.concatenate(list(unseen.values())))}")
    return lines


def check(measurements: Sequence[Measurement]) -> list[str]:
    """The residuals of the constants as they stand."""
    return residuals(measurements, {m.deployment.gpu.name: constants_of(m.deployment.gpu.name) for m in measurements})


def residuals(measurements: Sequence[Measurement], constants: Mapping[str, Constants]) -> list[str]:
    """A line for each measurement, and a summary."""
    found = errors(measurements, constants)
    lines = [
        f"{m.title}: measured {m.output_tokens_per_s:.2f}, predicted {m.output_tokens_per_s * (1 + error):.2f}, {error:+.1%}"
        for m, error in zip(measurements, found, strict=True)
    ]
    return [*lines, f"all of these: {summary(found)}"]


def _row(row: Constants) -> str:
    """As source text, to three digits."""
    values = [f"{key}={getattr(row, key):.3g}" for key in (*SHARED, *PER_CARD)]
    return f'Constants({", ".join(values)}, source="{row.source}")'


def main(arguments: Sequence[str]) -> int:
    """Calibrate on the CSV files named; 0, or the exit code of what went wrong, with one line about it."""
    names = [argument for argument in arguments if argument != "--check"]
    try:
        if not names:
            raise UsageError(
                "expected CSV files of measured speeds: python -m loadtest.perfmodel.calibration [--check] DATA.csv..."
            )
        measurements = [m for name in names for m in read(Path(name))]
        lines = check(measurements) if "--check" in arguments else report(measurements)
    except LoadtestError as error:
        sys.stderr.write(f"calibration: {error}\n")
        return error.exit_code
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
