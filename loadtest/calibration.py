"""The constants of the performance model, and the command that fits them: `python -m loadtest.calibration DATA.csv...`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Constants:
    """What a real kernel reaches of a data sheet, and what it costs to start one."""

    step_s: float
    layer_s: float
    memory_efficiency: float
    prefill_efficiency: float
    attention_efficiency: float
    all_reduce_nvlink_s: float
    all_reduce_pcie_s: float
    relative_error: float


CONSTANTS = Constants(1.3e-3, 88e-6, 0.85, 0.65, 0.35, 12e-6, 30e-6, 0.15)
