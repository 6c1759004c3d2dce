"""How long an all-reduce or an all-to-all takes, by how the GPUs of a host reach each other; how to read that off a machine.

One all-reduce of s bytes a GPU takes

    wait + step x s / (s + knee) + s x 2 (tp - 1) / tp / rate

`wait` for the smallest message; `step` more once NCCL leaves its low-latency protocol, half of it at `knee` bytes; then the
ring's share of the bytes over the link. `wait` grows by 13 % with every GPU beyond two (42 us for 8 bytes over eight RTX
4090, github.com/NVIDIA/nccl issue 1530, against 24 us over two A100).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from loadtest.errors import UsageError

Topology = Literal["nvlink", "pcie-p2p", "pcie-host", "pcie"]
"""How GPUs reach each other; "pcie" leaves open whether with peer access."""

_PCIE: tuple[Topology, ...] = ("pcie-p2p", "pcie-host")
TOPOLOGIES: tuple[Topology, ...] = ("nvlink", "pcie-p2p", "pcie-host")


@dataclass(frozen=True, slots=True)
class Link:
    """The terms of one all-reduce over one topology (see the module), and their source.

    The rate is `link_share` of the link's own; where that is 0, `rate_bytes_per_s` over any link.
    """

    wait_s: float
    step_s: float
    knee_bytes: float
    link_share: float
    rate_bytes_per_s: float
    source: str

    def rate(self, link_bytes_per_s: float) -> float:
        """Bytes a second over a link of this rate in one direction."""
        return self.link_share * link_bytes_per_s or self.rate_bytes_per_s


_MORE_GPUS = 0.13

LINKS: dict[str, Link] = {
    # Custom one-shot kernels over NVLink: 7 us for 16 KB, 11 us for 512 KB, 17 us for 1 MB on B300 (vLLM pull request
    # 37756), 7 and 10 us for 512 KB on two and four H100 (vLLM pull request 24111); NCCL needs 219 us for 64 MB and 393 us
    # for 128 MB on B300.
    "nvlink": Link(6e-6, 8e-6, 1e6, 0.6, 0.0, "vLLM pull requests 24111 and 37756"),
    # NCCL inside a CUDA graph, four V100 behind a PCIe switch: 19.4 us for 4 KB, 24.2 for 32 KB, 51.8 for 128 KB, 83.5 for
    # 384 KB, over PCIe 3.0.
    "pcie-p2p": Link(15e-6, 20e-6, 64e3, 0.76, 0.0, "github.com/haohervchb/sglang-V100 pull request 2"),
    # Fitted (`calibration`) to vLLM 0.10.1 on two A100 without peer access; NCCL through the host needs 39 us for 10 KB on
    # two RTX 5070 Ti (SGLang pull request 39605), as these terms give.
    "pcie-host": Link(22.4e-6, 73.7e-6, 40e3, 0.0, 6.46e9, "fitted: github.com/dennislee22/vLLM-benchmarking"),
}


def all_reduce_s(
    topology: Topology, tp: int, message_bytes: float, link_bytes_per_s: float, links: Mapping[str, Link] = LINKS
) -> float:
    """Seconds of one all-reduce of a message over `tp` GPUs, whose link has this rate in one direction.

    "pcie" is the mean of with and without peer access.

    >>> round(all_reduce_s("pcie-host", 2, 10_240, 32e9) * 1e6)
    39
    """
    if tp == 1:
        return 0.0
    if topology == "pcie":
        return sum(all_reduce_s(one, tp, message_bytes, link_bytes_per_s, links) for one in _PCIE) / 2
    link = links[topology]
    return _wait_s(link, tp, message_bytes) + message_bytes * 2 * (tp - 1) / tp / link.rate(link_bytes_per_s)


# Of NVLink in one direction: DeepEP's kernels reach 153 and 158 GB/s of an H800's 200, 726 and 740 of a B200's 900.
_ALL_TO_ALL_SHARE = 0.79


def all_to_all_s(
    topology: Topology, tp: int, sent_bytes: float, link_bytes_per_s: float, links: Mapping[str, Link] = LINKS
) -> float:
    """Seconds of one all-to-all in which each of `tp` GPUs sends this many bytes to the others.

    It waits as an all-reduce of as many bytes does; over NVLink then at the rate of DeepEP's kernels, which need it. Over
    PCIe nobody published any: the rate is that of an all-reduce.

    >>> round(67e6 / all_to_all_s("nvlink", 8, 67e6, 200e9) / 1e9)  # GB/s
    151
    """
    if tp == 1:
        return 0.0
    if topology == "pcie":
        return sum(all_to_all_s(one, tp, sent_bytes, link_bytes_per_s, links) for one in _PCIE) / 2
    rate = _ALL_TO_ALL_SHARE * link_bytes_per_s if topology == "nvlink" else links[topology].rate(link_bytes_per_s)
    return _wait_s(links[topology], tp, sent_bytes) + sent_bytes / rate


def _wait_s(link: Link, tp: int, message_bytes: float) -> float:
    return link.wait_s * (1 + _MORE_GPUS * (tp - 2)) + link.step_s * message_bytes / (message_bytes + link.knee_bytes)


def check(name: str) -> Topology:
    """The topology of that name. Raises UsageError for another.

    >>> check("pcie-host")
    'pcie-host'
    """
    for one in TOPOLOGIES:
        if one == name:
            return one
    raise UsageError(f"interconnect {name!r} is not known: expected one of {', '.join(TOPOLOGIES)}")


def from_matrix(topology: str, peer_access: str) -> Topology | None:
    """What `nvidia-smi topo -m` and `nvidia-smi topo -p2p r` say of the GPUs of a machine; None with fewer than two GPUs.

    The slowest pair decides: all pairs over NVLink, all with peer access ("OK"), or else through the host.

    >>> matrix = "     GPU0 GPU1\\nGPU0  X   NV12\\nGPU1 NV12  X\\n"
    >>> from_matrix(matrix, "")
    'nvlink'
    """
    pairs = [cell for row in _rows(topology) for cell in row if cell != "X"]
    if not pairs:
        return None
    if all(cell.startswith("NV") for cell in pairs):
        return "nvlink"
    access = [cell for row in _rows(peer_access) for cell in row if cell != "X"]
    return "pcie-p2p" if access and all(cell == "OK" for cell in access) else "pcie-host"


def _rows(text: str) -> list[list[str]]:
    """The cells between GPUs: of each line that begins with GPUn, as many as there are such lines."""
    lines = [line.split() for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()]
    rows = [cells[1:] for cells in lines if cells and re.fullmatch(r"GPU\d+", cells[0]) and "X" in cells]
    return [cells[: len(rows)] for cells in rows]
