"""Speculative decoding: simulated engine and performance model by one formula, and chunks of several tokens."""

from dataclasses import replace

import pytest

from loadtest.perfmodel import gpus, models, step_time
from loadtest.perfmodel.memory import Deployment, Speculation
from loadtest.simulator.core.acceptance import Acceptance, Drafts
from loadtest.simulator.core.behaviour import BEHAVIOURS
from loadtest.simulator.core.counters import Observations
from loadtest.simulator.core.engine import Engine
from loadtest.simulator.core.sequence import Request
from loadtest.simulator.http import exposition
from loadtest.simulator.setup import simulate
from tests.simulator import test_server

EAGLE = Speculation(3.2, 16, 4)
PROMPT, OUTPUT = 40, 1201
ON = Deployment(models.model("qwen3-8b-fp8"), gpus.gpu("h100"), 1, "sglang-sim", speculation=EAGLE)


@pytest.mark.parametrize("accepted", [1.0, 1.7, 2.5, 3.2, 4.6, 5.0])
def test_the_mean_of_the_draws_is_what_was_asked_for(accepted):
    made = Acceptance(Speculation(accepted, 4, 4))
    assert sum(made.probability**n for n in range(5)) == pytest.approx(accepted, abs=1e-6)
    draws = [made.draw("why?", n) for n in range(3000)]
    assert set(draws) <= {1, 2, 3, 4, 5}
    assert sum(draws) / 3000 == pytest.approx(accepted, abs=0.1)


def test_a_row_is_as_long_as_the_passes_or_as_the_drafts():
    assert Acceptance(EAGLE).depth == 4
    assert Acceptance(Speculation(2.5, 4, 1)).depth == 4
    assert {Acceptance(Speculation(1.0, 4, 4)).draw("x", n) for n in range(50)} == {1}
    assert {Acceptance(Speculation(5.0, 4, 4)).draw("x", n) for n in range(50)} == {5}


def decoding_s(deployment, streams):
    """Mean seconds that the simulated engine takes from the moment when all streams decode to the end of each."""
    made = simulate(deployment, kv_tokens=400_000, context_tokens=2048)
    engine = Engine(made.config, made.step_time_s)
    for n in range(streams):
        engine.submit(Request(id=str(n), prompt=f"{n:<4}" * PROMPT, output_tokens=OUTPUT), 0.0)
    sequences = list(engine.sequences.values())
    while engine.sequences:
        engine.step()
    begun_s = max(one.first_token_s for one in sequences)
    return sum(one.last_token_s - begun_s for one in sequences) / streams


@pytest.mark.parametrize("streams", [1, 8, 32])
def test_simulator_and_model_agree(streams):
    predicted_s = step_time.decode_s(ON, PROMPT, OUTPUT - 1, streams)
    assert decoding_s(ON, streams) == pytest.approx(predicted_s, rel=0.03)


def test_the_gain_falls_with_the_batch_in_both():
    plain = replace(ON, speculation=None)
    simulated = [decoding_s(plain, n) / decoding_s(ON, n) for n in (1, 16, 64)]
    modelled = [
        step_time.decode_s(plain, PROMPT, OUTPUT - 1, n) / step_time.decode_s(ON, PROMPT, OUTPUT - 1, n) for n in (1, 16, 64)
    ]
    assert simulated == pytest.approx(modelled, rel=0.05)
    assert simulated[0] > simulated[1] > simulated[2]


@pytest.mark.parametrize("kind", BEHAVIOURS)
def test_a_chunk_carries_the_tokens_of_a_step(kind):
    """4 tokens of thinking (the last closes it silently), 3 of answer (the last ends the text); steps of 1, 5 and 1."""

    async def test(simulator, ask):
        _, _, body = await ask("/v1/chat/completions", test_server.chat(**test_server.WITH_USAGE))
        _, *chunks, usage, _ = test_server.events(body)
        deltas = [one["choices"][0]["delta"] for one in chunks]
        field = simulator.served.behaviour.thinking_field
        assert [one[field] for one in deltas if one.get(field)] == [" let", " me try"]
        assert [one["content"] for one in deltas if one.get("content")] == [" [simulated answer]"]
        assert [one["usage"]["completion_tokens"] for one in chunks[:3]] == [1, 4, 6]
        assert usage["usage"]["completion_tokens"] == 7
        [row] = simulator.truth
        assert (row["completion_tokens"], row["first_answer_s"] < row["finished_s"]) == (7, True)
        assert simulator.engine.totals.generation_tokens == simulator.seen.sent_tokens == 7
        assert simulator.engine.totals.steps == 3

    test_server.simulate(kind, test, speculation=Speculation(5.0, 4, 4))


@pytest.mark.parametrize("kind", BEHAVIOURS)
def test_metrics_tell_what_became_of_the_drafts(kind):
    """One request: its first token comes with the prompt, each further step verifies 4 drafts; the last row may be cut."""

    async def test(simulator, ask):
        lengths = {"thinking_tokens": 700, "answer_tokens": 200}
        await ask("/v1/chat/completions", test_server.chat(loadtest_sim=lengths))
        page = (await ask("/metrics"))[2].decode()
        seen = test_server.series(page.encode())
        rows = simulator.engine.totals.steps - 1
        if kind == "vllm-sim":
            accepted = seen["vllm:spec_decode_num_accepted_tokens_total"]
            assert seen["vllm:spec_decode_num_drafts_total"] == rows
            assert seen["vllm:spec_decode_num_draft_tokens_total"] == 4 * rows
            assert seen["vllm:spec_decode_num_accepted_tokens_per_pos_total"] == accepted
            by_position = [
                float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if "per_pos_total{" in line and "# " not in line
            ]
            assert len(by_position) == 4
            assert by_position == sorted(by_position, reverse=True)
            assert 900 <= 1 + rows + accepted <= 904
            assert 1 + accepted / rows == pytest.approx(3.0, abs=0.3)
        else:
            assert seen["sglang:spec_verify_calls_total"] == rows
            assert seen["sglang:spec_accept_length"] == pytest.approx(3.0, abs=0.8)
            assert seen["sglang:spec_accept_rate"] == pytest.approx((seen["sglang:spec_accept_length"] - 1) / 4)
            assert (seen["sglang:spec_num_steps"], seen["sglang:spec_num_draft_tokens"]) == (4, 5)

    test_server.simulate(kind, test, speculation=Speculation(3.0, 4, 4))


def test_sglang_averages_over_40_steps_and_vllm_says_nothing_without_drafts():
    drafts = Drafts()
    for n in range(79):
        drafts.count([2, 0] if n < 40 else [4], 40)
    assert (drafts.last_rows, drafts.last_accepted) == (80, 80)
    drafts.count([4], 40)
    assert (drafts.last_rows, drafts.last_accepted) == (40, 160)
    assert (drafts.rows, drafts.accepted_tokens, drafts.accepted_beyond(0), drafts.accepted_beyond(2)) == (120, 240, 80, 40)
    made = simulate(replace(ON, engine="vllm-sim", speculation=None))
    page = exposition.render(Engine(made.config, made.step_time_s), Observations(vllm=True), "m")
    assert "spec_decode" not in page
