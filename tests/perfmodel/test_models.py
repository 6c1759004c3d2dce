"""Model rows against published counts, and models from config.json."""

import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.errors import UsageError
from loadtest.perfmodel import config_file, models

PARAMETERS = {  # in each checkpoint: the total of its safetensors index, or of a GGUF file made of it
    "qwen2.5-0.5b-instruct": 494_032_768,
    "qwen2.5-1.5b-instruct": 1_543_714_304,
    "qwen2.5-3b-instruct": 3_085_938_688,
    "qwen2.5-7b-instruct": 7_615_616_512,
    "qwen2.5-14b-instruct": 14_770_033_664,
    "qwen2.5-32b-instruct": 32_763_876_352,
    "qwen2.5-72b-instruct": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwq-32b": 32_763_876_352,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "deepseek-v3": 671_026_419_200,
    "deepseek-r1": 671_026_419_200,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "llama-2-7b-hf": 6_738_415_616,
    "llama-2-70b-hf": 68_976_648_192,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.3-70b-instruct": 70_553_706_496,
    "deepseek-r1-distill-qwen-1.5b": 1_777_088_000,
    "deepseek-r1-distill-qwen-32b": 32_763_876_352,
    "deepseek-r1-distill-llama-70b": 70_553_706_496,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-small-24b-instruct-2501": 23_572_403_200,
    "mistral-small-3.2-24b-instruct-2506": 23_572_403_200,
    "magistral-small-2506": 23_572_403_200,
    "magistral-small-2509": 23_572_403_200,
    "meta-llama-3-8b": 8_030_261_248,
    "meta-llama-3-70b": 70_553_706_496,
    "llama-3.1-8b-instruct": 8_030_261_248,
    "deepseek-r1-distill-qwen-7b": 7_615_616_512,
    "deepseek-r1-distill-qwen-14b": 14_770_033_664,
    "deepseek-r1-distill-llama-8b": 8_030_261_248,
    "deepseek-v3-0324": 671_026_419_200,  # DeepSeek and GLM-4.5: without the layer that only drafts
    "deepseek-v3.1": 671_026_419_200,
    "deepseek-r1-0528": 671_026_419_200,
    "glm-4.5": 352_797_829_024,
    "glm-4.5-air": 106_852_251_264,
}
# Where no total was found: layers x (4 norms and 6 matrices) + 3 = the 613 tensors of GLM-Z1-32B-0414's GGUF, "32.57 B".
BY_TENSORS = {"glm-4-32b-0414": 32_566_081_536, "glm-z1-32b-0414": 32_566_081_536}
ABOUT = {  # what the makers say, in billions: all parameters, those of one token
    "qwen3-30b-a3b": (30.5, 3.3),
    "qwen3-235b-a22b": (235, 22),
    "deepseek-v3": (671, 37),
    "gpt-oss-20b": (20.9, 3.6),
    "gpt-oss-120b": (117, 5.1),
    "glm-4.5": (355, 32),
    "glm-4.5-air": (106, 12),
    "glm-4-32b-0414": (32, 32),
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
SIXTEEN_BIT = sorted(name for name, row in models.MODELS.items() if row.quantisation == "bf16")


def folder(tmp_path, name="Qwen2.5-7B-Instruct", **changes):
    directory = tmp_path / name
    directory.mkdir()
    config = {key: value for key, value in (CONFIG | changes).items() if value is not None}
    (directory / "config.json").write_text(json.dumps(config))
    return str(directory)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_shape_gives_the_published_number_of_parameters(name):
    assert models.model(name).parameters == PARAMETERS[name]


def test_every_row_is_held_against_its_checkpoint():
    assert set(models.MODELS) == set(PARAMETERS) | set(BY_TENSORS)
    assert {name: models.model(name).parameters for name in BY_TENSORS} == BY_TENSORS


@pytest.mark.parametrize("name", ABOUT)
def test_a_mixture_has_as_many_parameters_as_its_makers_say(name):
    row, (total, of_a_token) = models.model(name), ABOUT[name]
    assert row.parameters / 1e9 == pytest.approx(total, rel=0.03)
    used = row.active_parameters + 2 * row.embedding_parameters  # makers count both tables, one, or none
    assert row.active_parameters / 1e9 * 0.97 < of_a_token < used / 1e9 * 1.02


@pytest.mark.parametrize(("name", "gib"), [("gpt-oss-120b", 60.8), ("gpt-oss-20b", 12.8)])
def test_gpt_oss_is_as_large_as_its_checkpoint(name, gib):
    """gpt-oss's model card: checkpoints of 60.8 and 12.8 GiB."""
    assert models.model(name).weight_bytes / 2**30 == pytest.approx(gib, abs=0.1)


def test_a_latent_kv_cache_is_small():
    """DeepSeek-V3's report: 70 KB a token, where 128 heads of 192 + 128 would take 5 MB."""
    assert models.model("deepseek-v3").kv_bytes_per_token == 61 * (512 + 64) * 2 == 70_272


def test_layers_with_a_window_keep_a_fixed_cache():
    row = models.model("gpt-oss-120b")
    assert row.kv_bytes_per_token == 18 * 2 * 8 * 64 * 2
    assert row.window_bytes == 18 * 128 * 2 * 8 * 64 * 2


@given(st.sampled_from(["qwen3-30b-a3b", "deepseek-v3", "gpt-oss-20b"]), st.integers(1, 5000))
def test_a_batch_touches_between_its_own_and_all_experts(name, tokens):
    row = models.model(name)
    touched = row.distinct_experts(tokens)
    assert row.experts_per_token <= touched * (1 + 1e-9)
    assert touched <= min(row.experts, tokens * row.experts_per_token) * (1 + 1e-9)
    assert touched <= row.distinct_experts(tokens + 1)


def test_distinct_experts_are_those_of_a_simulated_router():
    row, random = models.model("qwen3-30b-a3b"), Random(0)
    draws = [len({e for _ in range(16) for e in random.sample(range(128), 8)}) for _ in range(300)]
    assert row.distinct_experts(16) == pytest.approx(sum(draws) / 300, rel=0.02)


@pytest.mark.parametrize("name", ["qwen3-30b-a3b", "deepseek-r1", "gpt-oss-20b"])
@pytest.mark.parametrize("gpus", [2, 4, 8])
@pytest.mark.parametrize("tokens", [1, 4, 16, 64])
def test_the_busiest_gpu_is_that_of_a_simulated_router(name, gpus, tokens):
    row, random, busiest, mean = models.model(name), Random(0), 0.0, 0.0
    for _ in range(200):
        hit = {e for _ in range(tokens) for e in random.sample(range(row.experts), row.experts_per_token)}
        busiest += max(sum(e * gpus // row.experts == gpu for e in hit) for gpu in range(gpus))
        mean += len(hit) / gpus
    assert row.busiest_share(tokens, gpus) == pytest.approx(busiest / mean, rel=0.1)


def test_a_dense_model_and_one_gpu_have_no_busiest():
    assert models.model("qwq-32b").busiest_share(4, 2) == models.model("gpt-oss-20b").busiest_share(4, 1) == 1


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


@given(st.sampled_from(SIXTEEN_BIT), st.sampled_from(["-fp8", "-awq", "-gptq-int4", "-gptq-int8"]))
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
        ({"linear_num_value_heads": 32}, "linear_num_value_heads is 32: not modelled"),
        ({"index_topk": 2048}, "index_topk is 2048: not modelled"),
        ({"layer_types": ["linear_attention"]}, "linear_attention, which is not modelled"),
        ({"num_experts": 64, "num_experts_per_tok": 4, "decoder_sparse_step": 2}, "decoder_sparse_step is 2: not modelled"),
        ({"num_experts": 64}, "num_experts_per_tok must be a positive whole number, got None"),
        ({"num_experts": 4, "num_experts_per_tok": 8}, "8 of 4 experts"),
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


MIXTURES = {  # the keys of each family's config.json that its row stands for
    "Qwen3-30B-A3B": {
        "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 32,
        "head_dim": 128,
        "num_hidden_layers": 48, "num_key_value_heads": 4, "vocab_size": 151936, "num_experts": 128,
        "num_experts_per_tok": 8, "moe_intermediate_size": 768, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "max_position_embeddings": 40960,
    },
    "DeepSeek-R1": {
        "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432, "num_attention_heads": 128,
        "num_hidden_layers": 61, "num_key_value_heads": 128, "vocab_size": 129280, "n_routed_experts": 256,
        "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "first_k_dense_replace": 3,
        "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
        "attention_bias": False, "max_position_embeddings": 163840, "quantization_config": {"quant_method": "fp8",
        "weight_block_size": [128, 128]}, "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings":
        4096},
    },
    "gpt-oss-120b": {
        "model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880, "num_attention_heads": 64, "head_dim": 64,
        "num_hidden_layers": 36, "num_key_value_heads": 8, "vocab_size": 201088, "num_local_experts": 128,
        "experts_per_token": 4, "attention_bias": True, "sliding_window": 128, "max_position_embeddings": 131072,
        "layer_types": ["sliding_attention", "full_attention"] * 18, "quantization_config": {"quant_method": "mxfp4"},
        "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096},
    },
    "GLM-4.5-Air": {
        "model_type": "glm4_moe", "hidden_size": 4096, "intermediate_size": 10944, "num_attention_heads": 96,
        "head_dim": 128,
        "num_hidden_layers": 46, "num_key_value_heads": 8, "vocab_size": 151552, "n_routed_experts": 128,
        "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 1408, "first_k_dense_replace": 1,
        "attention_bias": True, "use_qk_norm": False, "max_position_embeddings": 131072,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixtures_config_gives_the_same_model_as_its_row(tmp_path, name):
    directory = tmp_path / name
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"tie_word_embeddings": False} | MIXTURES[name]))
    read, row = config_file.from_config(directory), models.model(name)
    for key in ("parameters", "weight_bytes", "active_parameters", "kv_bytes_per_token", "window_bytes", "quantisation"):
        assert getattr(read, key) == getattr(row, key), key
    assert read.context_tokens in (row.context_tokens, 40_960)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, ("nvfp4", 4.5)),
        ({"quant_method": "mxfp4"}, ("mxfp4", 4.25)),
        ({"quant_method": "compressed-tensors",
          "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}}}, ("fp8", 8)),
        ({"quant_method": "compressed-tensors",
          "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 32}}}},
         ("int4-gptq", 4 + 20 / 32)),
        ({"quant_method": "compressed-tensors",
          "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "float", "group_size": 16}}}}, ("nvfp4", 4.5)),
    ],
)  # fmt: skip
def test_a_quantised_checkpoint_is_known_by_what_it_says(tmp_path, config, expected):
    read = models.model(folder(tmp_path, quantization_config=config))
    assert (read.quantisation, read.bits_per_weight) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "mistral", "sliding_window": 4096}, (0, 4096)),
        ({"sliding_window": 131072}, (0, 0)),
        ({"model_type": "mistral", "sliding_window": 4096, "use_sliding_window": False}, (0, 0)),
        ({"model_type": "mistral", "sliding_window": 4096, "layer_types": ["full_attention"] * 28}, (0, 0)),
        ({"model_type": "x", "sliding_window": 512, "layer_types": ["sliding_attention", "full_attention"]}, (1, 512)),
    ],
)
def test_a_window_is_read(tmp_path, changes, expected):
    read = models.model(folder(tmp_path, **changes))
    assert (read.window_layers, read.window_tokens) == expected


def test_glm_4_has_four_norms_a_layer(tmp_path):
    assert (
        models.model(folder(tmp_path, model_type="glm4")).small_parameters
        - models.model(folder(tmp_path, name="other", model_type="glm")).small_parameters
        == 2 * 28 * 3584
    )
