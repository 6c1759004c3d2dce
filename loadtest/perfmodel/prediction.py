"""What equal streams see of a deployment in a steady closed loop, with the range that the model's errors allow."""

from __future__ import annotations

from dataclasses import dataclass, replace

from loadtest.errors import UsageError
from loadtest.perfmodel import ranges
from loadtest.perfmodel.constants import is_calibrated, request_overhead_s
from loadtest.perfmodel.memory import MOST_TOKENS, Deployment, Fit, fit
from loadtest.perfmodel.step_time import StepWork, beside_s, chunk_tokens, decode_s, prefill_s, step_time


@dataclass(frozen=True, slots=True)
class PredictedRange:
    """A predicted value, and the range that the errors of predictions of its class have."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """What equal streams see in a steady closed loop; `simulated` is always true, so that nobody takes it for measured.

    `ttft_s`, `tpot_s` (mean gap after the first token; None for one token), `tokens_per_s_per_user` = 1 / tpot_s,
    `output_tokens_per_s` over all streams, prefill included, `time_to_final_answer_s` of one stream, from send to last
    token. `fits` is that of `Fit`, `running_streams` how many the KV cache lets run at once, `evidence` what the ranges rest
    on, `lines` the arithmetic.
    """

    simulated: bool
    ttft_s: PredictedRange
    tpot_s: PredictedRange | None
    tokens_per_s_per_user: PredictedRange | None
    output_tokens_per_s: PredictedRange
    time_to_final_answer_s: PredictedRange
    fits: bool
    running_streams: int
    evidence: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RequestCycle:
    """The times of one request in a steady closed loop of R equal streams (seconds)."""

    running: int
    request_s: float  # HTTP, tokeniser and scheduler
    prefill_s: float
    halted_s: float  # by the prompts of the other streams
    decode_s: float

    @property
    def total_s(self) -> float:
        """From its send to its last token, where none waits for room."""
        return self.request_s + self.prefill_s + self.halted_s + self.decode_s


def cycle(deployment: Deployment, prompt_tokens: int, output_tokens: int, running: int) -> RequestCycle:
    """One request among `running` equal ones: its own prefill, what the others' prompts take, its decoding steps."""
    chunk = chunk_tokens(deployment, prompt_tokens + output_tokens)
    own_s = prefill_s(deployment, prompt_tokens, chunk)
    others = running - 1
    each_s = beside_s(deployment, prompt_tokens, chunk, others, prompt_tokens + output_tokens // 2) if others else 0.0
    decode = decode_s(deployment, prompt_tokens, output_tokens - 1, running)
    return RequestCycle(running, request_overhead_s(deployment.engine), own_s, others * each_s, decode)


def predict(deployment: Deployment, *, prompt_tokens: int, output_tokens: int, concurrency: int = 1) -> Prediction:
    """Predict a steady closed loop of `concurrency` equal streams; those that the KV cache cannot hold wait their turn.

    With R streams running, each request is delayed once by the prompt of every other stream; with R < `concurrency` it first
    waits for the others: cycle x concurrency / R. A deployment that does not fit is predicted all the same, one stream at a
    time, with `fits` false and a line about it. Raises UsageError for counts below 1 or above a billion.
    """
    for name, count in (("prompt tokens", prompt_tokens), ("output tokens", output_tokens), ("concurrency", concurrency)):
        if not 1 <= count <= MOST_TOKENS:
            raise UsageError(f"{name} {count}: expected {'at least 1' if count < 1 else f'at most {MOST_TOKENS:,}'}")
    room = fit(deployment, context_tokens=prompt_tokens + output_tokens, concurrency=concurrency)
    times = cycle(deployment, prompt_tokens, output_tokens, max(1, min(concurrency, room.max_streams)))
    final = times.total_s * concurrency / times.running
    tpot = (times.halted_s + times.decode_s) / (output_tokens - 1) if output_tokens > 1 else None
    error = ranges.error_of(deployment, times.running)
    return Prediction(
        simulated=True,
        ttft_s=_with_request(final - times.total_s + times.prefill_s, times.request_s, error.half_width),
        tpot_s=None if tpot is None else around(tpot, error.half_width),
        tokens_per_s_per_user=None if tpot is None else around(1 / tpot, error.half_width),
        output_tokens_per_s=around(times.running * output_tokens / times.total_s, error.half_width),
        time_to_final_answer_s=_with_request(final - times.request_s, times.request_s, error.half_width),
        fits=room.fits,
        running_streams=times.running,
        evidence=error.evidence,
        lines=_lines(deployment, room, (prompt_tokens, output_tokens), times, final),
    )


def around(value: float, half_width: float) -> PredictedRange:
    """The range of a value that may be off by this ratio in either direction.

    >>> around(10.0, 0.25)
    PredictedRange(value=10.0, low=8.0, high=12.5)
    """
    return PredictedRange(value, value / (1 + half_width), value * (1 + half_width))


def _with_request(value: float, request: float, half_width: float) -> PredictedRange:
    """A range with the time of the request itself, which hosts have from none of to twice as much."""
    told = around(value, half_width)
    return PredictedRange(value + request, told.low, told.high + 2 * request)


def _lines(deployment: Deployment, room: Fit, tokens: tuple[int, int], times: RequestCycle, final: float) -> tuple[str, ...]:
    """The arithmetic of a prediction for a reader: what a decoding step is made of, and what the request comes to."""
    (prompt_tokens, output_tokens), running, constants = tokens, times.running, deployment.constants
    work = StepWork(decode_streams=running, kv_read_tokens=running * (prompt_tokens + output_tokens // 2))
    step = step_time(deployment, work, constants)
    total = room.concurrency * output_tokens / final
    error = ranges.error_of(deployment, running)
    return (
        f"{deployment.title}, {deployment.engine}: predicted, not measured",
        f"  range        x{1 + error.half_width:.2f}: {error.evidence}",
        f"  engine       {constants.engine.source}",
        f"  GPU          {'' if is_calibrated(deployment.gpu.name) else 'as the '}{constants.gpu.source}",
        f"  figures      {deployment.gpu.source}{_unverified(deployment.gpu.unverified)}; {deployment.model.source}",
        *([f"  interconnect {ranges.topology_title(deployment.topology)}"] if deployment.tp > 1 else []),
        *([f"  machine      {constants.machine.source}"] if constants.machine.source else []),
        f"  decode step  weights {step.weights_s * 1e3:.1f} ms + KV cache {step.kv_s * 1e3:.1f} ms + overhead"
        f" {step.overhead_s * 1e3:.1f} ms + all-reduces {step.all_reduce_s * 1e3:.1f} ms, {running} streams in a batch",
        *_speculation_lines(deployment, prompt_tokens, output_tokens, running),
        f"  prefill      {prompt_tokens:,} tokens in {times.prefill_s:.3g} s (chunks of"
        f" {chunk_tokens(deployment, prompt_tokens + output_tokens):,}); those of other streams delay a request"
        f" {times.halted_s:.3g} s",
        f"  request      {times.request_s * 1e3:.0f} ms of HTTP, tokeniser and scheduler",
        f"  decode       {output_tokens - 1:,} steps in {times.decode_s:.4g} s",
        f"  in all       {total:.1f} tokens/s over {room.concurrency} streams, final answer after {final:.4g} s"
        f" (bound for one stream: {room.bound_tokens_per_s:.1f} tokens/s)",
        *([f"  does not fit: {room.reason}"] if room.reason else []),
    )


def _unverified(figures: str) -> str:
    return f" (not verified: {figures})" if figures else ""


def _speculation_lines(deployment: Deployment, prompt_tokens: int, output_tokens: int, running: int) -> list[str]:
    """What drafting gains at this batch."""
    drafts = deployment.speculation
    if drafts is None or output_tokens < 2:
        return []
    without, with_drafts = (
        decode_s(one, prompt_tokens, output_tokens - 1, running)
        for one in (replace(deployment, speculation=None), deployment)
    )
    return [
        f"  speculation  {drafts.accepted_tokens:g} tokens a step of {drafts.draft_tokens} drafted in"
        f" {drafts.draft_steps} passes: x{without / with_drafts:.2f} at this batch"
    ]
