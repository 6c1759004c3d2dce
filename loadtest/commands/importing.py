"""`import`: result files of another tool, or a bundle of ours, as a run folder."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from loadtest.commands.finish import analyze_run, as_json, decision_table, new_folder, write_page
from loadtest.errors import UsageError
from loadtest.records.bundle import is_bundle, unpack
from loadtest.records.peers.catalogue import read_result
from loadtest.records.peers.run_folder import Said, write_imported_run

if TYPE_CHECKING:
    from loadtest.study.execution import Say

MOST_FILES = 1000
_SAID = ("engine", "model", "tp", "gpu", "mode", "concurrency")  # what a user says of another tool's files


def import_results(arguments: argparse.Namespace, say: Say) -> str:
    """A run folder, its figures and its page, from files that another tool wrote, or from a bundle."""
    files: list[Path] = arguments.files
    if is_bundle(files[0]):
        return _shown(_unpacked_run(arguments), as_json_text=arguments.json)
    if len(files) > MOST_FILES:
        raise UsageError(f"import: expected at most {MOST_FILES} files, got {len(files)}; import fewer")
    for name in ("tp", "concurrency"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise UsageError(f"--{name}: expected a number from 1 up, got {value}")
    tolds = [read_result(path) for path in files]
    out: Path = arguments.out or new_folder(f"import-{tolds[0].reader.tool}")
    said = Said(
        engine=arguments.engine,
        model=arguments.model,
        tp=arguments.tp,
        gpu=arguments.gpu,
        concurrency=arguments.concurrency,
        mode=arguments.mode,
    )
    write_imported_run(out, tolds, said, shlex.join(["loadtest", "import", *(path.name for path in files)]))
    return _shown(out, as_json_text=arguments.json)


def _unpacked_run(arguments: argparse.Namespace) -> Path:
    """The folder of a bundle's run, which tells its engine, model and GPUs itself."""
    files: list[Path] = arguments.files
    said = [f"--{name}" for name in _SAID if getattr(arguments, name) is not None]
    if len(files) > 1 or said:
        raise UsageError(
            f"import: expected a bundle alone, as it tells all of its run, got {' '.join([*said, *map(str, files[1:])])}"
        )
    out: Path = arguments.out or new_folder(f"import-{files[0].stem}")
    unpack(files[0], out)
    return out


def _shown(out: Path, *, as_json_text: bool) -> str:
    metrics = analyze_run(out)
    page = out / "report.html"
    write_page(out, metrics, page)
    return as_json(metrics) if as_json_text else f"{decision_table(out, metrics)}\n{page}"
