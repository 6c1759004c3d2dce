"""Calls of tools put together from the pieces of a stream, however these are cut, and whatever a server leaves out.

A piece belongs to the call with its `index`; without an index, to the last call. It begins a call where its index is new, or
its `id` is not that of the call there (some servers give every call index 0). The first name that comes is the name. Pieces
that say nothing (no id, no name, no arguments) are no output.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from loadtest.client.sse import CallPiece
from loadtest.records.schema import ToolCall


class _Call:
    __slots__ = ("arguments", "first", "id", "last", "name")

    def __init__(self, chunk: int) -> None:
        self.id: str | None = None
        self.name = ""
        self.arguments: list[str] = []
        self.first = self.last = chunk


class CallAssembler:
    """The calls of one stream so far. `chunk` counts the chunks of output."""

    __slots__ = ("_at", "_calls")

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._at: dict[int, _Call] = {}  # by index; the newest where several have it

    def take(self, chunk: int, pieces: Sequence[CallPiece]) -> bool:
        """Add what a chunk brings; whether that is any output."""
        said = False
        for piece in pieces:
            said |= self._add(chunk, piece)
        return said

    def _add(self, chunk: int, piece: CallPiece) -> bool:
        function = piece.function
        name = (function.name or "") if function else ""
        arguments = _text_of(function.arguments) if function else ""
        if not (piece.id or name or arguments):
            return False
        call = self._call_of(chunk, piece)
        call.id = call.id or piece.id
        call.name = call.name or name
        if arguments:
            call.arguments.append(arguments)
        call.last = chunk
        return True

    def _call_of(self, chunk: int, piece: CallPiece) -> _Call:
        known = self._calls[-1] if piece.index is None and self._calls else self._at.get(piece.index or 0)
        if known is None or (piece.id and known.id and piece.id != known.id):
            known = self._at[len(self._calls) if piece.index is None else piece.index] = _Call(chunk)
            self._calls.append(known)
        return known

    @property
    def first_chunk(self) -> int:
        """Index of the chunk with which the first call began."""
        return self._calls[0].first

    def end(self) -> tuple[ToolCall, ...]:
        """The calls, in the order in which they began."""
        return tuple(
            ToolCall(name=one.name, arguments="".join(one.arguments), first_chunk=one.first, last_chunk=one.last, id=one.id)
            for one in self._calls
        )


def _text_of(arguments: object) -> str:
    """Arguments as text; some servers send them whole, as an object."""
    if arguments is None or isinstance(arguments, str):
        return arguments or ""
    return msgspec.json.encode(arguments).decode()
