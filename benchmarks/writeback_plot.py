"""Plot the figures of `benchmarks/writeback`: latency over time, and next to it what the database had to do."""

from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.plots import Colours, draw_twice, milliseconds, note

PHASES = {
    "nothing": ("nothing else happens", "soft"),
    "write_back": ("written back in batches", "before"),
    "at_once": ("written back at once", "bad"),
    "package": ("this package runs", "now"),
}
BARS = {  # figures of a phase, and their titles
    "wal_mb": "write-ahead log, MB",
    "index_growth_mb": "indexes grow by, MB",
    "replica_lag_seconds": "longest lag of the replica, s",
    "locked_seconds": "table locked for reads, s",
}


def draw(result: dict[str, Any], target: Path) -> None:
    """Draw what `benchmarks/writeback --json` prints into two PNG files."""
    draw_twice(target, partial(_draw, result))


def _draw(result: dict[str, Any], figure: Figure, colours: Colours) -> None:
    grid = figure.add_gridspec(len(BARS), 2, width_ratios=(2.3, 1))
    _latency(figure.add_subplot(grid[:, 0]), result["rounds"][0], colours)
    for row, (name, title) in enumerate(BARS.items()):
        _bars(figure.add_subplot(grid[row, 1]), title, result["phases"], name, colours)
    figure.legend(loc="outside upper left", ncols=len(PHASES), frameon=False, fontsize=10)


def _latency(axes: Axes, phases: dict[str, Any], colours: Colours) -> None:
    """Draw the reads of the first round."""
    milliseconds(axes)
    for phase, (title, name) in PHASES.items():
        seconds, colour = phases[phase]["by_second"], getattr(colours, name)
        for figure, style in (("p99_ms", {"linewidth": 1.8, "label": title}), ("p50_ms", {"linestyle": (0, (1, 1.2))})):
            points = [(number + 0.5, second[figure]) for number, second in enumerate(seconds) if second["samples"]]
            axes.plot(*zip(*points, strict=True), color=colour, **{"linewidth": 1.2, **style})
    export = phases["package"]["steps"]["export"]
    begin, end = export["begin"], export["begin"] + export["seconds"]
    axes.axvspan(begin, end, color=colours.now, alpha=0.18, linewidth=0)
    note(axes, begin, "export", colours.now)
    axes.set_title("reads by primary key, ms from when due: p99 of each second, p50 dotted", fontsize=10)
    axes.set(xlabel="seconds since it began", xlim=(0, None))


def _bars(axes: Axes, title: str, phases: dict[str, Any], name: str, colours: Colours) -> None:
    """Draw the median of each phase as a bar, and the rounds' least and largest value as a line."""
    middle, least, largest = zip(*(phases[phase][name] for phase in PHASES), strict=True)
    rows, bar_colours = range(len(PHASES)), [getattr(colours, colour) for _title, colour in PHASES.values()]
    axes.barh(rows, middle, color=bar_colours, height=0.7)
    axes.hlines(rows, least, largest, color=colours.ink, linewidth=1.2)
    for row, value, end in zip(rows, middle, largest, strict=True):
        text = f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:.2g}"
        axes.annotate(text, (end, row), (4, 0), textcoords="offset points", va="center", fontsize=9.5)
    axes.set_title(title, fontsize=10)
    axes.set(xticks=[], yticks=[], xlim=(0, 1.3 * (max(largest) or 1)))
    axes.spines["bottom"].set_visible(False)
    axes.invert_yaxis()
