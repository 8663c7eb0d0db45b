"""`tests/data` has the data at every hop; the scripts must make each file from the previous one.

The model predicts the share of late flights for every record, so that no file depends on the version of a library.
"""

import os
import subprocess
import sys

import pytest
from conftest import CHECKOUT
from sklearn.dummy import DummyClassifier

from predictions.formats.manifest import ModelManifest
from predictions.formats.prediction_line import cells, parse_line
from predictions.formats.record_line import Column, split_columns
from predictions.scoring.files import save_model
from predictions.scoring.frame import FrameReader

DATA = CHECKOUT / "tests" / "data"
FEATURES = [Column(name, "text") for name in ("carrier", "origin", "dest")] + [
    Column(name, "integer") for name in ("distance", "month", "day", "sched_dep_time", "sched_arr_time")
]


@pytest.fixture
def model(tmp_path):
    block = (DATA / "1-records.txt").read_bytes()
    labels = [int(label) for label in split_columns(block, 10)[-1]]
    estimator = DummyClassifier().fit(FrameReader(FEATURES).read(block)[0], labels)
    save_model(estimator, ModelManifest(features=FEATURES, classes=[0, 1]), tmp_path)
    return tmp_path / "model.json"


def run(*command, stdin):
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "LC_ALL": "C"}
    return subprocess.run(command, input=stdin, env=environment, capture_output=True, check=True).stdout


def test_the_data_at_every_hop(model):
    records, mapped, ordered, reduced = (
        (DATA / name).read_bytes() for name in ("1-records.txt", "2-mapped.txt", "3-sorted.txt", "4-reduced.txt")
    )
    assert run(sys.executable, str(CHECKOUT / "mapper.py"), str(model), "20261122T154500Z", stdin=records) == mapped
    assert run("sort", "-t", "\t", "-k1,1", "-s", stdin=mapped) == ordered
    assert run(sys.executable, str(CHECKOUT / "reducer.py"), stdin=ordered) == reduced
    expected_cells = (DATA / "5-cells.txt").read_text().splitlines()
    line = parse_line(reduced.splitlines()[0])
    assert expected_cells == [
        f"{line.row_key.decode()} {column.decode()} {line.scored.decode()} {value.decode()}"
        for column, value in cells(line).items()
    ]
