"""The two studies of `loadtest accept`: what both engines must do on this machine, and what must work or fail beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.analysis.acceptance import SPECULATIVE, TOO_LARGE
from loadtest.perfmodel import gpus
from loadtest.records.schema import EngineName
from loadtest.servers import preflight
from loadtest.study.schema import Cell, Study

_CONTEXT_TOKENS, _MOST_TOKENS = 8192, 512
_TOO_SMALL = 0.5  # of the memory that the weights need

# By the prompt's own n-grams: no second model to download.
_DRAFTING: dict[str, tuple[str, ...]] = {
    "vllm": ("--speculative-config", '{"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}'),
    "sglang": ("--speculative-algorithm", "NGRAM", "--speculative-num-draft-tokens", "4"),
    "vllm-sim": ("--speculation", "2.1,3,1"),
    "sglang-sim": ("--speculation", "2.1,3,1"),
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What to accept: the engines, the model, the GPU (None: not known, so nothing is predicted), and how many of them."""

    engines: tuple[EngineName, ...]
    model: str
    gpu: str | None
    sizes: tuple[int, ...]  # tensor-parallel


def measured(asked: Asked) -> Study:
    """Every engine at every size, two starts each, at concurrency 1 and 4."""
    cells = tuple(_cell(asked, engine, tp) for tp in asked.sizes for engine in asked.engines)
    return _study("acceptance", asked, cells, levels=(1, 4), repeats=2)


def extremes(asked: Asked) -> Study:
    """Each engine with speculative decoding, and with too little memory for the weights, which must fail."""
    share = _too_small_share(asked)
    cells = []
    for engine in asked.engines:
        cells.append(_cell(asked, engine, 1, name=SPECULATIVE, args=_DRAFTING[engine]))
        if share is not None:
            cells.append(_cell(asked, engine, 1, name=TOO_LARGE, memory_fraction=share))
    return _study("acceptance, extremes", asked, tuple(cells), levels=(1,), repeats=1)


def _cell(asked: Asked, engine: EngineName, tp: int, **own: object) -> Cell:
    return Cell(engine=engine, model=asked.model, tp=tp, gpu=asked.gpu, **own)  # type: ignore[arg-type]


def _study(name: str, asked: Asked, cells: Sequence[Cell], *, levels: tuple[int, ...], repeats: int) -> Study:
    return Study(
        name=name,
        question=f"Does what was tested without a GPU hold on {asked.gpu or 'this machine'}?",
        workload="math:n=32,seed=7,difficulty=1",
        cells=tuple(cells),
        levels=levels,
        repeats=repeats,
        min_requests=12,
        seed=7,
        contract={"max_tokens": _MOST_TOKENS, "context_tokens": _CONTEXT_TOKENS},
    )


def _too_small_share(asked: Asked) -> float | None:
    """A share of the GPU's memory that holds half of the weights; None where either is not known."""
    model = preflight.shape(asked.model) if asked.gpu is not None else None
    if asked.gpu is None or model is None:
        return None
    return round(max(0.001, min(0.5, _TOO_SMALL * model.weight_bytes / gpus.gpu(asked.gpu).memory_bytes)), 4)
