"""The mapper against bare `predict_proba` in memory and against a prediction a line; the runner `local` against Spark.

All of it in one run, on the flights with the flights' model. On one thread:

- `mapper`: the script as a process, from record lines to prediction lines, less the time of the same process with no
  lines (start-up, loading and checking the model).
- `predict_proba`: the same pipeline in a process of its own, on a data frame in memory that holds all flights.
- `line by line`: `predict_proba` of a data frame of one row, as a mapper without blocks would call it.

The three are measured in turn, round after round, and a ratio is taken within each round: the machine's speed drifts.

On two cores, once, one after the other, from the process's start to its end, ten times the flights under new IDs:

- `local`: `predictions score --runner local`, the export already on disk.
- `Spark`: `spark.py` on the same lines, in a virtual environment of its own that is made once. What it writes must be
  what `local` writes, byte for byte.
"""

import importlib.metadata
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
os.environ.update(THREADS)  # before numpy is loaded, here and in the processes that are measured

import click
import pandas as pd

from benchmarks.flights import VAR, machine, make_copies, make_release, score_local
from predictions.cli import exits
from predictions.formats.names import scored_at
from predictions.formats.record_line import read_blocks
from predictions.jobs.bundle import script
from predictions.scoring.model import load_model
from predictions.storage import ReleaseFolder

SPARK = Path(__file__).with_name("spark.py")
SPARK_ENVIRONMENT = VAR / "spark-venv"
SPARK_REQUIRES = ("pyspark>=4.3", "pyarrow")
SPARK_SHARES = ("numpy", "pandas", "scikit-learn", "scipy", "skops", "xxhash")  # in the versions of this Python
SPARK_COPIES = 10  # of the flights
REPEATS = 5  # times that the flights are scored in a round, so that the start-up is the smaller part
LINE_BY_LINE_ROWS = 300


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one object.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Of the rows on one thread.")
def main(as_json: bool, rounds: int) -> None:
    """Measure the mapper on the flights, and the local runner beside Spark."""
    VAR.mkdir(exist_ok=True)
    spark = _install_spark()
    with tempfile.TemporaryDirectory(prefix="score.", dir=VAR) as local:
        folder = make_release(Path(local))
        lines, manifest = Path(folder.files("export")[0]), Path(folder.path) / "model" / "model.json"
        rows, training = folder.manifest.export.rows, folder.model.training
        lines = _repeat(lines, Path(local) / "lines")
        measured = [_round(lines, manifest, folder.release, rows) for _round_number in range(rounds)]
        seconds = _beside_spark(make_copies(folder, SPARK_COPIES), spark, Path(local))
    ratios = {
        "mapper_vs_predict": statistics.median(m["mapper"] / m["predict"] for m in measured),
        "line_by_line_vs_mapper": statistics.median(m["line_by_line"] / m["mapper"] for m in measured),
        "spark_vs_local": seconds["spark"] / seconds["local"],
    }
    microseconds = {name: statistics.median(m[name] for m in measured) * 1e6 for name in measured[0]}
    result = {
        "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "microseconds_per_row": {name: round(value, 3) for name, value in microseconds.items()},
        "rows": rows,
        "rounds": rounds,
        "machine": machine(),
        "by_round": [round(m["mapper"] / m["predict"], 3) for m in measured],
        "roc_auc": round(training.metrics["roc_auc"], 4),
        "beside_spark": {
            "rows": SPARK_COPIES * rows,
            "seconds": {name: round(value, 2) for name, value in seconds.items()},
        },
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
        command = [sys.executable, script("mapper.py"), str(manifest), release]
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


def _install_spark() -> Path:
    """Return the Python of an environment with Spark, made where it is not there, and with this one's libraries."""
    python = SPARK_ENVIRONMENT / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", SPARK_ENVIRONMENT], check=True)
    shared = [f"{name}=={importlib.metadata.version(name)}" for name in SPARK_SHARES]
    options = ("--quiet", "--disable-pip-version-check")
    # Where all of it is there already, pip only looks. -I: in PYTHONPATH it would find the package, and miss its needs.
    subprocess.run([python, "-I", "-m", "pip", "install", *options, *SPARK_REQUIRES, *shared], check=True)
    return python


def _beside_spark(folder: ReleaseFolder, spark: Path, local: Path) -> dict[str, float]:
    """Return the seconds that the runner `local` and Spark take for a release, to the same lines."""
    seconds = {"local": score_local(folder).seconds, "spark": _seconds_of_spark(folder, spark, local)}
    ours, sparks = _lines(Path(folder.path) / "scored"), _lines(local / "output")
    differing = next((pair for pair in zip_longest(ours, sparks) if pair[0] != pair[1]), None)
    if differing:
        raise click.ClickException(f"Spark did not write the same: {differing[0]!r} here, {differing[1]!r} there")
    return seconds


def _seconds_of_spark(folder: ReleaseFolder, spark: Path, local: Path) -> float:
    manifest, lines, output = f"{folder.path}/model/model.json", f"{folder.path}/export", local / "output"
    command = [spark, SPARK, manifest, scored_at(folder.release), lines, output]
    # THREADS is in it: a worker has one core.
    environment = os.environ | {
        "PYSPARK_PYTHON": str(spark),
        "SPARK_LOCAL_DIRS": str(local),
        "SPARK_LOCAL_IP": "127.0.0.1",
    }
    environment.pop("PYTHONPATH", None)  # it has the libraries of its own environment, and needs nothing of ours
    os.sync()
    started = time.perf_counter()
    run = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if run.returncode:
        raise click.ClickException(f"Spark failed: {run.stderr[-4000:]}")
    return time.perf_counter() - started


def _lines(folder: Path) -> Iterator[bytes]:
    for part in sorted(folder.glob("part-*")):
        with open(part, "rb") as file:
            yield from file


def _table(result: dict) -> str:
    micro, ratios = result["microseconds_per_row"], result["ratios"]
    both = result["beside_spark"]
    return "\n".join(
        [
            f"{result['rows']:,} flights, one thread, median of {result['rounds']} rounds; {result['machine']}",
            f"{'':24}{'us a row':>12}{'ratio':>24}",
            f"{'predict_proba, in memory':24}{micro['predict']:12.2f}{'1':>24}",
            f"{'mapper, start-up aside':24}{micro['mapper']:12.2f}{ratios['mapper_vs_predict']:24.2f}",
            f"{'line by line':24}{micro['line_by_line']:12.0f}{ratios['line_by_line_vs_mapper']:17.0f} x mapper",
            "",
            f"{both['rows']:,} records, two cores, from text to text sorted by row key, once",
            f"{'':24}{'seconds':>12}{'ratio':>24}",
            f"{'runner local':24}{both['seconds']['local']:12.1f}{'1':>24}",
            f"{'Spark, mapInPandas':24}{both['seconds']['spark']:12.1f}{ratios['spark_vs_local']:24.2f}",
        ]
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--predict"]:
        _predict(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        exits.run(main, "score")
