"""Make a tiny Qwen2 model that thinks, closes its thinking, answers and stops, under the ordinary sampling contract.

    python make_tiny_model.py DIRECTORY        (standard library only; the same bytes every time; about 3 MB)

It speaks nonsense: random features make a random walk over short words. Two things in it are made by hand, so that no
`logit_bias` is needed. One attention head finds `</think>` in the context and writes "closed" into the residual stream.
And some words are last words: after one of the first kind, while open, `</think>` is all but certain; after one of the
second kind, once closed, `<|im_end|>` is. So lengths are geometric and hardly depend on temperature, top_p or top_k.
"""

from __future__ import annotations

import array
import json
import random
import struct
import sys
from pathlib import Path

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, VOCABULARY = 128, 2, 4, 2, 32, 256, 4096
CONTEXT_TOKENS = 32768
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
ENDOFTEXT, IM_START, IM_END, THINK, CLOSE = range(VOCABULARY - len(SPECIAL), VOCABULARY)

FEATURES = 112  # residual dimensions of the random walk; the last ones have a meaning each:
ENDS_ANSWER, IS_CLOSE, CONSTANT, ENDS_THINKING, CLOSED = 123, 124, 125, 126, 127
LAST_WORDS_OF_THINKING = 1 / 120  # share of the words, hence about one over the mean number of tokens
LAST_WORDS_OF_ANSWER = 1 / 40

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{%- set content = message.content %}"
    "{%- if message.role == 'assistant' %}{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"
)


def byte_alphabet():
    """The printable stand-in of each byte in byte-level BPE (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [byte for byte in range(256) if byte not in plain]
    table = {byte: chr(byte) for byte in plain} | {byte: chr(256 + n) for n, byte in enumerate(other)}
    return [table[byte] for byte in range(256)]


def merges(count, rng):
    """Pairs to join: all pairs of letters, each of them after a space, then some of three letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    space = byte_alphabet()[32]
    pairs = [(a, b) for a in letters for b in letters]
    spaced = [(space, a) for a in letters] + [(space, a + b) for a, b in pairs]
    triples = [(a + b, c) for a, b in pairs for c in letters]
    return pairs + spaced + sorted(rng.sample(triples, count - len(pairs) - len(spaced)))


def tokenizer(words, joined):
    added = [
        {
            "id": VOCABULARY - len(SPECIAL) + n, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": "think" not in text,
        }
        for n, text in enumerate(SPECIAL)
    ]  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
        "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
        "vocab": {word: n for n, word in enumerate(words)}, "merges": [f"{a} {b}" for a, b in joined],
    }  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level, "model": model,
    }  # fmt: skip


def matrix(rows, columns):
    return [[0.0] * columns for _ in range(rows)]


def embeddings(rng, speakable):
    table = matrix(VOCABULARY, HIDDEN)
    for token, row in enumerate(table):
        row[:FEATURES] = [rng.gauss(0, 1) for _ in range(FEATURES)]
        row[CONSTANT] = 1.0
        if token in speakable:
            row[ENDS_THINKING] = 4.0 if rng.random() < LAST_WORDS_OF_THINKING else 0.0
            row[ENDS_ANSWER] = 4.0 if rng.random() < LAST_WORDS_OF_ANSWER else 0.0
    table[CLOSE][IS_CLOSE] = 8.0
    return table


def head(rng, speakable):
    """LM head: random over the features for words; `</think>` and `<|im_end|>` by their conditions; the rest never."""
    table = matrix(VOCABULARY, HIDDEN)
    for token, row in enumerate(table):
        if token in speakable:
            row[:FEATURES] = [rng.gauss(0, 0.15) for _ in range(FEATURES)]
        else:
            row[CONSTANT] = -50.0
    table[CLOSE][CONSTANT], table[CLOSE][ENDS_THINKING], table[CLOSE][CLOSED] = -20.0, 10.0, -10.0
    table[IM_END][CONSTANT], table[IM_END][ENDS_ANSWER], table[IM_END][CLOSED] = -50.0, 8.0, 8.0
    return table


def layer(rng, number):
    """Layer 0 finds `</think>` (query head 0) and mixes the context into the walk (heads 2 and 3); layer 1 adds nothing."""
    queries, keys = matrix(HEADS * HEAD_DIM, HIDDEN), matrix(KV_HEADS * HEAD_DIM, HIDDEN)
    values, output = matrix(KV_HEADS * HEAD_DIM, HIDDEN), matrix(HIDDEN, HEADS * HEAD_DIM)
    query_bias = [0.0] * (HEADS * HEAD_DIM)
    if number == 0:
        slowest = HEAD_DIM // 2 - 1  # the pair of dimensions that rotary embeddings hardly turn
        query_bias[slowest] = 8.0
        keys[slowest][IS_CLOSE] = 1.5
        values[0][IS_CLOSE] = 1.0
        output[CLOSED][0] = 1.0
        for dimension in range(HEAD_DIM):
            values[HEAD_DIM + dimension][:FEATURES] = [rng.gauss(0, 0.3) for _ in range(FEATURES)]
        for feature in range(FEATURES):
            output[feature][2 * HEAD_DIM :] = [rng.gauss(0, 0.3) for _ in range(2 * HEAD_DIM)]
    return {
        "self_attn.q_proj.weight": queries,
        "self_attn.q_proj.bias": query_bias,
        "self_attn.k_proj.weight": keys,
        "self_attn.k_proj.bias": [0.0] * (KV_HEADS * HEAD_DIM),
        "self_attn.v_proj.weight": values,
        "self_attn.v_proj.bias": [0.0] * (KV_HEADS * HEAD_DIM),
        "self_attn.o_proj.weight": output,
        "mlp.gate_proj.weight": matrix(INTERMEDIATE, HIDDEN),
        "mlp.up_proj.weight": matrix(INTERMEDIATE, HIDDEN),
        "mlp.down_proj.weight": matrix(HIDDEN, INTERMEDIATE),
        "input_layernorm.weight": [1.0] * HIDDEN,
        "post_attention_layernorm.weight": [1.0] * HIDDEN,
    }


def bfloat16(values):
    """Shape and little-endian bytes: the upper half of each 32-bit float, rounded to nearest."""
    rows = values if isinstance(values[0], list) else [values]
    flat = array.array("f", [value for row in rows for value in row])
    bits = array.array("I", flat.tobytes())
    upper = array.array("H", [min((word + 0x8000) >> 16, 0xFFFF) for word in bits])
    shape = [len(values), len(rows[0])] if rows is values else [len(values)]
    return shape, upper.tobytes()


def safetensors(tensors):
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    body = bytearray()
    for name, values in tensors.items():
        shape, content = bfloat16(values)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [len(body), len(body) + len(content)]}
        body += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(body)


def weights(rng):
    speakable = range(256, VOCABULARY - len(SPECIAL))
    tensors: dict[str, list[list[float]] | list[float]] = {"model.embed_tokens.weight": embeddings(rng, speakable)}
    for number in range(LAYERS):
        tensors |= {f"model.layers.{number}.{name}": values for name, values in layer(rng, number).items()}
    tensors["model.norm.weight"] = [1.0] * HIDDEN
    tensors["lm_head.weight"] = head(rng, speakable)
    return safetensors(tensors)


def config():
    return {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "intermediate_size": INTERMEDIATE, "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT_TOKENS,
        "rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "attention_dropout": 0.0, "use_sliding_window": False, "bos_token_id": ENDOFTEXT, "eos_token_id": IM_END,
    }  # fmt: skip


def main(directory):
    rng = random.Random(20260101)
    directory.mkdir(parents=True, exist_ok=True)
    joined = merges(VOCABULARY - 256 - len(SPECIAL), rng)
    words = byte_alphabet() + [a + b for a, b in joined]
    texts = {
        "config.json": config(),
        "generation_config.json": {"eos_token_id": [IM_END, ENDOFTEXT], "temperature": 0.6, "top_p": 0.95, "top_k": 40},
        "tokenizer.json": tokenizer(words, joined),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
            "chat_template": CHAT_TEMPLATE, "model_max_length": CONTEXT_TOKENS, "clean_up_tokenization_spaces": False,
        },
    }  # fmt: skip
    for name, value in texts.items():
        (directory / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (directory / "model.safetensors").write_bytes(weights(rng))
    print(f"model: made in {directory.name}, ids: </think> {CLOSE}, <|im_end|> {IM_END}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: make_tiny_model.py DIRECTORY")
    main(Path(sys.argv[1]))
