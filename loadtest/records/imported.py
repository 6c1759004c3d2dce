"""What a run says of itself that another tool measured: the tool, its files, its own figures, and what it does not tell."""

from __future__ import annotations

from typing import Annotated

import msgspec

from loadtest.records.schema import about


class ToldFigure(msgspec.Struct, frozen=True):
    """A figure as the tool computed it, by its own definition; without an interval."""

    name: Annotated[str, about("What the tool calls it.")]
    value: Annotated[float, about("As its file has it.")]


class ImportedPass(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement in a file of the tool: what became one pass over one level."""

    file: Annotated[str, about("Name of the file.")]
    sha256: Annotated[str, about("Of the file.")]
    concurrency: Annotated[int, about("Level: requests in flight at once; of an open loop the most that were.")]
    repeat: Annotated[int, about("Number of the pass at this level, from 1.")]
    n_requests: Annotated[int, about("Requests with an entry of their own; 0: the file has totals alone.")]
    date: Annotated[str | None, about("As the file has it; None: it has none.")] = None
    figures: Annotated[tuple[ToldFigure, ...], about("The tool's own figures.")] = ()


class NotTold(msgspec.Struct, frozen=True):
    """Something that the files do not hold, and what is unknown for it."""

    what: Annotated[str, about("What is missing.")]
    so: Annotated[str, about("What is unknown on the page.")]


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """Where an imported run is from."""

    tool: Annotated[str, about("Name of the tool.")]
    version: Annotated[str | None, about("Its version; None: its files do not tell.")]
    passes: tuple[ImportedPass, ...]
    not_told: Annotated[tuple[NotTold, ...], about("What its files do not hold; nothing of it is guessed.")]
    notes: Annotated[tuple[str, ...], about("Where its definitions differ from ours.")] = ()

    @property
    def name(self) -> str:
        """Tool and version.

        >>> Imported(tool="AIPerf", version="0.13.0", passes=(), not_told=()).name
        'AIPerf 0.13.0'
        """
        return self.tool if self.version is None else f"{self.tool} {self.version}"
