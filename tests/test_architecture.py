"""The rules of the house, held by reading the code: who imports whom, who writes, who prints, how long a piece is."""

import ast
import functools
import re
from pathlib import Path

import pytest

from loadtest import errors

PACKAGE = Path(__file__).parent.parent / "loadtest"
MODULES = sorted(PACKAGE.rglob("*.py"))

# The folders of the package, from the top of the house down: imports run down this list, never up.
FOLDERS = ("commands", "study", "scenario", "report", "analysis", "decision", "metrics", "simulator", "client", "grading",
           "workload", "servers", "perfmodel", "records")  # fmt: skip
DOORS = {"cli", "__main__"}  # above all folders
GROUND = {"errors", "clock", "credentials", "resources"}  # below all folders

PURE = {
    "metrics",
    "decision",
    "analysis",
    "perfmodel.memory",
    "perfmodel.step_time",
    "perfmodel.prediction",
    "perfmodel.ranges",
    "simulator.core",
    "simulator.fleet",
}
IMPURE = {"os", "time", "pathlib", "socket", "subprocess", "random", "tempfile", "httpx"}
WRITERS = {"records.bundle", "records.folder", "records.write", "servers.process", "resources"}
PRINTERS = {"cli", "__main__", "perfmodel.calibration", "metrics.schema", "simulator.known_times"}  # by `python -m`
GEVENT = {"client", "scenario"}
LOCUST = {"scenario"}

FUNCTION_LINES = 60
FILE_LINES = 600


@functools.cache
def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def is_for_types(node):
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(tree):
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


def dotted(path):
    return ".".join(("loadtest", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


KNOWN = {dotted(path): path for path in MODULES}


@functools.cache
def own(path):
    """Our modules that a file imports, whether it names the module or something in it."""
    found = set()
    for name in imports(parse(path)):
        for candidate in (name, name.rpartition(".")[0]):
            if candidate in KNOWN and candidate != "loadtest":
                found.add(candidate)
                break
    return found


def folder(name):
    """The folder of a module by its dotted name; the name itself for a module at the top."""
    return name.split(".")[1]


def inside(path):
    """The dotted name of a module inside the package."""
    return dotted(path).removeprefix("loadtest.")


def is_among(path, places):
    """Is the module one of these, or in one of these folders?"""
    return any(f"{inside(path)}.".startswith(f"{place}.") for place in places)


EACH = pytest.mark.parametrize("path", [p for p in MODULES if inside(p) != "loadtest"], ids=inside)


def test_the_folders_are_those_of_the_house():
    assert {path.name for path in PACKAGE.iterdir() if any(path.glob("*.py"))} == set(FOLDERS)
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} == DOORS | GROUND


def floor(name):
    """How far down the house a module is."""
    place = folder(name)
    return -1 if place in DOORS else len(FOLDERS) if place in GROUND else FOLDERS.index(place)


@EACH
def test_imports_run_down(path):
    assert {name for name in own(path) if floor(name) < floor(dotted(path))} == set()


def test_no_folder_is_crowded():
    crowded = {path: len(list(path.glob("*.py"))) for path in PACKAGE.rglob("*") if path.is_dir()}
    assert {path.name: n for path, n in crowded.items() if n > 16} == {}


def test_no_import_goes_in_a_circle():
    graph = {name: own(path) for name, path in KNOWN.items()}
    finished: set[str] = set()

    def walk(name, way):
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name not in finished:
            for other in graph[name]:
                walk(other, (*way, name))
            finished.add(name)

    for name in graph:
        walk(name, ())


@pytest.mark.parametrize("path", [p for p in MODULES if is_among(p, PURE)], ids=inside)
def test_what_is_pure_reads_no_clock_and_no_disk(path):
    assert {name.split(".")[0] for name in imports(parse(path))} & IMPURE == set()


# Words that need the module's name beside them, and are used so: `notation.parse`, `faults.parse`.
SHARED_WORDS = {"check", "log", "main", "parse", "simulate", "summary"}


def test_a_public_name_has_one_owner():
    """Classes, and functions but for the words above. A handler in `commands` is named like its command."""
    owners: dict[str, list[str]] = {}
    for path in MODULES:
        for node in parse(path).body:
            is_named = isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            if is_named and not node.name.startswith("_") and not is_among(path, {"commands"}):
                owners.setdefault(node.name, []).append(inside(path))
    assert {name: homes for name, homes in owners.items() if len(homes) > 1 and name not in SHARED_WORDS} == {}


@EACH
def test_only_scenarios_import_locust_and_only_the_client_gevent(path):
    used = {name.split(".")[0] for name in imports(parse(path))}
    assert "locust" not in used or is_among(path, LOCUST)
    assert "gevent" not in used or is_among(path, GEVENT)


@functools.cache
def calls(path):
    return [node for node in ast.walk(parse(path)) if isinstance(node, ast.Call)]


@functools.cache
def says(call):
    return ast.unparse(call.func) in ("print", "sys.stdout.write", "sys.stderr.write")


@EACH
def test_only_the_command_lines_print(path):
    assert not any(map(says, calls(path))) or is_among(path, PRINTERS) or path.stem == "__main__"


@functools.cache
def writes(call):
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
def test_only_records_and_logs_are_written(path):
    lines = [f"{call.lineno}: {ast.unparse(call)}" for call in calls(path) if writes(call)]
    if inside(path) == "servers.server":  # our own standard output, handed to a runtime in the foreground
        lines = [line for line in lines if "os.dup" not in line]
    assert lines == [] or is_among(path, WRITERS)


def test_the_check_for_writes_can_fail():
    seen = {name for name in WRITERS if any(map(writes, calls(KNOWN[f"loadtest.{name}"])))}
    assert seen == WRITERS


@EACH
def test_no_file_and_no_function_is_too_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= FILE_LINES
    functions = [node for node in ast.walk(parse(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [f.name for f in functions if (f.end_lineno or 0) - f.lineno + 1 > FUNCTION_LINES] == []


def swallows(node):
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


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.rglob("*.py")), ids=lambda path: path.stem)
def test_no_function_of_the_tests_is_annotated(path):
    """They are read by no type checker; all of them are alike."""
    functions = [node for node in ast.walk(parse(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [
        f.name for f in functions if f.returns or any(a.annotation for a in ast.walk(f.args) if isinstance(a, ast.arg))
    ] == []
