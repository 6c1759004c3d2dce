"""The same workload through 1 process, `--processes 2`, and a master with 2 workers on hosts of their own.

    sudo python tests/benchmarks/distributed.py

The hosts are network namespaces on a bridge (needs root and `ip`), each with a folder of its own; without, all run side by
side on this host. Shown for each: exit code, records, whether the set of requests is that of the first, Locust's
own count of final answers, and median and p99 (ms) of TTFT and time to final answer from the records.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import harness as h

from loadtest.study import locust_pass

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support.namespaces import hosts

USERS, REQUESTS = 8, 48


def locust(*extra):
    return [sys.executable, "-m", "locust", "-f", str(h.SCENARIO), *extra]


def load(port, host, out):
    argv = [
        "--headless",
        "-u",
        str(USERS),
        "-r",
        "100",
        "--host",
        f"http://{host}:{port}",
        "--engine",
        "other",
        "--model",
        "known",
    ]
    return [*argv, "--clock-speed", "1", "--only-summary", "--requests", str(REQUESTS), "--out", str(out)]


def over_hosts(port, root, places):
    """A master and two workers, each in a folder of its own; the master's has the records of all."""
    machines, server = places or ([None] * 3, "127.0.0.1")
    if places is None:
        print("no network namespaces: side by side on one host")
    master = machines[0].address if places else "127.0.0.1"
    join = locust("--worker", "--master-host", master)
    commands = [locust("--master", "--expect-workers", "2", *load(port, server, "run")), join, join]
    started = []
    for i, (machine, command) in enumerate(zip(machines, commands, strict=True)):
        (root / str(i)).mkdir(parents=True)
        to = subprocess.PIPE if i == 0 else subprocess.DEVNULL
        argv = [*(machine.prefix if machine else []), *command]
        started.append(subprocess.Popen(argv, cwd=root / str(i), stdout=to, stderr=subprocess.STDOUT, text=True))
    text, _ = started[0].communicate(timeout=120)
    for worker in started[1:]:
        worker.wait(30)
    return started[0].returncode, text


def summary(name, code, text, out, reference):
    lines = [line for path in out.glob("cells/*/*/requests-*.jsonl") for line in path.read_bytes().splitlines()]
    records = [json.loads(line) for line in lines]
    asked = sorted((r["seq"], r["prompt_id"]) for r in records if r["phase"] == "measure")
    ttft = [(r["chunk_s"][0] - r["sent_s"]) * 1e3 for r in records]
    final = [(r["chunk_s"][-1] - r["sent_s"]) * 1e3 for r in records]
    count = re.search(r"final answer\s+(\d+)", text)
    same = "-" if reference is None else str(asked == reference)
    complete = json.loads((out / "manifest.json").read_bytes())["complete"]
    print(
        f"{name:24} {code:4} {len(records):8} {len({r['worker'] for r in records}):8} {same:>9} {complete!s:>9}"
        f" {count[1] if count else '?':>7} {h.quantile(ttft, 0.5):8.2f} {h.quantile(ttft, 0.99):7.2f}"
        f" {h.quantile(final, 0.5):9.2f} {h.quantile(final, 0.99):8.2f}"
    )
    return asked


def main():
    root = h.scratch()
    print(
        "way                      exit  records  workers  same set  complete  Locust  TTFT p50     p99  final p50      p99"
    )
    with h.known_time_server(pin=False, host="0.0.0.0", tokens=100, thinking=25) as port, hosts(3) as places:
        reference = None
        for name, extra in (("1 process", []), ("--processes 2", locust_pass.shared(2))):
            out = root / name.replace(" ", "")
            done = subprocess.run(locust(*load(port, "127.0.0.1", out), *extra), capture_output=True, text=True)
            asked = summary(name, done.returncode, done.stdout + done.stderr, out, reference)
            reference = reference or asked
        code, text = over_hosts(port, root / "hosts", places)
        summary("master + 2, namespaces" if places else "master + 2, one host", code, text, root / "hosts/0/run", reference)
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
