"""Every command and every block of Python in the documents, run in their order, as a newcomer would, one document at a time.

What cannot run here stands in `STANDS_FOR`, with what runs instead. Everything else runs as it is printed, but for the
address of the server: the simulator, on a port of its own.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.documents import DOCUMENTS, ROOT, commands, python

ADDRESS = "http://127.0.0.1:8000"
STANDS_FOR = (
    # Make's own recipes: the suite, the demo (tests/newcomer/try_wheel.sh), 5 GB of engines, an hour of benchmarks.
    (r"^(\S+ )?make (\S+).*", r"make --dry-run --always-make \2 > make.txt"),
    (r"^(sudo )?(\.venv/bin/)?python (tests/benchmarks/\w+\.py)( .*)?$", r"python \3 --help > help.txt"),
    (
        r"^python -m loadtest\.perfmodel\.calibration (--check )?DATA\.csv.*",
        r"python -m loadtest.perfmodel.calibration \1tests/data/published_speeds.csv",
    ),
    # A server in the foreground, for as long as its reader wants.
    (r"^python -m loadtest\.simulator .*", r"python -m loadtest.simulator --help > help.txt"),
    (r"^(.*\.engines/.*|VLLM_CPU.*|SGLANG_USE.*)$", r"true"),  # tests/engines starts them with these very words
    (r"^launchers/\w+-docker .*", r"true"),  # tests/servers/test_flags.py runs them with a docker of its own
    (r"^loadtest run tests/engines/study\.toml .*", r"true"),  # tests/engines runs it
    (r"^loadtest accept .*", r"loadtest accept --help > help.txt"),  # ten minutes; in virtual time: tests/commands/machine
    (r"^(loadtest check .*)$", r"\1 --allow-unhealthy"),  # a simulator at a hundred times the speed
    (r" --run-programs$", r""),  # refused where the answers are a simulator's
    # Two GPUs, or a network: the plan instead of the run.
    (r"^(.*loadtest run \S*qwq-32b-ada[\w-]*\.toml(?!.*--dry-run).*)$", r"\1 --dry-run"),
    (r"^(.*loadtest run STUDY\.toml.*)$", r"loadtest run scenarios/studies/demo.toml --dry-run"),
    (r"^(\.venv/bin/python -m pip|python3 -m venv|vllm-env/|git clone|export LOADTEST_VLLM|curl|nvidia-smi).*", r"true"),
    (
        r"^(\S+=(\"[^\"]*\"|\S+) )*docker .*",
        r"true",
    ),  # no daemon here; see tests/scenario/test_machines.py
    (r"^kubectl apply --kustomize (\S+)$", r"! command -v kubectl > kubectl.txt || kubectl kustomize \1 > kubectl.txt"),
    (r"^kubectl .*", r"true"),
    (r"^locust .*--(master|worker).*", r"true"),  # tests/scenario/test_machines.py starts a master and two workers
    # Minutes of load: the same, for seconds; the demo is run by try_wheel.sh.
    (r"^env/bin/loadtest demo$", r"loadtest demo --help > help.txt"),
    (r"^env/bin/(loadtest attach .*)$", r"\1 --concurrency 1 --requests 2"),
    (r"^(loadtest search .*)$", r"\1 --start 8 --max-concurrency 16 --requests 24"),
    (r"(--run-time) \S+", r"\1 2s"),
    (r"--requests (32|64|512)\b", r"--requests 4"),
    (r"-u (1000|64|8) -r \1", r"-u 2 -r 2"),
    (r"--processes 4", r"--processes 2"),
    (r"--users 1000000 ", r"--users 1000 "),
    (r"--study scenarios/studies/qwq-32b-ada\.toml", r"--study scenarios/studies/demo.toml"),
    (r"\S*aime24\.jsonl", r"math:n=8"),
    (r"\bRUN\b", r"runs/mine"),
    (r"http://10\.0\.0\.5:8000|https?://HOST", ADDRESS),
    (r"LOADTEST_API_KEY=\S+ (.*) --model NAME", r"LOADTEST_API_KEY=none \1"),
)
PYTHON = sys.executable


def stands_for(command):
    for pattern, instead in STANDS_FOR:
        command = re.sub(pattern, instead, command, flags=re.DOTALL) if "\n" not in command else command
    return command


def test_every_substitute_is_needed():
    texts = [shown.text for document in DOCUMENTS for shown in commands(document)]
    needed = set()
    for pattern, instead in STANDS_FOR:
        needed |= {pattern for text in texts if re.search(pattern, text, flags=re.DOTALL)}
        texts = [text if "\n" in text else re.sub(pattern, instead, text, flags=re.DOTALL) for text in texts]
    assert [pattern for pattern, _ in STANDS_FOR if pattern not in needed] == []


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder that looks like the checkout, with a simulator running, and one finished run in `runs/mine`."""
    folder = tmp_path_factory.mktemp("newcomer")
    for path in (*ROOT.iterdir(),):
        if path.name in ("scenarios", "launchers", "reports", "loadtest", "tests", "docs", "pyproject.toml", "Makefile"):
            (folder / path.name).symlink_to(path)
    (folder / "requirements.lock").symlink_to(ROOT / "requirements.lock")
    (folder / "runs").mkdir()
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    argv = [PYTHON, "-m", "loadtest.simulator", "--engine", "vllm-sim", "--model", "qwq-32b-awq", "--tp", "1"]
    argv += ["--gpu", "l20", "--port", str(port), "--clock-speed", "100", "--length-scale", "0.05"]
    log = folder / "simulator.log"
    with log.open("w") as output:
        server = subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT)
    while not log.read_text() and server.poll() is None:
        time.sleep(0.1)
    url = f"http://127.0.0.1:{port}"
    sh(folder, url, f"loadtest attach --base-url {ADDRESS} --concurrency 2 --requests 8 --out runs/mine")
    for name in ("first", "second", "wide"):
        shutil.copytree(folder / "runs/mine", folder / "runs" / name)
    yield folder, url
    server.terminate()
    server.wait()


def sh(folder, url, script):
    environment = {**os.environ, "PATH": f"{Path(PYTHON).parent}:{os.environ['PATH']}"}
    environment |= {"VLLM_CPU_ARGUMENTS": "--enforce-eager", "SGLANG_CPU_ARGUMENTS": "--device cpu"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace(ADDRESS, url)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"


def fresh(folder):
    """Without what an earlier document made, so that each can be followed alone."""
    for run in (folder / "runs").iterdir():
        if run.name not in ("mine", "first", "second", "wide"):
            shutil.rmtree(run) if run.is_dir() else run.unlink()
    shutil.rmtree(folder / "mine", ignore_errors=True)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_runs(document, place):
    folder, url = place
    fresh(folder)
    for shown in commands(document):
        if shown.text.startswith("export OTEL"):
            continue  # tests/scenario/test_observability.py has a collector
        command = stands_for(shown.text)
        if command.startswith(("locust", "loadtest attach")) and "--out runs/mine" in command:
            command = command.replace("--out runs/mine", "--out runs/again")
        print(f"{shown.where}: {command}")
        sh(folder, url, command.replace(" --otel", "").replace("LOCUST_ENABLE_OPENTELEMETRY=true ", ""))


@pytest.mark.parametrize("document", [one for one in DOCUMENTS if python(one)], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_of_python_runs(document, place, monkeypatch):
    folder, _ = place
    monkeypatch.chdir(folder)
    for shown in python(document):
        source = shown.text.replace('"RUN"', '"runs/mine"')
        subprocess.run([PYTHON, "-W", "error", "-c", source], cwd=folder, check=True, capture_output=True, timeout=120)
