"""`locust -f SCENARIO --help` with the options of the scenario: Locust itself prints its help before it loads any."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path


def load_for_help(argv: Sequence[str]) -> None:
    """Load the scenarios of a command line of Locust that asks for help, so that they add their options to it.

    Locustfiles that do not mention loadtest are left alone.
    """
    for path in _scenarios_of(argv):
        from locust.util.load_locustfile import load_locustfile

        load_locustfile(str(path))


def _scenarios_of(argv: Sequence[str]) -> Iterator[Path]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("-f", "--locustfile", default="locustfile.py")
    asked, _ = parser.parse_known_args(argv)
    for name in asked.locustfile.split(",") if asked.help else ():
        path = Path(name.strip())
        if path.suffix == ".py" and path.is_file() and b"loadtest" in path.read_bytes():
            yield path
