"""What the hardware allows: does a model fit its cards, how fast could it decode, and how fast it probably will.

Pure arithmetic on the rows of `hardware` and `models`. `fit` counts bytes. `step_time_s` adds up one engine step from
memory traffic, arithmetic, launches and all-reduces, each with a constant of `constants`; `predict` sums the steps of a
request. Everything `predict` says is a prediction, never a measurement. How the constants were found, and how far off they
are, is in docs/performance-model.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadtest.errors import UsageError
from loadtest.perfmodel.constants import (
    ALL_REDUCE_S,
    CALIBRATED,
    FP8_EFFICIENCY,
    FP8_PREFILL_FACTOR,
    QUERY_TILE,
    RANGE_CALIBRATED,
    RANGE_OTHER,
    RANGE_SMALL,
    SMALL_PARAMETERS,
    Constants,
    constants_of,
)
from loadtest.perfmodel.memory import MOST_TOKENS, Deployment, Fit, fit


@dataclass(frozen=True, slots=True)
class StepWork:
    """What one engine step computes.

    `prefill_tokens` prompt tokens processed, `prefill_pairs` query-key pairs they attend to (n tokens after c cached or
    already processed ones: n x c + n x (n + 1) / 2), `decode_streams` streams that gain one token, `kv_read_tokens` the sum
    of their contexts.
    """

    prefill_tokens: int = 0
    prefill_pairs: int = 0
    decode_streams: int = 0
    kv_read_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """A predicted value with the range that the model's error on unseen models allows."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """What equal streams see in a steady closed loop; `simulated` is always true, so that nobody takes it for measured.

    `ttft_s`, `tpot_s` (mean gap after the first token; null for one token), `tokens_per_s_per_user` = 1 / tpot_s,
    `output_tokens_per_s` over all streams, prefill included, `time_to_final_answer_s` of one stream, from send to last
    token. `fits` is that of `Fit`, `running_streams` how many the KV cache lets run at once, `lines` the arithmetic.
    """

    simulated: bool
    ttft_s: Estimate
    tpot_s: Estimate | None
    tokens_per_s_per_user: Estimate | None
    output_tokens_per_s: Estimate
    time_to_final_answer_s: Estimate
    fits: bool
    running_streams: int
    lines: tuple[str, ...]


def step_time_s(deployment: Deployment, work: StepWork, constants: Constants | None = None) -> float:
    """Seconds of one engine step over the whole batch; 0 for a step without work.

    fixed + layers x launch + max(weights read, matrix products) + KV cache read + prompt attention + all-reduces, with the
    constants of the deployment's card unless others are given.

    >>> from loadtest.perfmodel.gpus import gpu
    >>> from loadtest.perfmodel.models import model
    >>> one = Deployment(model("qwq-32b-awq"), gpu("l20"), 1)
    >>> 1 / 45 < step_time_s(one, StepWork(decode_streams=1, kv_read_tokens=1000)) < 1 / 25
    True
    """
    tokens = work.prefill_tokens + work.decode_streams
    if not tokens:
        return 0.0
    constants = constants or constants_of(deployment.gpu.name)
    return (
        constants.step_s
        + deployment.model.layers * constants.layer_s
        + max(_weights_s(deployment, constants), _products_s(deployment, tokens, constants))
        + _kv_s(deployment, work, constants)
        + _attention_s(deployment, work, constants)
        + _all_reduce_s(deployment, tokens)
    )


def _weights_s(deployment: Deployment, constants: Constants) -> float:
    """Read the layers at their kernel's efficiency, the LM head at that of 16-bit weights."""
    model, gpu = deployment.model, deployment.gpu
    layers = constants.memory_efficiency if model.quantisation == "bf16" else constants.quantised_efficiency
    if model.quantisation == "fp8":
        layers = FP8_EFFICIENCY.get(gpu.name, layers)
    head_bytes = model.weight_bytes_read_per_token - model.linear_bytes
    return (
        (model.linear_bytes / layers + head_bytes / constants.memory_efficiency) / gpu.bandwidth_bytes_per_s / deployment.tp
    )


def _products_s(deployment: Deployment, tokens: int, constants: Constants) -> float:
    """Two operations a weight and token; FP8 at the FP8 rate where the card has one, other weights widened to 16 bit."""
    model, gpu = deployment.model, deployment.gpu
    rate = gpu.bf16_flop_per_s
    factor = 1.0 if model.quantisation == "bf16" else constants.quantised_prefill_factor
    if model.quantisation == "fp8" and gpu.fp8_flop_per_s:
        rate, factor = gpu.fp8_flop_per_s, FP8_PREFILL_FACTOR.get(gpu.name, factor)
    return 2 * model.linear_parameters * tokens / deployment.tp / (rate * constants.prefill_efficiency * factor)


def _kv_s(deployment: Deployment, work: StepWork, constants: Constants) -> float:
    kv_bytes = work.kv_read_tokens * deployment.kv_bytes_per_token_per_card
    return kv_bytes / (deployment.gpu.bandwidth_bytes_per_s * constants.memory_efficiency)


def _attention_s(deployment: Deployment, work: StepWork, constants: Constants) -> float:
    """Prompt attention in blocks (heads x tiles of 128 queries), which run in whole rounds of one a multiprocessor.

    A chunk of few blocks leaves multiprocessors idle: of two rounds of 108, 112 blocks use 112 / 216.
    """
    if not work.prefill_tokens:
        return 0.0
    gpu, model, tp = deployment.gpu, deployment.model, deployment.tp
    blocks = model.heads // tp * -(-work.prefill_tokens // QUERY_TILE)
    filled = blocks / (gpu.multiprocessors * -(-blocks // gpu.multiprocessors))
    flop = work.prefill_pairs * model.attention_flop_per_pair / tp
    return flop / (gpu.bf16_flop_per_s * constants.attention_efficiency * filled)


def _all_reduce_s(deployment: Deployment, tokens: int) -> float:
    """Two all-reduces a layer: a fixed time each, and a ring's 2 (tp - 1) / tp of the 16-bit hidden states over the link."""
    model, gpu, tp = deployment.model, deployment.gpu, deployment.tp
    if tp == 1:
        return 0.0
    traffic = 2 * (tp - 1) / tp * tokens * model.hidden * 2 / gpu.interconnect_bytes_per_s
    return 2 * model.layers * (ALL_REDUCE_S[gpu.interconnect] + traffic)


def chunk_tokens(deployment: Deployment, total_tokens: int) -> int:
    """Prompt tokens of one prefill step, by the defaults of the engine versions that were calibrated.

    SGLang cuts prompts at 8,192 tokens. vLLM 0.6 prefills whole prompts up to a context of 32K, and beyond that in chunks of
    512 (its pull request 4580). For `other`: what the card was calibrated with, and vLLM's rule elsewhere.
    """
    engine = deployment.engine.removesuffix("-sim")
    if engine == "sglang" or (engine == "other" and "SGLang" in constants_of(deployment.gpu.name).source):
        return 8192
    return 512 if total_tokens > 32768 else 32768


def prefill_s(deployment: Deployment, prompt_tokens: int, chunk: int, constants: Constants | None = None) -> float:
    """Seconds from the first step of a lone prompt to its first token, in steps of `chunk` tokens; nothing is cached.

    A step is linear in its pairs, so the whole chunks take their number times the mean of the first and the last of them.
    """
    whole, rest = divmod(prompt_tokens, chunk)
    done = whole * chunk
    seconds = step_time_s(deployment, _chunk(done, rest), constants)
    if whole:
        ends = (_chunk(0, chunk), _chunk(done - chunk, chunk))
        seconds += whole * sum(step_time_s(deployment, end, constants) for end in ends) / 2
    return seconds


def _chunk(done: int, tokens: int) -> StepWork:
    return StepWork(prefill_tokens=tokens, prefill_pairs=tokens * done + tokens * (tokens + 1) // 2)


def decode_s(
    deployment: Deployment, prompt_tokens: int, steps: int, streams: int = 1, constants: Constants | None = None
) -> float:
    """Seconds of `steps` decoding steps of equal streams; the context starts at the prompt and its first token.

    It grows by one a step, and a step is linear in it: the sum is the number of steps times the step at the mean context.
    """
    doubled = streams * (2 * prompt_tokens + steps + 1)  # twice the mean context of all streams, a whole number
    low, high = (
        step_time_s(deployment, StepWork(decode_streams=streams, kv_read_tokens=context), constants)
        for context in (doubled // 2, doubled - doubled // 2)
    )
    return steps * (low + high) / 2


def request_s(deployment: Deployment, prompt_tokens: int, output_tokens: int, constants: Constants | None = None) -> float:
    """Seconds of one lone request, prefill included: what Qwen's tables divide their 2048 tokens by."""
    chunk = chunk_tokens(deployment, prompt_tokens + output_tokens)
    first = prefill_s(deployment, prompt_tokens, chunk, constants)
    return first + decode_s(deployment, prompt_tokens, output_tokens - 1, 1, constants)


def predict(deployment: Deployment, *, prompt_tokens: int, output_tokens: int, concurrency: int = 1) -> Prediction:
    """Predict a steady closed loop of `concurrency` equal streams; those that the KV cache cannot hold wait their turn.

    With R streams running, a request's cycle is R prefills (its own, and one of each other stream, which halts its decoding)
    and its decoding steps in a batch of R; with R < `concurrency` it first waits for the others: cycle x concurrency / R.
    A deployment that does not fit is predicted all the same, one stream at a time, with `fits` false and a line about it.
    Raises UsageError for counts below 1 or above a billion.
    """
    for name, count in (("prompt tokens", prompt_tokens), ("output tokens", output_tokens), ("concurrency", concurrency)):
        if not 1 <= count <= MOST_TOKENS:
            raise UsageError(f"{name} {count}: expected {'at least 1' if count < 1 else f'at most {MOST_TOKENS:,}'}")
    room = fit(deployment, context_tokens=prompt_tokens + output_tokens, concurrency=concurrency)
    running = _running(room)
    chunk = chunk_tokens(deployment, prompt_tokens + output_tokens)
    prefill = prefill_s(deployment, prompt_tokens, chunk)
    decode = decode_s(deployment, prompt_tokens, output_tokens - 1, running)
    cycle = running * prefill + decode
    final = cycle * concurrency / running
    tpot = (cycle - prefill) / (output_tokens - 1) if output_tokens > 1 else None
    width = _range(deployment)
    return Prediction(
        simulated=True,
        ttft_s=_estimate(final - cycle + prefill, width),
        tpot_s=None if tpot is None else _estimate(tpot, width),
        tokens_per_s_per_user=None if tpot is None else _estimate(1 / tpot, width),
        output_tokens_per_s=_estimate(running * output_tokens / cycle, width),
        time_to_final_answer_s=_estimate(final, width),
        fits=room.fits,
        running_streams=running,
        lines=_prediction_lines(deployment, room, prompt_tokens, output_tokens, prefill, decode, final),
    )


def _running(room: Fit) -> int:
    return max(1, min(room.concurrency, room.max_streams))


def _range(deployment: Deployment) -> float:
    if deployment.model.parameters < SMALL_PARAMETERS:
        return RANGE_SMALL
    known = deployment.gpu.name in CALIBRATED and deployment.tp == 1
    return RANGE_CALIBRATED if known else RANGE_OTHER


def _estimate(value: float, width: float) -> Estimate:
    return Estimate(value, value / (1 + width), value * (1 + width))


def _prediction_lines(
    deployment: Deployment, room: Fit, prompt_tokens: int, output_tokens: int, prefill: float, decode: float, final: float
) -> tuple[str, ...]:
    """The arithmetic of a prediction for a reader: what a decoding step is made of, and what the request comes to."""
    constants = constants_of(deployment.gpu.name)
    running = _running(room)
    work = StepWork(decode_streams=running, kv_read_tokens=running * (prompt_tokens + output_tokens // 2))
    weights, kv = _weights_s(deployment, constants), _kv_s(deployment, work, constants)
    launches = constants.step_s + deployment.model.layers * constants.layer_s
    reduces = _all_reduce_s(deployment, running)
    total = room.concurrency * output_tokens / final
    width = _range(deployment)
    return (
        f"{deployment.title}, {deployment.engine}: predicted, not measured; range +-{width:.0%}",
        f"  constants    {constants.source}"
        + ("" if deployment.gpu.name in CALIBRATED else "; this card is not calibrated"),
        f"  decode step  weights {weights * 1e3:.1f} ms + KV cache {kv * 1e3:.1f} ms + launches {launches * 1e3:.1f} ms"
        f" + all-reduces {reduces * 1e3:.1f} ms, {running} streams in a batch",
        f"  prefill      {prompt_tokens:,} tokens in {prefill:.3g} s (chunks of"
        f" {chunk_tokens(deployment, prompt_tokens + output_tokens):,})",
        f"  decode       {output_tokens - 1:,} steps in {decode:.4g} s",
        f"  in all       {total:.1f} tokens/s over {room.concurrency} streams, final answer after {final:.4g} s"
        f" (bound for one stream: {room.bound_tokens_per_s:.1f} tokens/s)",
        *([f"  does not fit: {room.reason}"] if room.reason else []),
    )
