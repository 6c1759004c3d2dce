"""What a locustfile needs: users, load shapes and options. Names are imported, and Locust with them, on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from loadtest.credentials import keep_from_dumps

if TYPE_CHECKING:
    from loadtest.scenario.bursts import BurstUser as BurstUser
    from loadtest.scenario.bursts import add_burst_options as add_burst_options
    from loadtest.scenario.dialogue import DialogueUser as DialogueUser
    from loadtest.scenario.open_loop import OpenLoopUser as OpenLoopUser
    from loadtest.scenario.open_loop import add_open_loop_options as add_open_loop_options
    from loadtest.scenario.open_loop import with_options as with_options
    from loadtest.scenario.options import default_workload as default_workload
    from loadtest.scenario.ramp import Stairs as Stairs
    from loadtest.scenario.ramp import add_stairs_options as add_stairs_options
    from loadtest.scenario.router import RouterUser as RouterUser
    from loadtest.scenario.router import add_router_options as add_router_options
    from loadtest.scenario.user import Messages as Messages
    from loadtest.scenario.user import ReasoningUser as ReasoningUser
    from loadtest.scenario.user import answered as answered

_HOMES = {
    "BurstUser": "bursts",
    "DialogueUser": "dialogue",
    "Messages": "user",
    "OpenLoopUser": "open_loop",
    "ReasoningUser": "user",
    "RouterUser": "router",
    "Stairs": "ramp",
    "add_burst_options": "bursts",
    "add_open_loop_options": "open_loop",
    "add_router_options": "router",
    "add_stairs_options": "ramp",
    "answered": "user",
    "default_workload": "options",
    "with_options": "open_loop",
}
__all__ = list(_HOMES)

keep_from_dumps()  # Locust is the program; this is the first of ours that it runs


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
