"""`export` and `bundle`: a run for other programs, and for other people."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from loadtest.errors import LoadtestError, UsageError
from loadtest.records import bundle as bundles
from loadtest.records.read import read_run
from loadtest.records.write import write_new

if TYPE_CHECKING:
    from loadtest.study.execution import Say

FORMATS = (".parquet", ".csv", ".prom")


def export(arguments: argparse.Namespace, say: Say) -> str:
    """Requests as Parquet or CSV, figures as OpenMetrics, by the ending of the file."""
    target: Path = arguments.output
    if target.suffix not in FORMATS:
        raise UsageError(f"--output: expected a file that ends with {', '.join(FORMATS)}, got {target.name!r}")
    with bundles.unpacked(arguments.run) as folder:
        try:
            content, what = _content(folder, target.suffix)
        except ImportError as error:
            raise LoadtestError(f"{target.suffix}: {error}; install reasoning-loadtest[export]") from None
    write_new(target, content)
    return f"{target}: {what}"


def _content(folder: Path, suffix: str) -> tuple[bytes, str]:
    from loadtest.analysis import export
    from loadtest.analysis.run import analyze

    run = read_run(folder)
    if suffix == ".prom":
        text = export.to_openmetrics(analyze(run))
        return text.encode(), f"{sum(not line.startswith('#') for line in text.splitlines())} figures"
    frame = export.to_frame(run)
    if suffix == ".parquet":
        return bytes(frame.to_parquet(index=False)), f"{len(frame)} requests"
    return frame.to_csv(index=False).encode(errors="backslashreplace"), f"{len(frame)} requests"


def bundle(arguments: argparse.Namespace, say: Say) -> str:
    """A run folder as one file."""
    run: Path = arguments.run
    target = arguments.output or run.resolve().with_name(run.resolve().name + bundles.SUFFIX)
    listed = bundles.pack(run, target, redact=arguments.redact, hidden=arguments.hide)
    return f"{target}: {len(listed.files)} files, {target.stat().st_size / 1e6:.2f} MB" + (
        "; names are replaced: search it for what else must not be known" if listed.redacted else ""
    )
