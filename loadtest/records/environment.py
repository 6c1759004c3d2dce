"""What a run was measured with: this machine and the versions that matter."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import msgspec

from loadtest import __version__

_PACKAGES = ("locust", "gevent", "msgspec", "numpy", "scipy", "pandas", "matplotlib", "httpx")


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """The machine of the load generator: its processor, the cores and the memory that we may use, and versions."""

    python: str
    platform: str
    cpu: str
    cores: int
    memory_bytes: int
    packages: dict[str, str | None]  # None: not installed


def describe() -> Environment:
    """This machine, its Python, and the versions of our packages."""
    return Environment(
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        packages={"loadtest": __version__, **{name: _version(name) for name in _PACKAGES}},
    )


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
