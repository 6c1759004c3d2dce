"""`accept` with a real engine on the CPU, and stand-ins for NVML and `nvidia-smi`: what a CPU can show passes, and what is
wrong on purpose fails: a nvidia-smi that tells a fifth less power, a GPU that is larger than any, memory that is no GPU's.
"""

import json
import shlex
import stat

import pytest

from loadtest.servers import supervisor
from tests.engines.conftest import ENVIRONMENT, MODEL, cpu_arguments, ended, left_over
from tests.support.gpu_stand_ins import write_stand_ins

pytestmark = pytest.mark.timeout(1800)

# On a machine that promises any memory, what is too large must fail at once all the same.
WRAPPER = """#!/bin/sh
ulimit -v 1000000000
exec env -u PYTHONPATH {command} "$@" {arguments}
"""


@pytest.fixture
def on_a_gpu(tmp_path, monkeypatch):
    """The environment of a machine with a GPU, and what each engine needs on a CPU beside the arguments of `accept`."""
    for name, value in write_stand_ins(tmp_path / "gpu", power=0.8).items():
        monkeypatch.setenv(name, value)
    for engine in ("vllm", "sglang"):
        program = tmp_path / engine
        command, arguments = ENVIRONMENT[f"LOADTEST_{engine.upper()}"], shlex.join(cpu_arguments(engine))
        program.write_text(WRAPPER.format(command=command, arguments=arguments))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv(f"LOADTEST_{engine.upper()}", str(program))
    return tmp_path / "gpu" / "gpu.toml"


def test_what_a_cpu_can_show_passes_and_what_is_wrong_fails(on_a_gpu, begin, tmp_path):
    out = tmp_path / "accepted"
    running = begin("accept", "--engine", "vllm", "--model", MODEL, "--gpu", on_a_gpu, "--out", out, "--minutes", 100)
    code, said = ended(running)
    assert code == 3, said
    assert left_over(supervisor.descendants(running.pid)) == []
    rows = {row["check"]: row for row in json.loads((out / "acceptance.json").read_text())["rows"]}
    passed = {"GPUs", "start and stop", "settings", "thinking", "token counts", "power by NVML", "speculative decoding",
              "refusal", "memory against nvidia-smi", "memory given back"}  # fmt: skip
    assert {check for check in passed if rows[check]["result"] != "pass"} == set(), said
    assert {check for check, row in rows.items() if row["result"] == "not run"} == {
        "decision", "two GPUs, one start of each engine"
    }  # fmt: skip
    for check, got in (
        ("joules against nvidia-smi", "nvidia-smi "),
        ("KV cache", " tokens"),
        ("out of memory", "the machine is out of memory"),
    ):
        assert rows[check]["result"] == "fail"
        assert got in rows[check]["got"]
    code, said = ended(begin("report", out / "measured.loadtest"))
    assert code == 0, said
