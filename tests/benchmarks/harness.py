"""What the benchmarks share: the known-time server, a Locust run against it, and the comparison of the two."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SCENARIO = ROOT / "scenarios" / "long_reasoning.py"
SERVER_CORE, CLIENT_CORE = (0, 1) if len(os.sched_getaffinity(0)) > 1 else (0, 0)


@contextlib.contextmanager
def known_time_server(*, pin=True, **options):
    """Run the known-time server; yields its port."""
    argv = [sys.executable, "-m", "loadtest.simulator.known_times", "--port", "0"]
    for name, value in options.items():
        argv += [f"--{name.replace('_', '-')}"] if value is True else [f"--{name.replace('_', '-')}", str(value)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, preexec_fn=lambda: favour(SERVER_CORE if pin else None))
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


def favour(core, *, first=True):
    """Give this process a core and, if it is to come first and we may, precedence over whatever else runs on the machine."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    with contextlib.suppress(OSError):
        if first:
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


@contextlib.contextmanager
def busy(processes):
    """So many processes that keep the client's core busy."""
    argv = [sys.executable, "-c", "while True: pass"]
    running = [subprocess.Popen(argv, preexec_fn=lambda: favour(CLIENT_CORE, first=False)) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def get(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=120) as answer:
        return json.load(answer)


@dataclass(frozen=True)
class Timed:
    """One request as a client saw it: readings of CLOCK_MONOTONIC (s)."""

    sha256: str
    sent: float
    tokens: tuple[float, ...]
    outcome: str = "ok"


@dataclass(frozen=True)
class Drive:
    run: Path
    wall_s: float
    cpu_s: float
    wakes: int  # voluntary switches of context: how often its processes slept and were woken
    exit_code: int
    output: str


def locust(port, users, out, *extra, pin=True, favoured=True):
    """Run the scenario under headless Locust; CPU is user and system time of all its processes."""
    argv = [sys.executable, "-m", "locust", "-f", str(SCENARIO), "--headless", "-u", str(users), "-r", str(max(users, 100))]
    argv += ["--host", f"http://127.0.0.1:{port}", "--engine", "other", "--model", "known", "--clock-speed", "1"]
    argv += ["--only-summary", "--workload", "math:n=2000", "--out", str(out), *extra]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    core = CLIENT_CORE if pin else None
    done = subprocess.run(argv, capture_output=True, text=True, preexec_fn=lambda: favour(core, first=favoured))
    wall_s, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return Drive(out, wall_s, cpu_s, after.ru_nvcsw - before.ru_nvcsw, done.returncode, done.stdout + done.stderr)


def measured(run):
    """Every request on disk, its offsets turned back into readings of the monotonic clock."""
    shift = time.monotonic() - time.time()
    found = []
    for path in run.glob("cells/*/*/requests-*.jsonl"):
        for line in path.read_bytes().splitlines():
            record = json.loads(line)
            origin = record["clock_anchor_unix_s"] + shift
            sent = record["sent_s"] if record["sent_s"] is not None else record["scheduled_s"]
            chunks = tuple(origin + t for t in record["chunk_s"])
            found.append(Timed(record["request_sha256"], origin + sent, chunks, record["outcome"]))
    return found


def health(run):
    lines = [line for path in run.glob("cells/*/*/client_health*.jsonl") for line in path.read_bytes().splitlines()]
    return [json.loads(line) for line in lines]


def floor(port, users, requests, tokens):
    """The same load from a bare epoll loop: what it saw, and its CPU seconds while it streamed."""
    argv = [sys.executable, str(HERE / "floor_reader.py"), str(port), str(users), str(requests), str(tokens)]
    pin = lambda: favour(CLIENT_CORE)  # noqa: E731
    done = subprocess.run(argv, capture_output=True, text=True, check=True, preexec_fn=pin)
    seen = json.loads(done.stdout)
    return [Timed(x["sha256"], x["sent"], tuple(x["tokens"])) for x in seen["requests"]], seen["cpu_s"]


def pairs(seen, log):
    """Match what a client saw with what the server did: same body, same order of arrival."""
    by_body: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in sorted(log, key=lambda entry: entry["arrived"]):
        by_body[entry["sha256"]].append(entry)
    return [(x, by_body[x.sha256].pop(0)) for x in sorted(seen, key=lambda x: x.sent) if by_body[x.sha256]]


@dataclass(frozen=True)
class Errors:
    """Client minus server, in ms (rates in %): how far each figure is from what the server really did."""

    ttft: list[float]
    gap: list[float]
    e2e: list[float]
    rate: list[float]
    arrival: list[float]  # absolute: token stamped minus token sent
    lost: int


def errors(seen, log):
    result = Errors([], [], [], [], [], len(log) - len(pairs(seen, log)))
    for x, entry in pairs(seen, log):
        sent = entry["before"]
        if len(sent) != len(x.tokens) or len(sent) < 2:
            continue
        result.ttft.append(((x.tokens[0] - x.sent) - (sent[0] - entry["arrived"])) * 1e3)
        result.e2e.append(((x.tokens[-1] - x.sent) - (sent[-1] - entry["arrived"])) * 1e3)
        for i in range(1, len(sent)):
            result.gap.append(((x.tokens[i] - x.tokens[i - 1]) - (sent[i] - sent[i - 1])) * 1e3)
        ours, true = x.tokens[-1] - x.tokens[0], sent[-1] - sent[0]
        result.rate.append((true / ours - 1) * 100)
    return result


def quantile(values, q):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else float("nan")


def mean(values):
    return sum(values) / len(values) if values else float("nan")


def scratch():
    return Path(tempfile.mkdtemp(prefix="loadtest-bench-"))
