"""Plot the figures of `benchmarks/serving`: lookups over time, with the phases marked."""

from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.plots import Colours, draw_twice, milliseconds, note

MARKED = {
    "job": "before",
    "hand over": "soft",
    "hfiles": "now",
    "puts": "bad",
    "puts --rate": "other",
}  # phases and their colours
SWITCH = "after: "
NOTES = 2.0  # the y axis ends at so many times the highest latency, so that the notes have room


def draw(result: dict[str, Any], target: Path) -> None:
    """Draw what `benchmarks/serving --json` prints into two PNG files."""
    draw_twice(target, partial(_draw, result))


def _draw(result: dict[str, Any], figure: Figure, colours: Colours) -> None:
    rows = figure.subplots(len(result["lookups"]), sharex=True)
    for axes, (ids, lookups) in zip(rows, result["lookups"].items(), strict=True):
        _latency(axes, lookups["by_second"], colours)
        number = f"{ids} ID{'s' if ids != '1' else ''}, {result['rates'][ids]:g} a second"
        axes.set_title(f"{number}: ms from when due, p99 of each second, p50 dotted", fontsize=10)
        for phase in result["phases"]:
            _mark(axes, phase, colours)
    rows[-1].set_xlabel("seconds")
    rows[0].legend(loc="upper left", bbox_to_anchor=(0, 1.32), ncols=len(MARKED) + 1, frameon=False, fontsize=10)


def _latency(axes: Axes, seconds: list[dict[str, Any]], colours: Colours) -> None:
    milliseconds(axes)
    for name, style in (("p99_ms", {"linewidth": 1.4}), ("p50_ms", {"linewidth": 1.0, "linestyle": (0, (1, 1.2))})):
        points = [(number + 0.5, second[name]) for number, second in enumerate(seconds) if second["samples"]]
        axes.plot(*zip(*points, strict=True), color=colours.ink, **style)
    axes.set(xlim=(0, len(seconds)), ylim=(None, NOTES * axes.get_ylim()[1]))


def _mark(axes: Axes, phase: dict[str, Any], colours: Colours) -> None:
    """Mark a phase by its colour, or a switch by a line with the name of its warm-up."""
    name = phase["name"]
    if name in MARKED:
        labels = {text.get_label() for text in axes.patches}
        label = f"_{name}" if name in labels else name  # one entry in the legend for all of its times
        colour = getattr(colours, MARKED[name])
        axes.axvspan(phase["begin"], phase["end"], color=colour, alpha=0.22, linewidth=0, label=label)
    elif name.startswith(SWITCH):
        axes.axvline(phase["begin"], color=colours.soft, linewidth=1.2, linestyle="--")
        note(axes, phase["begin"], f"switch, warmed:\n{name.removeprefix(SWITCH)}", colours.soft)
