"""What a machine lacks is told before anything starts: each lack made for real, or by a stand-in of the vendor's tool."""

import os
import shutil
import socket
import sys
import types

import pytest

from loadtest.errors import EngineError, UsageError
from loadtest.servers import preflight
from loadtest.servers.flags import LaunchSpec
from tests.support import fake_server

NICE = shutil.which("nice")


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    """No GPUs, no engines, an empty cache."""
    for name in ("LOADTEST_VLLM", "LOADTEST_SGLANG", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setitem(sys.modules, "pynvml", None)


def program(folder, name, script):
    (folder / "bin").mkdir(exist_ok=True)
    path = folder / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


TWO_GPUS = "echo 'GPU 0: NVIDIA L20 (UUID: GPU-1)'; echo 'GPU 1: NVIDIA L20 (UUID: GPU-2)'"


@pytest.mark.parametrize(("visible", "found"), [(None, 2), ("0", 1), ("0,1", 2), ("", 0), ("-1", 0), ("0,1,2", 2)])
def test_gpus_are_counted_by_the_vendors_tool(visible, found, tmp_path, monkeypatch):
    program(tmp_path, "nvidia-smi", TWO_GPUS)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert preflight.gpu_count() == found


def test_a_tool_that_fails_or_is_not_there_counts_none(tmp_path):
    assert preflight.gpu_count() == 0
    program(tmp_path, "nvidia-smi", "echo 'NVIDIA-SMI has failed because it could not communicate with the driver'; exit 9")
    assert preflight.gpu_count() == 0


def test_the_topology_is_what_the_vendors_tool_says(tmp_path):
    assert preflight.topology() is None
    matrix = r"printf '\tGPU0\tGPU1\nGPU0\t X \tPHB\nGPU1\tPHB\t X \n'"
    access = r"printf ' \tGPU0\tGPU1\n GPU0\tX\tOK\n GPU1\tOK\tX\n'"
    program(tmp_path, "nvidia-smi", f'if [ "$2" = "-m" ]; then {matrix}; else {access}; fi')
    assert preflight.topology() == "pcie-p2p"
    program(tmp_path, "nvidia-smi", f'if [ "$2" = "-m" ]; then {matrix}; else exit 9; fi')
    assert preflight.topology() == "pcie-host"


def fake_nvml(count):
    module = types.ModuleType("pynvml")
    module.NVMLError = type("NVMLError", (Exception,), {})

    def start():
        if count is None:
            raise module.NVMLError("driver not loaded")

    module.nvmlInit, module.nvmlShutdown, module.nvmlDeviceGetCount = start, lambda: None, lambda: count
    return module


@pytest.mark.parametrize(("count", "found"), [(4, 4), (None, 0)])
def test_nvml_is_asked_first(count, found, monkeypatch, tmp_path):
    program(tmp_path, "nvidia-smi", TWO_GPUS)
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(count))
    assert preflight.gpu_count() == found


@pytest.mark.parametrize(("tp", "found", "said"), [(2, 0, "needs 2 GPUs, this machine has 0"), (1, 0, "needs 1 GPU, ")])
def test_too_few_gpus_are_refused_with_both_numbers(tp, found, said):
    with pytest.raises(EngineError, match=said):
        preflight.check_gpus(tp, found)
    preflight.check_gpus(tp, tp)


def test_a_named_gpu_that_is_not_there_is_refused_and_none_named_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("LOADTEST_VLLM", str(program(tmp_path, "vllm", "exit 0")))
    spec = LaunchSpec(engine="vllm", model="qwq-32b", port=8000)
    preflight.check_launch(spec)
    with pytest.raises(EngineError, match="needs 2 GPUs, this machine has 0; see nvidia-smi"):
        preflight.check_launch(LaunchSpec(engine="vllm", model="qwq-32b", port=8000, tp=2, gpu="l20"))
    program(tmp_path, "nvidia-smi", TWO_GPUS)
    with pytest.raises(EngineError, match="needs 4 GPUs, this machine has 2; lower tp"):
        preflight.check_launch(LaunchSpec(engine="vllm", model="qwq-32b", port=8000, tp=4))


@pytest.mark.parametrize(
    ("engine", "command", "said"),
    [
        ("vllm", None, "vllm: vllm: not found; python3 -m venv vllm-env"),
        ("sglang", None, "sglang: python3: not found; python3 -m venv sglang-env"),
        ("vllm", "env A=1 /no/such/vllm", "vllm: /no/such/vllm: not found"),
        ("sglang", f"env A=1 {sys.executable} -m no_such_engine.server", "-m no_such_engine.server: not found"),
        ("sglang", f"{NICE} -n 5 {sys.executable} -m no_such_engine.server", "-m no_such_engine.server: not found"),
        ("vllm", "env A=1", "vllm: the command: not found"),
    ],
)
def test_what_is_not_installed_is_named_with_its_cure(engine, command, said, monkeypatch):
    if command is not None:
        monkeypatch.setenv(f"LOADTEST_{engine.upper()}", command)
    with pytest.raises(EngineError, match=said) as caught:
        preflight.check_installed(engine)
    assert f"LOADTEST_{engine.upper()}" in str(caught.value)


@pytest.mark.parametrize("before", ["env A=1", NICE, f"env A=1 {NICE} -n 5", f"{NICE} env A=1"])
def test_a_module_that_is_there_is_found(before, monkeypatch):
    monkeypatch.setenv("LOADTEST_SGLANG", f"{before} {sys.executable} -m json.tool")
    preflight.check_installed("sglang")


def cached(home, hub):
    folder = home / "huggingface" / "hub" / f"models--{hub.replace('/', '--')}" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(CONFIG)
    return folder


CONFIG = (
    '{"model_type": "llama", "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,'
    ' "intermediate_size": 512, "vocab_size": 1000, "max_position_embeddings": 65536,'
    ' "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 64}}'
)


@pytest.mark.parametrize("setting", ["environment", "command"])
def test_a_hub_model_that_is_not_in_the_cache_is_refused_when_offline(setting, tmp_path, monkeypatch):
    vllm = program(tmp_path, "vllm", "exit 0")
    monkeypatch.setenv("LOADTEST_VLLM", f"/usr/bin/env HF_HUB_OFFLINE=1 {vllm}" if setting == "command" else str(vllm))
    spec = LaunchSpec(engine="vllm", model="someone/Some-Model", port=8000)
    if setting == "environment":
        preflight.check_launch(spec)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(EngineError, match=r"someone/Some-Model: HF_HUB_OFFLINE is set.*hf download someone/Some-Model"):
        preflight.check_launch(spec)
    cached(tmp_path, "someone/Some-Model")
    preflight.check_launch(spec)


def test_a_hub_model_that_cannot_be_fetched_is_named_before_an_engine_tries(tmp_path, monkeypatch):
    path = "/someone/Some-Model/resolve/main/config.json"
    with fake_server.serving({path: "{}"}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        preflight.check_reachable("someone/Some-Model")
        with pytest.raises(EngineError, match=rf"Other: not in .*hub, and {hub.url} does not have it; name a model's dir"):
            preflight.check_reachable("someone/Other")
    with pytest.raises(EngineError, match=r"cannot be reached \(.+\); name a model's directory with --model"):
        preflight.check_reachable("someone/Some-Model")
    cached(tmp_path, "someone/Some-Model")
    preflight.check_reachable("someone/Some-Model")
    preflight.check_reachable(str(tmp_path))


def test_a_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(EngineError, match=r"expected a model's directory with config\.json, found none"):
        preflight.check_model(str(tmp_path), offline=False)
    with pytest.raises(UsageError, match="no-such: expected a directory"):
        preflight.check_model(str(tmp_path / "no-such"), offline=False)


def test_any_model_has_its_shape_and_quantisation_from_its_config(tmp_path):
    assert preflight.shape("someone/Some-Model") is None
    folder = cached(tmp_path, "someone/Some-Model")
    found = preflight.shape("someone/Some-Model")
    assert (found.layers, found.quantisation, found.group_size, found.native_context_tokens) == (2, "int4-awq", 64, 65536)
    assert preflight.shape(str(folder)).quantisation == "int4-awq"
    (folder / "config.json").write_text(CONFIG.replace("awq", "exl2"))
    with pytest.raises(UsageError, match="exl2"):
        preflight.shape(str(folder))


def test_who_holds_a_port_is_named():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(EngineError, match=rf"127\.0\.0\.1:{port}: expected a free port: .* by process {os.getpid()} \("):
            preflight.check_port_free(port)
    preflight.check_port_free(port)


@pytest.mark.parametrize(
    ("product", "known"),
    [
        ("NVIDIA L20", "l20"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb-pcie"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("Tesla V100", None),
    ],
)
def test_the_gpu_here_is_known_by_its_product_name(product, known, tmp_path):
    program(tmp_path, "nvidia-smi", f"echo 'GPU 0: {product} (UUID: GPU-1)'")
    assert preflight.gpu_here() == known
