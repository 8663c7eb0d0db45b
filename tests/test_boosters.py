"""LightGBM and XGBoost: trained here and fitted elsewhere, scored, and damaged models refused."""

import json
import math
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import lightgbm
import numpy as np
import pandas as pd
import pytest
import skops.io
import xgboost
from conftest import CHECKOUT, make_orders, manifest_of
from inprocess import without

from predictions.errors import InputError
from predictions.formats.prediction_line import parse_line
from predictions.scoring.estimator import TRUSTED
from predictions.settings import load_settings
from predictions.stages.export import export
from predictions.stages.train import train
from predictions.storage import Storage

TRUSTED_ALONE = [*TRUSTED, "lightgbm.basic.Booster", "xgboost.core.Booster"]  # without any code of this package
FEATURES = ["country", "amount", "items"]
SMALL = {"n_estimators": 12}


@pytest.fixture(scope="module")
def orders(tmp_path_factory):
    """The orders; one country is so new that no labelled order has it."""
    folder = make_orders(tmp_path_factory.mktemp("orders"))
    with closing(sqlite3.connect(folder / "orders.db")) as connection, connection:
        connection.execute("UPDATE orders SET country = 'new', paid = NULL, items = NULL WHERE id LIKE '%7'")
        connection.execute("UPDATE orders SET note = CASE WHEN amount > 300 THEN 'much' WHEN amount > 99 THEN 'some' END")
        connection.execute("UPDATE orders SET note = 'little' WHERE amount < 99")
    return folder


@pytest.fixture(scope="module")
def exports():
    return {}


@pytest.fixture
def trained(orders, exports):
    def trained(**changes):
        settings = load_settings(orders / "predictions.toml")
        changes = {"params": SMALL} | changes
        settings = settings.model_copy(update={"model": settings.model.model_copy(update=changes)})
        columns = settings.model.label, *settings.model.features
        if columns not in exports:
            storage = Storage(settings.hadoop.storage, settings.name)
            exports[columns] = export(settings, storage, lambda _done, _total: None, print)
        folder = exports[columns]
        folder.remove("model")
        with without():
            train(settings, folder, lambda _text: None)
        return folder

    return trained


def pipe(folder):
    """Run `cat part-* | mapper | sort | reducer`; return each record's prediction and probability."""
    script = (
        f"cat {folder.path}/export/part-* | {sys.executable} {CHECKOUT}/mapper.py {folder.path}/model/model.json "
        f"{folder.release} | LC_ALL=C sort -t$'\\t' -k1,1 -s | {sys.executable} {CHECKOUT}/reducer.py"
    )
    result = subprocess.run(["bash", "-o", "pipefail", "-c", script], capture_output=True)
    assert result.returncode == 0, result.stderr
    lines = [line.split(b"\t") for line in result.stdout.splitlines()]
    assert {line[-1] for line in lines} == {b"\\N"}
    return {line[0].decode().partition(":")[2]: (line[1].decode(), line[2].decode()) for line in lines}


def table(orders):
    with closing(sqlite3.connect(orders / "orders.db")) as connection:
        return pd.read_sql("SELECT * FROM orders", connection, index_col="id")


@pytest.mark.parametrize("estimator", ["lightgbm.LGBMClassifier", "xgboost.XGBClassifier"])
@pytest.mark.parametrize("label", ["paid", "note"])
def test_classifier(trained, orders, estimator, label):
    folder = trained(estimator=estimator, label=label, params=SMALL)
    model = folder.model
    assert model.engine == estimator.partition(".")[0]
    print(model.training.metrics, model.training.baseline, model.classes)
    shutil.copy(f"{folder.path}/model/model.skops", "/tmp/h4x/x.skops")
    own = skops.io.load(f"{folder.path}/model/model.skops", trusted=TRUSTED_ALONE)
    frame = table(orders)
    probabilities = own.predict_proba(frame[FEATURES])
    best = probabilities.argmax(axis=1)
    expected = {
        key: (str(model.classes[index]), f"{row[index]:.7g}") for key, index, row in zip(frame.index, best, probabilities)
    }
    assert pipe(folder) == expected
