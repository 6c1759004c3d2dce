"""The image's description, compose and Kubernetes agree with `pyproject.toml`; `tests/images` builds and runs it."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from loadtest import __version__

CHECKOUT = Path(__file__).parents[2]
LAUNCHERS = CHECKOUT / "launchers"
DESCRIBED = (LAUNCHERS / "Dockerfile").read_text()
BUILD = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
PROJECT = BUILD["project"]


def word(pattern):
    (found,) = re.findall(pattern, DESCRIBED, re.MULTILINE)
    return found


def test_its_python_is_one_that_we_name():
    version = word(r"^ARG BASE=\S+/python:(\d+\.\d+)\.\d+-slim")
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]


def test_its_extras_and_its_command_are_those_of_the_project():
    assert set(word(r"^ARG EXTRAS=(\S+)").split(",")) <= PROJECT["optional-dependencies"].keys()
    assert word(r'^ENTRYPOINT \["(\w+)"\]') in PROJECT["scripts"]
    assert word(r'image\.version="(.+)"') == __version__
    assert word(r'image\.licenses="(.+)"') == PROJECT["license"]


def test_all_that_the_wheel_is_built_of_reaches_the_builder():
    allowed = {line[1:] for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    wheel = BUILD["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {
        *wheel["packages"],
        *wheel["force-include"],
        PROJECT["readme"],
        "pyproject.toml",
        "requirements.lock",
        "LICENSE",
    }
    assert allowed == needed
    assert all((CHECKOUT / name).exists() for name in allowed)


def commands():
    """Program, words and user of every container that runs our image."""
    for service in yaml.safe_load((LAUNCHERS / "compose.locust.yaml").read_text())["services"].values():
        yield service["entrypoint"], service["command"], service["user"].removeprefix("${OWNER:-").removesuffix("}")
    for one in yaml.safe_load_all((LAUNCHERS / "kubernetes/locust.yaml").read_text()):
        if one["kind"] == "Job":
            pod = one["spec"]["template"]["spec"]
            (container,) = pod["containers"]
            security = pod["securityContext"]
            yield container["command"], container["args"], f"{security['runAsUser']}:{security['runAsGroup']}"


@pytest.mark.parametrize(("program", "words", "user"), list(commands()))
def test_compose_and_kubernetes_run_what_is_in_it_as_its_user(program, words, user):
    assert program == ["locust"]
    assert any(requirement.startswith("locust>") for requirement in PROJECT["dependencies"])
    (file,) = [one.partition("=")[2] for one in words if one.startswith("--locustfile=")]
    assert (CHECKOUT / file).is_file()
    assert user == word(r"^USER (\S+)")
