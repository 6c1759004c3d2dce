"""The templates of the pages: the package's own, or a folder that holds some of them, edited.

Autoescape is on and the sandbox closed, in an edited template too: what comes from a model, a server or a file stays text.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import resource
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import SandboxedEnvironment
from markupsafe import Markup

from loadtest import resources
from loadtest.errors import UsageError
from loadtest.report.plots.figure import VARIABLES, Dash, Key

SCRIPT, STYLE = "page.js", "style.css"
MOST_STEPS = 10_000_000  # of loops and calls of one page; that of a small run takes 2,000
MOST_BYTES = 2 * 2**30  # that one page may take, beside what the process has
_CURE = "correct the template, or leave --templates out"


class _Sandbox(SandboxedEnvironment):
    """Jinja's, which bounds each range but neither products (`"x" * 10**10`) nor loops in loops: here both are."""

    intercepted_binops = frozenset({"*", "**"})
    steps_left = MOST_STEPS

    def compile(self, source: Any, *named: Any, **options: Any) -> Any:
        """As Jinja does, with every loop counted."""
        tree = self.parse(source, *named[:2]) if isinstance(source, str) else source
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None, lineno=loop.lineno)
        return super().compile(tree, *named, **options)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if not (isinstance(left, int | float) and isinstance(right, int | float)):
            raise SecurityError(f"expected numbers beside {operator}")
        return left * right if operator == "*" else float(left) ** right

    def call(self, context: Any, called: Any, *arguments: Any, **named: Any) -> Any:
        result = super().call(context, called, *arguments, **named)
        self.step(len(result) if isinstance(result, range) else 1)
        return result

    def counted(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.step()
            yield item

    def step(self, n: int = 1) -> None:
        self.steps_left -= n
        if self.steps_left < 0:
            raise SecurityError(f"expected at most {MOST_STEPS:,} steps of loops and calls, got more")


@contextlib.contextmanager
def _bounded_memory() -> Iterator[None]:
    """Raises MemoryError in place of taking more than `MOST_BYTES`, where the system tells what is taken (Linux)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        taken = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except OSError:
        yield
        return
    limits = [limit for limit in (soft, hard, taken + MOST_BYTES) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class Templates:
    """Renders the pages. `folder`: files in it replace those of the package that have the same name."""

    def __init__(self, folder: Path | None = None) -> None:
        own = resources.path("reports/templates/page.html.j2").parent
        if folder is not None:
            _check(folder, {path.name for path in own.iterdir()})
        self._edited = folder
        self._folders = [own] if folder is None else [folder, own]
        self._environment = _Sandbox(
            loader=jinja2.FileSystemLoader(self._folders),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters |= {"swatch": swatch, "counted": self._environment.counted}
        for path in sorted(folder.glob("*.j2")) if folder is not None else ():  # before anything is drawn
            with self._explained(path.name), _bounded_memory():
                self._environment.get_template(path.name)

    def render(self, name: str, **values: Any) -> str:
        """One page. Raises UsageError, one line with file and line, where a template has an error."""
        script, style = self._text(SCRIPT), self._text(STYLE)
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        own = self._edited is None
        self._environment.steps_left = sys.maxsize if own else MOST_STEPS
        with self._explained(name), contextlib.nullcontext() if own else _bounded_memory():
            template = self._environment.get_template(name)
            return template.render(style=Markup(style), script=Markup(script), script_hash=digest, **values)

    @contextlib.contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """Says where an edited template has an error. One of the package's own is a bug and stays one."""
        try:
            yield
        except MemoryError:
            if self._edited is None:
                raise
            raise UsageError(f"{name}: expected a page of at most {MOST_BYTES >> 30} GiB, got more; {_CURE}") from None
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            if self._edited is None:
                raise
            where = self._place(error, name)
            raise UsageError(f"{where}: {str(error).rstrip('.')}; {_CURE}") from error

    def _text(self, name: str) -> str:
        path = next(path for folder in self._folders if (path := folder / name).is_file())
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: cannot read the template: {error}") from error

    def _place(self, error: Exception, name: str) -> str:
        """File and line of an error: where the template is wrong, else the last line of a template that ran."""
        if isinstance(error, jinja2.TemplateSyntaxError):
            return f"{error.filename or error.name or name}:{error.lineno}"
        lines = []
        trace = error.__traceback__
        while trace is not None:
            lines.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
            trace = trace.tb_next
        known = [f"{file}:{line}" for file, line in lines if any(Path(file).is_relative_to(one) for one in self._folders)]
        return known[-1] if known else name


def _check(folder: Path, names: set[str]) -> None:
    if not folder.is_dir():
        raise UsageError(f"{folder}: expected a folder of templates, found none; loadtest init DIR copies them for editing")
    if not names & {path.name for path in folder.iterdir()}:
        listed = ", ".join(sorted(names))
        raise UsageError(f"{folder}: expected at least one of {listed}, found none; init puts them into reports/templates")


# Samples of a legend -------------------------------------------------------------------------------------------------

_SWATCH = Markup('<svg class="swatch" viewBox="0 0 28 14" width="28" height="14" aria-hidden="true">{}</svg>')
_DASHES: dict[Dash, str] = {"-": "", "--": "5 3", ":": "2 2"}
_SHAPES = {
    "o": "M14 3.4a3.6 3.6 0 1 0 .01 0z",
    "s": "M10.6 3.6h6.8v6.8h-6.8z",
    "^": "M14 3l4 7.4h-8z",
    "D": "M14 2.4l4.4 4.6-4.4 4.6-4.4-4.6z",
    "v": "M14 11l4-7.4h-8z",
    "P": "M12.6 3h2.8v2.6h2.6v2.8h-2.6V11h-2.8V8.4H10V5.6h2.6z",
    "X": "M11 3l3 2.6L17 3l1.4 1.6L15.8 7l2.6 2.4L17 11l-3-2.6L11 11 9.6 9.4 12.2 7 9.6 4.6z",
    "*": "M14 2.4l1.3 3 3.3.3-2.5 2.1.8 3.2L14 9.3 11.1 11l.8-3.2-2.5-2.1 3.3-.3z",
}


def swatch(key: Key) -> Markup:
    """The sample before a legend's words, as a small SVG."""
    colour = f"var({VARIABLES[key.look.colour]})"
    if key.kind == "box":
        body = Markup('<rect x="3" y="2" width="22" height="10" rx="1" fill="{}" fill-opacity="{}"/>').format(
            colour, key.look.share
        )
        return _SWATCH.format(body)
    dashes = _DASHES.get(key.look.dash)
    line = Markup("")
    if dashes is not None:
        line = Markup('<path d="M1 7H27" stroke="{}" stroke-width="2" stroke-dasharray="{}"/>').format(colour, dashes)
    fill = "var(--card)" if key.hollow else colour
    mark = Markup('<path d="{}" fill="{}" stroke="{}" stroke-width="1.4"/>').format(
        _SHAPES.get(key.look.marker, ""), fill, colour
    )
    return _SWATCH.format(line + mark)
