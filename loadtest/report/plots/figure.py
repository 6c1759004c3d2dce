"""How a figure gets onto paper: panels of one size, drawn to SVG and to PNG, and the SVG made fit for a page.

Colours are semantic: in the page each becomes a CSS variable, so that one drawing reads on a light and on a dark
ground. Engines differ by colour, marker and dash (Okabe-Ito colours, told apart in grey too).
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Sheet

from loadtest.report.cells import ShownCell

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

INK, MUTED, GRID, CARD = "#1d2733", "#5b6672", "#dfe3e8", "#fffffe"
SGLANG, VLLM, OTHER, GOOD, BAD = "#0072b2", "#c25100", "#007a5a", "#007a5b", "#b00021"
PURPLE, OLIVE = "#8e3b9e", "#7a6400"  # of runs on one page: no engine has them
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    CARD: "--card",
    SGLANG: "--sglang",
    VLLM: "--vllm",
    OTHER: "--other",
    GOOD: "--good",
    BAD: "--bad",
    PURPLE: "--purple",
    OLIVE: "--olive",
}

PNG_DPI = 110
HEADER_INCHES = 0.72
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 8,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.linewidth": 0.9,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
}


Dash = Literal["-", "--", "-.", ":", ""] | tuple[float, tuple[float, ...]]  # as matplotlib has them


@dataclass(frozen=True, slots=True)
class Look:
    """How one thing is drawn wherever it appears. `share` is the opacity of its fill."""

    colour: str
    marker: str = ""
    dash: Dash = "-"
    share: float = 1.0


LOOKS = {"sglang": Look(SGLANG, "o", "-"), "vllm": Look(VLLM, "s", "--"), "other": Look(OTHER, "^", ":")}
RUN_LOOKS = (
    Look(INK, "o", "-"), Look(PURPLE, "s", "--"), Look(OLIVE, "^", ":"), Look(MUTED, "D", "-."), Look(BAD, "v", (0, (1, 1))),
    Look(GOOD, "P", (0, (6, 1, 1, 1))),
)  # fmt: skip


def look_of(cell: ShownCell) -> Look:
    """How a cell is drawn: by its engine; of several configurations or runs, by its place among them."""
    return LOOKS[cell.family] if cell.run is None else RUN_LOOKS[cell.run % len(RUN_LOOKS)]


PHASES = (("waiting for the first token", 0.0), ("thinking", 0.38), ("answering", 1.0))


@dataclass(frozen=True, slots=True)
class Key:
    """One entry of a legend; `kind` is line or box; `hollow` markers stand for simulated engines."""

    label: str
    look: Look
    kind: str = "line"
    hollow: bool = False


_NUMBER = r"[+−]?\d[\d,]*(\.\d+)?( %)?"
_NUMERIC = re.compile(rf"(—|{_NUMBER})( to {_NUMBER})?(\n.*)?$|(needs )?n ≥ \d+$|no data$|— \(not reached\)$")


@dataclass(frozen=True, slots=True)
class Table:
    """The numbers of a figure or a section; the first column of each row is its header."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Which columns hold nothing but numbers, and so stand flush right."""
        columns = zip(*self.rows, strict=True) if self.rows else ((title,) for title in self.head)
        return tuple(all(_NUMERIC.match(text) for text in column) for column in columns)


@dataclass(frozen=True, slots=True)
class Panel:
    """One part of a figure: `draw` gets as many axes, one above the other, as `stacked` says. `drawn_title`: where the whole
    title is too long for the drawing."""

    title: str
    draw: Callable[..., None]
    stacked: int = 1
    drawn_title: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure before it is drawn. `says` is its text for readers who cannot see it."""

    name: str
    title: str
    caption: str
    says: str
    panels: tuple[Panel, ...]
    keys: tuple[Key, ...]
    table: Table
    width_inches: float = 3.4
    height_inches: float = 2.5
    left_inches: float = 0.54
    bottom_inches: float = 0.7
    columns: int = 3
    top_inches: float = 0.32
    title_size: float = 8.5
    gap_inches: float = 0.16  # between stacked axes


@dataclass(frozen=True, slots=True)
class Drawing:
    """A drawn figure: the files' content, and for the page the inner SVG with a view box (points) for each panel."""

    figure: Figure
    svg: bytes
    inner: str
    boxes: tuple[str, ...]
    sheet: Sheet = field(repr=False, compare=False)

    def png(self) -> bytes:
        """The same as a picture; made only when asked for, as a page needs none."""
        stream = io.BytesIO()
        about = {"Software": None, "Title": self.figure.title}
        with _settings(self.figure):
            self.sheet.set_dpi(PNG_DPI)
            FigureCanvasAgg(self.sheet).print_png(stream, metadata=about)  # type: ignore[no-untyped-call]
        return stream.getvalue()


_GRIDS = {1: (1, 4.4), 2: (2, 2.93), 3: (3, 4.0), 4: (4, 2.97), 5: (5, 2.35), 6: (3, 4.0), 7: (4, 2.97), 8: (4, 2.97)}


def grid(n_panels: int) -> tuple[int, float]:
    """Columns, and the width (inches) of each panel: text is of one size on a page whatever the number of panels.

    One or two panels take half the page, more the whole.
    """
    return _GRIDS.get(n_panels, _GRIDS[5])


def legend(cells: Iterable[ShownCell]) -> tuple[Key, ...]:
    """One entry for each engine (or run); hollow markers stand for simulated ones."""
    return tuple(Key(cell.engine, look_of(cell), hollow=cell.simulated) for cell in one_of_each(cells))


def one_of_each(cells: Iterable[ShownCell]) -> tuple[ShownCell, ...]:
    """A cell of each engine (or run)."""
    return tuple({cell.engine: cell for cell in cells}.values())


def nothing(axes: Axes, why: str = "no data") -> None:
    """Say in the drawing itself that there is nothing to draw."""
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", color=MUTED)


@contextlib.contextmanager
def _settings(figure: Figure) -> Iterator[None]:
    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": figure.name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a character the font lacks is drawn as a box
        yield


def draw(figure: Figure) -> Drawing:
    """Draw `figure`. Same figure, same bytes."""
    columns = min(figure.columns, len(figure.panels))
    lines = math.ceil(len(figure.panels) / columns)
    with _settings(figure):
        sheet = Sheet(figsize=(columns * figure.width_inches, lines * figure.height_inches + HEADER_INCHES))
        sheet.patch.set_facecolor(CARD)
        _head(sheet, figure)
        for index, panel in enumerate(figure.panels):
            _panel(sheet, figure, panel, index % columns, index // columns)
        svg = _to_svg(sheet, figure)
    boxes = tuple(_box(figure, i % columns, i // columns) for i in range(len(figure.panels)))
    return Drawing(figure, svg.encode(), _inner(svg, figure.name), boxes, sheet)


def _head(sheet: Sheet, figure: Figure) -> None:
    """The strip that files have on top, with title and legend; the page writes its own and crops this one."""
    height = sheet.get_figheight()
    sheet.text(0.12 / sheet.get_figwidth(), 1 - 0.1 / height, figure.title, va="top", fontsize=9.5, fontweight="bold")
    if not figure.keys:
        return
    sheet.legend(
        handles=[_handle(key) for key in figure.keys],
        loc="upper left",
        bbox_to_anchor=(0.02 / sheet.get_figwidth(), 1 - 0.3 / height),
        ncols=min(len(figure.keys), 3 if len(figure.panels) == 1 else 6),
        fontsize=7.5,
        columnspacing=1.2,
        handletextpad=0.5,
    )


def _handle(key: Key) -> Artist:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if key.kind == "box":
        return Patch(facecolor=key.look.colour, alpha=key.look.share, label=key.label)
    fill = CARD if key.hollow else key.look.colour
    return Line2D(
        [], [], color=key.look.colour, marker=key.look.marker, linestyle=key.look.dash, markerfacecolor=fill, label=key.label
    )


def _panel(sheet: Sheet, figure: Figure, panel: Panel, column: int, line: int) -> None:
    width, height = sheet.get_figwidth(), sheet.get_figheight()
    left = column * figure.width_inches + figure.left_inches
    bottom = height - HEADER_INCHES - (line + 1) * figure.height_inches + figure.bottom_inches
    across, tall, gap = (
        figure.width_inches - figure.left_inches - 0.14,
        figure.height_inches - figure.bottom_inches - figure.top_inches,
        figure.gap_inches,
    )
    each = (tall - gap * (panel.stacked - 1)) / panel.stacked
    axes = []
    for index in range(panel.stacked):
        low = bottom + (panel.stacked - 1 - index) * (each + gap)
        axes.append(sheet.add_axes((left / width, low / height, across / width, each / height)))
    start = -(figure.left_inches - 0.12) / across
    axes[0].set_title(
        panel.drawn_title or panel.title,
        x=start,
        y=1.0,
        pad=6 + 72 * (figure.top_inches - 0.32),
        color=INK,
        fontsize=figure.title_size,
    )
    for one in axes:  # fixed places: measuring the tick labels takes a third of the time of a drawing
        one.xaxis.set_label_coords(0.5, -0.23 / each)
        one.yaxis.set_label_coords(-0.38 / across, 0.5)
    panel.draw(*axes)


def _box(figure: Figure, column: int, line: int) -> str:
    width, height = figure.width_inches * 72, figure.height_inches * 72
    return f"{column * width:g} {HEADER_INCHES * 72 + line * height:g} {width:g} {height:g}"


def _to_svg(sheet: Sheet, figure: Figure) -> str:
    stream = io.StringIO()
    absent = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    FigureCanvasSVG(sheet).print_svg(stream, metadata={**absent, "Title": figure.title})  # type: ignore[no-untyped-call]
    text = stream.getvalue()
    return re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif", text)


def _inner(svg: str, name: str) -> str:
    """The SVG's content for the page: no prolog, no ground, no identifiers but those it refers to, colours as variables,
    places to a hundredth of a point."""
    inner = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    inner = re.sub(r"<metadata>.*?</metadata>|<title>.*?</title>|<style[^>]*>.*?</style>|<!--.*?-->", "", inner, flags=re.S)
    inner = re.sub(r'<g id="patch_1">.*?</g>', "", inner, count=1, flags=re.S)
    used = set(re.findall(r"(?:href=\"|url\()#([^\")]+)", inner))
    inner = re.sub(r" id=\"([^\"]*)\"", lambda match: match[0] if match[1] in used else "", inner)
    inner = re.sub(r"font-family: [^;\"]*;? ?| transform=\"rotate\(-0 [^\"]*\"", "", inner)
    inner = re.sub(r"\d+\.\d{3,}", lambda match: f"{float(match[0]):.2f}".rstrip("0").rstrip("."), inner)
    inner = re.sub(r"\n\s*", "\n", inner).strip()
    for colour, variable in VARIABLES.items():
        inner = inner.replace(colour, f"var({variable})")
    return f'<g id="drawing-{name}">{inner}</g>'
