"""Draw the report's figures with matplotlib, as SVG in the colours of the page and as PNG."""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

# The colours of a PNG, and the CSS properties of the page that replace them in an SVG.
INK, SOFT, GRID, NOW, BEFORE = "#1b1f24", "#6b7280", "#d8dce2", "#0b6fa4", "#d9822b"
_PROPERTIES = {
    INK: "var(--ink)",
    SOFT: "var(--soft)",
    GRID: "var(--grid)",
    NOW: "var(--now)",
    BEFORE: "var(--before)",
}
_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": SOFT,
    "axes.grid": True,
    "axes.labelcolor": SOFT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10,
    "grid.color": GRID,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "svg.fonttype": "none",
}
_DOTS_PER_INCH = 160
_SHORT = 4  # characters of a bin's name that still fits below its bar without being turned
_WIDE, _HALF = 9.0, 4.5  # inches, of a figure as wide as the page, and of one of two side by side

Sides = Sequence[tuple[str, Sequence[float]]]


def distribution(label: str, height: str, bounds: Sequence[float], sides: Sides) -> Figure:
    """Draw histograms of scores over each other.

    Args:
        label: the label of the scores.
        height: the label of the bins' heights.
        bounds: the start of each bin, and the end of the last one.
        sides: names and bin heights; the last one is the release of the report.
    """
    figure, axes = _figure()
    for (name, heights), colour in zip(sides, (BEFORE, NOW)[-len(sides) :], strict=True):
        axes.stairs(heights, bounds, color=colour, linewidth=1.6, label=_text(name))
        if colour == NOW:
            axes.stairs(heights, bounds, color=colour, alpha=0.15, fill=True)
    axes.set(xlabel=_text(label), ylabel=height, ylim=(0, None))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    _legend(axes)
    return figure


def classes(names: Sequence[str], sides: Sides) -> Figure:
    """Draw the share of each class, with one bar per side."""
    figure, axes = _figure(height=1.2 + 0.28 * len(names) * len(sides))
    thickness = 0.8 / len(sides)
    for number, ((name, shares), colour) in enumerate(zip(sides, (BEFORE, NOW)[-len(sides) :], strict=True)):
        rows = [row + (number - (len(sides) - 1) / 2) * thickness for row in range(len(names))]
        axes.barh(rows, shares, height=thickness, color=colour, label=_text(name))
    axes.set(yticks=range(len(names)), yticklabels=map(_text, names), xlabel="share of the records")
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    _legend(axes)
    return figure


def drift(label: str, names: Sequence[str], values: Sequence[float]) -> Figure:
    """Draw what each bin adds to the population stability index."""
    figure, axes = _figure(_HALF, 2.6)
    axes.bar(range(len(names)), values, color=NOW, width=0.7)
    axes.set(xticks=range(len(names)), xticklabels=map(_text, names), xlabel=_text(label), ylabel="added to the index")
    axes.tick_params(axis="x", labelsize=8, rotation=0 if max(map(len, names)) < _SHORT else 45)
    axes.grid(visible=False, axis="x")
    return figure


def calibration(label: str, predicted: Sequence[float], actual: Sequence[float]) -> Figure:
    """Draw the actual labels of the holdout against the predicted ones, with the line on which both are equal."""
    figure, axes = _figure(_HALF, 3.0)
    ends = min(*predicted, *actual), max(*predicted, *actual)
    axes.plot(ends, ends, color=SOFT, linewidth=1, linestyle=(0, (4, 3)), label="predicted = actual")
    axes.plot(predicted, actual, color=NOW, linewidth=1.6, marker="o", markersize=4.5, label="a tenth of the holdout")
    axes.set(xlabel=_text(label), ylabel="actual")
    _legend(axes)
    return figure


def amounts(label: str, names: Sequence[str], counts: Sequence[int]) -> Figure:
    """Draw the number of records by the size of their change."""
    figure, axes = _figure(_HALF, 2.6)
    bars = axes.bar(range(len(names)), counts, color=NOW, width=0.7)
    axes.bar_label(bars, [f"{count:,}" for count in counts], padding=2, color=INK, fontsize=8.5)
    axes.set(xticks=range(len(names)), xticklabels=names, xlabel=_text(label), ylabel="records")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(visible=False, axis="x")
    axes.margins(y=0.15)
    return figure


def durations(names: Sequence[str], seconds: Sequence[float]) -> Figure:
    """Draw the duration of each stage, one after the other."""
    figure, axes = _figure(height=0.8 + 0.34 * len(names))
    starts = [sum(seconds[:stage]) for stage in range(len(seconds))]
    axes.barh(range(len(names)), seconds, left=starts, color=NOW, height=0.6)
    for row, (start, duration) in enumerate(zip(starts, seconds, strict=True)):
        axes.annotate(f"{duration:,.1f} s", (start + duration, row), (4, 0), textcoords="offset points", va="center")
    axes.set(yticks=range(len(names)), yticklabels=names, xlabel="seconds")
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
    return figure


def svg(figure: Figure, name: str) -> str:
    """Return a figure as an SVG element for an HTML page that has the properties `--ink`, `--now` and so on.

    Args:
        figure: the figure.
        name: a name that no other figure of the page has, so that their element IDs differ.
    """
    target = io.StringIO()
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": name}), _missing_glyphs_ignored():
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = target.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", text, count=1)  # so that it fills its column
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[\w.]+_\d+"', "", text)  # nothing refers to these IDs, and other figures have the same
    for colour, css_property in _PROPERTIES.items():
        text = text.replace(colour, css_property)
    return text


def png(figure: Figure) -> bytes:
    """Return a figure as PNG, on white."""
    target = io.BytesIO()
    with matplotlib.rc_context(_STYLE), _missing_glyphs_ignored():
        figure.savefig(target, format="png", dpi=_DOTS_PER_INCH, facecolor="white", metadata={"Software": None})
    return target.getvalue()


def _figure(width: float = _WIDE, height: float = 3.0) -> tuple[Figure, Axes]:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots()


def _text(text: str) -> str:
    """Escape a text for matplotlib, which reads what is between two dollar signs as a formula."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text).replace("$", r"\$")


@contextmanager
def _missing_glyphs_ignored() -> Iterator[None]:
    """Draw boxes for characters that the font lacks, without a warning for each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, labelcolor=INK)
