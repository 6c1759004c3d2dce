"""Fit the performance model's constants to published measurements, and say how far off it is.

    python -m loadtest.perfmodel.calibration DATA.csv...          fit: constants, residuals, errors with each part left out
    python -m loadtest.perfmodel.calibration --check DATA.csv...  the residuals of the constants as they stand

Rows that are held back (`held_back`) are never fitted; their residuals stand apart. The fit minimises squared log errors (in
units of 3 %, beyond two of them damped by soft L1), each source with a weight of its own, plus one weak prior a constant,
which decides only what the data leave open; every constant stays within physical bounds. Hosts differ: where several sources
measured one generation of engines, each has a factor on what the engine adds to a step, with a prior of 1 +- 15 %, so that a
slow host does not make an engine slow. Predictions are for a host between them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from loadtest.errors import LoadtestError, UsageError
from loadtest.perfmodel import measurements as published
from loadtest.perfmodel.constants import (
    CURRENT,
    GENERATIONS,
    GPU_CONSTANTS,
    KERNELS,
    SGLANG_0_4,
    VLLM_0_5,
    VLLM_0_6,
    VLLM_0_8,
    generation,
    reads_windows_by_pages,
)
from loadtest.perfmodel.interconnect import LINKS
from loadtest.perfmodel.measurements import Measurement
from loadtest.perfmodel.residuals import Array, Fitted, by_class, chip, errors, residuals, seconds


@dataclass(frozen=True, slots=True)
class Free:
    """One constant to be found: bounds, and a prior guess with its spread as a ratio (0.5: about a factor of 1.6)."""

    low: float
    high: float
    guess: float
    spread: float


_ENGINE = {
    "step_s": Free(0.1e-3, 6e-3, 1e-3, 1.0),
    "layer_s": Free(5e-6, 150e-6, 30e-6, 0.7),
    "stream_s": Free(1e-6, 200e-6, 20e-6, 1.0),
}
_ALONE = {key: _ENGINE[key] for key in ("step_s", "layer_s")}  # what single streams show
_FREE_OF = {
    VLLM_0_5: _ENGINE
    | {
        "context_s": Free(0.1e-9, 40e-9, 10e-9, 1.0),
        "parallel_step_s": Free(0.01e-3, 3e-3, 0.5e-3, 1.0),
        "parallel_context_s": Free(0.1e-9, 40e-9, 8e-9, 1.0),
        "all_reduce_s": Free(0.5e-6, 40e-6, 6e-6, 0.5),
    },
    VLLM_0_6: _ALONE,
    VLLM_0_8: _ENGINE,
    SGLANG_0_4: _ALONE,
    # Of a stream most is hidden behind the step that runs; no row shows the rest apart from the KV cache.
    CURRENT: _ENGINE | {"stream_s": Free(1e-6, 200e-6, 15e-6, 0.4)},
}
_REST_FROM = {VLLM_0_6: VLLM_0_5, SGLANG_0_4: CURRENT}  # what single streams do not show
# Whose constants a generation or a GPU takes that no row shows, in this order.
_STAND_INS = {
    VLLM_0_5: (VLLM_0_8, CURRENT), VLLM_0_6: (VLLM_0_5, VLLM_0_8), VLLM_0_8: (CURRENT, VLLM_0_6),
    SGLANG_0_4: (CURRENT, VLLM_0_8), CURRENT: (VLLM_0_8, SGLANG_0_4),
    "a100-80gb": ("h100", "rtx-4090"), "h100": ("a100-80gb", "h20"), "h20": ("h100", "a100-80gb"),
    "rtx-4090": ("a100-80gb", "h100"),
}  # fmt: skip
_GPU = {
    "bytes_per_cycle": Free(4, 40, 14, 0.4),
    "kv_efficiency": Free(0.2, 0.95, 0.7, 0.3),
    "prefill_efficiency": Free(0.2, 0.9, 0.65, 0.3),
    "attention_efficiency": Free(0.15, 0.92, 0.6, 0.3),
}
_KERNELS = {
    "memory_efficiency": Free(0.8, 0.96, 0.92, 0.03),
    "weights_per_cycle_4bit": Free(5, 40, 15, 0.3),
    "weights_per_cycle_8bit": Free(4, 40, 10, 0.3),
    "weights_per_cycle_fp8": Free(4, 60, 15, 0.4),
    "products_4bit": Free(0.3, 1.0, 0.7, 0.3),
    "products_8bit": Free(0.3, 1.0, 0.7, 0.3),
    "quantised_layer_s": Free(1e-6, 40e-6, 8e-6, 1.0),
}
_LINK = {
    "wait_s": Free(10e-6, 60e-6, 30e-6, 0.4),
    "step_s": Free(1e-6, 150e-6, 40e-6, 0.7),
    "rate_bytes_per_s": Free(1e9, 20e9, 3.5e9, 0.4),
}
_HOST = Free(0.4, 2.5, 1.0, 0.15)
_SHARED = (VLLM_0_8, CURRENT)  # the generations that more than one source measured
_WEIGHTS = {"lone": 140, "static-batch": 60, "at-once": 40, "closed-loop": 20, "step": 12}
"""Weight of all rows of one way of measuring together: many rows of one kind must not drown the others."""

PAGED_KEYS = ("paged_attention", "paged_bytes_per_s")
NOISE = 0.03  # what repeated measurements of this kind scatter by


@dataclass(frozen=True, slots=True)
class Parameter:
    """One free constant, and whose it is: a generation, a GPU, "kernels", "link" or "host"."""

    owner: str
    key: str
    free: Free


def free_parameters(rows: Sequence[Measurement]) -> list[Parameter]:
    """The constants that these rows show."""
    generations = {generation(one.deployment.engine, one.deployment.engine_version) for one in rows}
    chips = sorted({chip(one.deployment.gpu.name) for one in rows})
    found = [
        Parameter(name, key, free) for name, keys in _FREE_OF.items() if name in generations for key, free in keys.items()
    ]
    found += [Parameter(name, key, free) for name in chips for key, free in _shown(rows, name).items()]
    found += [Parameter("kernels", key, free) for key, free in _KERNELS.items()]
    found += [Parameter("link", key, free) for key, free in _LINK.items()]
    shared = {one.source for one in rows if generation(one.deployment.engine, one.deployment.engine_version) in _SHARED}
    return found + [Parameter("host", source, _HOST) for source in sorted(shared)]


def _shown(rows: Sequence[Measurement], name: str) -> dict[str, Free]:
    """The constants of a GPU that its rows can show: only the reading of the KV cache where no row has a prompt."""
    has_prompts = any(one.prompt_tokens and chip(one.deployment.gpu.name) == name for one in rows)
    return _GPU if has_prompts else {"kv_efficiency": _GPU["kv_efficiency"]}


def _fitted(parameters: Sequence[Parameter], values: Array) -> Fitted:
    """The constants with these values; what none of them decides is taken from the nearest one that was decided."""
    changes: dict[str, dict[str, Any]] = {}
    for parameter, value in zip(parameters, values, strict=True):
        changes.setdefault(parameter.owner, {})[parameter.key] = float(value)
    engines = {name: replace(row, **changes.get(name, {})) for name, row in GENERATIONS.items()}
    gpus = {name: replace(row, **changes.get(name, {})) for name, row in GPU_CONSTANTS.items()}
    for name in (name for name in gpus if len(changes.get(name, {})) == 1):  # a GPU without prompts
        like = gpus[_stand_in(name, changes)]
        gpus[name] = replace(like, kv_efficiency=gpus[name].kv_efficiency, source=gpus[name].source)
    for name, other in _REST_FROM.items():
        source = engines[other if other in changes else _stand_in(other, changes)]
        rest = {key: getattr(source, key) for key in _FREE_OF[VLLM_0_5] if key not in _ALONE}
        engines[name] = replace(engines[name], **rest)
    return Fitted(
        {name: row if name in changes else engines[_stand_in(name, changes)] for name, row in engines.items()},
        {name: row if name in changes else gpus[_stand_in(name, changes)] for name, row in gpus.items()},
        replace(KERNELS, **changes.get("kernels", {})),
        replace(LINKS["pcie-host"], **changes.get("link", {})),
        changes.get("host", {}),
    )


def _stand_in(name: str, decided: Iterable[str]) -> str:
    return next((other for other in _STAND_INS[name] if other in decided), name)


def weights(rows: Sequence[Measurement]) -> Array:
    """The weight of each row: those of one way of measuring share theirs."""
    ways = [one.way for one in rows]
    return np.sqrt([_WEIGHTS[way] / ways.count(way) for way in ways])


def calibrate(rows: Sequence[Measurement]) -> Fitted:
    """The constants that fit rows best. Raises UsageError without rows."""
    if not rows:
        raise UsageError("nothing to calibrate on: expected at least one measurement that is not held back")
    drafted = [one for one in rows if one.deployment.speculation is not None]
    paged = [one for one in rows if _is_paged(one)]
    rows = [one for one in rows if one.deployment.speculation is None and not _is_paged(one)]
    parameters = free_parameters(rows)
    guesses = np.log([one.free.guess for one in parameters])
    bounds = (np.log([one.free.low for one in parameters]), np.log([one.free.high for one in parameters]))
    answer = least_squares(lambda logs: misfit(rows, parameters, logs), guesses, bounds=bounds, xtol=1e-5, ftol=1e-6)
    found = _fitted(parameters, np.exp(answer.x))
    for keys, shown in ((("draft_step_s",), drafted), (PAGED_KEYS, paged)):
        found = with_kernels(found, keys, shown) if shown else found
    return found


def _is_paged(one: Measurement) -> bool:
    deployment = one.deployment
    return bool(deployment.model.window_tokens) and reads_windows_by_pages(deployment.engine, deployment.engine_version)


def with_kernels(found: Fitted, keys: Sequence[str], rows: Sequence[Measurement]) -> Fitted:
    """The same with those constants of kernels that fit these rows best: rows with drafts, or old ones with a window, decide
    nothing else."""

    def changed(logs: Array) -> Fitted:
        return replace(found, kernels=replace(found.kernels, **dict(zip(keys, np.exp(logs).tolist(), strict=True))))

    guess = np.log([getattr(KERNELS, key) for key in keys])
    answer = least_squares(lambda logs: np.log1p(errors(rows, changed(logs))), guess)
    return changed(answer.x)


def misfit(rows: Sequence[Measurement], parameters: Sequence[Parameter], logs: Array) -> Array:
    """What the fit makes small: damped and weighted log errors of the rows, and how far each constant is from its prior."""
    fitted = _fitted(parameters, np.exp(logs))
    predicted = np.log([seconds(one, fitted.constants(one, on_its_host=True)) for one in rows])
    measured = np.log([one.measured_s for one in rows])
    guesses, spreads = (np.array([getattr(one.free, key) for one in parameters]) for key in ("guess", "spread"))
    return np.concatenate([_damped((predicted - measured) / NOISE) * weights(rows), (logs - np.log(guesses)) / spreads])


def _damped(size: Array) -> Array:
    """Errors whose squares grow as soft L1 does: quadratic below two units, linear beyond."""
    damped: Array = np.sign(size) * 2 * np.sqrt(2 * (np.sqrt(1 + (size / 2) ** 2) - 1))
    return damped


def leave_one_out(
    rows: Sequence[Measurement], part: Callable[[Measurement], str]
) -> dict[str, tuple[Sequence[Measurement], Array]]:
    """The rows of each part, and their errors when the constants come from the other parts alone, by part."""
    found: dict[str, tuple[Sequence[Measurement], Array]] = {}
    for name in dict.fromkeys(map(part, rows)):
        unseen = [one for one in rows if part(one) == name]
        rest = [one for one in rows if part(one) != name]
        if rest:
            found[name] = (unseen, errors(unseen, calibrate(rest)))
    return found


def report(rows: Sequence[Measurement]) -> list[str]:
    """The whole answer as lines: constants, residuals, errors with each source, model and GPU left out."""
    open_rows = [one for one in rows if not one.held_back]
    fitted = calibrate(open_rows)
    lines = [*_constants(fitted), *residuals(rows, fitted)]
    parts: Mapping[str, Callable[[Measurement], str]] = {
        "source": lambda one: one.source,
        "model": lambda one: one.family,
        "GPU": lambda one: chip(one.deployment.gpu.name),
        "GPUs in parallel": lambda one: "several GPUs" if one.deployment.tp > 1 else "one GPU",
    }
    for title, part in parts.items():
        for name, (unseen, of) in leave_one_out(open_rows, part).items():
            lines += by_class(f"without {title} {name}", list(zip(unseen, of, strict=True)))
    return lines


def _constants(fitted: Fitted) -> Iterable[str]:
    rows: dict[str, Any] = {**fitted.engines, **fitted.gpus, "kernels": fitted.kernels, "pcie-host": fitted.link}
    for name, row in rows.items():
        values = {field.name: getattr(row, field.name) for field in fields(row)}
        yield f"{name}: " + ", ".join(f"{key}={value:.3g}" for key, value in values.items() if not isinstance(value, str))
    yield "hosts: " + ", ".join(f"{source} {factor:.2f}" for source, factor in fitted.hosts.items())


def main(arguments: Sequence[str]) -> int:
    """Calibrate on the CSV files named; 0, or the exit code of what went wrong, with one line about it."""
    names = [argument for argument in arguments if argument != "--check"]
    try:
        if not names:
            raise UsageError(
                "expected CSV files of measured speeds: python -m loadtest.perfmodel.calibration [--check] DATA.csv..."
            )
        rows = [one for name in names for one in published.read_measurements(Path(name))]
        lines = residuals(rows) if "--check" in arguments else report(rows)
    except LoadtestError as error:
        sys.stderr.write(f"calibration: {error}\n")
        return error.exit_code
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
