"""Several machines: the manifests hold to Kubernetes' schema and our rules, and their commands measure a server."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from loadtest import __version__
from loadtest.servers import flags, preflight
from loadtest.study import plan, schema
from loadtest.workload.contract import Contract

LAUNCHERS = Path(__file__).parents[2] / "launchers"
KUBERNETES = sorted((LAUNCHERS / "kubernetes").glob("*.yaml"))
COMPOSE = sorted(LAUNCHERS.glob("compose*.yaml"))
SCHEMA_VERSION = "1.32"
FIXED = re.compile(r"(\$\{\w+:-)?[\w./-]+:v?\d+\.\d+\.\d+(-[\w-]+)?\}?")


def objects():
    for path in KUBERNETES:
        if path.stem != "kustomization":
            yield from yaml.safe_load_all(path.read_text())


def named(kind, name):
    (found,) = [one for one in objects() if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def pods():
    return [(one["metadata"]["name"], one["spec"]["template"]["spec"]) for one in objects() if "template" in one["spec"]]


@pytest.mark.parametrize("one", list(objects()), ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_kubernetes_accepts_every_object(one):
    kubernetes_validate.validate(one, SCHEMA_VERSION, strict=True)


def test_the_schema_refuses_what_kubernetes_would():
    wrong = named("Job", "master")
    wrong["spec"]["backofLimit"] = 0
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, SCHEMA_VERSION, strict=True)


@pytest.mark.parametrize(("name", "pod"), pods(), ids=lambda value: value if isinstance(value, str) else "")
def test_no_pod_is_root_and_each_has_its_limits(name, pod):
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
        mounted = {one["name"] for one in container["volumeMounts"]}
        assert mounted == {one["name"] for one in pod["volumes"]}


def test_every_image_is_pinned():
    kustomization = yaml.safe_load((LAUNCHERS / "kubernetes/kustomization.yaml").read_text())
    ours = {image["name"]: f"{image['newName']}:{image['newTag']}" for image in kustomization["images"]}
    images = [ours.get(c["image"], c["image"]) for _, pod in pods() for c in pod["containers"]]
    for path in COMPOSE:
        described = yaml.safe_load(path.read_text())
        images += [service["image"] for service in described["services"].values()]
    images += re.findall(r"^ARG BASE=(\S+)", (LAUNCHERS / "Dockerfile").read_text(), re.MULTILINE)
    assert [image for image in images if not FIXED.fullmatch(image)] == []
    assert {image for image in images if "loadtest:" in image} == {
        f"loadtest:{__version__}",
        f"${{LOADTEST_IMAGE:-loadtest:{__version__}}}",
    }


def test_kustomize_takes_up_every_file():
    kustomization = yaml.safe_load((LAUNCHERS / "kubernetes/kustomization.yaml").read_text())
    assert sorted(kustomization["resources"]) == [path.name for path in KUBERNETES if path.stem != "kustomization"]


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_no_service_of_compose_is_root(path):
    for service in yaml.safe_load(path.read_text())["services"].values():
        assert not service["user"].startswith(("0", "root"))
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_the_runtime_of_kubernetes_has_the_flags_that_we_give():
    (container,) = named("Deployment", "runtime")["spec"]["template"]["spec"]["containers"]
    cell = schema.Cell(engine="vllm", model="Qwen/QwQ-32B-AWQ", tp=2)
    argv, settings = flags.launch_command(plan.launch_spec(cell, Contract(), port=8000))
    theirs = " ".join(argv).replace(" --", "\n--").replace("127.0.0.1", "0.0.0.0").splitlines()
    ours = " ".join((*container["command"], *container["args"])).replace(" --", "\n--").replace("=", " ").splitlines()
    assert set(ours) - {"--served-model-name qwq-32b-awq"} == set(theirs) - {"--served-model-name QwQ-32B-AWQ"}
    assert settings["VLLM_NO_USAGE_STATS"] == "1"


def of_kubernetes(role):
    (container,) = named("Job", role)["spec"]["template"]["spec"]["containers"]
    return container["args"]


def of_compose(role):
    command = yaml.safe_load((LAUNCHERS / "compose.locust.yaml").read_text())["services"][role]["command"]
    return [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in command]


def test_both_ask_for_the_same_master_and_workers():
    assert of_compose("worker") == of_kubernetes("worker")
    differ = set(of_compose("master")) ^ set(of_kubernetes("master"))
    assert differ == {"--host=http://127.0.0.1:8000", "--host=http://runtime:8000"}


def test_only_workers_reach_the_port_of_the_master_and_nobody_shares_a_volume():
    (rule,) = named("NetworkPolicy", "master-from-workers-only")["spec"]["ingress"]
    (port,) = named("Service", "master")["spec"]["ports"]
    pod = {role: named("Job", role)["spec"]["template"] for role in ("master", "worker")}
    assert named("NetworkPolicy", "master-from-workers-only")["spec"]["podSelector"]["matchLabels"].items() <= (
        pod["master"]["metadata"]["labels"].items()
    )
    assert rule == {
        "from": [{"podSelector": {"matchLabels": pod["worker"]["metadata"]["labels"]}}],
        "ports": [{"port": 5557}],
    }
    assert port["port"] == 5557
    claims = [one for _, pod in pods() for one in pod["volumes"] if "persistentVolumeClaim" in one]
    assert sorted(one["name"] for one in claims) == ["models", "runs"]
    assert {mode for one in objects() for mode in one["spec"].get("accessModes", [])} == {"ReadWriteOnce"}


def test_the_master_and_two_workers_of_kubernetes_measure_a_server(known_time_port, tmp_path):
    """The commands of the manifests, with fewer users, each in a folder of its own."""
    port = preflight.free_port()
    here = {
        "--locustfile=scenarios/long_reasoning.py": f"--locustfile={LAUNCHERS.parent / 'scenarios/long_reasoning.py'}",
        "--host=http://runtime:8000": f"--host=http://127.0.0.1:{known_time_port}",
        "--out=/runs/wide": "--out=wide",
        "--master-host=master": f"--master-host=127.0.0.1 --master-port={port}",
        "--master": f"--master --master-bind-host=127.0.0.1 --master-bind-port={port}",
        "--users=64": "--users=4",
        "--requests=512": "--requests=8",
    }

    def start(role, name):
        (tmp_path / name).mkdir()
        argv = " ".join(here.get(word, word) for word in of_kubernetes(role)).split()
        return subprocess.Popen(
            [sys.executable, "-m", "locust", *argv],
            cwd=tmp_path / name,
            env={**os.environ, "LOADTEST_API_KEY": "key-of-the-secret"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    started = [start("master", "master"), start("worker", "first"), start("worker", "second")]
    try:
        outputs = [process.communicate(timeout=110)[0].decode() for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0, 0], "\n".join(outputs)
    lines = [line for path in (tmp_path / "master").rglob("requests-*.jsonl") for line in path.read_text().splitlines()]
    assert sum(json.loads(line)["phase"] == "measure" for line in lines) == 8
    assert len({json.loads(line)["worker"] for line in lines}) == 2
    assert not any("key-of-the-secret" in path.read_text() for path in tmp_path.rglob("*.json*"))
