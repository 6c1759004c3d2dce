"""How far off a prediction may be, by what evidence its class has.

Each half-width is a ratio (0.2: from value / 1.2 to value x 1.2) that 9 of 10 predictions of its class keep when their own source,
model or GPU is left out of the fit (`python -m loadtest.perfmodel.calibration` prints them). Where a prediction has several
reasons to be off, they add up in squares. Where there is no evidence, it says so, and the half-width is a judgement.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadtest.perfmodel.constants import is_calibrated
from loadtest.perfmodel.interconnect import Topology
from loadtest.perfmodel.memory import Deployment

ONE_GPU = 0.12
QUANTISED = 0.15
BATCH = 0.10  # more than one stream
SEVERAL_GPUS = 0.18
OTHER_GPU = 0.20
UNKNOWN_TOPOLOGY = 0.15
SMALL = 0.35  # below 2 B parameters: launches fitted on 7B to 70B models are too long for them
NO_EVIDENCE = 0.40  # experts, latent caches and windows: no published run was held against the model

SMALL_PARAMETERS = 2e9


@dataclass(frozen=True, slots=True)
class Error:
    """The half-width of a prediction's range (a ratio), and what it rests on."""

    half_width: float
    evidence: str


def error_of(deployment: Deployment, streams: int = 1) -> Error:
    """The error of predictions of this deployment's class at a batch of this many streams."""
    if deployment.machine.range is not None:
        return Error(deployment.machine.range, f"residuals of this machine's own runs ({deployment.machine.source})")
    reasons = _reasons(deployment, streams)
    return Error(sum(width**2 for width, _ in reasons) ** 0.5, "; ".join(text for _, text in reasons))


def _reasons(deployment: Deployment, streams: int) -> list[tuple[float, str]]:
    model, tp = deployment.model, deployment.tp
    found = [(SEVERAL_GPUS, "several GPUs")] if tp > 1 else [(ONE_GPU, "one GPU")]
    if streams > 1:
        found.append((BATCH, "several streams"))
    if model.quantisation != "bf16":
        found.append((QUANTISED, f"{model.quantisation} weights"))
    if not is_calibrated(deployment.gpu.name):
        found.append((OTHER_GPU, f"no measurement on {deployment.gpu.title}"))
    if tp > 1 and deployment.topology == "pcie":
        found.append((UNKNOWN_TOPOLOGY, spoken(deployment.topology)))
    if model.parameters < SMALL_PARAMETERS:
        found.append((SMALL, "less than 2 B parameters"))
    if model.experts or model.kv_lora_rank or model.window_layers:
        found.append((NO_EVIDENCE, "experts or other attention: no published run was held against the model"))
    return found


def spoken(topology: Topology) -> str:
    """A topology for a reader.

    >>> spoken("pcie-host")
    'PCIe through the host (no peer access)'
    """
    return {
        "nvlink": "NVLink",
        "pcie-p2p": "PCIe with peer access",
        "pcie-host": "PCIe through the host (no peer access)",
        "pcie": "PCIe, peer access unknown: the mean of with and without (name it with --interconnect)",
    }[topology]
