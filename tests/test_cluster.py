"""The scoring job on the embedded cluster: real HDFS, YARN, Streaming, HBase and Thrift."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import time
import venv
from collections import Counter
from contextlib import closing
from dataclasses import replace
from itertools import chain
from pathlib import Path
from sysconfig import get_path

import numpy as np
import pandas as pd
import pytest
import requests
import skops.io
from conftest import CHECKOUT, make_orders
from pages import blocks_of

from examples.flights.make_database import make_database
from predictions.formats.names import release_table
from predictions.formats.row_key import split_points
from predictions.hbase.connection import Connection
from predictions.lookup.client import Client
from predictions.scoring.estimator import TRUSTED

pytestmark = pytest.mark.cluster

FLIGHTS = 336_776
DEADLINE = 300  # seconds; usually it takes ten


@pytest.fixture(scope="session")
def flights_settings(tmp_path_factory):
    path = CHECKOUT / "var" / "flights.db"
    if not path.exists():
        path = tmp_path_factory.mktemp("flights") / "flights.db"
        assert make_database(path) == FLIGHTS
    text = (CHECKOUT / "examples" / "flights" / "predictions.toml").read_text()
    return re.sub(r"(?m)^url .*", f'url = "sqlite:///{path}"', text)


@pytest.fixture(scope="session")
def flights(project, flights_settings):
    """A project with a served release of all flights."""
    made = project(flights_settings, yarn=True)
    made.succeed("run", processes=True)
    return made


def test_lookups_of_flights(flights):
    first, second, last = flights.get("1", "2", "336776")
    keys = ["id", "status", "record", "prediction", "probability", "release", "scored", "model", "age"]
    assert list(first) == keys
    assert (first["id"], first["status"]) == ("1", "fresh")
    assert first["record"]["carrier"] == "UA"
    assert first["record"]["late"] == 0
    assert first["prediction"] in (0, 1)
    assert 0.5 <= first["probability"] <= 1
    assert first["release"] == second["release"] == flights.storage.release().release
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", first["scored"])
    assert last["record"]["late"] is None  # it never arrived, but is scored too
    assert last["prediction"] in (0, 1)
    of_release = {name: first[name] for name in ("release", "model")}
    assert flights.get("007", "0", "' OR 1=1 --") == [
        {"id": record_id, "status": "missing", **of_release} for record_id in ("007", "0", "' OR 1=1 --")
    ]
    assert "prediction" in flights.succeed("get", "1").stdout


def test_the_lookup_of_the_readme(flights):
    [block] = [block for block in blocks_of(CHECKOUT / "README.md") if block.language == "python"]
    command = [sys.executable, "-c", block.text]
    process = flights.start(command, flights.path.parent, PYTHONPATH=str(CHECKOUT))
    stdout, stderr = process.communicate(timeout=DEADLINE)
    assert re.fullmatch(r"fresh [01] 0\.\d+ IAH\n", stdout), stderr


def test_every_prediction_in_hbase_equals_scikit_learns_own(flights, tmp_path):
    """Compute them again from the database, with the model file and no code of this package."""
    folder = flights.storage.release()
    (tmp_path / "model.skops").write_bytes(folder.read("model/model.skops"))
    pipeline = skops.io.load(tmp_path / "model.skops", trusted=list(TRUSTED))
    with closing(sqlite3.connect(flights.settings.database.url.removeprefix("sqlite:///"))) as connection:
        table = pd.read_sql("SELECT * FROM flights", connection, index_col="flight_id")
    probabilities = pipeline.predict_proba(table[flights.settings.model.features])
    best = probabilities.argmax(axis=1)
    expected = {
        str(flight_id): (str(label), f"{probability:.7g}")
        for flight_id, label, probability in zip(
            table.index, pipeline.classes_[best], probabilities[np.arange(len(probabilities)), best], strict=True
        )
    }
    region_counts, predictions = Counter(), {}
    table = release_table(flights.name, folder.release)
    with Connection(flights.settings.hbase.server()) as connection:
        assert [region.start for region in connection.regions(table)][1:] == split_points(4)
        for row in chain.from_iterable(connection.scan(table, b"", b"")):
            prefix, _colon, flight_id = row.key.decode().partition(":")
            predictions[flight_id] = tuple(
                row.cells[name].value.decode() for name in (b"p:prediction", b"p:probability")
            )
            region_counts[int(prefix, 16) * 4 // 65536] += 1
    assert len(predictions) == FLIGHTS
    assert predictions == expected
    assert sorted(region_counts) == [0, 1, 2, 3]
    assert all(abs(count - FLIGHTS / 4) < 0.02 * FLIGHTS / 4 for count in region_counts.values()), region_counts


def pipe(folder, model, tmp_path):
    """Run `cat part-* | mapper | sort | reducer` and return its output."""
    for name in model.model.task_files:
        (tmp_path / name).write_bytes(model.read(f"model/{name}"))
    with open(tmp_path / "lines", "wb") as lines:
        for path in folder.files("export"):
            lines.writelines(folder.blocks(path))
    script = (
        f"{sys.executable} {CHECKOUT}/mapper.py model.json {folder.release} < lines"
        f" | LC_ALL=C sort -t$'\\t' -k1,1 -s | {sys.executable} {CHECKOUT}/reducer.py"
    )
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_pipe_and_the_job_give_identical_bytes_for_the_flights(flights, tmp_path):
    folder = flights.storage.release()
    assert pipe(folder, folder, tmp_path) == flights.scored(folder)


@pytest.mark.parametrize(
    ("estimator", "label"),
    [
        ("sklearn.linear_model.LogisticRegression", "late"),
        ("sklearn.ensemble.HistGradientBoostingRegressor", "arr_delay"),
    ],
)
def test_the_pipe_and_the_job_give_identical_bytes(project, flights_settings, tmp_path, estimator, label):
    text = re.sub(r"(?m)^estimator .*\n", f'estimator = "{estimator}"\n', flights_settings)
    text = re.sub(r"(?m)^label .*", f'label = "{label}"', text)
    text = re.sub(r"(?m)^params .*\n", "", text)
    text = re.sub(r"(?m)^table .*", 'query = "SELECT * FROM flights WHERE flight_id % 12 = 0"', text)
    made = project(text)
    for stage in ("export", "train", "score"):
        made.succeed(stage)
    folder = made.storage.release()
    scored = made.scored(folder)
    assert scored.count(b"\n") == FLIGHTS // 12
    assert pipe(folder, folder, tmp_path) == scored


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """A virtual environment with the package's wheel and the libraries of this environment."""
    folder = tmp_path_factory.mktemp("installed")
    for name in ("predictions", "loader", "hadoop", "tests"):
        shutil.copytree(CHECKOUT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("mapper.py", "reducer.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, folder / "source")
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, folder / "source"], check=True)
    [wheel] = folder.glob("*.whl")
    environment = folder / "environment"
    venv.create(environment)
    packages = Path(get_path("purelib", vars={"base": str(environment), "platbase": str(environment)}))
    (packages / "libraries.pth").write_text(get_path("purelib") + "\n")
    subprocess.run([*pip, "--python", environment, "install", "--no-deps", wheel], check=True)
    assert {path.name for path in packages.iterdir() if path.suffix not in (".pth", ".dist-info")} == {
        *("predictions", "loader"),
    }
    assert all((packages / name / "py.typed").is_file() for name in ("predictions", "loader"))
    return environment


def test_installed_from_its_wheel_it_packs_an_environment_scores_in_it_and_looks_up(
    installed, project, flights_settings, tmp_path
):
    """The tasks use a Python without any library, and can read neither the checkout nor its .venv."""
    own = CHECKOUT / ".venv"
    if Path(sys.prefix) == own:
        pytest.skip("this Python is the checkout's .venv itself; tox runs this test from another")
    python = Path(sys._base_executable).resolve()
    probe = subprocess.run(
        [python, "-c", "import sklearn"], capture_output=True, text=True, env={"PATH": os.environ["PATH"]}
    )
    assert "No module named 'sklearn'" in probe.stderr
    text = re.sub(r"(?m)^table .*", 'query = "SELECT * FROM flights WHERE flight_id <= 20000"', flights_settings)
    made = project(text, yarn=True)
    packed = tmp_path / "environment.tar.gz"

    def run(*arguments, **environment):
        command = [installed / "bin" / "predictions", "--settings", made.path, *arguments]
        process = made.start(command, tmp_path, **environment)
        stdout, stderr = process.communicate(timeout=DEADLINE)
        assert process.returncode == 0, stderr
        return stdout

    for stage in ("export", "train"):
        run(stage)
    run("pack", packed)
    with tarfile.open(packed) as archive:
        folders = {name.split("/")[1] for name in archive.getnames() if name.count("/") > 1}
    assert {folder for folder in folders if "-" not in folder} <= {"numpy", "numpy.libs", "xxhash", "bin"}
    away = CHECKOUT / ".venv-out-of-reach"
    if own.exists():
        own.rename(away)
    try:
        run("score", PREDICTIONS_HADOOP_PYTHON=str(python), PREDICTIONS_HADOOP_ENVIRONMENT=str(packed))
    finally:
        if away.exists():
            away.rename(own)
    folder = made.storage.release()
    scored = made.scored(folder)
    assert scored.count(b"\n") == 20_000
    assert pipe(folder, folder, tmp_path) == scored
    folder.remove("scored")
    folder.write_manifest(replace(folder.manifest, scored=None))
    run("score", "--runner", "local")
    assert made.scored(folder) == scored
    for stage in ("load", "activate"):
        made.succeed(stage)
    assert json.loads(run("get", "--json", "20000"))["status"] == "fresh"


def test_an_interrupted_job_is_ended_on_the_cluster_too(project, flights_settings, cluster):
    text = re.sub(r"(?m)^table .*", 'query = "SELECT * FROM flights WHERE flight_id <= 2000"', flights_settings)
    made = project(text, yarn=True)
    for stage in ("export", "train"):
        made.succeed(stage)
    folder = made.storage.release()
    apps = f"http://127.0.0.1:{cluster.config.port('resourcemanager_web')}/ws/v1/cluster/apps"

    def state():
        listed = requests.get(apps, timeout=10).json()["apps"] or {"app": []}
        return [app["state"] for app in listed["app"] if app["name"].endswith(f"{made.name} {folder.release}")]

    driver = made.popen("score")
    deadline = time.monotonic() + DEADLINE
    while state() != ["RUNNING"]:  # the client has printed the job ID long before
        assert time.monotonic() < deadline
        time.sleep(0.2)
    driver.terminate()
    _stdout, stderr = driver.communicate(timeout=DEADLINE)
    assert (driver.returncode, stderr.splitlines()[-1]) == (130, "predictions: interrupted")
    assert state() == ["KILLED"]
    assert sorted(made.storage.names(folder.path)) == ["export", "job", "manifest.json", "model"]


def test_the_printed_command_is_the_one_that_runs(project, flights_settings):
    text = re.sub(r"(?m)^table .*", 'query = "SELECT * FROM flights WHERE flight_id <= 2000"', flights_settings)
    made = project(text, yarn=True)
    for stage in ("export", "train"):
        made.succeed(stage)
    command = made.succeed("score", "--dry-run").stdout
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert made.scored(made.storage.release()).count(b"\n") == 2000


def test_a_release_through_its_life(project, tmp_path):
    made = project((make_orders(tmp_path) / "predictions.toml").read_text(), tmp_path)
    with closing(sqlite3.connect(tmp_path / "orders.db")) as connection, connection:
        connection.execute("UPDATE orders SET amount = 'twelve' WHERE id = 'order-003'")
    assert made.run("get", "order-001").returncode == 0
    early = made.run("activate", "--release", "20200101T000000Z")
    assert (early.returncode, "is not loaded" in early.stderr) == (2, True)
    assert made.get("order-001")[0]["status"] == "unscored"
    first = made.succeed("run", "--runner", "local", code=1, processes=True)  # complete, with a failed record
    assert "1 failed" in first.stderr
    with closing(sqlite3.connect(tmp_path / "orders.db")) as connection, connection:
        connection.execute("UPDATE orders SET items = items + 1 WHERE id = 'order-004'")
        connection.execute("UPDATE orders SET paid = 1 - paid, note = 'other' WHERE id = 'order-005'")
        connection.execute("INSERT INTO orders (id, items) VALUES ('007', 1), ('7', 1)")
        connection.execute("DELETE FROM orders WHERE id = 'order-006'")
    answers = made.get("order-001", "order-003", "order-004", "order-005", "order-006", "007")
    assert [answer["status"] for answer in answers] == ["fresh", "failed", "changed", "fresh", "missing", "unscored"]
    assert answers[1]["prediction"] is None
    assert answers[1]["error"] == "amount: not a number"

    # Stages are safe to repeat: work that is done is skipped.
    for stage in ("train", "score", "load", "activate"):
        repeated = made.succeed(stage, code=1 if stage == "score" else 0)
        assert stage != "score" or "exists already: scored 399 records, 1 failed" in repeated.stderr
    old = made.storage.release().release
    assert made.get("order-001")[0]["release"] == old

    # A new release is not served before it is activated.
    new = made.succeed("export").stdout.strip()
    for stage in (("train",), ("score", "--runner", "local"), ("load",)):
        made.succeed(*stage, code=1 if "score" in stage else 0)
        assert made.get("order-001")[0]["release"] == old
    assert "already loaded" in made.succeed("load").stderr
    failed = made.run("activate", "--release", "20200101T000000Z")
    assert (failed.returncode, "20200101T000000Z is not loaded" in failed.stderr) == (2, True)
    made.succeed("activate")
    assert [answer["status"] for answer in made.get("007", "7", "order-004")] == ["fresh"] * 3
    assert made.get("007")[0]["release"] == new


@pytest.mark.parametrize("estimator", ["lightgbm.LGBMClassifier", "xgboost.XGBClassifier"])
def test_runs_with_the_trees_of_another_library(project, tmp_path, full, estimator):
    """Every prediction is the library's own, of all records, of those that have changed, and at lookup time."""
    if not full:
        pytest.skip("with --full only")
    text = (make_orders(tmp_path) / "predictions.toml").read_text()
    text = text.replace("params = { max_iter = 10 }", f'estimator = "{estimator}"\nparams = {{ n_estimators = 20 }}')
    made = project(text, tmp_path, yarn=True)
    made.succeed("run", processes=True)
    folder = made.storage.release()
    assert folder.manifest.model.engine == estimator.partition(".")[0]
    assert predictions_of(made, tmp_path) == own_predictions(folder, tmp_path)
    made.succeed("verify", "--full")
    explanation = json.loads(made.succeed("explain", "order-001", "--json").stdout)
    assert explanation["model"]["estimator"] == estimator
    made.succeed("report", "--output", str(tmp_path))

    database = tmp_path / "orders.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE orders SET items = items + 20, amount = amount + 50 WHERE rowid % 20 = 1")
    with Client(made.settings, model=True) as client:
        online = client.get("order-020")
    assert (online.status, online.source, online.error) == ("fresh", "online", None)
    made.succeed("run", "--changed", processes=True)
    changed = made.storage.release()
    assert changed.manifest.scored.carried == 380
    assert predictions_of(made, tmp_path) == own_predictions(changed, tmp_path)


def predictions_of(made, folder):
    """Return the prediction and the probability that are looked up for each order."""
    ids = [row[0] for row in sqlite3.connect(folder / "orders.db").execute("SELECT id FROM orders")]
    answers = [answer for start in range(0, 400, 100) for answer in made.get(*ids[start : start + 100])]
    assert {answer["status"] for answer in answers} == {"fresh"}
    return {answer["id"]: (answer["prediction"], answer["probability"]) for answer in answers}


def own_predictions(release, folder):
    """Return the same from the database and the model file, by skops and the library alone."""
    (folder / "model.skops").write_bytes(release.read("model/model.skops"))
    boosters = ["lightgbm.basic.Booster", "xgboost.core.Booster"]
    pipeline = skops.io.load(folder / "model.skops", trusted=[*TRUSTED, *boosters])
    with closing(sqlite3.connect(folder / "orders.db")) as connection:
        table = pd.read_sql("SELECT * FROM orders", connection, index_col="id")
    rows = pipeline.predict_proba(table[["country", "amount", "items"]]).astype(float)
    best = rows.argmax(axis=1).tolist()
    return {key: (label, float(f"{row[label]:.7g}")) for key, label, row in zip(table.index, best, rows, strict=True)}


def test_a_table_without_the_hbase_command_has_one_region(project, tmp_path):
    made = project((make_orders(tmp_path) / "predictions.toml").read_text(), tmp_path)
    made.train()
    made.succeed("score", "--runner", "local")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "hadoop").symlink_to(CHECKOUT / "hadoop" / "bin" / "hadoop")
    loaded = made.succeed("load", PREDICTIONS_HADOOP_BIN=str(tmp_path / "bin"))
    assert "one region" in loaded.stderr
    made.succeed("activate")
    assert made.get("order-001")[0]["status"] == "fresh"


def test_the_documented_commands_of_a_real_cluster(cluster):
    hadoop = CHECKOUT / "hadoop" / "bin" / "hadoop"
    assert shutil.which(hadoop)
    result = subprocess.run([hadoop, "fs", "-ls", "/"], capture_output=True, text=True)
    assert "/hbase" in result.stdout
    assert "Hadoop 3." in subprocess.run([hadoop, "version"], capture_output=True, text=True).stdout
    assert subprocess.run([hadoop], capture_output=True).returncode == 2
