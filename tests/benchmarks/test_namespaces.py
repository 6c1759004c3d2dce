"""A master and four workers on hosts of their own, as network namespaces: one is killed, one has a slow link."""

import os
import shutil
import subprocess
import sys
import time

import pytest

from tests.scenario.test_shipping import contents, ended
from tests.scenario.test_user import SCENARIO, manifest
from tests.support.namespaces import hosts

LIMIT_S = 300
NAMES = ("master", "killed", "slow", "third", "fourth")


@pytest.fixture
def machines():
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("tc") is None:
        pytest.skip("network namespaces need root, ip and tc")
    with hosts(len(NAMES)) as made:
        if made is None:
            pytest.skip("network namespaces are not permitted here")
        found, server = made
        machine = dict(zip(NAMES, found, strict=True))
        try:
            machine["slow"].limit("400kbit")
        except subprocess.CalledProcessError:
            pytest.skip("a link cannot be slowed here")
        yield machine, server


@pytest.fixture
def deployment(machines, tmp_path):
    """Starts Locust on a host, in a folder named like it."""
    started = {}

    def start(name, *argv):
        (tmp_path / name).mkdir()
        command = [*machines[0][name].prefix, sys.executable, "-m", "locust", "-f", str(SCENARIO), *map(str, argv)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started[name] = subprocess.Popen(command, cwd=tmp_path / name, **pipes)
        return started[name]

    yield start, machines[0]["master"].address, machines[1], tmp_path
    for process in started.values():
        process.kill()
        process.communicate()


@pytest.fixture
def port():
    argv = ["--host", "0.0.0.0", "--port", "0", "--tokens", "200", "--thinking", "50", "--first", "0.01", "--gap", "0.002"]
    argv = [sys.executable, "-m", "loadtest.simulator.known_times", *argv]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE)
    yield int(process.stdout.readline())
    process.kill()
    process.communicate()


@pytest.mark.timeout(2 * LIMIT_S)
def test_records_of_four_hosts_come_home_but_for_what_was_on_its_way(deployment, port):
    start, master_address, server, folder = deployment
    known = [
        "--host",
        f"http://{server}:{port}",
        "--engine",
        "other",
        "--model",
        "known",
        "--clock-speed",
        1,
        "--out",
        "run",
    ]
    asked = ["-u", 8, "-r", 100, "--only-summary", "--workload", "math:n=8", "--duration", 3600]
    master = start("master", "--master", "--expect-workers", 4, "--headless", *asked, *known)
    workers = {name: start(name, "--worker", "--master-host", master_address) for name in NAMES[1:]}
    deadline = time.monotonic() + LIMIT_S
    while sum(name.startswith("requests") and bool(got) for name, got in contents(folder / "master").items()) < 4:
        assert time.monotonic() < deadline
        assert [process.poll() for process in (master, *workers.values())] == [None] * 5
        time.sleep(0.1)
    workers["killed"].kill()
    code, said = ended(master)
    assert (code, [ended(workers[name])[0] for name in NAMES[2:]]) == (1, [0, 0, 0]), said
    home = contents(folder / "master")
    for name in NAMES[2:]:
        assert contents(folder / name).items() <= home.items()
    for name, content in contents(folder / "killed").items():
        assert content.startswith(home.get(name, b""))
    assert "was lost during the run" in manifest(folder / "master/run")["incomplete_reason"]
