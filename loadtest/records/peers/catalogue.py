"""Which tool wrote a file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from loadtest.errors import UsageError
from loadtest.records.peers.aiperf import AIPERF, AIPERF_TOTALS
from loadtest.records.peers.evalscope import EVALSCOPE
from loadtest.records.peers.genai_bench import GENAI_BENCH
from loadtest.records.peers.guidellm import GUIDELLM
from loadtest.records.peers.inference_perf import INFERENCE_PERF
from loadtest.records.peers.result import PeerFile, PeerResult, Reader, open_file
from loadtest.records.peers.sglang_bench import SGLANG_BENCH
from loadtest.records.peers.vllm_bench import VLLM_BENCH

READERS: tuple[Reader, ...] = (
    VLLM_BENCH,
    SGLANG_BENCH,
    GUIDELLM,
    GENAI_BENCH,
    AIPERF,
    AIPERF_TOTALS,
    INFERENCE_PERF,
    EVALSCOPE,
)


class Told(NamedTuple):
    """A file, the reader that knows it, and what it tells."""

    file: PeerFile
    reader: Reader
    result: PeerResult


def read_result(path: Path) -> Told:
    """Read a result file of any tool. Raises `UsageError` where no reader knows it, or where it is damaged."""
    return told_by(open_file(path))


def told_by(file: PeerFile) -> Told:
    """What a file tells. Raises `UsageError` as `read_result`: it names what was looked for."""
    reader = next((one for one in READERS if one.knows(file)), None)
    if reader is None:
        looked = "; ".join(f"{one.tool} ({one.written_by})" for one in READERS)
        raise UsageError(f"{file.path}: expected a result file of a known tool, got another; looked for {looked}")
    return Told(file, reader, reader.read(file))
