"""Load tests for long-reasoning models on SGLang and vLLM: every token timed, every long request kept.

What a notebook needs is here; each name is loaded when it is asked for. `loadtest.scenario` has what a locustfile needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loadtest.analysis.capacity import plan as plan
    from loadtest.analysis.export import to_frame as to_frame
    from loadtest.analysis.run import analyze as analyze
    from loadtest.perfmodel.gpus import gpu as gpu
    from loadtest.perfmodel.memory import Deployment as Deployment
    from loadtest.perfmodel.memory import fit as fit
    from loadtest.perfmodel.models import model as model
    from loadtest.records.read import read_run as read_run

__version__ = "0.1.0"

_HOMES = {
    "Deployment": "perfmodel.memory",
    "analyze": "analysis.run",
    "fit": "perfmodel.memory",
    "gpu": "perfmodel.gpus",
    "model": "perfmodel.models",
    "plan": "analysis.capacity",
    "read_run": "records.read",
    "to_frame": "analysis.export",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
