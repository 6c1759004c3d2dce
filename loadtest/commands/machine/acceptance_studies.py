"""The studies of `loadtest accept`: what both engines must do on this machine, and what must work or fail beside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest.analysis.acceptance import SPECULATIVE, TOO_LARGE
from loadtest.perfmodel import gpus
from loadtest.records.schema import EngineName
from loadtest.records.write import write_json
from loadtest.servers import preflight
from loadtest.servers.flags import hub_name
from loadtest.study.schema import Cell, Study

_CONTEXT_TOKENS, _MOST_TOKENS = 8192, 1024
_TOO_SMALL = 0.5  # of the memory that the weights need
_GROWN = 2.0  # times the GPU's memory, in one tensor: refused at once, whatever else is free
_WEIGHT_BYTES = 2

# By the text's own n-grams: no second model to download. SGLang: a chain of drafts, as some of its attention backends verify
# no tree, and more of them than its search is wide (10), else it drafts nothing.
_DRAFTING: dict[str, tuple[str, ...]] = {
    "vllm": ("--speculative-config", '{"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}'),
    "sglang": ("--speculative-algorithm", "NGRAM", "--speculative-num-draft-tokens", "4",
               "--speculative-ngram-max-bfs-breadth", "1"),
    "vllm-sim": ("--speculation", "2.1,3,1"),
    "sglang-sim": ("--speculation", "2.1,3,1"),
}  # fmt: skip
_TOKENIZER = {"vllm": "--tokenizer", "sglang": "--tokenizer-path"}


@dataclass(frozen=True, slots=True)
class Asked:
    """What to accept: the engines, the model, the GPU (None: not known, so nothing is predicted), and how many of them."""

    engines: tuple[EngineName, ...]
    model: str
    gpu: str | None
    sizes: tuple[int, ...]  # tensor-parallel


def measured(asked: Asked) -> Study:
    """Every engine on one GPU, two starts each, at concurrency 1 and 4."""
    return _study("acceptance", asked, [_cell(asked, engine) for engine in asked.engines], levels=(1, 4), repeats=2)


def parallel(asked: Asked, engines: Sequence[EngineName]) -> Study:
    """These engines on two GPUs, one start each."""
    cells = [_cell(asked, engine, tp=asked.sizes[-1]) for engine in engines]
    return _study("acceptance, two GPUs", asked, cells, levels=(1, 4), repeats=1)


def extremes(asked: Asked, engines: Sequence[EngineName], folder: Path) -> Study:
    """These engines with speculative decoding, and with a model that is too large, which must fail. `folder`: for that
    model's config.json."""
    cells = [_cell(asked, engine, name=SPECULATIVE, args=_DRAFTING[engine]) for engine in engines]
    too_large = [_too_large(asked, engine, folder) for engine in engines]
    return _study("acceptance, extremes", asked, [*cells, *filter(None, too_large)], levels=(1,), repeats=1)


def _cell(asked: Asked, engine: EngineName, **own: object) -> Cell:
    return Cell(**{"engine": engine, "model": asked.model, "gpu": asked.gpu, **own})  # type: ignore[arg-type]


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


def _too_large(asked: Asked, engine: EngineName, folder: Path) -> Cell | None:
    """A cell whose weights do not fit; None where the GPU or the model is not known."""
    if asked.gpu is None:
        return None
    if engine not in _TOKENIZER:  # a simulator
        share = _too_small_share(asked.model, asked.gpu)
        return None if share is None else _cell(asked, engine, name=TOO_LARGE, memory_fraction=share)
    config = _config(asked.model)
    if config is None:
        return None
    write_json(folder / "config.json", _grown(config, gpus.gpu(asked.gpu).memory_bytes))
    arguments = (_TOKENIZER[engine], hub_name(asked.model), "--load-format", "dummy")
    return _cell(asked, engine, name=TOO_LARGE, model=str(folder), args=arguments)


def _too_small_share(model: str, gpu: str) -> float | None:
    """A share of the GPU's memory that holds half of the weights; None where the model is not known."""
    shape = preflight.shape(model)
    return None if shape is None else round(min(0.5, _TOO_SMALL * shape.weight_bytes / gpus.gpu(gpu).memory_bytes), 4)


def _config(model: str) -> dict[str, object] | None:
    """The model's config.json; None where it is not on this machine."""
    name = hub_name(model)
    folder = Path(name) if Path(name).is_dir() else preflight.cached_snapshot(name)
    return None if folder is None else json.loads((folder / "config.json").read_text(encoding="utf-8"))


def _grown(config: dict[str, object], memory_bytes: float) -> dict[str, object]:
    """The same model with a vocabulary whose embedding alone is too large: nothing to download, as its weights are random.

    >>> _grown({"hidden_size": 1024, "vocab_size": 151936}, 80e9)["vocab_size"]
    78125056
    """
    words = _GROWN * memory_bytes / (_WEIGHT_BYTES * int(str(config["hidden_size"])))
    return {**config, "vocab_size": -(-int(words) // 64) * 64}
