"""Stand-ins for one GPU, in a folder: `pynvml.py` for NVML's bindings, and the program `nvidia-smi`.

By hand: `python -m tests.support.gpu_stand_ins FOLDER [POWER [MEMORY]]`, which says what to export. nvidia-smi tells that
share of the power, and so many times the memory, that NVML does (default: 1, they agree).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

NAME = "NVIDIA Stand-in"
_FIGURES = """
import math, sys, time, types

USED_MIB = 4096


def power_w():
    return 120.0 + 60.0 * math.sin(time.time() / 3.0)

"""
_NVML = """
class NVMLError(Exception):
    pass


def nvmlInit():
    pass


def nvmlShutdown():
    pass


def nvmlDeviceGetCount():
    return 1


def nvmlDeviceGetHandleByIndex(index):
    return index


def nvmlDeviceGetPowerUsage(handle):
    return int(1000 * power_w())


def nvmlDeviceGetMemoryInfo(handle):
    return types.SimpleNamespace(used=USED_MIB * 2**20)


def nvmlDeviceGetUtilizationRates(handle):
    return types.SimpleNamespace(gpu=50, memory=50)
"""
_SMI = f"""
if "-L" in sys.argv:
    print("GPU 0: {NAME} (UUID: GPU-0)")
elif "--query-gpu=index,power.draw,memory.used" in sys.argv:
    print(f"0, {{power_w() * SHARES[0]:.2f}}, {{USED_MIB * SHARES[1]:.0f}}")
else:
    sys.exit("not known here")
"""
# No GPU, but as large as one must be that nothing on this machine can stand in for: twice its memory cannot be had.
GPU = """title = "no GPU"
source = "a stand-in"
memory_bytes = 8e12
bandwidth_bytes_per_s = 1e12
bf16_flop_per_s = 400e9
multiprocessors = 100
clock_hz = 2.5e9
"""


def write_stand_ins(folder, power=1.0, memory=1.0):
    """Write both, and `gpu.toml`; returns the variables under which they are found."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pynvml.py").write_text(_FIGURES + _NVML)
    (folder / "gpu.toml").write_text(GPU)
    program = folder / "nvidia-smi"
    program.write_text(f"#!{sys.executable} -IS\nSHARES = {power}, {memory}\n{_FIGURES}{_SMI}")
    program.chmod(0o755)
    return {"PYTHONPATH": str(folder), "PATH": f"{folder}:{os.environ['PATH']}"}


if __name__ == "__main__":
    for name, value in write_stand_ins(Path(sys.argv[1]).resolve(), *map(float, sys.argv[2:])).items():
        print(f"export {name}={value}")
