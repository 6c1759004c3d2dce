"""The image of the load generator, built: what is in it, and its commands as a user runs them, as confined as by compose."""

import json
import os
import time

import pytest

from loadtest import __version__

USER = 10001
CONFINED = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
LARGEST_BYTES = 500 * 10**6  # beyond the base
PATIENCE_S = 120


@pytest.fixture(scope="module")
def run(podman, base, image):
    """Runs a command in the image as its own user, confined as by compose; it must succeed."""
    podman.must("run", "--rm", "--network", "none", base, "true")

    def run(*argv, options=(), name=image):
        return podman("run", "--rm", *CONFINED, *options, name, *argv)

    return run


@pytest.fixture(scope="module")
def simulator(podman, run, image):
    """A container with a simulated engine on its loopback interface: others join its network."""
    python = ("--entrypoint", "python3", "--network", "none", "--detach", "--name", "simulator")
    asked = "--engine vllm-sim --model qwq-32b-awq --tp 1 --gpu l20 --port 8000 --clock-speed 20 --length-scale 0.05"
    podman("run", *python, *CONFINED, image, "-m", "loadtest.simulator", *asked.split())
    podman.wait_for("ready: simulated", "simulator", PATIENCE_S)
    yield ("--network", "container:simulator")
    podman("rm", "--force", "--time", "10", "simulator")


@pytest.fixture
def runs(tmp_path):
    """A folder that the image's user may write to."""
    folder = tmp_path / "runs"
    folder.mkdir()
    os.chown(folder, USER, USER)
    return folder


def test_the_image_says_what_it_is_and_who_it_runs_as(podman, base, image):
    (found,) = json.loads(podman("inspect", "--type", "image", image))
    (below,) = json.loads(podman("inspect", "--type", "image", base))
    assert found["Config"]["User"] == f"{USER}:{USER}"
    assert found["Config"]["Entrypoint"] == ["loadtest"]
    labels = {name.rpartition("image.")[2]: value for name, value in found["Labels"].items()}
    assert labels.items() >= {"version": __version__, "licenses": "Apache-2.0", "base.name": base}.items()
    added_bytes = found["Size"] - below["Size"]
    print(f"image: {found['Size'] / 1e6:.0f} MB, {added_bytes / 1e6:.0f} MB beyond its base")
    assert added_bytes < LARGEST_BYTES


def test_nothing_that_builds_is_in_the_image(run):
    shell = ("--entrypoint", "sh")
    found = run(
        "-c", "for tool in gcc cc make git pip; do command -v $tool; done; ls /source /pip 2>/dev/null; true", options=shell
    )
    assert found == ""
    assert run("-c", "id -u; find / -xdev -user 10001 2>/dev/null || true", options=shell).split() == [str(USER), "/runs"]


def test_the_version_and_the_examination(run):
    assert run("--version").split()[-1] == __version__
    states = {one["name"]: one["state"] for one in json.loads(run("doctor", "--json"))}
    assert states["loadtest"] == states["locust"] == "ok"
    assert "broken" not in states.values()


def test_a_run_is_measured_and_comes_out_in_the_volume(run, simulator, runs):
    asked = "attach --base-url http://127.0.0.1:8000 --concurrency 2 --requests 8 --workers 2 --out /runs/mine"
    said = run(*asked.split(), options=(*simulator, "--volume", f"{runs}:/runs"))
    assert "/runs/mine" in said
    assert (runs / "mine/report.html").stat().st_uid == USER
    lines = [line for path in (runs / "mine").rglob("requests-*.jsonl") for line in path.read_text().splitlines()]
    assert [json.loads(line)["outcome"] for line in lines if json.loads(line)["phase"] == "measure"] == ["ok"] * 8


def test_any_user_may_run_it(run, simulator, tmp_path):
    owner = 12345
    os.chown(tmp_path, owner, owner)
    options = (*simulator, "--user", f"{owner}:{owner}", "--volume", f"{tmp_path}:/loadtest/runs")
    asked = "attach --base-url http://127.0.0.1:8000 --concurrency 1 --requests 2 --out runs/theirs"
    run(*asked.split(), options=options)
    assert (tmp_path / "theirs/report.html").stat().st_uid == owner


def test_a_stop_keeps_what_was_measured(podman, run, simulator, runs, image):
    """`docker stop`, whose SIGTERM reaches the command as the first process of its container."""
    asked = "attach --base-url http://127.0.0.1:8000 --concurrency 2 --duration 3600 --out /runs/stopped"
    name = ("--detach", "--name", "stopped", "--volume", f"{runs}:/runs")
    podman("run", *CONFINED, *simulator, *name, image, *asked.split())
    try:
        end_s = time.monotonic() + PATIENCE_S
        while not any(path.stat().st_size for path in runs.rglob("requests-*.jsonl")):
            assert time.monotonic() < end_s, podman("logs", "stopped")
            time.sleep(0.2)
        podman("stop", "--time", PATIENCE_S, "stopped")
        assert podman("inspect", "--format", "{{.State.ExitCode}}", "stopped").strip() == "130"
    finally:
        podman("rm", "--force", "--time", "0", "stopped")
    assert (runs / "stopped/report.html").exists()
