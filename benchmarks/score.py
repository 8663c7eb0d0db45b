"""The mapper against bare `predict_proba` in memory, and against a prediction a line.

All of it in one run, on one thread, on the flights with the flights' model:

- `mapper`: the script as a process, from record lines to prediction lines, less the time of the same process with no
  lines (start-up, loading and checking the model).
- `predict_proba`: the same pipeline in a process of its own, on a data frame in memory that holds all flights.
- `line by line`: `predict_proba` of a data frame of one row, as a mapper without blocks would call it.

The three are measured in turn, round after round, and a ratio is taken within each round: the machine's speed drifts.
"""

import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
os.environ.update(THREADS)  # before numpy is loaded, here and in the processes that are measured

import click
import pandas as pd

import mapper
from examples.flights.make_database import make_database
from predictions.export import export
from predictions.model import load_model
from predictions.records import read_blocks
from predictions.settings import load_settings
from predictions.storage import Storage
from predictions.training import train

CHECKOUT = Path(__file__).resolve().parent.parent
REPEATS = 5  # times that the flights are scored in a round, so that the start-up is the smaller part
LINE_BY_LINE_ROWS = 300


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one object.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
def main(as_json: bool, rounds: int) -> None:
    """Measure the mapper on the flights."""
    settings = load_settings(CHECKOUT / "examples" / "flights" / "predictions.toml")
    database = CHECKOUT / "var" / "flights.db"
    if not database.exists():
        make_database(database)
    with tempfile.TemporaryDirectory(dir=CHECKOUT / "var") as local:
        folder = export(settings, Storage(local, settings.name), lambda _done, _total: None)
        training = train(settings, folder, lambda _text: None)["training"]
        lines, manifest = Path(folder.files("export")[0]), Path(folder.path) / "model" / "model.json"
        rows = folder.manifest()["export"]["rows"]
        lines = _repeat(lines, Path(local) / "lines")
        measured = [_round(lines, manifest, folder.release, rows) for _round_number in range(rounds)]
    ratios = {
        "mapper_vs_predict": statistics.median(m["mapper"] / m["predict"] for m in measured),
        "line_by_line_vs_mapper": statistics.median(m["line_by_line"] / m["mapper"] for m in measured),
    }
    microseconds = {name: statistics.median(m[name] for m in measured) * 1e6 for name in measured[0]}
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    result = {
        "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "microseconds_per_row": {name: round(value, 3) for name, value in microseconds.items()},
        "rows": rows,
        "rounds": rounds,
        "machine": machine,
        "by_round": [round(m["mapper"] / m["predict"], 3) for m in measured],
        "roc_auc": round(training["metrics"]["roc_auc"], 4),
    }
    print(json.dumps(result) if as_json else _table(result))


def _repeat(lines: Path, target: Path) -> Path:
    target.write_bytes(lines.read_bytes() * REPEATS)
    return target


def _round(lines: Path, manifest: Path, release: str, rows: int) -> dict[str, float]:
    """Return seconds a row of each way, measured one after the other; `lines` has `rows` of them, repeated."""
    empty = _seconds_of_mapper(Path(os.devnull), manifest, release)
    full = _seconds_of_mapper(lines, manifest, release)
    probe = [sys.executable, __file__, "--predict", str(manifest), str(lines)]
    predict, line_by_line = json.loads(subprocess.run(probe, capture_output=True, check=True).stdout)
    return {"mapper": (full - empty) / (REPEATS * rows), "predict": predict / rows, "line_by_line": line_by_line}


def _seconds_of_mapper(lines: Path, manifest: Path, release: str) -> float:
    with open(lines, "rb") as stdin:
        started = time.perf_counter()
        command = [sys.executable, mapper.__file__, str(manifest), release]
        subprocess.run(command, stdin=stdin, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        return time.perf_counter() - started


def _predict(manifest: Path, lines: Path) -> None:
    """Print the seconds of one `predict_proba` for all flights, and the seconds a row of one call each."""
    model = load_model(manifest)
    frames = [model._reader.read(block)[0] for block in read_blocks(io.BytesIO(lines.read_bytes()))]
    frame = pd.concat(frames, ignore_index=True)
    frame = frame.iloc[: len(frame) // REPEATS]
    started = time.perf_counter()
    for _repeat_number in range(REPEATS):
        model.estimator.predict_proba(frame)
    predicted = time.perf_counter()
    for row in range(LINE_BY_LINE_ROWS):
        model.estimator.predict_proba(frame.iloc[row : row + 1])
    line_by_line = (time.perf_counter() - predicted) / LINE_BY_LINE_ROWS
    print(json.dumps([(predicted - started) / REPEATS, line_by_line]))


def _table(result: dict) -> str:
    micro, ratios = result["microseconds_per_row"], result["ratios"]
    return "\n".join(
        [
            f"{result['rows']:,} flights, one thread, median of {result['rounds']} rounds; {result['machine']}",
            f"{'':24}{'us a row':>12}{'ratio':>24}",
            f"{'predict_proba, in memory':24}{micro['predict']:12.2f}{'1':>24}",
            f"{'mapper, start-up aside':24}{micro['mapper']:12.2f}{ratios['mapper_vs_predict']:24.2f}",
            f"{'line by line':24}{micro['line_by_line']:12.0f}{ratios['line_by_line_vs_mapper']:17.0f} x mapper",
        ]
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--predict"]:
        _predict(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
