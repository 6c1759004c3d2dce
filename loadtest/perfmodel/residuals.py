"""What the performance model says that published measurements should have been, and how far off it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loadtest.perfmodel import prediction, ranges, step_time
from loadtest.perfmodel.constants import (
    GENERATIONS,
    GPU_CONSTANTS,
    KERNELS,
    Constants,
    EngineConstants,
    GpuConstants,
    KernelConstants,
    generation,
    gpu_constants,
    request_overhead_s,
    scaled,
)
from loadtest.perfmodel.interconnect import LINKS, Link
from loadtest.perfmodel.measurements import Measurement

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Fitted:
    """All constants that the data decide; `hosts` are the factors of the sources' machines, which no prediction uses."""

    engines: dict[str, EngineConstants]
    gpus: dict[str, GpuConstants]
    kernels: KernelConstants
    link: Link
    hosts: dict[str, float]

    def constants(self, one: Measurement, *, on_its_host: bool = False) -> Constants:
        """The constants of one measurement; on request those of the host that it was measured on."""
        deployment = one.deployment
        engine = self.engines[generation(deployment.engine, deployment.engine_version)]
        if on_its_host:
            engine = scaled(engine, self.hosts.get(one.source, 1.0))
        name = chip(deployment.gpu.name)
        return Constants(engine, self.gpus[name], self.kernels, links=LINKS | {"pcie-host": self.link})


STANDING = Fitted(GENERATIONS, GPU_CONSTANTS, KERNELS, LINKS["pcie-host"], {})
"""The constants as they stand."""


def chip(gpu_name: str) -> str:
    """The calibrated GPU whose constants one takes."""
    found = gpu_constants(gpu_name)
    return next(name for name, row in GPU_CONSTANTS.items() if row is found)


def seconds(one: Measurement, constants: Constants) -> float:
    """What the model says that the measurement should have been (s), in its own way of measuring."""
    deployment, streams = one.deployment, max(1, round(one.streams))
    prompt, output = round(one.prompt_tokens), round(one.output_tokens)
    if one.way == "lone":
        return step_time.request_s(deployment, prompt, output, constants)
    if one.way == "step":
        work = step_time.StepWork(decode_streams=streams, kv_read_tokens=round(streams * one.context_tokens))
        return step_time.step_time_s(deployment, work, constants)
    decode = step_time.decode_s(deployment, prompt, output - 1, streams, constants)
    if one.way == "static-batch":
        return decode + _batch_prefill_s(one, streams, constants)
    if one.way == "at-once":
        return decode / (output - 1) + one.wait_s / (output - 1)
    chunk = step_time.chunk_tokens(deployment, prompt + output)
    beside = step_time.beside_s(deployment, prompt, chunk, streams - 1, prompt + output // 2, constants)
    return (decode + (streams - 1) * beside) / (output - 1)


_OFFLINE_CHUNK_TOKENS = 8192  # tokens of prompts in one step of an offline batch: about the longest context of those models


def _batch_prefill_s(one: Measurement, streams: int, constants: Constants) -> float:
    """Seconds of the prompts of a whole batch, several in each step (s)."""
    prompt = round(one.prompt_tokens)
    tokens = streams * prompt
    steps = -(-tokens // _OFFLINE_CHUNK_TOKENS)
    work = step_time.StepWork(prefill_tokens=tokens // steps, prefill_pairs=tokens // steps * (prompt + 1) // 2)
    return steps * step_time.step_time_s(one.deployment, work, constants)


def errors(rows: Sequence[Measurement], fitted: Fitted = STANDING) -> Array:
    """Predicted over measured time, less one: +0.1 is 10 % too slow; in the order given."""
    return np.array([seconds(one, fitted.constants(one)) / one.measured_s - 1 for one in rows])


def total_errors(rows: Sequence[Measurement]) -> list[tuple[Measurement, float]]:
    """The rows that tell the total speed of a loop (output tokens/s), each with predicted over measured, less one."""
    told = [one for one in rows if one.total_tokens_per_s]
    return [(one, _total_tokens_per_s(one) / one.total_tokens_per_s - 1) for one in told]


def _total_tokens_per_s(one: Measurement) -> float:
    """In a closed loop as `predict` says it, with its end; all at once: prompts one after the other, then decoding together.

    A loop of N requests ends with fewer streams than its C. If lengths vary as exponential ones do (ShareGPT's about so),
    the last ends 1/2 + 1/3 + ... + 1/C requests after the streams would have ended together: on 4 streams 100 requests take
    4 % longer.
    """
    deployment, streams = one.deployment, max(1, round(one.streams))
    prompt, output = round(one.prompt_tokens), round(one.output_tokens)
    if one.way == "closed-loop":
        steady = prediction.predict(deployment, prompt_tokens=prompt, output_tokens=output, concurrency=streams)
        end = sum(1 / n for n in range(2, streams + 1)) * streams / one.requests if one.requests else 0.0
        return steady.output_tokens_per_s.value / (1 + end)
    prefill_s = streams * step_time.prefill_s(deployment, prompt, step_time.chunk_tokens(deployment, prompt + output))
    decode_s = step_time.decode_s(deployment, prompt, output - 1, streams)
    return streams * output / (request_overhead_s(deployment.engine) + prefill_s + decode_s)


def summary(of: Array) -> str:
    """Median, ninth tenth and worst of the absolute errors, in per cent."""
    size = np.abs(of) * 100
    within = np.quantile(size, 0.9)
    return f"median {np.median(size):.1f} %, 90 % within {within:.1f} %, worst {size.max():.1f} %, n = {size.size}"


def kind(one: Measurement) -> str:
    """The class of a measurement, by which errors are told: GPUs, engine generation, quantisation, batch."""
    deployment = one.deployment
    parts = (
        f"{deployment.tp} x {deployment.gpu.name}" if deployment.tp > 1 else deployment.gpu.name,
        generation(deployment.engine, deployment.engine_version),
        "16 bit" if deployment.model.quantisation == "bf16" else "quantised",
        "1 stream" if one.streams <= 1 else "several streams",
        *(["drafts"] if deployment.speculation else []),
    )
    return ", ".join(parts) + (", below 2 B" if deployment.model.parameters < ranges.SMALL_PARAMETERS else "")


def inside(one: Measurement, error: float) -> bool:
    """Is the measured time inside the range that would have been stated?"""
    half_width = ranges.error_of(one.deployment, round(one.streams)).half_width
    return 1 / (1 + half_width) <= 1 + error <= 1 + half_width


def residuals(rows: Sequence[Measurement], fitted: Fitted = STANDING) -> list[str]:
    """A line for each measurement; then a summary of each class, of those fitted and of those held back."""
    found = errors(rows, fitted)
    lines = [
        f"{one.title}: measured {one.measured_s:.5g} s, predicted {one.measured_s * (1 + error):.5g} s, {error:+.1%}"
        f"{'' if inside(one, error) else ', OUTSIDE its range'}{', held back' if one.held_back else ''}"
        for one, error in zip(rows, found, strict=True)
    ]
    for held_back in (False, True):
        chosen = [(one, error) for one, error in zip(rows, found, strict=True) if one.held_back == held_back]
        lines += by_class("held back" if held_back else "fitted or not published apart", chosen)
        lines += _totals("held back" if held_back else "fitted", [one for one, _ in chosen])
    return lines


def _totals(title: str, rows: Sequence[Measurement]) -> list[str]:
    lines = []
    for name in sorted({kind(one) for one, _ in total_errors(rows)}):
        chosen = [row for row in total_errors(rows) if kind(row[0]) == name]
        lines.append(f"{title}: total tokens/s, {name}: {_told(chosen)}")
    return lines


def by_class(title: str, rows: Sequence[tuple[Measurement, float]]) -> list[str]:
    if not rows:
        return []
    lines = []
    for name in sorted({kind(one) for one, _ in rows}):
        lines.append(f"{title}: {name}: {_told([row for row in rows if kind(row[0]) == name])}")
    for several in (False, True):
        chosen = [row for row in rows if (row[0].deployment.tp > 1) == several]
        if chosen:
            lines.append(f"{title}: {'several GPUs' if several else 'one GPU'}: {_told(chosen)}")
    return [*lines, f"{title}: all: {_told(rows)}"]


def _told(rows: Sequence[tuple[Measurement, float]]) -> str:
    share = np.mean([inside(one, error) for one, error in rows])
    return f"{summary(np.array([error for _, error in rows]))}, {share:.0%} inside their range"
