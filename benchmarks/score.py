"""Compare the mapper with bare `predict_proba` and with a prediction per line, and the runner `local` with Spark.

All are measured in one run, on the flights with the flights' model. On one thread:

- `mapper`: the script as a process, from record lines to prediction lines, less the time of the same process without
  lines (start-up, loading and checking the model).
- `predict_proba`: the same pipeline in its own process, on a data frame in memory that holds all flights.
- `line by line`: `predict_proba` of a data frame of one row, as a mapper without blocks would call it.

The three are measured in turn, round after round. A ratio is taken within each round, since the machine's speed drifts.

On two cores, once, one after the other, on ten copies of the flights, each process from its start to its end:

- `local`: `predictions score --runner local`, with the export already on disk.
- `Spark`: `spark.py` on the same lines, in its own virtual environment, which is made once. It must write the same
  bytes as `local`.
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
os.environ.update(THREADS)  # before numpy is imported, here and in the measured processes

import click
import pandas as pd

from benchmarks.flights import VAR, machine, make_copies, make_release, score_local
from predictions.cli import exits
from predictions.formats.manifest import MODEL_FILE
from predictions.formats.names import scored_at
from predictions.formats.record_line import read_blocks
from predictions.jobs.bundle import script
from predictions.scoring.estimator import load
from predictions.scoring.files import read_manifest
from predictions.scoring.frame import FrameReader
from predictions.storage import ReleaseFolder

SPARK = Path(__file__).with_name("spark.py")
SPARK_ENVIRONMENT = VAR / "spark-venv"
SPARK_REQUIRES = ("pyspark>=4.3", "pyarrow")
SPARK_SHARES = ("numpy", "pandas", "scikit-learn", "scipy", "skops", "xxhash")  # in the versions of this environment
SPARK_COPIES = 10  # copies of the flights
REPEATS = 5  # how often a round scores the flights, so that the start-up is the smaller part
LINE_BY_LINE_ROWS = 300


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Number of rounds on one thread.")
def main(as_json: bool, rounds: int) -> None:
    """Measure the mapper on the flights, and the local runner against Spark."""
    VAR.mkdir(exist_ok=True)
    spark = _install_spark()
    with tempfile.TemporaryDirectory(prefix="score.", dir=VAR) as local:
        folder = make_release(Path(local))
        lines, manifest = Path(folder.files("export")[0]), Path(folder.path) / "model" / "model.json"
        rows, training = folder.manifest.export.rows, folder.model.training
        lines = _repeat(lines, Path(local) / "lines")
        measured = [_round(lines, manifest, folder.release, rows) for _round_number in range(rounds)]
        seconds = _local_and_spark(make_copies(folder, SPARK_COPIES), spark, Path(local))
    ratios = {
        "mapper_vs_predict": statistics.median(times["mapper"] / times["predict"] for times in measured),
        "line_by_line_vs_mapper": statistics.median(times["line_by_line"] / times["mapper"] for times in measured),
        "spark_vs_local": seconds["spark"] / seconds["local"],
    }
    microseconds = {name: statistics.median(times[name] for times in measured) * 1e6 for name in measured[0]}
    result = {
        "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "microseconds_per_row": {name: round(value, 3) for name, value in microseconds.items()},
        "rows": rows,
        "rounds": rounds,
        "machine": machine(),
        "by_round": [round(times["mapper"] / times["predict"], 3) for times in measured],
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
    """Return the seconds per row of each way, measured in turn; `lines` repeats `rows` lines `REPEATS` times."""
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
    """Print the seconds of `predict_proba` for all flights at once, and its seconds per row if called for each row."""
    reader, estimator = FrameReader(read_manifest(manifest).features), load(manifest.with_name(MODEL_FILE))
    frames = [reader.read(block)[0] for block in read_blocks(io.BytesIO(lines.read_bytes()))]
    frame = pd.concat(frames, ignore_index=True)
    frame = frame.iloc[: len(frame) // REPEATS]
    started = time.perf_counter()
    for _repeat_number in range(REPEATS):
        estimator.predict_proba(frame)
    predicted = time.perf_counter()
    for row in range(LINE_BY_LINE_ROWS):
        estimator.predict_proba(frame.iloc[row : row + 1])
    line_by_line = (time.perf_counter() - predicted) / LINE_BY_LINE_ROWS
    print(json.dumps([(predicted - started) / REPEATS, line_by_line]))


def _install_spark() -> Path:
    """Make an environment with Spark and this one's libraries, if it is missing, and return the path of its Python."""
    python = SPARK_ENVIRONMENT / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", SPARK_ENVIRONMENT], check=True)
    shared = [f"{name}=={importlib.metadata.version(name)}" for name in SPARK_SHARES]
    options = ("--quiet", "--disable-pip-version-check")
    # If all is installed, pip only checks. Without -I, it would find this package in PYTHONPATH and miss what it needs.
    subprocess.run([python, "-I", "-m", "pip", "install", *options, *SPARK_REQUIRES, *shared], check=True)
    return python


def _local_and_spark(folder: ReleaseFolder, spark: Path, local: Path) -> dict[str, float]:
    """Return the seconds of the runner `local` and of Spark for a release; both must write the same lines."""
    seconds = {"local": score_local(folder).seconds, "spark": _seconds_of_spark(folder, spark, local)}
    local_lines, spark_lines = _lines(Path(folder.path) / "scored"), _lines(local / "output")
    different = next((pair for pair in zip_longest(local_lines, spark_lines) if pair[0] != pair[1]), None)
    if different:
        raise click.ClickException(f"Spark wrote {different[1]!r}, the runner local {different[0]!r}")
    return seconds


def _seconds_of_spark(folder: ReleaseFolder, spark: Path, local: Path) -> float:
    manifest, lines, output = f"{folder.path}/model/model.json", f"{folder.path}/export", local / "output"
    command = [spark, SPARK, manifest, scored_at(folder.release), lines, output]
    # os.environ has THREADS: each worker has one core.
    environment = os.environ | {
        "PYSPARK_PYTHON": str(spark),
        "SPARK_LOCAL_DIRS": str(local),
        "SPARK_LOCAL_IP": "127.0.0.1",
    }
    environment.pop("PYTHONPATH", None)  # Spark's environment has its own libraries, and needs none of ours
    os.sync()
    started = time.perf_counter()
    process = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if process.returncode:
        raise click.ClickException(f"Spark failed: {process.stderr[-4000:]}")
    return time.perf_counter() - started


def _lines(folder: Path) -> Iterator[bytes]:
    for part in sorted(folder.glob("part-*")):
        with open(part, "rb") as file:
            yield from file


def _table(result: dict) -> str:
    micro, ratios = result["microseconds_per_row"], result["ratios"]
    beside_spark = result["beside_spark"]
    return "\n".join(
        [
            f"{result['rows']:,} flights, one thread, median of {result['rounds']} rounds; {result['machine']}",
            f"{'':24}{'us a row':>12}{'ratio':>24}",
            f"{'predict_proba, in memory':24}{micro['predict']:12.2f}{'1':>24}",
            f"{'mapper, start-up aside':24}{micro['mapper']:12.2f}{ratios['mapper_vs_predict']:24.2f}",
            f"{'line by line':24}{micro['line_by_line']:12.0f}{ratios['line_by_line_vs_mapper']:17.0f} x mapper",
            "",
            f"{beside_spark['rows']:,} records, two cores, from text to text sorted by row key, once",
            f"{'':24}{'seconds':>12}{'ratio':>24}",
            f"{'runner local':24}{beside_spark['seconds']['local']:12.1f}{'1':>24}",
            f"{'Spark, mapInPandas':24}{beside_spark['seconds']['spark']:12.1f}{ratios['spark_vs_local']:24.2f}",
        ]
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--predict"]:
        _predict(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        exits.run(main, "score")
