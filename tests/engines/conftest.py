"""The real runtimes on the CPU, as `make engines` installs them."""

from __future__ import annotations

import os
import shlex
import socket
from pathlib import Path

import pytest

from loadtest import engines

CHECKOUT = Path(__file__).parents[2]
MODEL = CHECKOUT / ".engines" / "tiny-qwq"
HERE = Path(__file__).parent


def _environment() -> dict[str, str]:
    """The variables of environment.sh, read without a shell."""
    variables = {}
    for line in (HERE / "environment.sh").read_text().splitlines():
        if line.startswith("export "):
            name, _, value = line.removeprefix("export ").partition("=")
            variables[name] = value.strip('"').replace("$PWD", str(CHECKOUT))
    return variables


ENVIRONMENT = _environment()


@pytest.fixture(scope="session", autouse=True)
def installed():
    """Fail, rather than skip, where a runtime is missing: these tests are run on purpose."""
    for path in (
        MODEL / "model.safetensors",
        CHECKOUT / ".engines/vllm/installed.txt",
        CHECKOUT / ".engines/sglang/installed.txt",
    ):
        if not path.exists():
            pytest.fail(f"{path.relative_to(CHECKOUT)}: not there; run `make engines` first")
    os.environ.update(ENVIRONMENT)


@pytest.fixture(scope="session")
def spec():
    """Make the spec of a real runtime on a free port; extra arguments come after what the CPU needs."""

    def make(engine, *extra, **changes):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        arguments = (*shlex.split(ENVIRONMENT[f"{engine.upper()}_CPU_ARGUMENTS"]), *extra)
        settings = {"context_tokens": 8192, "memory_fraction": 0.3, "port": port, "served_name": "tiny-qwq", **changes}
        return engines.LaunchSpec(engine=engine, model=str(MODEL), extra_args=arguments, **settings)

    return make
