"""How the tokens of requests are known, how many came at once, and whether a server's count can belong to the text it sent.

The bounds are generous: a count outside them is wrong, or a proxy has changed the chunks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from loadtest.metrics import intervals
from loadtest.metrics.figures import Distribution
from loadtest.metrics.level_schema import TokenArrivals, TokenCounts
from loadtest.metrics.request_arrays import Pass
from loadtest.records.schema import RequestRecord

FEWER_SLACK_TOKENS = 4  # a parser sends the text of one token as thinking and answer; one token is a long run of spaces
MORE_SLACK_TOKENS = 64  # without text: end marks, tags that a parser takes out, parts of a character
BYTES_PER_TOKEN = 64  # more than any text has in the mean: prose has 3 to 5
FEWER = 0.9  # of a tokenizer's count of the text: what an engine generates is seldom spelt in fewer tokens
MORE = 1.5


def count_requests(measured: Sequence[RequestRecord], *, told_by_chunk: int, spread_over_chunks: int) -> TokenCounts:
    """What is known of the tokens of measured requests; population of the doubts: those that the server counted."""
    counted = [r for r in measured if r.token_count_source == "server" and r.completion_tokens is not None and r.chunk_s]
    fewer = [r for r in counted if _tokens(r) < fewest_tokens(r)]
    more = [r for r in counted if _tokens(r) > most_tokens(r)]
    return TokenCounts(
        told_by_chunk=told_by_chunk,
        spread_over_chunks=spread_over_chunks,
        n_too_few=len(fewer),
        n_too_many=len(more),
        reasons=(*_doubt("fewer", fewer, len(counted)), *_doubt("more", more, len(counted))),
    )


def count_arrivals(passes: Sequence[Pass], *, whole_answer: Distribution, between_arrivals: Distribution) -> TokenArrivals:
    """How many tokens came at once, over all passes of a level; beside both of its rates (tokens/s of each request)."""
    tokens = np.concatenate([one.arrivals[0] for one in passes])
    shared = np.concatenate([one.arrivals[1] for one in passes])
    return TokenArrivals(
        n=len(tokens),
        with_others_share=float(np.sum(tokens[shared]) / np.sum(tokens)) if len(tokens) else None,
        p99_tokens=intervals.sample_quantile(np.sort(tokens), 0.99) if len(tokens) else None,
        bursty=any(one.bursty for one in passes),
        whole_answer_tokens_per_s=whole_answer,
        between_arrivals_tokens_per_s=between_arrivals,
    )


def tokens_per_chunk(passes: Sequence[Pass]) -> tuple[float | None, float | None]:
    """Mean tokens of a chunk of thinking, and of the answer, of measured requests whose tokens the server told chunk by
    chunk. With speculative decoding a chunk is what one step gave, so thinking may be seen to be guessed better than the
    answer. None without such a chunk."""
    tokens, chunks = [0, 0], [0, 0]
    for record in (r for one in passes for r in one.records if r.phase == "measure" and r.chunk_tokens is not None):
        told = record.chunk_tokens or ()
        cut = len(told) if record.first_answer_chunk is None else record.first_answer_chunk
        for side, part in enumerate((told[:cut], told[cut:])):
            tokens[side] += sum(part)
            chunks[side] += len(part)
    thinking, answer = (total / n if n else None for total, n in zip(tokens, chunks, strict=True))
    return thinking, answer


def fewest_tokens(record: RequestRecord) -> int:
    """Fewest tokens that the text can be: one for each chunk; what its bytes and a local tokenizer ask for, where known."""
    sizes = [len(record.chunk_s)]
    if record.text_bytes is not None:
        sizes.append(record.text_bytes // BYTES_PER_TOKEN)
    if record.text_tokens is not None:
        sizes.append(int(FEWER * record.text_tokens))
    return max(sizes) - FEWER_SLACK_TOKENS


def most_tokens(record: RequestRecord) -> float:
    """Most tokens that the text can be: one for each byte, as in byte-level BPE, and thinking that was counted but not sent.

    Infinite where the text is not all of the output: a forced length goes on after the end mark, a call of a tool has words
    around it that no chunk tells.
    """
    called = bool(record.tool_calls) or record.finish_reason in ("tool_calls", "function_call")
    partial = record.forced_tokens is not None or called
    if partial or record.text_bytes is None:
        return float("inf")
    sizes = [float(record.text_bytes)]
    if record.text_tokens is not None:
        sizes.append(MORE * record.text_tokens)
    hidden = (record.reasoning_tokens or 0) if record.thinking_field is None else 0
    return min(sizes) + hidden + MORE_SLACK_TOKENS


def _tokens(record: RequestRecord) -> int:
    return record.completion_tokens or 0


def _doubt(side: str, wrong: Sequence[RequestRecord], counted: int) -> Iterator[str]:
    if wrong:
        first = min(wrong, key=lambda r: r.seq)
        size = f"{len(first.chunk_s)} chunks"
        size += "" if first.text_bytes is None else f" and {first.text_bytes} bytes"
        size += "" if first.text_tokens is None else f", {first.text_tokens} tokens by the tokenizer"
        yield (
            f"in {len(wrong)} of {counted} requests the server counts {side} tokens than the text can be (first:"
            f" {first.prompt_id}, {_tokens(first)} tokens for {size}): every figure in tokens is doubtful"
        )
