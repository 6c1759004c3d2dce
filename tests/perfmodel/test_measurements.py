"""Published tables: how a row is read, what is left out, and which rows are held back."""

import pytest

from loadtest.errors import UsageError
from loadtest.perfmodel import measurements
from loadtest.perfmodel.held_back import is_held_back

HEADER = "model,quantization,gpu,gpu_count,engine,prompt_tokens,output_tokens,output_tokens_per_s\n"
ROW = "Qwen3-8B,awq,H20-96GB,1,SGLang 0.4.6.post1,6144,2048,119.47\n"
BATCHED = (
    "source,engine,engine_version,model,precision,gpu,tp,input_tokens,output_tokens,concurrency,n_requests,"
    "output_tokens_per_s_total,per_user_tokens_per_s,ttft_ms_mean_or_p50,tpot_ms,note\n"
)
LOOP = 'github.com/gpustack/x,vLLM,0.11.0,Qwen3-8B,bf16,H100 SXM 80GB,1,232.6,220.61,4,100,496,,64,7.38,"closed loop"\n'
AT_ONCE = (
    "github.com/dennislee22/x,vLLM,0.10.1.1,Qwen2-7B-Instruct,bf16,A100-80GB x2 same node (no GPU P2P),2,1024,"
    '1024,10,10,735,,600,13,"Test 2 (Available KV cache memory in each GPU: 12.02 GiB); all prompts sent at once"\n'
)
STATIC = (
    "github.com/argonne-lcf/x,vLLM,,meta-llama/Llama-2-7b-hf,fp16/bf16,Nvidia A100 GPU,1,128,128,16,16,1017,,,,"
    '"OFFLINE static batch; source gives latency 2.01254 s and throughput"\n'
)


def read(tmp_path, text):
    path = tmp_path / "speeds.csv"
    path.write_text(text)
    return measurements.read_measurements(path)


def test_a_single_stream_is_the_time_of_its_request(tmp_path):
    (one,) = read(tmp_path, HEADER + ROW)
    assert (one.way, one.streams, one.prompt_tokens, one.deployment.engine_version) == ("lone", 1, 6144, "0.4.6.post1")
    assert one.measured_s == pytest.approx(2048 / 119.47)
    assert one.title == "Qwen3-8B-AWQ on 1 x NVIDIA H20, sglang 0.4.6.post1, 1 streams, 6,144 + 2,048 tokens"


def test_each_way_of_measuring_is_known_by_its_note(tmp_path):
    loop, at_once, static = read(tmp_path, BATCHED + LOOP + AT_ONCE + STATIC)
    assert (loop.way, loop.measured_s, loop.source) == ("closed-loop", 7.38e-3, "gpustack")
    assert (at_once.way, at_once.wait_s, at_once.deployment.topology) == ("at-once", 0.6, "pcie-host")
    assert at_once.deployment.gpu.name == "a100-80gb-pcie"
    assert (static.way, static.measured_s, static.deployment.gpu.name) == ("static-batch", 2.01254, "a100-40gb")


def test_accepted_tokens_are_the_gap_between_chunks_over_the_time_per_token(tmp_path):
    note = "SPECULATIVE; --speculative-num-steps 4 --speculative-num-draft-tokens 16' # BS=1; mean ITL 8.74"
    (one,) = read(tmp_path, BATCHED + LOOP.replace("closed loop", note).replace("7.38", "2.67"))
    drafts = one.deployment.speculation
    assert (drafts.draft_tokens, drafts.draft_steps) == (15, 4)
    assert drafts.accepted_tokens == pytest.approx(8.74 / 2.67)


@pytest.mark.parametrize(
    "row",
    [
        LOOP.replace("vLLM", "TensorRT-LLM"),
        LOOP.replace("closed loop", "SPECULATIVE DECODING; closed loop; mean ITL 11.05"),  # drafts of unknown size
        LOOP.replace("220.61,4,", "220.61,200,"),
        AT_ONCE.replace("same node", "in two nodes"),
        AT_ONCE.replace("1024,10,10", "60000,10,10"),  # more than the KV cache
    ],
)
def test_what_the_model_does_not_cover_is_left_out(tmp_path, row):
    assert len(read(tmp_path, BATCHED + LOOP + row)) == 1


def test_of_single_seconds_the_lower_envelope_stays(tmp_path):
    row = (
        "llmservingsim,vLLM,0.19.0,meta-llama/Llama-3.1-8B,bf16,RTX 4090,1,,,{n},,,,,{ms},"
        '"one second of scheduler statistics, KV cache 90.0 %"\n'
    )
    found = read(tmp_path, BATCHED + "".join(row.format(n=n, ms=ms) for n, ms in ((30, 25), (32, 40), (34, 26), (36, 26))))
    assert [one.measured_s for one in found if not one.held_back] == [0.025, 0.026]


@pytest.mark.parametrize(
    ("row", "held"),
    [
        ({"source": "github.com/dennislee22/x", "model": "Qwen2-72B", "tp": 2, "concurrency": 1}, True),
        ({"source": "github.com/dennislee22/x", "model": "Qwen2.5-32B", "tp": 2, "concurrency": 10}, False),
        ({"source": "github.com/dennislee22/x", "model": "Qwen2.5-32B", "tp": 2, "concurrency": 50}, True),
        ({"source": "github.com/gpustack/x", "model": "Qwen3-8B", "concurrency": 2}, True),
        ({"source": "github.com/argonne-lcf/x", "model": "mistralai/Mistral-7B-v0.1"}, True),
        ({"source": "github.com/argonne-lcf/x", "model": "mistralai/Mistral-7B-v0.1", "concurrency": 32}, False),
        ({"source": "github.com/argonne-lcf/x", "model": "Llama-2-7b", "gpu": "Nvidia GH200 GPU"}, True),
        ({"source": "github.com/argonne-lcf/x", "model": "Llama-2-7b"}, False),
        ({"source": "github.com/casys-kaist/LLMServingSim", "line": 3}, True),
        ({"source": "github.com/casys-kaist/LLMServingSim", "line": 4}, False),
    ],
)
def test_what_is_held_back_is_decided_by_what_a_row_is_about(row, held):
    usual = {"line": 2, "model": "x", "gpu": "A100", "tp": 1, "concurrency": 4, "note": ""}
    assert is_held_back(**(usual | row)) is held


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "expected rows with the columns model"),
        ("model,gpu\nQwen3-8B,H20\n", "expected rows with the columns model"),
        (HEADER + ROW.replace("6144", "many"), r":2: invalid literal"),
        (HEADER + ROW + ROW.replace("awq", "int3"), r":3: model 'Qwen3-8B-int3' is not known"),
        (HEADER + ROW.replace("H20-96GB", "B300"), r":2: GPU 'B300' is not known"),
        (HEADER + ROW.replace("119.47", "0"), r":2: expected positive tokens and speed"),
        (BATCHED + LOOP.replace("7.38", "fast"), r":2: could not convert"),
    ],
)
def test_a_wrong_table_names_file_line_and_value(tmp_path, text, complaint):
    with pytest.raises(UsageError, match=complaint):
        read(tmp_path, text)
