"""`python -P -m loadtest.scenario` is `locust` that obeys its command line alone.

No configuration file, no `LOCUST_*` variable, and no module of the current folder changes what is measured.
"""

from __future__ import annotations

import functools
import os
import types

_KEPT = "LOCUST_ENABLE_OPENTELEMETRY"  # changes nothing that is measured


def main() -> None:
    """Run Locust; it ends the process."""
    for name in [name for name in os.environ if name.startswith("LOCUST_") and name != _KEPT]:
        del os.environ[name]
    from locust import argument_parser  # after that: some variables count when Locust is imported
    from locust.util import load_locustfile

    parsers = vars(argument_parser)
    for name in ("get_empty_argument_parser", "get_parser"):
        parsers[name] = functools.partial(parsers[name], default_config_files=())
    vars(load_locustfile)["os"] = _without_current_folder()

    from locust.main import main as run_locust

    run_locust()  # type: ignore[no-untyped-call]


def _without_current_folder() -> types.SimpleNamespace:
    """`os` for Locust's loader, which would put the current folder before the standard library: it puts nothing there."""
    return types.SimpleNamespace(**vars(os) | {"getcwd": lambda: os.devnull})


if __name__ == "__main__":
    main()
