"""How far off a prediction may be, by what evidence its class has.

Each half-width is a ratio (0.2: from value / 1.2 to value x 1.2). It is set so that 9 of 10 predictions of its class keep it
when their own model, source or GPU is left out of the fit (`python -m loadtest.perfmodel.calibration` prints these errors).
Where a prediction has several reasons to be off, they add up in squares. Where there is no evidence, it says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadtest.perfmodel.constants import is_calibrated, reads_windows_by_pages
from loadtest.perfmodel.interconnect import Topology
from loadtest.perfmodel.memory import Deployment

ONE_GPU = 0.15  # a model or a source left out: 9 of 10 within 4 to 13 %
BATCH = 0.10  # more than one stream
SEVERAL_GPUS = 0.18  # the same: within 6 to 13 %
QUANTISED = 0.15  # published speeds outside the fit: within 5 to 16 %
OTHER_GPU = 0.20  # a GPU left out: within 16 % (A100), 22 % (H100), 9 % (RTX 4090)
FAST_MEMORY = 0.35  # the H20 left out: within 43 %, as its memory outruns its multiprocessors
UNKNOWN_TOPOLOGY = 0.15  # half of what peer access makes at 1 to 64 streams
SMALL = 0.50  # below 2 B parameters: within 47 %, as launches were fitted on 7B to 70B models
DRAFTS = 0.15  # rows held back: within 15 %
EXPERT_PARALLEL = 0.30  # a judgement: routers load some experts more than others
ALL_TO_ALL = 0.20  # a judgement: rates are those of DeepEP's own table, waits those of all-reduces
PAGED = 0.15  # Mistral-7B under vLLM 0.5 at 1, 16 and 64 streams: within 12 %
NO_EVIDENCE = 0.40  # experts, latent caches and windows: a judgement, no published run was held against the model

SMALL_PARAMETERS = 2e9
_MEASURED_BYTES_PER_CYCLE = 15  # of memory a multiprocessor and cycle; the A100 and the H100 have 13 and 14


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
        if deployment.gpu.bandwidth_bytes_per_s / deployment.gpu.cycles_per_s > _MEASURED_BYTES_PER_CYCLE:
            found.append((FAST_MEMORY, "memory faster than its multiprocessors were shown to take in"))
    if tp > 1 and deployment.topology == "pcie":
        found.append((UNKNOWN_TOPOLOGY, topology_title(deployment.topology)))
    if deployment.speculation is not None:
        found.append((DRAFTS, "speculation, if as many tokens are accepted as told"))
    if model.parameters < SMALL_PARAMETERS:
        found.append((SMALL, "less than 2 B parameters"))
    if model.experts or model.kv_lora_rank or model.window_layers:
        found.append((NO_EVIDENCE, "experts or other attention: no published run was held against the model"))
    if deployment.expert_parallel:
        found.append((EXPERT_PARALLEL, "expert parallel, as if every expert were asked for equally often"))
    if deployment.all_to_all:
        told = "at published NVLink rates" if deployment.topology == "nvlink" else "over PCIe, without published figures"
        found.append((ALL_TO_ALL if deployment.topology == "nvlink" else 2 * ALL_TO_ALL, f"all-to-all {told}; no run"))
    if model.window_tokens and reads_windows_by_pages(deployment.engine, deployment.engine_version):
        found.append((PAGED, "a sliding window, for which vLLM then used an older attention kernel"))
    return found


def topology_title(topology: Topology) -> str:
    """A topology for a reader.

    >>> topology_title("pcie-host")
    'PCIe through the host (no peer access)'
    """
    return {
        "nvlink": "NVLink",
        "pcie-p2p": "PCIe with peer access",
        "pcie-host": "PCIe through the host (no peer access)",
        "pcie": "PCIe, peer access unknown: the mean of with and without (name it with --interconnect)",
    }[topology]
