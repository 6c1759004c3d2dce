"""Where the files beside the code are: in a checkout at its top level, in an installed wheel inside the package."""

from __future__ import annotations

from pathlib import Path

from loadtest.errors import LoadtestError

_PACKAGE = Path(__file__).resolve().parent
_PLACES = (_PACKAGE / "bundled", _PACKAGE.parent)


def path(name: str) -> Path:
    """Path of a file or folder of `scenarios/`, `launchers/` or `reports/`, such as `reports/style.css`.

    >>> path("scenarios").name
    'scenarios'
    """
    for place in _PLACES:
        if (place / name).exists():
            return place / name
    raise LoadtestError(
        f"{name}: expected it inside the installed package or the checkout, found it in neither; reinstall loadtest"
    )
