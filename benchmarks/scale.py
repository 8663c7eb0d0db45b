"""Measure time and peak memory of scoring by the runner `local`, at 0.3, 3 and 30 million records.

The flights are exported and their model is trained once. Each size is a release with copies of the flights under new
IDs, which is scored by `predictions score`, as a process, from its start to its end. Then every hundredth record
changes, and `score --changed` is measured, from the call behind the command, in a process of its own: it keeps the
first release's lines, and scores the others. Both releases are removed before the next ones are made.

The peak memory is that of each kind of process: the command itself (`predictions`), a mapper, a reducer, `sort`.
"""

import json
import multiprocessing
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from benchmarks.flights import ROWS, SETTINGS, VAR, change, machine, make_copies, make_release, score_local
from benchmarks.processes import peak_memory
from predictions.cli import exits
from predictions.settings import load_settings
from predictions.stages.score import score
from predictions.storage import ReleaseFolder

DISK_BYTES = 550  # per record: both releases' lines, and the unscored lines in sort's files
EVERY = 100  # every hundredth record changes


def _numbers(_context: click.Context, _option: click.Parameter, text: str) -> list[int]:
    try:
        numbers = sorted({int(number) for number in text.split(",")})
    except ValueError:
        numbers = []
    if len(numbers) < 2 or numbers[0] < 1:
        raise click.BadParameter("give two or more different numbers, separated by commas")
    return numbers


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--copies", callback=_numbers, default="1,9,89", show_default=True, help="Copies of the flights, for each size."
)
def main(as_json: bool, copies: list[int]) -> None:
    """Measure the local runner as the records grow."""
    VAR.mkdir(exist_ok=True)
    free, needed = shutil.disk_usage(VAR).free, copies[-1] * ROWS * DISK_BYTES
    if free < needed:
        raise click.ClickException(f"{VAR}: {free / 1e9:.1f} GB are free, {needed / 1e9:.1f} GB are needed")
    with tempfile.TemporaryDirectory(prefix="scale.", dir=VAR) as local:
        flights = make_release(Path(local))
        sizes = [_measure(flights, number) for number in copies]
    ratios = {}
    for mode in ("all", "changed"):
        large, middle = sizes[-1][mode], sizes[-2][mode]
        ratios[mode] = {
            **{
                name: round(large[f"{name}_microseconds_per_record"] / middle[f"{name}_microseconds_per_record"], 3)
                for name in ("elapsed", "cpu")
            },
            "peak_memory": {kind: round(peak / middle["peak_mb"][kind], 3) for kind, peak in large["peak_mb"].items()},
        }
    result = {"ratios": ratios, "sizes": sizes, "machine": machine()}
    print(json.dumps(result) if as_json else _table(result))


def _measure(flights: ReleaseFolder, copies: int) -> dict[str, Any]:
    folders = [make_copies(flights, copies)]
    try:
        measured = {"records": copies * ROWS, "all": _usage(lambda: score_local(folders[0]), copies)}
        folders[0] = ReleaseFolder(flights.storage, folders[0].release)  # whose manifest says what was scored
        folders.append(change(folders[0], EVERY))
        measured["changed"] = _usage(lambda: _score_changed(folders[1], folders[0]), copies)
    finally:
        for folder in folders:
            shutil.rmtree(folder.path)
    return measured


def _score_changed(folder: ReleaseFolder, served: ReleaseFolder) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_child, args=(folder, served))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"scoring with --changed ended with {process.exitcode}")


def _child(folder: ReleaseFolder, served: ReleaseFolder) -> None:
    score(load_settings(SETTINGS), folder, "local", lambda _share: None, served, changed=True)


def _usage(run: Callable[[], object], copies: int) -> dict[str, Any]:
    started, cpu_started = time.perf_counter(), _cpu_seconds()
    with peak_memory() as peaks:
        run()
    seconds, cpu_seconds = time.perf_counter() - started, _cpu_seconds() - cpu_started
    return {
        "seconds": round(seconds, 2),
        "elapsed_microseconds_per_record": round(seconds / copies / ROWS * 1e6, 3),
        "cpu_microseconds_per_record": round(cpu_seconds / copies / ROWS * 1e6, 3),
        "peak_mb": peaks,
    }


def _cpu_seconds() -> float:
    """Return the seconds of a core that ended child processes have used, with their own."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _table(result: dict[str, Any]) -> str:
    kinds = result["sizes"][0]["all"]["peak_mb"]
    heads = "".join(f"{kind:>14}" for kind in kinds)
    lines = [
        f"scoring by the runner local, the flights under new IDs; {result['machine']}",
        f"{'records':>12}{'scored':>10}{'seconds':>10}{'us a record':>13}{'us of CPU':>11}{heads}  (peak MB)",
    ]
    for size in result["sizes"]:
        for mode in ("all", "changed"):
            usage = size[mode]
            peaks = "".join(f"{usage['peak_mb'][kind]:14.1f}" for kind in kinds)
            times = f"{usage['elapsed_microseconds_per_record']:13.2f}{usage['cpu_microseconds_per_record']:11.2f}"
            lines.append(f"{size['records']:12,}{mode:>10}{usage['seconds']:10.1f}{times}{peaks}")
    for mode, ratios in result["ratios"].items():
        peaks = ", ".join(f"{kind} {ratio:.2f}" for kind, ratio in ratios["peak_memory"].items())
        times = f"{ratios['elapsed']:.2f} x the time a record ({ratios['cpu']:.2f} x the CPU time)"
        lines.append(f"{mode}, the largest against the one before: {times}; x the memory: {peaks}")
    return "\n".join(lines)


if __name__ == "__main__":
    exits.run(main, "scale")
