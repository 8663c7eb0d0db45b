"""Plot the figures of `benchmarks/writeback`: latency over time, and next to it what the database had to do."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from predictions.report.figures import BEFORE, GRID, INK, NOW, SOFT

PHASES = {
    "nothing": ("nothing else happens", SOFT),
    "write_back": ("predictions written back", BEFORE),
    "package": ("this package runs", NOW),
}
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "font.size": 11,
    "grid.color": GRID,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
}
DOTS_PER_INCH = 160
MEGABYTE = 1e6
NOTES = 5.0  # the y axis ends at so many times the highest latency, so that the notes have room


def draw(result: dict[str, Any], target: Path) -> None:
    """Draw what `benchmarks/writeback --json` prints into a PNG, on white, which also suits a dark page."""
    phases = result["phases"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 5.0), layout="constrained")
        grid = figure.add_gridspec(3, 2, width_ratios=(2.3, 1))
        _latency(figure.add_subplot(grid[:, 0]), phases)
        reads = {phase: phases[phase]["reads"]["reads_per_second"] for phase in PHASES}
        wal = {phase: phases[phase]["wal_bytes"] / MEGABYTE for phase in PHASES}
        grown = {phase: _size(phases[phase]["after"]) - _size(phases[phase]["before"]) for phase in PHASES}
        _bars(figure.add_subplot(grid[0, 1]), f"reads a second, of {result['rate']:,}", reads)
        _bars(figure.add_subplot(grid[1, 1]), "write-ahead log, MB", wal)
        _bars(figure.add_subplot(grid[2, 1]), "table and index grow by, MB", grown)
        figure.legend(loc="outside upper left", ncols=len(PHASES), frameon=False)
        figure.savefig(target, dpi=DOTS_PER_INCH, facecolor="white", metadata={"Software": None})


def _latency(axes: Axes, phases: dict[str, Any]) -> None:
    for phase, (title, colour) in PHASES.items():
        seconds = phases[phase]["by_second"]
        times = [second + 0.5 for second in range(len(seconds))]
        axes.plot(times, [second["p99_ms"] for second in seconds], color=colour, linewidth=1.8, label=title)
        axes.plot(times, [second["p50_ms"] for second in seconds], color=colour, linewidth=1.2, linestyle=(0, (1, 1.2)))
    axes.set_title("reads by primary key, ms: p99 of each second, p50 dotted")
    axes.set(yscale="log", xlabel="seconds since it began", xlim=(0, None))
    axes.set_ylim(top=NOTES * axes.get_ylim()[1])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y")
    export, column = phases["package"]["steps"]["export"], phases["write_back"]["steps"]["add column"]
    end = export["begin"] + export["seconds"]
    axes.axvspan(export["begin"], end, color=NOW, alpha=0.13, linewidth=0)
    _note(axes, end, 1.0, "export; then training, scoring, loading: on the same cores", NOW)
    _note(axes, column["seconds"], 0.92, "until here ALTER TABLE waits for its lock, then UPDATE", BEFORE)


def _note(axes: Axes, second: float, height: float, text: str, colour: str) -> None:
    point, offset = (second, height), (6, -4)
    axes.annotate(
        text, point, offset, ("data", "axes fraction"), textcoords="offset points", va="top", color=colour, fontsize=9.5
    )


def _bars(axes: Axes, title: str, values: dict[str, float]) -> None:
    colours = [colour for _title, colour in PHASES.values()]
    bars = axes.barh(range(len(values)), list(values.values()), color=colours, height=0.7)
    axes.bar_label(bars, [f"{value:,.0f}" for value in values.values()], padding=3, color=INK)
    axes.set_title(title)
    axes.set(xticks=[], yticks=[], xlim=(0, 1.25 * max(values.values())))
    axes.spines["bottom"].set_visible(False)
    axes.invert_yaxis()


def _size(table: dict[str, int]) -> float:
    return (table["table_bytes"] + table["index_bytes"]) / MEGABYTE
