"""What the benchmarks' plots share: each is drawn twice, for light pages and for dark ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from predictions.report.figures import BEFORE, GRID, INK, NOW, SOFT

DOTS_PER_INCH = 160
SIZE = (9.6, 5.4)  # inches


class Colours(NamedTuple):
    """The colours of a plot; the last four are those of what is compared."""

    paper: str
    ink: str
    soft: str
    grid: str
    now: str
    before: str
    bad: str
    other: str


LIGHT = Colours("#ffffff", INK, SOFT, GRID, NOW, BEFORE, "#b3261e", "#6d4aa3")
DARK = Colours("#14171a", "#e7e9ec", "#9aa3ad", "#343a41", "#5ab4e5", "#f0a04b", "#ff7b72", "#b99be8")


plot_option = click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="PNG file to draw the figures into, and beside it NAME-dark.png for dark pages; default: none.",
)


def draw_twice(target: Path, draw: Callable[[Figure, Colours], None]) -> None:
    """Draw a plot into a PNG file, and beside it for dark pages into NAME-dark.png."""
    for path, colours in ((target, LIGHT), (target.with_stem(f"{target.stem}-dark"), DARK)):
        with matplotlib.rc_context(_style(colours)):
            figure = Figure(figsize=SIZE, layout="constrained")
            draw(figure, colours)
            figure.savefig(path, dpi=DOTS_PER_INCH, facecolor=colours.paper, metadata={"Software": None})


def milliseconds(axes: Axes) -> None:
    """Let the y axis show milliseconds, as plain numbers on a logarithmic scale."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y")


def note(axes: Axes, x: float, text: str, colour: str) -> None:
    """Write a note at the upper end of a plot, right of a place on its x axis."""
    place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    axes.annotate(text, (x, 1.0), (3, -2), **place, va="top", color=colour, fontsize=8)


def _style(colours: Colours) -> dict[Any, Any]:
    return {
        "axes.axisbelow": True,
        "axes.edgecolor": colours.soft,
        "axes.facecolor": colours.paper,
        "axes.labelcolor": colours.ink,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 11,
        "font.size": 11,
        "grid.color": colours.grid,
        "text.color": colours.ink,
        "xtick.color": colours.soft,
        "ytick.color": colours.soft,
    }
