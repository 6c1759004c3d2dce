"""One record of one request, from what was asked, when, and what came back: on sockets and in virtual time alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from loadtest.client.reply import Reply
from loadtest.grading import answers, forms
from loadtest.records.schema import (
    ANSWER_LIMIT_BYTES,
    FINISHED,
    TOOL_CALLS_KEPT,
    RequestRecord,
    StampSource,
    ToolCall,
)
from loadtest.workload.script import Item, Prepared

_NAME_BYTES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """When a request was due, was sent, got its headers and ended (offsets, s), how long it took to connect (s), how often
    it was sent anew, how its times were taken, and which of several servers it went to (`RequestRecord`)."""

    scheduled_s: float
    sent_s: float | None
    headers_s: float | None
    ended_s: float
    connect_s: float = 0.0
    resends: int = 0
    stamped_by: StampSource | None = None
    unread_s: float | None = None
    write_s: float | None = None
    endpoint: str | None = None
    replica: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordBuilder:
    """Builds the records of one process in one pass. `judges`: answers are compared with the expected ones."""

    run_id: str
    cell: str
    concurrency: int
    repeat: int
    worker: str
    clock_anchor_unix_s: float
    clock_speed: float
    judges: bool

    def build(self, item: Item, user: int, sent: Sending, got: Reply) -> RequestRecord:
        prepared = item.prepared
        answer = cut(got.answer, ANSWER_LIMIT_BYTES)
        return RequestRecord(
            run_id=self.run_id,
            cell=self.cell,
            concurrency=self.concurrency,
            repeat=self.repeat,
            phase=item.phase,
            worker=self.worker,
            user=user,
            seq=item.seq,
            prompt_id=prepared.prompt.id,
            scheduled_s=round(sent.scheduled_s, 7),
            sent_s=None if sent.sent_s is None else round(sent.sent_s, 7),
            headers_s=None if sent.headers_s is None else round(sent.headers_s, 7),
            chunk_s=got.chunk_s,
            chunk_tokens=got.chunk_tokens,
            first_answer_chunk=got.first_answer_chunk,
            ended_s=round(sent.ended_s, 7),
            prompt_tokens=got.prompt_tokens,
            completion_tokens=got.completion_tokens,
            reasoning_tokens=got.reasoning_tokens,
            cached_tokens=got.cached_tokens,
            token_count_source=got.token_count_source,
            text_bytes=got.text_bytes,
            text_tokens=got.text_tokens,
            finish_reason=got.finish_reason,
            outcome=got.outcome,
            error=got.error,
            answer=answer,
            answer_correct=self._judged(item, got),
            request_sha256=prepared.sha256,
            clock_anchor_unix_s=self.clock_anchor_unix_s,
            clock_speed=self.clock_speed,
            connect_s=round(sent.connect_s, 7),
            thinking_field=got.thinking_field,
            think_closed=got.think_closed,
            resends=sent.resends,
            output_end=None if got.outcome == "ok" and answer == got.answer else got.output_end,
            forced_tokens=prepared.forced_tokens,
            prompt_chars=prepared.prompt.chars,
            asked_prompt_tokens=prepared.prompt.prompt_tokens,
            task=None if item.turn is None else item.index,
            turn=item.turn,
            task_turns=None if item.turn is None else item.turns,
            burst=item.burst,
            endpoint=sent.endpoint,
            replica=sent.replica,
            stamped_by=sent.stamped_by,
            unread_s=_rounded(sent.unread_s),
            write_s=_rounded(sent.write_s),
            late_chunks=got.late_chunks,
            output_form=prepared.prompt.output_form,
            form_valid=_form_valid(prepared, got),
            tool_calls=kept_calls(got.tool_calls),
        )

    def _judged(self, item: Item, got: Reply) -> bool | None:
        """Is the answer right? None: there is none, or nothing to compare it with."""
        prompt = item.prepared.prompt
        if not self.judges or got.outcome != "ok" or not (got.answer or got.tool_calls):
            return None
        if prompt.answer_format == "call" and prompt.answer is not None:
            return forms.is_right_call(got.tool_calls, prompt.answer)
        return answers.check(got.answer or "", prompt)


def _form_valid(prepared: Prepared, got: Reply) -> bool | None:
    """Has a finished output its form? None: none is asked for, or a forced length may have cut it anywhere."""
    if got.outcome not in FINISHED or prepared.forced_tokens is not None:
        return None
    return forms.has_form(prepared.prompt, got.tool_calls, got.answer)


def kept_calls(calls: Sequence[ToolCall]) -> tuple[ToolCall, ...]:
    """The calls as a record keeps them: the first few, names and arguments cut as answers are."""
    return tuple(
        replace(
            one, name=cut(one.name, _NAME_BYTES) or "", arguments=cut(one.arguments, ANSWER_LIMIT_BYTES) or "",
            id=cut(one.id, _NAME_BYTES),
        )
        for one in calls[:TOOL_CALLS_KEPT]
    )  # fmt: skip


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 7)


def cut(text: str | None, limit_bytes: int) -> str | None:
    """The start of a text, in at most so many bytes of UTF-8, no character broken.

    >>> cut("añb", 2)
    'a'
    """
    if text is None or len(text) * 4 <= limit_bytes:
        return text
    return text.encode("utf-8", "replace")[:limit_bytes].decode("utf-8", "ignore")
