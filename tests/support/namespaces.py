"""Hosts on one machine: network namespaces on a bridge, which needs root and `ip`."""

import contextlib
import os
import subprocess
from dataclasses import dataclass


def run(*args):
    subprocess.run(args, check=True, capture_output=True)


@dataclass(frozen=True)
class Host:
    """`prefix` of a command runs it there."""

    name: str
    address: str

    @property
    def prefix(self):
        return ["ip", "netns", "exec", self.name]

    def limit(self, rate):
        """What it sends leaves at this rate, `400kbit` for one."""
        run(
            "ip", "netns", "exec", self.name, "tc", *f"qdisc add dev eth0 root tbf rate {rate} burst 16kb latency 2s".split()
        )


@contextlib.contextmanager
def hosts(n):
    """So many hosts, and the address at which they reach this one; None where namespaces cannot be made."""
    tag, subnet = f"lt{os.getpid()}", f"10.77.{os.getpid() % 250}"
    found = [Host(f"{tag}-{i}", f"{subnet}.{i}") for i in range(1, n + 1)]
    try:
        try:
            run("ip", "link", "add", tag, "type", "bridge")
            run("ip", "addr", "add", f"{subnet}.254/24", "dev", tag)
            run("ip", "link", "set", tag, "up")
            for host in found:
                _connect(host, tag)
        except (OSError, subprocess.CalledProcessError):
            found = None
        yield (found, f"{subnet}.254") if found else None
    finally:
        for i in range(1, n + 1):
            _forget("netns", "del", f"{tag}-{i}")
        _forget("link", "del", tag)


def _connect(host, bridge):
    run("ip", "netns", "add", host.name)
    run("ip", "link", "add", f"{host.name}v", "type", "veth", "peer", "name", "eth0", "netns", host.name)
    run("ip", "link", "set", f"{host.name}v", "master", bridge, "up")
    run("ip", "-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
    run("ip", "-n", host.name, "link", "set", "eth0", "up")
    run("ip", "-n", host.name, "link", "set", "lo", "up")


def _forget(*args):
    with contextlib.suppress(OSError):
        subprocess.run(["ip", *args], capture_output=True)
