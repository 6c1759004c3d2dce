"""Files beside the code (in a checkout at its top level, in an installed wheel inside the package), and small files that
somebody names."""

from __future__ import annotations

import errno
import shutil
import stat
from pathlib import Path

from loadtest.errors import LoadtestError, RecordError, UsageError

_PACKAGE = Path(__file__).resolve().parent
_PLACES = (_PACKAGE / "bundled", _PACKAGE.parent)
FOLDERS = ("scenarios", "launchers", "reports")
LARGEST_BYTES = 16 * 2**20  # of a description that people write


def small_file(named: Path) -> bytes:
    """What a small file holds. A run folder from elsewhere may have named it: raises OSError where it is a pipe or a device,
    which may have no end, or holds more than `LARGEST_BYTES`."""
    if not stat.S_ISREG(named.stat().st_mode):
        raise OSError(errno.EINVAL, "not a file", str(named))
    with named.open("rb") as stream:
        content = stream.read(LARGEST_BYTES + 1)
    if len(content) > LARGEST_BYTES:
        raise OSError(errno.EFBIG, f"more than {LARGEST_BYTES >> 20} MiB", str(named))
    return content


def path(name: str) -> Path:
    """Path of a file or folder of `scenarios/`, `launchers/` or `reports/`, such as `reports/templates/style.css`.

    >>> path("scenarios").name
    'scenarios'
    """
    for place in _PLACES:
        if (place / name).exists():
            return place / name
    raise LoadtestError(
        f"{name}: expected it inside the installed package or the checkout, found it in neither; reinstall loadtest"
    )


def copy_to(directory: Path) -> tuple[Path, ...]:
    """Copy scenarios, launchers and reports into `directory`, for editing; the folders made.

    Raises `UsageError` where one of them is there already: nothing is written over. `RecordError`: the disk refuses.
    """
    made = tuple(directory / name for name in FOLDERS)
    taken = next((folder for folder in made if folder.exists()), None)
    if taken is not None:
        raise UsageError(f"{taken}: expected no such folder, as nothing is written over, got one; name another directory")
    leave = shutil.ignore_patterns("__pycache__", "*.pyc", "examples")
    try:
        for folder in made:
            shutil.copytree(path(folder.name), folder, ignore=leave)
    except OSError as error:
        raise RecordError(f"{directory}: cannot copy: {error}") from error
    return made
