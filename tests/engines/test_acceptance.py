"""`accept` with a real engine on the CPU, shortened, beside stand-ins for NVML and `nvidia-smi`: what a CPU can show passes,
and what is wrong on purpose fails: a nvidia-smi that tells a fifth less power, and a GPU that is larger than any machine.
"""

import json
import shlex
import stat
import sys
from dataclasses import replace

import pytest

from loadtest import cli
from loadtest.analysis.acceptance import TOO_LARGE
from loadtest.commands.machine import acceptance_studies as studies
from tests.engines.conftest import ENVIRONMENT, MODEL, cpu_arguments
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
    monkeypatch.syspath_prepend(tmp_path / "gpu")
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    for engine in ("vllm", "sglang"):
        program = tmp_path / engine
        command, arguments = ENVIRONMENT[f"LOADTEST_{engine.upper()}"], shlex.join(cpu_arguments(engine))
        program.write_text(WRAPPER.format(command=command, arguments=arguments))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv(f"LOADTEST_{engine.upper()}", str(program))
    yield tmp_path / "gpu" / "gpu.toml"
    sys.modules.pop("pynvml", None)


@pytest.fixture
def shortened(monkeypatch):
    """One start and one level, and of the extremes the model that is too large alone."""
    whole, beside = studies.measured, studies.extremes

    def extremes(*asked):
        study = beside(*asked)
        return replace(study, cells=tuple(cell for cell in study.cells if cell.name == TOO_LARGE))

    monkeypatch.setattr(studies, "measured", lambda asked: replace(whole(asked), repeats=1, levels=(1,), min_requests=4))
    monkeypatch.setattr(studies, "extremes", extremes)


def test_what_a_cpu_can_show_passes_and_what_is_wrong_fails(engine, on_a_gpu, shortened, tmp_path, capsys):
    out = tmp_path / "accepted"
    asked = ["accept", "--engine", engine, "--model", str(MODEL), "--gpu", str(on_a_gpu), "--minutes", "100"]
    assert cli.main([*asked, "--out", str(out)]) == 3
    said = capsys.readouterr()
    print(said.out, said.err, sep="\n")
    rows = {row["check"]: row for row in json.loads((out / "acceptance.json").read_text())["rows"]}
    results = {name: row["result"] for name, row in rows.items()}
    time_per_token = results.pop("time per token, one user")  # of a machine that is no GPU, and shared
    assert time_per_token != "not run"
    assert results == {
        "GPUs": "pass",
        "start and stop": "pass",
        "settings": "pass",
        "thinking": "pass",
        "token counts": "pass",
        "power by NVML": "pass",
        "refusal": "pass",
        "memory against nvidia-smi": "pass",
        "memory given back": "pass",
        "KV cache": "fail",
        "out of memory": "fail",
        "joules against nvidia-smi": "fail",
        "two GPUs, one start of each engine": "not run",
    }
    assert "the machine is out of memory" in rows["out of memory"]["got"]
    for name in ("measured", "extremes"):
        assert cli.main(["report", str(out / f"{name}.loadtest"), "-o", str(tmp_path / f"{name}.html")]) == 0
