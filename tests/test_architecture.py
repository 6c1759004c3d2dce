"""The import rules of the house, held by reading the code."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "loadtest"
MODULES = sorted(PACKAGE.rglob("*.py"))
# Whoever is on the right must not be imported by whoever is on the left: the pipeline has one direction.
FORBIDDEN = {
    "records": {"client", "user", "metrics", "compare", "findings", "plots", "report", "engines", "orchestrate", "commands"},
    "client": {"user", "metrics", "report", "orchestrate", "engines"},
    "metrics": {"plots", "report", "orchestrate", "engines", "user", "client"},
    "compare": {"metrics", "plots", "report", "orchestrate"},
    "plots": {"report", "orchestrate", "records"},
    "report": {"orchestrate", "records", "metrics"},
    "roofline": {"simulator", "metrics", "orchestrate"},
    "simulator": {"client", "user", "records", "metrics", "orchestrate"},
}


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def own(path: Path) -> set[str]:
    """Modules of ours that a file imports, as the first part after `loadtest.`."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("loadtest.")}


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_imports_backwards(path):
    assert not own(path) & FORBIDDEN.get(name(path), set())


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_user_imports_locust(path):
    uses = {n for n in imports(path) if n.split(".")[0] == "locust"}
    assert not uses or name(path) in {"user", "load_shapes"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_command_lines_print(path):
    calls = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not calls or name(path) == "cli" or path.name == "__main__.py"
