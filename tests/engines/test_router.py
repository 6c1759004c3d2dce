"""A real router, sglang-router, before two simulators: what the page says of each replica is what the router counts.

Skipped where it is not installed: `tests/engines/install.sh router`.
"""

import contextlib
import json
import re
import subprocess
import sys
import urllib.request

import pytest

from loadtest.servers import preflight
from tests.engines.conftest import CHECKOUT, ended, wait_until

ROUTER = CHECKOUT / ".engines/router"
pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(not (ROUTER / "installed.txt").exists(), reason="sglang-router is not installed"),
]
SIMULATOR = ("-m", "loadtest.simulator", "--engine", "vllm-sim", "--model", "qwq-32b-awq", "--gpu", "l20",
             "--clock-speed", "20", "--length-scale", "0.05")  # fmt: skip
STUDY = """
name = "router"
workload = "math:n=16,seed=7"
levels = [2, 6]
min_requests = 8
requests_per_stream = 2
seed = 7
[[cells]]
engine = "vllm-sim"
model = "qwq-32b-awq"
base_url = "{router}"
metrics_urls = {replicas}
gpus = {{l20 = 2}}
"""


def told(url):
    """What a server says; empty while it says nothing."""
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read().decode()
    return ""


@contextlib.contextmanager
def running(*words):
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture
def routed():
    """URLs: of a router that takes turns between two simulators, of these two, and of the router's own counters."""
    ports = [preflight.free_port() for _ in range(4)]
    router, *replicas, counters = (f"http://127.0.0.1:{port}" for port in ports)
    with contextlib.ExitStack() as stack:
        for port in ports[1:3]:
            stack.enter_context(running(sys.executable, "-P", *SIMULATOR, "--port", str(port)))
        for url in replicas:
            wait_until(lambda url=url: told(f"{url}/v1/models"), "a simulator")
        launch = ("-m", "sglang_router.launch_router", "--policy", "round_robin", "--worker-urls", *replicas)
        place = ("--host", "127.0.0.1", "--port", str(ports[0]), "--prometheus-port", str(ports[3]))
        stack.enter_context(running(ROUTER / "bin/python", *launch, *place, "--prometheus-host", "127.0.0.1"))
        wait_until(lambda: '"workers_count":2' in told(f"{router}/get_server_info"), "the router")
        yield router, replicas, f"{counters}/metrics"


def test_the_page_says_of_each_replica_what_the_router_counts(routed, begin, tmp_path):
    router, replicas, counters = routed
    study, out = tmp_path / "study.toml", tmp_path / "run"
    study.write_text(STUDY.format(router=router, replicas=json.dumps(replicas)))
    code, said = ended(begin("run", study, "--out", out))
    assert code == 0, said
    assert json.loads((out / "manifest.json").read_text())["simulated"] is True
    [cell] = json.loads((out / "metrics.json").read_text())["cells"]
    ours = dict.fromkeys(replicas, 0)
    for level in cell["levels"]:
        assert level["outcomes"].get("ok", 0) == level["n_requests"]
        assert level["reconciliation"]["status"] == "pass"
        for one in level["server"]["replicas"]:
            ours[f"http://{one['source']}"] += one["n_requests"]
    theirs = re.findall(r'cb_outcomes_total\{worker="([^"]+)",outcome="success"\} (\d+)', told(counters))
    assert ours == {worker: int(n) for worker, n in theirs}
    assert abs(ours[replicas[0]] - ours[replicas[1]]) <= 1, "in turns"
