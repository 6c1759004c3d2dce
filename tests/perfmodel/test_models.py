"""Model rows against published counts, and models from config.json."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.errors import UsageError
from loadtest.perfmodel import models

PARAMETERS = {  # safetensors totals on each model's hub page
    "qwen2.5-0.5b-instruct": 494_032_768,
    "qwen2.5-1.5b-instruct": 1_543_714_304,
    "qwen2.5-3b-instruct": 3_085_938_688,
    "qwen2.5-7b-instruct": 7_615_616_512,
    "qwen2.5-14b-instruct": 14_770_033_664,
    "qwen2.5-32b-instruct": 32_763_876_352,
    "qwen2.5-72b-instruct": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwq-32b": 32_763_876_352,
}
CONFIG = {  # Qwen2.5-7B-Instruct, as published
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
    "vocab_size": 152064,
}
names = st.sampled_from(sorted(models.MODELS))


def folder(tmp_path, name="Qwen2.5-7B-Instruct", **changes):
    directory = tmp_path / name
    directory.mkdir()
    config = {key: value for key, value in (CONFIG | changes).items() if value is not None}
    (directory / "config.json").write_text(json.dumps(config))
    return str(directory)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_shape_gives_the_published_number_of_parameters(name):
    assert models.model(name).parameters == PARAMETERS[name]


def test_qwq_32b_is_as_the_facts_say():
    qwq, awq = models.model("qwq-32b"), models.model("qwq-32b-awq")
    assert round(qwq.weight_bytes / 1e9, 1) == 65.5
    assert round(awq.weight_bytes / 1e9, 1) == 19.3
    assert qwq.kv_bytes_per_token == awq.kv_bytes_per_token == 2 * 64 * 8 * 128 * 2 == 262_144
    assert (qwq.context_tokens, qwq.native_context_tokens) == (131_072, 32_768)
    assert round((qwq.parameters - 2 * qwq.embedding_parameters) / 1e9, 1) == 31.2


@pytest.mark.parametrize(
    ("suffix", "bits"), [("-awq", 4 + 20 / 128), ("-gptq-int4", 4 + 20 / 128), ("-gptq-int8", 8 + 24 / 128)]
)
def test_a_quantised_weight_carries_its_groups_scale_and_zero(suffix, bits):
    assert models.model("qwen2.5-14b-instruct" + suffix).bits_per_weight == bits


def test_a_step_reads_a_tied_table_and_looks_up_an_untied_one():
    tied, untied = models.model("qwen2.5-1.5b-instruct"), models.model("qwen2.5-7b-instruct")
    assert tied.weight_bytes_read_per_token == tied.weight_bytes
    assert untied.weight_bytes - untied.weight_bytes_read_per_token == 2 * 152064 * 3584


@given(names, st.sampled_from(["-fp8", "-awq", "-gptq-int4", "-gptq-int8"]))
def test_quantising_shrinks_the_weights_and_leaves_the_kv_cache(name, suffix):
    full, small = models.model(name), models.model(name + suffix)
    assert full.weight_bytes / 4 < small.weight_bytes < full.weight_bytes
    assert small.kv_bytes_per_token == full.kv_bytes_per_token


@pytest.mark.parametrize("name", ["Qwen/QwQ-32B-AWQ", "QwQ-32B-AWQ", "qwq-32b-awq", "some/place/qwq-32b-awq/"])
def test_a_hub_name_is_known_by_its_last_part(name):
    assert models.model(name).hub == "Qwen/QwQ-32B-AWQ"


def test_every_variant_knows_its_hub_name():
    assert models.model("qwen2.5-72b-instruct-gptq-int4").hub == "Qwen/Qwen2.5-72B-Instruct-GPTQ-Int4"
    assert models.model("qwen3-32b-fp8").hub == "Qwen/Qwen3-32B-FP8"


def test_the_quantised_72b_is_padded_to_whole_groups():
    assert models.model("qwen2.5-72b-instruct-awq").intermediate == 29_696
    assert models.model("qwen2.5-72b-instruct").intermediate == 29_568


@pytest.mark.parametrize("name", ["gpt-9", "Qwen/QwQ-33B", ""])
def test_an_unknown_name_is_answered_with_the_known_ones(name):
    with pytest.raises(UsageError, match=r"is not known.*qwq-32b.*config\.json"):
        models.model(name)


def test_a_config_gives_the_same_model_as_its_row(tmp_path):
    read, row = models.model(folder(tmp_path)), models.model("qwen2.5-7b-instruct")
    assert (read.parameters, read.weight_bytes, read.kv_bytes_per_token) == (
        row.parameters, row.weight_bytes, row.kv_bytes_per_token,
    )  # fmt: skip
    assert read.name == "qwen2.5-7b-instruct"


def test_yarn_stretches_the_context(tmp_path):
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    read = models.model(folder(tmp_path, rope_scaling=yarn))
    assert (read.native_context_tokens, read.context_tokens) == (32_768, 131_072)


def test_head_dim_and_kv_heads_have_the_usual_defaults(tmp_path):
    read = models.model(folder(tmp_path, num_key_value_heads=None))
    assert (read.head_dim, read.kv_heads) == (128, 28)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4-awq"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "int4-gptq"),
        ({"quant_method": "gptq", "bits": 8, "group_size": 128}, "int8-gptq"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
    ],
)
def test_the_quantisation_of_a_config_is_read(tmp_path, config, expected):
    assert models.model(folder(tmp_path, quantization_config=config)).quantisation == expected


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"num_experts": 128, "model_type": "qwen3_moe"},
            "num_experts is 128: a mixture-of-experts model, which is not modelled",
        ),
        ({"n_routed_experts": 256}, "not modelled"),
        ({"kv_lora_rank": 512}, "kv_lora_rank is 512: not modelled"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "bits": 4}}, "bitsandbytes at 4 bit is not modelled"),
        ({"quantization_config": {"quant_method": "awq", "bits": 8}}, "awq at 8 bit is not modelled"),
        ({"hidden_size": None}, "hidden_size must be a positive whole number, got None"),
        ({"num_hidden_layers": "28"}, "num_hidden_layers must be a positive whole number"),
        ({"num_key_value_heads": 5}, "cannot share 5 KV heads"),
    ],
)
def test_what_is_not_modelled_is_refused_by_name(tmp_path, changes, complaint):
    with pytest.raises(UsageError, match=complaint):
        models.model(folder(tmp_path, **changes))


@pytest.mark.parametrize(("text", "complaint"), [("{", "is not JSON"), ("[1]", "expected an object, got list")])
def test_a_broken_config_is_a_usage_error(tmp_path, text, complaint):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UsageError, match=complaint):
        models.model(str(tmp_path))


def test_a_directory_without_config_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match=r"config\.json: cannot be read"):
        models.model(str(tmp_path))


def test_a_vision_models_language_half_is_read(tmp_path):
    path = folder(tmp_path)
    outer = tmp_path / "outer"
    outer.mkdir()
    inner = json.loads((tmp_path / "Qwen2.5-7B-Instruct" / "config.json").read_text())
    (outer / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl", "text_config": inner}))
    assert models.model(str(outer)).parameters == models.model(path).parameters
