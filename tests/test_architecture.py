"""The rules of the house, held by reading the code: who imports whom, who writes, who prints, how long a piece is."""

import ast
import re
from pathlib import Path

import pytest

from loadtest import errors

PACKAGE = Path(__file__).parent.parent / "loadtest"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Every module has one place; a new one is given its place here.
PARTS = {
    "foundations": "errors clock records units constants statistics credentials resources environment sandbox",
    "cards": "hardware models roofline calibration",
    "asked": "prompts notation answers problems generators formats workload programs contract sequence settings manifest",
    "wire": "sse thinking reply http1 connection client level telemetry",
    "servers": "endpoint prelude server_metrics gpu_metrics launch preflight doctor deaths guard guarded engines",
    "locust": "preparation user load_shapes dialogue router",
    "simulator": "simulator",
    "numbers": "agreement columns window energy slo distributions curves acceleration health metrics effects compare "
    "findings capacity",
    "page": "view verdict canvas timeplots ratioplots tradeplots plots tables terminal versus shelf report",
    "studies": "study passes watch deployment estimate orchestrate fast_forward virtual_level",
    "commands": "commands cli __main__",
}
# What each part may import beside itself and the foundations: the pipeline has one direction.
MAY_IMPORT = {
    "foundations": "",
    "cards": "",
    "asked": "",
    "wire": "asked",
    "servers": "cards",
    "locust": "asked wire servers",
    "simulator": "cards",
    "numbers": "cards asked",
    "page": "",
    "studies": "cards asked wire servers simulator numbers",
    "commands": "cards asked servers numbers page studies",
}
PART_OF = {module: part for part, modules in PARTS.items() for module in modules.split()}

PURE = {"statistics", "columns", "window", "energy", "slo", "distributions", "curves", "acceleration", "health", "metrics",
        "agreement", "compare", "effects", "capacity", "roofline", "view", "verdict"}  # fmt: skip
IMPURE = {"os", "time", "pathlib", "socket", "subprocess", "random", "tempfile", "httpx"}
WRITERS = {"records", "guarded", "report", "resources"}
PRINTERS = {"cli", "__main__", "calibration"}  # the last is a tool for developers: `python -m loadtest.calibration`
GEVENT = {"client", "level", "telemetry", "user", "load_shapes"}
LOCUST = {"user", "load_shapes"}

FUNCTION_LINES = 60
FILE_LINES = 600


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(tree: ast.AST) -> set[str]:
    """Full names of all that is imported, also inside functions; not what is imported for types alone."""
    names: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif not is_for_types(node):
            names |= imports(node)
    return names


def dotted(path: Path) -> str:
    return ".".join(("loadtest", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


KNOWN = {dotted(path): path for path in MODULES}


def own(path: Path) -> set[str]:
    """Our modules that a file imports, whether it names the module or something in it."""
    found = set()
    for name in imports(parse(path)):
        for candidate in (name, name.rpartition(".")[0]):
            if candidate in KNOWN and candidate != "loadtest":
                found.add(candidate)
                break
    return found


def top(name: str) -> str:
    return name.split(".")[1]


def place(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


EACH = pytest.mark.parametrize("path", [p for p in MODULES if place(p) != "__init__"], ids=lambda p: dotted(p)[9:])


def test_every_module_has_its_place():
    assert sorted({place(path) for path in MODULES} - {"__init__"}) == sorted(PART_OF)
    assert set(MAY_IMPORT) == set(PARTS)


@EACH
def test_nothing_imports_backwards(path):
    part = PART_OF[place(path)]
    allowed = {"foundations", part, *MAY_IMPORT[part].split()}
    assert {name for name in own(path) if PART_OF[top(name)] not in allowed} == set()


def test_no_import_goes_in_a_circle():
    graph = {name: own(path) for name, path in KNOWN.items()}
    finished: set[str] = set()

    def walk(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name not in finished:
            for other in graph[name]:
                walk(other, (*way, name))
            finished.add(name)

    for name in graph:
        walk(name, ())


@pytest.mark.parametrize("module", sorted(PURE))
def test_what_is_pure_reads_no_clock_and_no_disk(module):
    used = {name.split(".")[0] for name in imports(parse(PACKAGE / f"{module}.py"))}
    assert used & IMPURE == set()


@EACH
def test_only_the_user_imports_locust_and_only_the_wire_gevent(path):
    used = {name.split(".")[0] for name in imports(parse(path))}
    assert "locust" not in used or place(path) in LOCUST
    assert "gevent" not in used or place(path) in GEVENT


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(parse(path)) if isinstance(node, ast.Call)]


def says(call: ast.Call) -> bool:
    return ast.unparse(call.func) in ("print", "sys.stdout.write", "sys.stderr.write")


@EACH
def test_only_the_command_lines_print(path):
    assert not any(map(says, calls(path))) or path.stem in PRINTERS


def writes(call: ast.Call) -> bool:
    """Does this call make, change or rename a file by one of the ways that Python code usually takes?"""
    name = ast.unparse(call.func)
    method = name.rpartition(".")[2]
    if method in ("write_text", "write_bytes", "mkdir", "makedirs", "rename", "unlink", "rmdir", "touch", "mkstemp"):
        return True
    if name in ("os.replace", "os.remove", "shutil.move", "shutil.copy", "shutil.copytree", "shutil.rmtree"):
        return True
    if method != "open" or name == "os.open":
        return name == "os.open" and "O_WRONLY" in ast.unparse(call) and "devnull" not in ast.unparse(call)
    modes = [
        one.value
        for one in (*call.args, *(k.value for k in call.keywords if k.arg == "mode"))
        if isinstance(one, ast.Constant)
    ]
    return any(isinstance(mode, str) and set(mode) & set("wax+") and len(mode) <= 3 for mode in modes)


@EACH
def test_only_records_the_report_and_logs_are_written(path):
    lines = [f"{call.lineno}: {ast.unparse(call)}" for call in calls(path) if writes(call)]
    if place(path) == "engines":  # our own standard output, handed to a runtime in the foreground
        lines = [line for line in lines if "os.dup" not in line]
    assert lines == [] or place(path) in WRITERS


def test_the_check_for_writes_can_fail():
    seen = {name for name in WRITERS if any(map(writes, calls(PACKAGE / f"{name}.py")))}
    assert seen == WRITERS


@EACH
def test_no_file_and_no_function_is_too_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= FILE_LINES
    functions = [node for node in ast.walk(parse(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [f.name for f in functions if (f.end_lineno or 0) - f.lineno + 1 > FUNCTION_LINES] == []


def swallows(node: ast.AST) -> bool:
    """An `except` of everything that raises nothing."""
    if not isinstance(node, ast.ExceptHandler):
        return False
    everything = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
    return everything and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node))


@EACH
def test_no_exception_is_swallowed_whole(path):
    assert [node for node in ast.walk(parse(path)) if swallows(node)] == []


def test_the_error_tree_is_the_one_drawn_at_its_top():
    drawn = dict(re.findall(r"^\W*([A-Z]\w+)\s+(\d+)  ", errors.__doc__ or "", re.MULTILINE))
    classes = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert {name: str(kind.exit_code) for name, kind in classes.items()} == drawn
    assert all(issubclass(kind, errors.LoadtestError) for kind in classes.values())
