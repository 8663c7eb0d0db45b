"""Compare the mapper with scikit-learn alone, for several models, and the runner `local` with Spark.

On one thread, on the flights, for each model of `MODELS`:

- `mapper`: the script as a process, from record lines to prediction lines, less the time of the same process without
  lines (start-up, loading and checking the model).
- `scikit-learn`: `predict_proba` (of a regressor, `predict`) of the same pipeline in its own process, on a data frame
  in memory that holds all flights. For the first model, also of a data frame of one row, as a mapper without blocks
  would call it.

- Three labels in one pass: the mapper with the models of `LABELS`, against the same with the first of them alone.

These are measured in turn, round after round. A ratio is taken within each round, since the machine's speed drifts.

On two cores, once, one after the other, on ten copies of the flights with the first model, each process from its start
to its end:

- `local`: `predictions score --runner local`, with the export already on disk.
- `Spark`: `spark.py` on the same lines, in its own virtual environment, which is made once; with scikit-learn, and with
  the compiled model. Both must write the same bytes as `local`.
"""

import io
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
os.environ.update(THREADS)  # before numpy is imported, here and in the measured processes

import click
import pandas as pd

from benchmarks.environments import install_spark, run, spark_variables
from benchmarks.flights import LABELS, ROWS, SETTINGS, VAR, machine, make_copies, make_release, score_local
from predictions.cli import exits
from predictions.formats.manifest import MODEL_FILE, MODEL_MANIFEST, ReleaseModels
from predictions.formats.names import scored_at
from predictions.formats.record_line import join_lines, read_blocks, split_lines
from predictions.jobs.bundle import script
from predictions.scoring.estimator import load
from predictions.scoring.files import read_models
from predictions.scoring.frame import FrameReader
from predictions.storage import ReleaseFolder

SPARK = Path(__file__).with_name("spark.py")
SPARK_COPIES = 10  # copies of the flights
REPEATS = 5  # how often a round scores the flights, so that the start-up is the smaller part
LINE_BY_LINE_ROWS = 300
FIRST = "HistGradientBoosting"
OTHER_ROUNDS = 2  # of the models after the first
MANY_COLUMNS = [f"c{number}" for number in range(92)]  # in addition to the eight of the flights
LATE = "CASE WHEN arr_delay > 15 THEN 'late' WHEN arr_delay < 0 THEN 'early' WHEN arr_delay >= 0 THEN 'in time' END"
# Lines of the flights' settings that differ. Where fitting takes long, it takes a sample.
MODELS: dict[str, dict[str, str]] = {
    FIRST: {},
    "GradientBoosting": {
        "estimator": '"sklearn.ensemble.GradientBoostingClassifier"\nsample = 20_000',
        "params": "{ n_estimators = 100 }",
    },
    "three classes": {"table": f'query = "SELECT *, {LATE} AS arrival FROM flights"', "label": '"arrival"'},
    "regressor": {
        "label": '"arr_delay"',
        "estimator": '"sklearn.ensemble.HistGradientBoostingRegressor"',
    },
    "100 columns": {
        "table": 'query = "SELECT *, {} FROM flights"'.format(
            ", ".join(
                f"(distance * {3 + 2 * number} + sched_dep_time) % 97 AS {name}"
                for number, name in enumerate(MANY_COLUMNS)
            )
        ),
        "features": json.dumps(
            ["carrier", "origin", "dest", "distance", "month", "day", "sched_dep_time", "sched_arr_time", *MANY_COLUMNS]
        ),
    },
    "LightGBM": {"estimator": '"lightgbm.LGBMClassifier"', "params": "{ n_estimators = 200 }"},
    "XGBoost": {"estimator": '"xgboost.XGBClassifier"', "params": "{ n_estimators = 200 }"},
    "contributions, HistGradientBoosting": {"params": '{ max_iter = 200 }\noutputs = ["contributions"]\ntop = 3'},
    "RandomForest": {
        "estimator": '"sklearn.ensemble.RandomForestClassifier"\nsample = 20_000',
        "params": "{ n_estimators = 50, max_depth = 12 }",
    },
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Rounds of the first model.")
def main(as_json: bool, rounds: int) -> None:
    """Measure the mapper with several models on the flights, and the local runner against Spark."""
    VAR.mkdir(exist_ok=True)
    spark = install_spark()
    models = {}
    with tempfile.TemporaryDirectory(prefix="score.", dir=VAR) as name:
        local = Path(name)
        for model in MODELS:
            folder = make_release(local / model, _settings(local, model))
            models[model] = _measure(folder, local, rounds if model == FIRST else OTHER_ROUNDS)
            if model == FIRST:
                copies = make_copies(folder, SPARK_COPIES)
                seconds = _local_and_spark(copies, spark, local)
            shutil.rmtree(local / model)
        labels = _measure_labels(local, rounds)
    result = {
        "models": models,
        "labels": labels,
        "rows": ROWS,
        "rounds": rounds,
        "machine": machine(),
        "beside_spark": {
            "rows": SPARK_COPIES * ROWS,
            "seconds": {way: round(value, 2) for way, value in seconds.items()},
            "ratios": {way: round(value / seconds["local"], 3) for way, value in seconds.items()},
        },
    }
    print(json.dumps(result) if as_json else _table(result))


def _settings(local: Path, model: str) -> Path:
    """Write the settings of a model, and return their path."""
    text = SETTINGS.read_text()
    for name, value in {"url": f'"sqlite:///{VAR}/flights.db"', **MODELS[model]}.items():
        line = value if value.startswith("query") else f"{name} = {value}"
        text = re.sub(rf"(?m)^{name} .*", lambda _match, line=line: line, text)
    path = local / f"{model}.toml"
    path.write_text(text)
    return path


def _measure(folder: ReleaseFolder, local: Path, rounds: int) -> dict[str, Any]:
    """Return what a release's model takes, as medians over the rounds."""
    [lines], manifest = folder.files("export"), Path(folder.path) / "model" / "model.json"
    repeated = _repeat(Path(lines), local / "lines")
    measured = [_round(repeated, manifest, folder.release) for _round_number in range(rounds)]
    ratios = [times["mapper"] / times["predict"] for times in measured]
    return {
        "engine": folder.model.engine,
        "ratio": round(statistics.median(ratios), 3),
        "by_round": [round(ratio, 3) for ratio in ratios],
        "microseconds_per_row": {
            way: round(statistics.median(times[way] for times in measured) * 1e6, 3)
            for way in ("mapper", "predict", "line_by_line")
        },
        "seconds_to_start": round(statistics.median(times["start"] for times in measured), 3),
    }


def _measure_labels(local: Path, rounds: int) -> dict[str, Any]:
    """Return the ratio of the mapper's time for all labels to that for the first one alone."""
    folder = make_release(local / "labels", LABELS)
    first = local / "first"
    first.mkdir()
    for name in folder.models.each[0].files[:-1]:
        (first / name).write_bytes(folder.read(f"model/{folder.models.prefix(0)}{name}"))
    (first / MODEL_MANIFEST).write_bytes(ReleaseModels(folder.models.each[:1]).to_file())
    [export] = folder.files("export")
    lines = Path(export).read_bytes()
    of_one = join_lines(line.rsplit(b"\t", len(folder.models.each) - 1)[0] for line in split_lines(lines))
    (local / "one").write_bytes(REPEATS * of_one)
    (local / "all").write_bytes(REPEATS * lines)
    manifests = {"one": first / MODEL_MANIFEST, "all": Path(folder.path, "model", MODEL_MANIFEST)}
    ratios = []
    for _round_number in range(rounds):
        seconds = {
            name: _seconds_of_mapper(local / name, manifest, folder.release)
            - _seconds_of_mapper(Path(os.devnull), manifest, folder.release)
            for name, manifest in manifests.items()
        }
        ratios.append(seconds["all"] / seconds["one"])
    return {"ratio": round(statistics.median(ratios), 3), "by_round": [round(ratio, 3) for ratio in ratios]}


def _repeat(lines: Path, target: Path) -> Path:
    target.write_bytes(lines.read_bytes() * REPEATS)
    return target


def _round(lines: Path, manifest: Path, release: str) -> dict[str, float]:
    """Return the seconds per row of each way, measured in turn; `lines` repeats the flights `REPEATS` times."""
    empty = _seconds_of_mapper(Path(os.devnull), manifest, release)
    full = _seconds_of_mapper(lines, manifest, release)
    probe = [sys.executable, __file__, "--predict", str(manifest), str(lines)]
    predict, line_by_line = json.loads(subprocess.run(probe, capture_output=True, check=True).stdout)
    mapper = (full - empty) / (REPEATS * ROWS)
    return {"mapper": mapper, "predict": predict / ROWS, "line_by_line": line_by_line, "start": empty}


def _seconds_of_mapper(lines: Path, manifest: Path, release: str) -> float:
    with open(lines, "rb") as stdin:
        started = time.perf_counter()
        command = [sys.executable, script("mapper.py"), str(manifest), release]
        subprocess.run(command, stdin=stdin, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        return time.perf_counter() - started


def _predict(manifest: Path, lines: Path) -> None:
    """Print the seconds of scikit-learn for all flights at once, and its seconds per row if called for each row."""
    model, estimator = read_models(manifest).only, load(manifest.with_name(MODEL_FILE))
    predict = estimator.predict_proba if model.classes else estimator.predict
    reader, text = FrameReader(model.features), lines.read_bytes()
    blocks = read_blocks(io.BytesIO(text[: len(text) // REPEATS]))
    frame = pd.concat([reader.read(block)[0] for block in blocks], ignore_index=True)
    started = time.perf_counter()
    for _repeat_number in range(REPEATS):
        predict(frame)
    predicted = time.perf_counter()
    for row in range(LINE_BY_LINE_ROWS):
        predict(frame.iloc[row : row + 1])
    line_by_line = (time.perf_counter() - predicted) / LINE_BY_LINE_ROWS
    print(json.dumps([(predicted - started) / REPEATS, line_by_line]))


def _local_and_spark(folder: ReleaseFolder, spark: Path, local: Path) -> dict[str, float]:
    """Return the seconds of the runner `local` and of Spark for a release; all must write the same lines."""
    seconds = {"local": score_local(folder)}
    for engine in ("scikit-learn", "compiled"):
        output = local / f"spark-{engine}"
        model, export = f"{folder.path}/model/model.json", f"{folder.path}/export"
        command = [spark, SPARK, engine, model, scored_at(folder.release).decode(), export, output]
        seconds[f"Spark, {engine}"], _text = run(command, spark_variables(spark, local))
        for own, other in zip_longest(_lines(Path(folder.path) / "scored"), _lines(output)):
            if own != other:
                raise click.ClickException(f"Spark wrote {other!r}, the runner local {own!r}")
    return seconds


def _lines(folder: Path) -> Iterator[bytes]:
    for part in sorted(folder.glob("part-*")):
        with open(part, "rb") as file:
            yield from file


def _table(result: dict[str, Any]) -> str:
    first, spark = result["models"][FIRST], result["beside_spark"]
    line_by_line = first["microseconds_per_row"]["line_by_line"]
    return "\n".join(
        [
            f"{result['rows']:,} flights, one thread, median of {result['rounds']} rounds, of {OTHER_ROUNDS} for the "
            f"models after the first; {result['machine']}",
            f"{'us a row':24}{'scikit-learn':>14}{'mapper':>14}{'ratio':>10}{'start, s':>10}  engine of the mapper",
            *(
                f"{name:24}{model['microseconds_per_row']['predict']:14.2f}"
                f"{model['microseconds_per_row']['mapper']:14.2f}{model['ratio']:10.2f}"
                f"{model['seconds_to_start']:10.2f}  {model['engine']}"
                for name, model in result["models"].items()
            ),
            f"{FIRST}, scikit-learn line by line: {line_by_line:,.0f} us a row",
            f"three labels in one pass take {result['labels']['ratio']:.2f} times as long as one",
            "",
            f"{spark['rows']:,} records, two cores, from text to text sorted by row key, once",
            f"{'':24}{'seconds':>14}{'ratio':>14}",
            *(f"{way:24}{seconds:14.1f}{spark['ratios'][way]:14.2f}" for way, seconds in spark["seconds"].items()),
        ]
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--predict"]:
        _predict(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        exits.run(main, "score")
