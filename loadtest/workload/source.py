"""Where prompts of one's own come from: `FILE[:key=value,...]`, or `hf:ID[:key=value,...]` for a Hugging Face data set.

=============  ======================================================================================================
prompt-key     the column, or key of each row, that holds the prompt (a text, chat messages, or ShareGPT turns)
answer-key     that of the answer
turns          `first` (usual), or `all`: every human turn of a ShareGPT conversation, asked after the answer before it
n              the first so many rows
split, config  of a data set (`test`; the only configuration)
=============  ======================================================================================================
"""

from __future__ import annotations

import csv
import difflib
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import msgspec

from loadtest.errors import UsageError
from loadtest.workload import formats
from loadtest.workload.prompts import Prompt, quoted

HUB = "hf"
_KEYS = ("prompt-key", "answer-key", "turns", "n", "split", "config")
_CELL_CHARS = 2**27  # of CSV: a prompt of a hundred thousand tokens has more than the module's limit of 131,072

Row = tuple[str, Any]  # where it is, and what it holds


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSource:
    """A file, or the id of a data set, and how its rows are read."""

    place: str
    hub: bool = False
    prompt_key: str | None = None
    answer_key: str | None = None
    turns: Literal["first", "all"] = "first"
    n: int | None = None
    split: str = "test"
    config: str | None = None

    @property
    def is_table(self) -> bool:
        """Has each row a value for every key?"""
        return self.hub or Path(self.place).suffix in (".csv", ".tsv", ".parquet")

    @property
    def name(self) -> str:
        return self.place.rpartition("/")[2] if self.hub else Path(self.place).stem


def keyed(spec: str, prompt_key: str | None, answer_key: str | None, speed_up: float | None = None) -> str:
    """A spec with the keys, and the speed-up of a trace, that the command line names.

    >>> keyed("tasks.csv", "question", "answer"), keyed("tasks.csv:n=9", "question", None), keyed("math", None, None)
    ('tasks.csv:prompt-key=question,answer-key=answer', 'tasks.csv:n=9,prompt-key=question', 'math')
    """
    factor = None if speed_up is None else f"{speed_up:g}"
    given = (("prompt-key", prompt_key), ("answer-key", answer_key), ("speed-up", factor))
    more = ",".join(f"{key}={value}" for key, value in given if value)
    if not more:
        return spec
    return f"{spec}{',' if _options(spec) else ':'}{more}"


def find(spec: str) -> PromptSource | None:
    """The source that a spec names; None where it names neither a file nor a data set. Raises `UsageError` by key."""
    place, options = spec, _options(spec)
    if os.path.isfile(spec):
        return PromptSource(place=spec)
    if options:
        place = spec[: -len(options) - 1]
    hub = place.startswith(f"{HUB}:")
    if not hub and not os.path.isfile(place):
        return None
    source = PromptSource(place=place.removeprefix(f"{HUB}:"), hub=hub)
    for item in options.split(",") if options else ():
        key, _, value = item.partition("=")
        source = replace(source, **_checked(spec, key.strip(), value.strip()))
    return source


def _options(spec: str) -> str:
    """`key=value,...` at the end of a spec; empty without."""
    _, _, last = spec.rpartition(":")
    return last if last != spec and "=" in last and "/" not in last.partition("=")[0] else ""


def _checked(spec: str, key: str, value: str) -> dict[str, Any]:
    if key not in _KEYS:
        near = difflib.get_close_matches(key, _KEYS, n=1)
        step = f"did you mean {near[0]!r}?" if near else "remove it"
        raise UsageError(f"workload {spec!r}: {key}: expected one of {', '.join(_KEYS)}, got {key!r}; {step}")
    if key == "n":
        if not value.isascii() or not value.isdigit() or not 0 < int(value) <= 10**7:
            raise UsageError(f"workload {spec!r}: n: expected a whole number from 1 up, got {value!r}; change it")
        return {"n": int(value)}
    if not value or (key == "turns" and value not in ("first", "all")):
        expected = "first or all" if key == "turns" else "a name"
        raise UsageError(f"workload {spec!r}: {key}: expected {expected}, got {value!r}; change it")
    return {key.replace("-", "_"): value}


def read_prompts(source: PromptSource) -> Iterator[Prompt]:
    """The prompts of a source, in its order. Raises `UsageError` that names file, row and key."""
    rows = _of_hub(source) if source.hub else _of_file(Path(source.place))
    for number, (where, row) in enumerate(islice(rows, source.n), start=1):
        if not isinstance(row, dict):
            raise UsageError(f"{where}: expected a JSON object, got {type(row).__name__}; write one object per line")
        try:
            yield formats.prompt_of(_by_keys(row, source), f"p{number:04d}", all_turns=source.turns == "all")
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None


def _by_keys(row: dict[str, Any], source: PromptSource) -> dict[str, Any]:
    """The row with what the named keys hold as prompt and answer; an empty cell of a table is left out."""
    if source.prompt_key is None and source.answer_key is None:
        return {key: value for key, value in row.items() if value is not None} if source.is_table else row
    kept = {key: value for key, value in row.items() if key in ("id", "arrival_s")}
    asked = _held(row, source.prompt_key or "prompt")
    if isinstance(asked, list):
        is_dialogue = bool(asked) and isinstance(asked[0], dict) and "from" in asked[0]
        kept["conversations" if is_dialogue else "messages"] = asked
    else:
        kept["prompt"] = asked
    if source.answer_key is not None:
        kept["answer"] = _held(row, source.answer_key)
    return kept


def _held(row: dict[str, Any], key: str) -> Any:
    if key not in row:
        near = difflib.get_close_matches(key, list(row), n=1)
        step = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"{key}: expected one of the keys {', '.join(map(repr, row))}{step}")
    return row[key]


# Files ---------------------------------------------------------------------------------------------------------------


def _of_file(path: Path) -> Iterator[Row]:
    if path.suffix == ".parquet":
        yield from _parquet(path)
        return
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot read: {error.strerror}") from error
    content = content.removeprefix(b"\xef\xbb\xbf")
    if path.suffix in (".csv", ".tsv"):
        yield from _csv(content, path)
    elif content.lstrip()[:1] == b"[" and path.suffix != ".txt":
        yield from ((f"{path}: item {n}", row) for n, row in enumerate(_decode(content, f"{path}"), start=1))
    else:
        read = _plain if path.suffix == ".txt" else _decode
        for number, line in enumerate(content.split(b"\n"), start=1):
            if line.strip():
                yield f"{path}:{number}", read(line, f"{path}:{number}")


def _plain(text: bytes, where: str) -> dict[str, str]:
    return {"prompt": _utf8(text, where).strip()}


def _utf8(text: bytes, where: str) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: expected text in UTF-8, got something else: {error}") from None


def _decode(text: bytes, where: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{where}: expected JSON, got something else: {error}; write one object per line") from None


def _csv(content: bytes, path: Path) -> Iterator[Row]:
    """Rows of a table with a first line of names; an empty cell is None."""
    csv.field_size_limit(_CELL_CHARS)
    table = csv.reader(io.StringIO(_utf8(content, str(path)), newline=""), delimiter="\t" if path.suffix == ".tsv" else ",")
    try:
        names = next(table, [])
        for cells in table:
            where = f"{path}:{table.line_num}"
            if len(cells) > len(names):
                raise UsageError(
                    f"{where}: expected {len(names)} cells, as the first line has, got {len(cells)}; quote commas"
                )
            yield where, {name: cell or None for name, cell in zip(names, cells, strict=False)}
    except csv.Error as error:
        raise UsageError(f"{path}:{table.line_num}: expected CSV, got something else: {error}") from None


def _parquet(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UsageError(f"{path}: needs the pyarrow package; pip install pyarrow") from None
    try:
        with parquet.ParquetFile(path) as table:
            rows = (row for batch in table.iter_batches() for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                yield f"{path}: row {number}", row
    except (ArrowException, OSError) as error:
        raise UsageError(f"{path}: expected a Parquet file, got something else: {_first_line(error)}") from None


# Hugging Face --------------------------------------------------------------------------------------------------------


def _of_hub(source: PromptSource) -> Iterator[Row]:
    """Rows of a data set, from the network or from the cache of an earlier download."""
    where = f"{HUB}:{source.place}"
    try:
        import datasets
    except ImportError:
        raise UsageError(f"{where}: needs the datasets package; pip install datasets") from None
    datasets.disable_progress_bars()
    try:
        rows: Iterable[Any] = datasets.load_dataset(source.place, source.config, split=source.split)
    except Exception as error:  # the package raises whatever its storage, its cache or the network does
        raise UsageError(
            f"{where}: expected a data set with a split {quoted(source.split)}, in the cache or from the network:"
            f" {type(error).__name__}: {_first_line(error)}; name split= and config=, or download it first"
        ) from None
    yield from ((f"{where}: row {number}", row) for number, row in enumerate(rows, start=1))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]
