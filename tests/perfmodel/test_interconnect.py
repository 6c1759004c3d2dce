"""The time of an all-reduce against published figures, and the topology that nvidia-smi tells."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.errors import UsageError
from loadtest.perfmodel import interconnect, models
from loadtest.perfmodel.interconnect import all_reduce_s, all_to_all_s, from_matrix

LINK = {"nvlink": 450e9, "pcie-p2p": 15.75e9, "pcie-host": 32e9, "pcie": 32e9}  # of the published machines
PUBLISHED = [  # topology, GPUs, bytes, us, how far off it may be
    ("pcie-host", 2, 10 * 1024, 39, 0.15),  # two RTX 5070 Ti, NCCL: SGLang pull request 39605
    ("pcie-host", 8, 8, 42, 0.15),  # eight RTX 4090, NCCL: NVIDIA/nccl issue 1530
    (
        "pcie-p2p",
        4,
        4 * 1024,
        19.4,
        0.15,
    ),  # four V100 behind a switch, NCCL in a graph: haohervchb/sglang-V100 pull request 2
    ("pcie-p2p", 4, 32 * 1024, 24.2, 0.25),
    ("pcie-p2p", 4, 128 * 1024, 51.8, 0.15),
    ("pcie-p2p", 4, 384 * 1024, 83.5, 0.15),
    ("nvlink", 2, 512 * 1024, 7, 0.6),  # H100, one-shot kernel: vLLM pull request 24111
    ("nvlink", 4, 1024 * 1024, 15, 0.3),
]

NVLINK = """\
\tGPU0\tGPU1\tGPU2\tGPU3\tmlx5_0\tCPU Affinity\tNUMA Affinity
GPU0\t X \tNV2\tNV2\tNV2\tNODE\t0,2,4,6,8,10\t0
GPU1\tNV2\t X \tNV2\tNV2\tNODE\t0,2,4,6,8,10\t0
GPU2\tNV2\tNV2\t X \tNV2\tNODE\t0,2,4,6,8,10\t0
GPU3\tNV2\tNV2\tNV2\t X \tNODE\t0,2,4,6,8,10\t0
mlx5_0\tNODE\tNODE\tNODE\tNODE\t X \t\t

Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
"""  # NVIDIA/nccl-tests issue 68
PAIRS_OVER_PCIE = """\
        \x1b[4mGPU0    GPU1    CPU Affinity    NUMA Affinity   GPU NUMA ID\x1b[0m
GPU0     X      PHB     0-31    0               N/A
GPU1    PHB      X      0-31    0               N/A
"""
ACCESS = " \tGPU0\tGPU1\t\n GPU0\tX\tOK\t\n GPU1\tOK\tX\t\n\nLegend:\n\n  X    = Self\n  OK   = Status Ok\n"
NO_ACCESS = ACCESS.replace("\tOK", "\tCNS")
ONE = "\tGPU0\tCPU Affinity\nGPU0\t X \t0-15\n"


@pytest.mark.parametrize(("topology", "tp", "size", "us", "off"), PUBLISHED)
def test_an_all_reduce_takes_what_was_published(topology, tp, size, us, off):
    assert all_reduce_s(topology, tp, size, LINK[topology]) * 1e6 == pytest.approx(us, rel=off)


@pytest.mark.parametrize(
    ("link_bytes_per_s", "tokens", "gb_per_s"),
    [(200e9, 4096, 153), (200e9, 4096, 158), (900e9, 8192, 726), (900e9, 8192, 740)],
)
def test_an_all_to_all_reaches_what_deepep_published(link_bytes_per_s, tokens, gb_per_s):
    """Eight H800, then eight B200, each with so many tokens of 7,168 numbers for 8 experts: dispatch at 8 bit."""
    sent_bytes = tokens * 7168 * models.model("deepseek-r1").other_gpus(8)
    told = sent_bytes / all_to_all_s("nvlink", 8, sent_bytes, link_bytes_per_s) / 1e9
    assert told == pytest.approx(gb_per_s, rel=0.12)


@given(st.sampled_from([*interconnect.TOPOLOGIES, "pcie"]), st.integers(2, 8), st.floats(1, 1e8))
def test_more_bytes_and_more_gpus_take_longer(topology, tp, size):
    assert 0 < all_reduce_s(topology, tp, size, 32e9) < all_reduce_s(topology, tp, size * 1.5, 32e9)
    assert all_reduce_s(topology, tp, size, 32e9) < all_reduce_s(topology, tp + 1, size, 32e9)
    assert all_to_all_s(topology, 1, size, 32e9) == 0 < all_to_all_s(topology, tp, size, 32e9)
    assert all_to_all_s(topology, tp, size, 32e9) < all_to_all_s(topology, tp, size * 1.5, 32e9)


def test_a_long_message_over_nvlink_is_as_fast_as_published():
    """NCCL on B300, whose NVLink moves 900 GB/s in one direction: vLLM pull request 37756."""
    assert all_reduce_s("nvlink", 4, 64 * 2**20, 900e9) == pytest.approx(219e-6, rel=0.15)
    assert all_reduce_s("nvlink", 4, 128 * 2**20, 900e9) == pytest.approx(393e-6, rel=0.15)


def test_through_the_host_a_faster_link_does_not_help():
    assert all_reduce_s("pcie-host", 2, 1e7, 64e9) == all_reduce_s("pcie-host", 2, 1e7, 32e9)
    assert all_reduce_s("pcie-p2p", 2, 1e7, 64e9) < all_reduce_s("pcie-p2p", 2, 1e7, 32e9)


def test_one_gpu_reduces_nothing():
    assert all_reduce_s("pcie-host", 1, 1e6, 32e9) == 0


@given(st.integers(2, 8), st.floats(1, 1e7))
def test_unknown_peer_access_is_between_with_and_without(tp, size):
    with_access, unknown, without = (all_reduce_s(one, tp, size, 32e9) for one in ("pcie-p2p", "pcie", "pcie-host"))
    assert with_access < unknown < without


@pytest.mark.parametrize(
    ("matrix", "access", "found"),
    [
        (NVLINK, "", "nvlink"),
        (PAIRS_OVER_PCIE, ACCESS, "pcie-p2p"),
        (PAIRS_OVER_PCIE, NO_ACCESS, "pcie-host"),
        (PAIRS_OVER_PCIE, "", "pcie-host"),
        (NVLINK.replace("NV2\tNODE", "SYS\tNODE", 1), ACCESS, "pcie-p2p"),
        (ONE, "", None),
        ("", "", None),
        ("NVIDIA-SMI has failed because it could not communicate with the driver", "", None),
    ],
)
def test_the_topology_is_read_off_the_machine(matrix, access, found):
    assert from_matrix(matrix, access) == found


def test_another_name_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="'infiniband' is not known: expected one of nvlink, pcie-p2p, pcie-host"):
        interconnect.check("infiniband")
