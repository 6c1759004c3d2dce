"""What `import loadtest` and `import loadtest.scenario` give, name by name: adding or removing one is a decision."""

import subprocess
import sys

import pytest

import loadtest

NOTEBOOK = ["Deployment", "analyze", "fit", "gpu", "model", "plan", "read_run", "to_frame"]
LOCUSTFILE = ["BurstUser", "DialogueUser", "Messages", "OpenLoopUser", "ReasoningUser", "RouterUser", "Stairs",
              "add_burst_options", "add_open_loop_options", "add_router_options", "add_stairs_options", "answered",
              "default_workload", "with_options"]  # fmt: skip


def test_a_notebook_gets_these_names():
    assert sorted(loadtest.__all__) == NOTEBOOK
    assert all(callable(getattr(loadtest, name)) for name in NOTEBOOK)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'loadtest' has no attribute 'absent'"):
        loadtest.absent  # noqa: B018


def test_a_locustfile_gets_these_names():
    code = (
        "import loadtest.scenario as scenario;"
        f"assert sorted(scenario.__all__) == {LOCUSTFILE};"
        "[getattr(scenario, name) for name in scenario.__all__]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, loadtest; print(*{'numpy', 'pandas', 'scipy', 'locust', 'gevent', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""
