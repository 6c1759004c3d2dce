"""The same workload through 1 process, `--processes 2`, and a master with 2 workers on hosts of their own.

    sudo python tests/benchmarks/distributed.py

The hosts are network namespaces on a bridge (needs root and `ip`); without, master and workers run side by side on this
host. Shown for each: exit code, records, whether the set of requests is that of the first, Locust's own count of final
answers, and median and p99 (ms) of TTFT and time to final answer from the records.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys

import harness as h

from loadtest.study import locust_pass

USERS, REQUESTS, SUBNET, BRIDGE = 8, 48, "10.77.0", "ltbench0"


def ip(*args):
    subprocess.run(["ip", *args], check=True, capture_output=True)


@contextlib.contextmanager
def hosts(n):
    """Command prefixes that run something on host 1 to n; null where namespaces cannot be made."""
    names = [f"ltbench-{i}" for i in range(1, n + 1)]
    try:
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("addr", "add", f"{SUBNET}.254/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for i, name in enumerate(names, start=1):
            ip("netns", "add", name)
            ip("link", "add", f"ltb{i}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"ltb{i}", "master", BRIDGE, "up")
            for args in (
                ["addr", "add", f"{SUBNET}.{i}/24", "dev", "eth0"],
                ["link", "set", "eth0", "up"],
                ["link", "set", "lo", "up"],
            ):
                ip("-n", name, *args)
        yield [["ip", "netns", "exec", name] for name in names]
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"no network namespaces ({error}): side by side on one host")
        yield None
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True)


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


def over_hosts(port, out, places):
    server = f"{SUBNET}.254" if places else "127.0.0.1"
    master, *workers = places or [[], [], []]
    first = subprocess.Popen(
        [*master, *locust("--master", "--expect-workers", "2", *load(port, server, out))],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    join = locust("--worker", "--master-host", f"{SUBNET}.1" if places else "127.0.0.1")
    others = [subprocess.Popen([*place, *join], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for place in workers]
    text, _ = first.communicate(timeout=120)
    for other in others:
        other.wait(30)
    return first.returncode, text


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
        summary("master + 2, namespaces" if places else "master + 2, one host", code, text, root / "hosts", reference)
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
