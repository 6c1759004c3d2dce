"""Compose by podman-compose: it reads both files; a master and two workers run on the built image in their own network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

LAUNCHERS = Path(__file__).parents[2] / "launchers"
COMPOSE = Path(sys.executable).with_name("podman-compose")
LIMIT_S = 300


def compose(podman, file, *argv, **variables):
    return subprocess.run(
        [COMPOSE, "--in-pod", "false", "--project-name", "tried", "--file", LAUNCHERS / file, *argv],
        env=podman.environment | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


@pytest.fixture
def server(podman, base, image):
    """A container in the network of the project, which answers as `server` at port 8000."""
    network = "tried_default"
    podman.must("network", "create", network)
    podman.must("run", "--rm", "--network", network, "--init", "--cpus", "1", "--memory", "1g", base, "true")
    options = ("--detach", "--name", "server", "--network", network, "--entrypoint", "python3")
    asked = "--host 0.0.0.0 --port 8000 --tokens 8 --thinking 4 --first 0.01 --gap 0.002"
    podman("run", *options, image, "-m", "loadtest.simulator.known_times", *asked.split())
    yield "http://server:8000"
    podman("rm", "--force", "--time", "0", "server")
    podman("network", "rm", network)


@pytest.mark.parametrize("file", ["compose.yaml", "compose.locust.yaml"])
def test_compose_reads_the_file_and_fills_in_what_was_set(podman, file):
    done = compose(podman, file, "config", OWNER="1234:1234", TP="2", WORKERS="3")
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert services.keys() == yaml.safe_load((LAUNCHERS / file).read_text())["services"].keys()
    assert {service["user"] for service in services.values()} == {"1234:1234"}
    assert "${" not in done.stdout


def test_a_master_and_two_workers_measure_a_server_between_them(podman, server, image, tmp_path):
    owner = 12345
    os.chown(tmp_path, owner, owner)
    settings = {"LOADTEST_IMAGE": image, "TARGET": server, "OWNER": f"{owner}:{owner}", "RUNS": str(tmp_path)}
    settings |= {"WORKERS": "2", "USERS": "4", "REQUESTS": "8", "LOADTEST_API_KEY": "key-of-compose"}
    try:
        done = compose(podman, "compose.locust.yaml", "up", "--exit-code-from", "master", **settings)
    finally:
        compose(podman, "compose.locust.yaml", "down", **settings)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    files = list((tmp_path / "wide").rglob("requests-*.jsonl"))
    records = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    assert sum(record["phase"] == "measure" for record in records) == 8
    assert len({record["worker"] for record in records}) == 2
    assert not any("key-of-compose" in path.read_text() for path in tmp_path.rglob("*.json*"))
