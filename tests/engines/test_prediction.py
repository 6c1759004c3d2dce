"""Real engines on the CPU against the performance model: calibrated on level 1, and on 1 and 4, it predicts the others.

A model of 36 million parameters with random weights, so that a step takes longer than the load generator's noise.
`-s` prints what was measured and predicted; docs/performance-model.md says what was seen.
"""

import json
import shutil
import subprocess
import sys

import pytest

from loadtest.commands.finish import read_metrics
from loadtest.perfmodel import gpus, machine_fit, models
from loadtest.perfmodel.machine_fit import RunLevel
from loadtest.perfmodel.memory import Deployment
from tests.engines.conftest import CHECKOUT, HERE, MODEL, cell

LEVELS = [1, 2, 4, 8]
TOKENS = 100
SHAPE = {
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 2048,
}
STUDY = f"""
name = "levels on a CPU"
workload = "math:n=16,seed=7"
levels = {LEVELS}
min_requests = 8
warmup_requests = 1
mode = "equal-work"
[contract]
max_tokens = {TOKENS}
context_tokens = 4096
memory_fraction = 0.3
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The tiny model's tokenizer, and a larger shape whose weights the engines draw."""
    directory = tmp_path_factory.mktemp("model") / "middle-qwq"
    shutil.copytree(MODEL, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((directory / "config.json").read_text()) | SHAPE
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="module")
def measured(model, tmp_path_factory):
    """Levels of each engine, from one run of a study."""
    home = tmp_path_factory.mktemp("levels")
    cells = [cell(engine, "--load-format", "dummy", model=model) for engine in ("vllm", "sglang")]
    (home / "study.toml").write_text(STUDY + "\n".join(cells))
    argv = [sys.executable, "-m", "loadtest", "run", str(home / "study.toml"), "--out", str(home / "run")]
    done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    figures = read_metrics(home / "run" / "metrics.json")
    return {one.engine: {level.concurrency: level for level in one.levels} for one in figures.cells}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("known", "worst"), [([1], 5.0), ([1, 4], 2.0)], ids=["level 1", "levels 1 and 4"])
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_levels_that_were_not_fitted_are_predicted(engine, known, worst, measured, model):
    deployment = Deployment(models.model(str(model)), gpus.gpu(str(HERE / "cpu.toml")), 1, engine)
    levels = {
        n: RunLevel(deployment, n, round(one.context_tokens.value) - TOKENS, TOKENS, one.tpot_s.mean)
        for n, one in measured[engine].items()
    }
    machine = machine_fit.fit_machine([levels[n] for n in known], "measured")
    for n, level in levels.items():
        told = "fitted" if n in known else "predicted"
        print(
            f"{engine}, fitted to {known}, {n} streams: measured {level.tpot_s * 1e3:.2f} ms,"
            f" {told} {machine_fit.tpot_s(level, machine) * 1e3:.2f} ms ({machine_fit.residual(level, machine):+.0%})"
        )
    errors = {n: machine_fit.residual(level, machine) for n, level in levels.items() if n not in known}
    assert max(max(error, 1 / (1 + error) - 1) for error in errors.values()) < worst
