"""What Locust tells OpenTelemetry while our scenarios run: the rows of each request, as a collector receives them."""

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from loadtest.study import passes, schema

SCENARIO = Path(__file__).parents[2] / "scenarios/long_reasoning.py"


@pytest.fixture
def collector():
    """A collector of OTLP over HTTP: `.paths` and `.metrics` hold what came."""

    class Receive(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            server.paths.add(self.path)
            if self.path == "/v1/metrics":
                server.metrics.append(ExportMetricsServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receive)
    server.paths, server.metrics = set(), []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def settings(collector):
    return {
        "LOCUST_ENABLE_OPENTELEMETRY": "true",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_address[1]}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        "OTEL_METRIC_EXPORT_INTERVAL": "300",
    }


def counts(collector):
    """Requests of each row, as the last message of each process has them."""
    found = {}
    for message in collector.metrics:
        for resource in message.resource_metrics:
            for metric in (one for scope in resource.scope_metrics for one in scope.metrics):
                if metric.name == "locust.client.duration":
                    for point in metric.histogram.data_points:
                        row = next(a.value.string_value for a in point.attributes if a.key == "name")
                        found[row] = point.count
    return found


def test_locust_tells_a_collector_every_row(collector, known_time_port, tmp_path):
    """By the variable, as `loadtest run` and `attach` hand it on; `--otel` sets the same."""
    argv = [sys.executable, "-m", "locust", "-f", str(SCENARIO), "--headless", "-u", "2", "-r", "2", "--requests", "6"]
    argv += ["--host", f"http://127.0.0.1:{known_time_port}", "--out", str(tmp_path)]
    done = subprocess.run(argv, env=os.environ | settings(collector), capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    sent = len(next(tmp_path.glob("cells/*/*/requests-*.jsonl")).read_text().splitlines())
    rows = ("TTFT", "time per token", "first answer", "final answer")
    assert counts(collector) == dict.fromkeys(rows, sent)


def test_a_study_hands_the_setting_on_to_locust(collector, monkeypatch):
    for name, value in settings(collector).items():
        monkeypatch.setenv(name, value)
    cell = schema.Cell(engine="other", model="m", base_url="http://127.0.0.1:1")
    handed_on = passes._environment(schema.Study(name="s", workload="math", cells=(cell,)), cell)
    assert settings(collector).items() <= handed_on.items()
