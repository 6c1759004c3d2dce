"""GPUs as rows of data, each with its source; a GPU that is not here comes from a TOML file of the same keys.

Figures are those of data sheets: dense rates (no sparsity), memory as an engine finds it, and the interconnect in ONE
direction per GPU (a data sheet's "NVLink 600 GB/s" counts both). What a kernel reaches of them is in `constants`.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from loadtest import resources
from loadtest.errors import UsageError

Interconnect = Literal["nvlink", "pcie", "pcie-host"]


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU: what its data sheet says.

    `memory_bytes` that an engine finds, `bandwidth_bytes_per_s` of that memory, `bf16_flop_per_s` dense tensor rate with
    32-bit accumulation, `fp8_flop_per_s` (0: no FP8 tensor cores). `interconnect` between the GPUs of one host: "nvlink"
    (or another switched link), "pcie" (peer access depends on the machine) or "pcie-host" (the driver of these GPUs has no
    peer access); `interconnect_bytes_per_s` in one direction. `multiprocessors` (SMs) at `clock_hz` (boost). `source` of
    the figures; `unverified` names those of which no publication was found.
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
    clock_hz: float
    source: str
    unverified: str = ""

    def __post_init__(self) -> None:
        if self.interconnect not in get_args(Interconnect):
            raise UsageError(
                f"GPU {self.name}: interconnect must be 'nvlink', 'pcie' or 'pcie-host', got {self.interconnect!r}"
            )
        for key in (
            "memory_bytes",
            "bandwidth_bytes_per_s",
            "bf16_flop_per_s",
            "interconnect_bytes_per_s",
            "multiprocessors",
            "clock_hz",
        ):
            if not 0 < getattr(self, key) < float("inf"):
                raise UsageError(f"GPU {self.name}: {key} must be a positive number, got {getattr(self, key)!r}")
        if not 0 <= self.fp8_flop_per_s < float("inf"):
            raise UsageError(f"GPU {self.name}: fp8_flop_per_s must be 0 (none) or positive, got {self.fp8_flop_per_s!r}")

    @property
    def cycles_per_s(self) -> float:
        """Clock cycles of all multiprocessors in a second: what bounds a kernel that unpacks weights."""
        return self.multiprocessors * self.clock_hz


_PCIE4 = 32e9  # PCIe 4.0 x16: 16 GT/s x 16 lanes / 8, one direction
_PCIE5 = 64e9

# name, title, GB, GB/s, TFLOP/s at BF16 and FP8, interconnect and its bytes/s, multiprocessors, boost MHz, source.
# Rates, multiprocessors and clocks are held against each other in the tests. What was found beside NVIDIA's data sheets:
# L20 topcpu.net, L4 grokipedia.com, L40S cputronic.com, RTX 4090 and RTX PRO 6000 hmc-tech.com, RTX 5090 tomshardware.com,
# A10 sysrqmts.com, A100 thundercompute.com and techpowerup.com, H100 hpctech.co.jp and glennklockwood.com, H100 PCIe
# cputronic.com, B200 (148 multiprocessors) from kernels that name them.
_ROWS: tuple[tuple[str, str, float, float, float, float, Interconnect, float, int, int, str], ...] = (
    ("l20", "NVIDIA L20", 48, 864, 119.5, 239, "pcie", _PCIE4, 92, 2520, "NVIDIA L20 data sheet"),
    ("l4", "NVIDIA L4", 24, 300, 121, 242, "pcie", _PCIE4, 58, 2040, "NVIDIA L4 data sheet"),
    ("l40s", "NVIDIA L40S", 48, 864, 362, 733, "pcie", _PCIE4, 142, 2520, "NVIDIA L40S data sheet"),
    ("a10", "NVIDIA A10", 24, 600, 125, 0, "pcie", _PCIE4, 72, 1695, "NVIDIA A10 data sheet"),
    ("rtx-4090", "NVIDIA GeForce RTX 4090", 24, 1008, 165, 330, "pcie-host", _PCIE4, 128, 2520, "Ada white paper"),
    ("rtx-5090", "NVIDIA GeForce RTX 5090", 32, 1792, 209.5, 419, "pcie-host", _PCIE5, 170, 2407, "Blackwell white paper"),
    ("rtx-6000-ada", "NVIDIA RTX 6000 Ada", 48, 960, 364, 728, "pcie", _PCIE4, 142, 2505, "NVIDIA RTX 6000 Ada data sheet"),
    ("rtx-pro-6000", "NVIDIA RTX PRO 6000", 96, 1792, 503.8, 1007, "pcie", _PCIE5, 188, 2617, "RTX PRO 6000 data sheet"),
    ("a100-40gb", "NVIDIA A100 40GB SXM", 40, 1555, 312, 0, "nvlink", 300e9, 108, 1410, "NVIDIA A100 data sheet"),
    ("a100-80gb", "NVIDIA A100 80GB SXM", 80, 2039, 312, 0, "nvlink", 300e9, 108, 1410, "NVIDIA A100 data sheet"),
    ("a100-80gb-pcie", "NVIDIA A100 80GB PCIe", 80, 1935, 312, 0, "pcie", _PCIE4, 108, 1410, "NVIDIA A100 data sheet"),
    ("h20", "NVIDIA H20", 96, 4000, 148, 296, "nvlink", 450e9, 78, 1980, "NVIDIA H20 data sheet"),
    ("h100", "NVIDIA H100 SXM", 80, 3350, 989, 1979, "nvlink", 450e9, 132, 1830, "NVIDIA H100 data sheet"),
    ("h100-pcie", "NVIDIA H100 PCIe", 80, 2000, 756, 1513, "pcie", _PCIE5, 114, 1755, "NVIDIA H100 data sheet"),
    ("gh200", "NVIDIA GH200 96GB", 96, 4000, 989, 1979, "nvlink", 450e9, 132, 1830, "NVIDIA GH200 data sheet"),
    ("h200", "NVIDIA H200 SXM", 141, 4800, 989, 1979, "nvlink", 450e9, 132, 1830, "NVIDIA H200 data sheet"),
    ("b200", "NVIDIA B200", 180, 8000, 2250, 4500, "nvlink", 900e9, 148, 1860, "DGX B200 data sheet, an eighth"),
    ("mi300x", "AMD Instinct MI300X", 192, 5300, 1307, 2615, "nvlink", 448e9, 304, 2100, "AMD Instinct MI300X data sheet"),
)  # fmt: skip

# What an engine finds of a data sheet's GB: with ECC inside GDDR6 about decimal GB (46 GiB of 48: vLLM issue 7721); else the
# sheet counts GiB, of which the driver keeps 1 to 2 % (79.15 GiB of 80: vLLM issue 4408; 23.5 of 24: vLLM issue 42049;
# 178.35 of 180: pytorch/ao pull request 4002).
_ECC_INSIDE = ("l20", "l4", "l40s", "a10", "rtx-6000-ada")
_FOUND_OF_GIB = 0.985 * 2**30

# Looked for in vain. The GH200's clock is what its tensor rate says; one owner reports 1,980 MHz.
_UNVERIFIED = {"h20": "clock", "gh200": "bandwidth, clock"}

GPUS: dict[str, Gpu] = {
    name: Gpu(
        name,
        title,
        memory * (1e9 if name in _ECC_INSIDE else _FOUND_OF_GIB),
        bandwidth * 1e9,
        bf16 * 1e12,
        fp8 * 1e12,
        link,
        link_rate,
        processors,
        clock * 1e6,
        source,
        _UNVERIFIED.get(name, ""),
    )
    for name, title, memory, bandwidth, bf16, fp8, link, link_rate, processors, clock, source in _ROWS
}


def gpu(name_or_toml_path: str) -> Gpu:
    """The GPU of that registry name (case and spaces do not matter), or the one a TOML file describes.

    The file has the keys of `Gpu`. It must give memory, bandwidth and BF16 rate; without the others it has no FP8,
    PCIe 4.0 x16 and the 108 multiprocessors of an A100 at 1.41 GHz, and is called what the file is called.
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
    "clock_hz": 1.41e9,
}


def _from_toml(path: Path) -> Gpu:
    row: dict[str, Any] = {"name": path.stem, "title": path.stem, "source": path.name} | _DEFAULTS | _read_toml(path)
    names = {field.name for field in fields(Gpu)} - {"unverified"}
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
        return tomllib.loads(resources.small_file(path).decode())
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}; expected a TOML file with a GPU's figures") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: is not TOML: {error}") from None
