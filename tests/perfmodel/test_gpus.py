"""GPU rows against the data sheets, and GPUs from TOML files."""

import pytest

from loadtest.errors import UsageError
from loadtest.perfmodel import gpus

SHEETS = {  # GB, GB/s, dense BF16 TFLOP/s
    "l20": (48, 864, 119.5),
    "l40s": (48, 864, 362),
    "rtx-6000-ada": (48, 960, 364),
    "rtx-4090": (24, 1008, 165),
    "a10": (24, 600, 125),
    "l4": (24, 300, 121),
    "rtx-5090": (32, 1792, 209.5),
    "rtx-pro-6000": (96, 1792, 503.8),
    "a100-40gb": (40, 1555, 312),
    "a100-80gb": (80, 2039, 312),
    "a100-80gb-pcie": (80, 1935, 312),
    "h20": (96, 4000, 148),
    "h100": (80, 3350, 989),
    "h100-pcie": (80, 2000, 756),
    "gh200": (96, 4000, 989),
    "h200": (141, 4800, 989),
    "b200": (180, 8000, 2250),
    "mi300x": (192, 5300, 1307),
}
# Multiply-adds of the tensor cores of one multiprocessor in a cycle: what a rate, a count and a clock must agree in.
PER_CYCLE = {
    "a100-80gb": 1024,
    "h100": 2048,
    "l20": 256,
    "rtx-4090": 256,
    "rtx-5090": 256,
    "a10": 512,
    "l4": 512,
    "l40s": 512,
    "rtx-6000-ada": 512,
    "rtx-pro-6000": 512,
    "b200": 4096,
    "mi300x": 1024,
}
CARD = "memory_bytes = 16e9\nbandwidth_bytes_per_s = 320e9\nbf16_flop_per_s = 65e12\n"


def test_every_gpu_is_known_and_no_other():
    assert set(gpus.GPUS) == set(SHEETS)


@pytest.mark.parametrize("name", SHEETS)
def test_a_row_says_what_the_data_sheet_says(name):
    card = gpus.gpu(name)
    gigabytes, bandwidth, rate = SHEETS[name]
    assert gigabytes * 1e9 <= card.memory_bytes < gigabytes * 2**30
    assert (card.bandwidth_bytes_per_s / 1e9, card.bf16_flop_per_s / 1e12) == (bandwidth, rate)
    assert "data sheet" in card.source or "white paper" in card.source


def test_figures_without_a_publication_are_named():
    assert {name for name, row in gpus.GPUS.items() if row.unverified} == {"h20", "gh200"}
    assert gpus.gpu("h20").unverified == "clock"


@pytest.mark.parametrize(("name", "gib"), [("a100-80gb", 79.15), ("rtx-4090", 23.52), ("b200", 178.35), ("l20", 46)])
def test_an_engine_finds_the_memory_that_was_reported(name, gib):
    """vLLM issues 4408, 42049 and 7721, pytorch/ao pull request 4002."""
    assert gpus.gpu(name).memory_bytes / 2**30 == pytest.approx(gib, rel=0.03)


@pytest.mark.parametrize("name", PER_CYCLE)
def test_rate_multiprocessors_and_clock_agree(name):
    row = gpus.gpu(name)
    assert row.bf16_flop_per_s == pytest.approx(2 * PER_CYCLE[name] * row.cycles_per_s, rel=0.03)


@pytest.mark.parametrize(("name", "rate"), [("l20", 32e9), ("a100-80gb", 300e9), ("h100", 450e9)])
def test_the_interconnect_is_counted_in_one_direction(name, rate):
    assert gpus.gpu(name).interconnect_bytes_per_s == rate


@pytest.mark.parametrize("name", ["L20", "NVIDIA L20", "nvidia-l20", " l20 "])
def test_a_name_may_be_written_as_people_do(name):
    assert gpus.gpu(name) is gpus.GPUS["l20"]


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(UsageError, match=r"b300.*l20, l4, l40s, a10"):
        gpus.gpu("b300")


def test_a_gpu_comes_from_a_toml_file(tmp_path):
    file = tmp_path / "t4.toml"
    file.write_text(CARD + 'interconnect = "nvlink"\ninterconnect_bytes_per_s = 50000000000\nmultiprocessors = 40\n')
    card = gpus.gpu(str(file))
    assert (card.name, card.memory_bytes, card.interconnect, card.multiprocessors) == ("t4", 16e9, "nvlink", 40)
    assert card.interconnect_bytes_per_s == 50e9


def test_what_a_toml_file_leaves_out_is_pcie_without_fp8(tmp_path):
    file = tmp_path / "t4.toml"
    file.write_text(CARD)
    card = gpus.gpu(str(file))
    assert (card.interconnect, card.fp8_flop_per_s, card.source) == ("pcie", 0.0, "t4.toml")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("memory_bytes = 16e9\n", "bandwidth_bytes_per_s|bf16_flop_per_s"),
        (CARD + "colour = 1\n", "unknown key 'colour'"),
        (CARD.replace("16e9", '"16 GB"'), "memory_bytes must be a number"),
        (CARD.replace("16e9", "-1"), "memory_bytes must be a positive number"),
        (CARD.replace("16e9", "nan"), "memory_bytes must be a positive number"),
        (CARD + 'interconnect = "string"\n', "'nvlink', 'pcie' or 'pcie-host'"),
        ("not toml", "is not TOML"),
    ],
)
def test_a_wrong_file_names_itself_and_the_key(tmp_path, text, complaint):
    file = tmp_path / "card.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=complaint) as raised:
        gpus.gpu(str(file))
    assert "card" in str(raised.value)


def test_a_missing_file_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        gpus.gpu(str(tmp_path / "none.toml"))
