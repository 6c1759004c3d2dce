"""GPUs as rows of data, each with its source; a card that is not here comes from a TOML file of the same keys.

All figures are data-sheet figures: dense rates (no sparsity), memory in decimal bytes, and the interconnect in ONE
direction per card (a data sheet's "NVLink 600 GB/s" counts both). What a kernel reaches of them is in `roofline`.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from loadtest.errors import UsageError

Interconnect = Literal["pcie", "nvlink"]


@dataclass(frozen=True, slots=True)
class Gpu:
    """One card: what its data sheet says.

    `memory_bytes` (1 GB = 1e9), `bandwidth_bytes_per_s` of that memory, `bf16_flop_per_s` dense tensor rate with 32-bit
    accumulation, `fp8_flop_per_s` (0: no FP8 tensor cores), `interconnect` between the cards of one host and
    its rate `interconnect_bytes_per_s` in one direction, `multiprocessors` (SMs), `source` of the figures.
    """

    name: str
    title: str
    memory_bytes: float
    bandwidth_bytes_per_s: float
    bf16_flop_per_s: float
    fp8_flop_per_s: float
    interconnect: Interconnect
    interconnect_bytes_per_s: float
    multiprocessors: int
    source: str

    def __post_init__(self) -> None:
        if self.interconnect not in ("pcie", "nvlink"):
            raise UsageError(f"GPU {self.name}: interconnect must be 'pcie' or 'nvlink', got {self.interconnect!r}")
        for key in (
            "memory_bytes",
            "bandwidth_bytes_per_s",
            "bf16_flop_per_s",
            "interconnect_bytes_per_s",
            "multiprocessors",
        ):
            if not 0 < getattr(self, key) < float("inf"):
                raise UsageError(f"GPU {self.name}: {key} must be a positive number, got {getattr(self, key)!r}")
        if not 0 <= self.fp8_flop_per_s < float("inf"):
            raise UsageError(f"GPU {self.name}: fp8_flop_per_s must be 0 (none) or positive, got {self.fp8_flop_per_s!r}")


_PCIE4 = 32e9  # PCIe 4.0 x16: 16 GT/s x 16 lanes / 8, one direction

# name, title, GB, GB/s, TFLOP/s at BF16 and FP8, interconnect and its bytes/s, multiprocessors, source
_ROWS: tuple[tuple[str, str, float, float, float, float, Interconnect, float, int, str], ...] = (
    ("l20", "NVIDIA L20", 48, 864, 119.5, 239, "pcie", _PCIE4, 92, "NVIDIA L20 data sheet"),
    ("l40s", "NVIDIA L40S", 48, 864, 362, 733, "pcie", _PCIE4, 142, "NVIDIA L40S data sheet"),
    ("a10", "NVIDIA A10", 24, 600, 125, 0, "pcie", _PCIE4, 72, "NVIDIA A10 data sheet"),
    ("rtx-4090", "NVIDIA GeForce RTX 4090", 24, 1008, 165, 330, "pcie", _PCIE4, 128, "NVIDIA Ada GPU white paper"),
    ("rtx-6000-ada", "NVIDIA RTX 6000 Ada", 48, 960, 364, 728, "pcie", _PCIE4, 142, "NVIDIA RTX 6000 Ada data sheet"),
    ("a100-80gb", "NVIDIA A100 80GB SXM", 80, 2039, 312, 0, "nvlink", 300e9, 108, "NVIDIA A100 data sheet"),
    ("h20", "NVIDIA H20", 96, 4000, 148, 296, "nvlink", 450e9, 78, "NVIDIA H20 data sheet"),
    ("h100", "NVIDIA H100 SXM", 80, 3350, 989, 1979, "nvlink", 450e9, 132, "NVIDIA H100 data sheet"),
    ("h200", "NVIDIA H200 SXM", 141, 4800, 989, 1979, "nvlink", 450e9, 132, "NVIDIA H200 data sheet"),
)  # fmt: skip

GPUS: dict[str, Gpu] = {
    name: Gpu(name, title, memory * 1e9, bandwidth * 1e9, bf16 * 1e12, fp8 * 1e12, link, link_rate, multiprocessors, source)
    for name, title, memory, bandwidth, bf16, fp8, link, link_rate, multiprocessors, source in _ROWS
}


def gpu(name_or_toml_path: str) -> Gpu:
    """The card of that registry name (case and spaces do not matter), or the one a TOML file describes.

    The file has the keys of `Gpu`. It must give memory, bandwidth and BF16 rate; without the others the card has no FP8,
    PCIe 4.0 x16 and the 108 multiprocessors of an A100, and is called what the file is called.
    Raises UsageError: unknown name (lists the names), unreadable file, a missing, unknown or impossible value.

    >>> gpu("L20").memory_bytes / 1e9
    48.0
    """
    key = name_or_toml_path.strip().lower().replace(" ", "-").replace("_", "-").removeprefix("nvidia-")
    if key in GPUS:
        return GPUS[key]
    path = Path(name_or_toml_path)
    if path.suffix != ".toml":
        raise UsageError(
            f"GPU {name_or_toml_path!r} is not known: expected one of {', '.join(GPUS)}, or a TOML file with its figures"
        )
    return _from_toml(path)


_DEFAULTS: dict[str, Any] = {
    "fp8_flop_per_s": 0.0,
    "interconnect": "pcie",
    "interconnect_bytes_per_s": _PCIE4,
    "multiprocessors": 108,
}


def _from_toml(path: Path) -> Gpu:
    row: dict[str, Any] = {"name": path.stem, "title": path.stem, "source": path.name} | _DEFAULTS | _read_toml(path)
    names = {field.name for field in fields(Gpu)}
    if unknown := sorted(row.keys() - names):
        raise UsageError(f"{path}: unknown key {unknown[0]!r}; expected {', '.join(sorted(names))}")
    if missing := sorted(names - row.keys()):
        raise UsageError(f"{path}: key {missing[0]!r} is missing; expected {', '.join(sorted(names))}")
    for key in names - {"name", "title", "interconnect", "source"}:
        if isinstance(row[key], bool) or not isinstance(row[key], int | float):
            raise UsageError(f"{path}: {key} must be a number, got {row[key]!r}")
        row[key] = float(row[key])
    row["multiprocessors"] = int(row["multiprocessors"])
    return Gpu(**row)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}; expected a TOML file with a card's figures") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: is not TOML: {error}") from None
