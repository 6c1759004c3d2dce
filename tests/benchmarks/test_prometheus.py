"""Every query of the Grafana dashboard in a real Prometheus, while Locust measures both simulated engines.

What Locust sends by OpenTelemetry is handed on as Prometheus's own OTLP receiver would store it (exponential histograms
become native ones): Debian's Prometheus is older than that receiver.
"""

import contextlib
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from loadtest.servers import preflight
from tests.support.dashboard import queries
from tests.support.documents import ROOT

pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not installed")

LIMIT_S = 240
KNOWN = ("Users", "Time to first token", "Time to final answer")
FINEST_SCALE = 8  # of a native histogram
CONFIG = """
global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: servers
    static_configs: [{{targets: [{servers}]}}]
  - job_name: locust
    static_configs: [{{targets: ['{bridge}']}}]
"""


# Prometheus's protobuf exposition (io.prometheus.client), as far as a gauge and a native histogram need it ----------------


def varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def zigzag(n):
    return 2 * n if n >= 0 else -2 * n - 1


def field(number, value):
    """A field of a message: bytes and text, floats as doubles, whole numbers as varints."""
    if isinstance(value, float):
        return varint(number << 3 | 1) + struct.pack("<d", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def native(point):
    """An exponential histogram of OpenTelemetry as a native one: its bucket i is Prometheus's i + 1."""
    schema = min(point.scale, FINEST_SCALE)
    counts = {}
    for place, n in enumerate(point.positive.bucket_counts):
        index = (point.positive.offset + place >> (point.scale - schema)) + 1
        counts[index] = counts.get(index, 0) + n
    message = field(1, point.count) + field(2, float(point.sum)) + field(5, zigzag(schema))
    message += field(6, 1e-128) + field(7, point.zero_count)
    if counts:
        first, last = min(counts), max(counts)
        message += field(12, field(1, zigzag(first)) + field(2, last - first + 1))
        before = 0
        for index in range(first, last + 1):
            n = counts.get(index, 0)
            message += field(13, zigzag(n - before))
            before = n
    return message


def labelled(attributes, message):
    labels = [(one.key.replace(".", "_"), one.value.string_value) for one in attributes]
    return b"".join(field(1, field(1, name) + field(2, value)) for name, value in labels) + message


def family(name, kind, metrics):
    message = field(1, name) + field(3, kind) + b"".join(field(4, one) for one in metrics)
    return varint(len(message)) + message


GAUGE, HISTOGRAM = 1, 4


def exposed(request):
    """What a Prometheus would store of one export of Locust."""
    out = b""
    for metric in (
        one for resource in request.resource_metrics for scope in resource.scope_metrics for one in scope.metrics
    ):
        if metric.name == "locust.client.duration":
            points = [labelled(one.attributes, field(7, native(one))) for one in metric.exponential_histogram.data_points]
            out += family("locust_client_duration_seconds", HISTOGRAM, points)
        elif metric.name == "locust.users.count":
            points = [labelled(one.attributes, field(2, field(1, float(one.as_int)))) for one in metric.gauge.data_points]
            out += family("locust_users_count", GAUGE, points)
    return out


@pytest.fixture
def bridge():
    """Takes what Locust sends, and is scraped."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/metrics":
                server.last = exposed(ExportMetricsServiceRequest.FromString(body)) or server.last
            self.answer(b"", "application/x-protobuf")

        def do_GET(self):
            kind = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
            self.answer(server.last, kind)

        def answer(self, body, kind):
            self.send_response(200)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.last = b""
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@contextlib.contextmanager
def running(argv, **more):
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **more)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def simulator(engine, port):
    argv = [sys.executable, "-m", "loadtest.simulator", "--engine", engine, "--model", "qwq-32b-awq", "--port", str(port)]
    return running([*argv, "--clock-speed", "20", "--length-scale", "0.05"])


def load(port, bridge, folder):
    """Locust on one server, without an end; its prompts repeat, so that prefix caches are hit."""
    settings = {
        "LOCUST_ENABLE_OPENTELEMETRY": "true",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{bridge}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_METRIC_EXPORT_INTERVAL": "1000",
        "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": "base2_exponential_bucket_histogram",
    }
    argv = [
        sys.executable,
        "-m",
        "locust",
        "-f",
        str(ROOT / "scenarios/long_reasoning.py"),
        "--headless",
        "-u",
        "2",
        "-r",
        "2",
    ]
    argv += ["--workload", "math:n=4", "--host", f"http://127.0.0.1:{port}", "--out", str(folder), "--run-time", "10m"]
    return running(argv, env=os.environ | settings)


def ask(base, query):
    """The result of a query; what Prometheus says where it cannot read it."""
    url = f"{base}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:
            return json.load(reply)["data"]["result"]
    except urllib.error.HTTPError as error:
        pytest.fail(f"{query}: {error.read().decode()}")
    except OSError:
        return []  # it has not started yet


def told(base, query):
    """Whether a query has a value."""
    return any(one["value"][1] != "NaN" for one in ask(base, query))


def test_every_query_of_the_dashboard_has_data(bridge, tmp_path):
    """But for failures, which are none here: that query is asked for what did not fail instead."""
    vllm, sglang, port = (preflight.free_port() for _ in range(3))
    servers = ", ".join(f"'127.0.0.1:{port}'" for port in (vllm, sglang))
    (tmp_path / "prometheus.yaml").write_text(CONFIG.format(servers=servers, bridge=bridge))
    argv = ["prometheus", f"--config.file={tmp_path}/prometheus.yaml", f"--storage.tsdb.path={tmp_path}/data"]
    argv += [f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=native-histograms"]
    with contextlib.ExitStack() as stack:
        for context in (
            running(argv), simulator("vllm-sim", vllm), simulator("sglang-sim", sglang),
            load(vllm, bridge, tmp_path / "a"), load(sglang, "127.0.0.1:9", tmp_path / "b"),
        ):  # fmt: skip
            stack.enter_context(context)
        base, end_s = f"http://127.0.0.1:{port}", time.monotonic() + LIMIT_S
        asked = {(title, letter): query.replace('error_type!=""', 'error_type=""') for title, letter, query in queries()}
        while (silent := [key for key, query in asked.items() if not told(base, query)]) and time.monotonic() < end_s:
            time.sleep(1)
        assert silent == []
        users, first, final = (float(ask(base, asked[title, "A"])[0]["value"][1]) for title in KNOWN)
        assert users == 2
        assert 0 < first < final
        for instance in (f"127.0.0.1:{vllm}", f"127.0.0.1:{sglang}"):
            own = [
                query.replace('instance=~".*"', f'instance="{instance}"')
                for query in asked.values()
                if "locust_" not in query
            ]
            assert [query for query in own if "retracted" not in query and not told(base, query)] == []
