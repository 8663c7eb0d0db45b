"""Measure time and peak memory of `predictions score --runner local`, at 0.3, 3 and 30 million records.

The flights are exported and their model is trained once. Each size is a release with copies of the flights under new
IDs, which is removed before the next one is made. The command is measured as a process, from its start to its end. The
peak memory is that of the largest process: the command itself, a mapper, a reducer or `sort`.
"""

import json
import resource
import shutil
import tempfile
from pathlib import Path

import click

from benchmarks.flights import ROWS, VAR, Usage, machine, make_copies, make_release, score_local
from predictions.cli import exits
from predictions.storage import ReleaseFolder

DISK_BYTES = 250  # per record: its line (45 bytes), and its prediction line (58) in sort's files and in the output


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
    large, middle = sizes[-1], sizes[-2]
    result = {
        "ratios": {
            "time_per_record_30m_vs_3m": round(large["microseconds_per_record"] / middle["microseconds_per_record"], 3),
            "peak_memory_30m_vs_3m": round(large["peak_mb"] / middle["peak_mb"], 3),
            "cpu_per_record_30m_vs_3m": round(
                large["cpu_microseconds_per_record"] / middle["cpu_microseconds_per_record"], 3
            ),
        },
        "sizes": sizes,
        "machine": machine(),
    }
    print(json.dumps(result) if as_json else _table(result))


def _measure(flights: ReleaseFolder, copies: int) -> dict[str, float]:
    folder = make_copies(flights, copies)
    try:
        usage = score_local(folder)
    finally:
        shutil.rmtree(folder.path)
    _check_peak(usage)
    records = copies * ROWS
    return {
        "records": records,
        "seconds": round(usage.seconds, 2),
        "cpu_seconds": round(usage.cpu_seconds, 2),
        "microseconds_per_record": round(usage.seconds / records * 1e6, 3),
        "cpu_microseconds_per_record": round(usage.cpu_seconds / records * 1e6, 3),
        "peak_mb": round(usage.peak_bytes / 1e6, 1),
    }


def _check_peak(usage: Usage) -> None:
    """Raise RuntimeError unless the peak is that of the measured processes (see `score_local`)."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    if usage.peak_bytes <= own:
        raise RuntimeError(f"the benchmark itself takes {own / 1e6:.1f} MB, more than the processes that it measures")


def _table(result: dict) -> str:
    lines = [
        f"predictions score --runner local, the flights under new IDs; {result['machine']}",
        f"{'records':>12}{'seconds':>12}{'us a record':>14}{'us of CPU':>12}{'peak MB':>10}",
    ]
    lines += [
        f"{size['records']:12,}{size['seconds']:12.1f}{size['microseconds_per_record']:14.2f}"
        f"{size['cpu_microseconds_per_record']:12.2f}{size['peak_mb']:10.1f}"
        for size in result["sizes"]
    ]
    ratios = result["ratios"]
    lines.append(
        f"the largest against the one before: {ratios['time_per_record_30m_vs_3m']:.2f} x the time a record "
        f"({ratios['cpu_per_record_30m_vs_3m']:.2f} x the CPU time), {ratios['peak_memory_30m_vs_3m']:.2f} x the memory"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    exits.run(main, "scale")
