"""Fitted models that are brought in: what the scripts predict is what the notebook predicts, for every record."""

import json
import sqlite3
from contextlib import closing

import numpy as np
import pandas as pd
import pytest
import skops.io
from inprocess import call
from sklearn.base import is_classifier
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from predictions.settings import load_settings
from predictions.storage import Storage

BIG = 2**53 + 1  # the first integer that a float cannot hold
ROWS = 400
FEATURES = ["visits", "plan", "spent", "joined", "active", "customer", "region", "id"]
SETTINGS = """
name = "accounts"
[database]
url = "{url}"
table = "accounts"
id = "id"
[model]
label = "{label}"
features = {features}
{model}
[hadoop]
storage = "storage"
[hbase]
regions = 2
"""


def make_accounts(folder):
    """Create a database of what frames of notebooks have and tasks easily lose."""
    random = np.random.default_rng(1)
    with closing(sqlite3.connect(folder / "accounts.db")) as connection, connection:
        connection.execute(
            "CREATE TABLE accounts (id INTEGER PRIMARY KEY, visits INTEGER, plan TEXT, spent REAL, joined TIMESTAMP, "
            "active BOOLEAN, customer INTEGER, region TEXT, churned INTEGER, is_test INTEGER)"
        )
        for number in range(ROWS):
            spent = None if number % 11 == 0 else round(random.uniform(0, 500), 2)
            row = (
                BIG + number,
                None if number % 7 == 0 else int(random.integers(0, 50)),
                None if number % 13 == 0 else ["free", "team", "é\tb"][number % 3],
                spent,
                f"2026-0{1 + number % 9}-11 10:00:00.{number:06}",
                number % 2,
                BIG + number // 3,
                "late" if number >= 300 else ["north", "south"][number % 2],  # a category never seen at fitting
                None if number % 17 == 0 else int((spent or 0) + random.normal(0, 50) > 250),
                int(number >= 300),
            )
            connection.execute(f"INSERT INTO accounts VALUES ({', '.join('?' * len(row))})", row)
    return folder


@pytest.fixture(scope="module")
def accounts(tmp_path_factory):
    return make_accounts(tmp_path_factory.mktemp("accounts"))


@pytest.fixture
def frame(accounts):
    """The frame of a notebook."""
    with closing(sqlite3.connect(accounts / "accounts.db")) as connection:
        return pd.read_sql("SELECT * FROM accounts", connection)


def write_settings(folder, features, model='from = "file:model.skops"', label="churned", url="sqlite:///accounts.db"):
    text = SETTINGS.format(url=url, features=json.dumps(list(features)), model=model, label=label)
    (folder / "predictions.toml").write_text(text)
    return load_settings(folder / "predictions.toml")


def scored(folder, features, processes=False, **settings):
    """Run export, train and score; return the scripts' predictions by ID, what `train` said, and the model's manifest."""
    settings = write_settings(folder, features, **settings)
    said = ""
    for stage in ("export", "train", "score --runner local"):
        result = call(stage.split(), folder, processes=processes)
        assert result.returncode in (0, 1), result.stderr
        said += result.stderr
    release = Storage(settings.hadoop.storage, settings.name).release()
    lines = [
        line.split(b"\t")
        for path in release.files("scored")
        for block in release.blocks(path)
        for line in block.splitlines()
    ]
    return (
        {line[0].partition(b":")[2].decode(): tuple(map(bytes.decode, (line[1], line[2], line[5]))) for line in lines},
        said,
        release,
    )


def predicted(model, frame, ids):
    """Return the predictions of the notebook by ID, as prediction lines have them."""
    if is_classifier(model):
        shares = model.predict_proba(frame)
        best = shares.argmax(axis=1)
        labels = [str(int(label)) for label in model.classes_[best]]
        values = zip(labels, map("{:.7g}".format, shares.max(axis=1)), strict=True)
    else:
        values = ((f"{value:.7g}", "\\N") for value in model.predict(frame))
    return {str(record_id): (*value, "\\N") for record_id, value in zip(ids, values, strict=True)}


def numbers_and_text(*numbers):
    return make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["plan", "region"]),
        (make_pipeline(SimpleImputer(), StandardScaler()), list(numbers)),
    )


def logistic(frame):
    """A pipeline of a notebook, with columns in its own order."""
    columns = ["active", "spent", "plan", "visits", "region"]
    return make_pipeline(numbers_and_text("spent", "visits", "active"), LogisticRegression()), frame[columns]


def histogram(frame):
    """Gradient boosting on the categories of a frame."""
    frame = frame.assign(plan=frame.plan.astype("category"), region=frame.region[:300].astype("category"))
    return HistGradientBoostingClassifier(max_iter=10), frame[["plan", "visits", "region", "spent", "active"]]


def identifiers(frame):
    """A model that knows integers beyond those that floats hold: IDs, also the record's own."""
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    columns = make_column_transformer((encoder, ["customer", "id"]))
    return make_pipeline(columns, RandomForestClassifier(5, random_state=0)), frame[["customer", "id"]]


def nullable(frame):
    """Nullable types, which the settings name."""
    frame = frame.astype({"visits": "Int64", "active": "boolean", "spent": "float32"})
    return HistGradientBoostingClassifier(max_iter=10), frame[["visits", "active", "spent"]]


def moments(frame):
    """A timestamp as the notebook has parsed it, and a regressor."""
    frame = frame.assign(joined=pd.to_datetime(frame.joined, utc=True))
    return make_pipeline(make_column_transformer((StandardScaler(), ["joined"])), Ridge()), frame[["joined"]]


NULLABLE = '{ visits = "Int64", active = "boolean", spent = "float32" }'


@pytest.mark.parametrize(
    ("notebook", "label", "schema", "types"),
    [
        (logistic, "churned", "{}", {"active": "int64", "visits": "float64", "plan": "str"}),
        (histogram, "churned", "{}", {"plan": "category", "active": "int64"}),
        (identifiers, "churned", "{}", {"customer": "int64", "id": "int64"}),
        (nullable, "churned", NULLABLE, {"visits": "Int64"}),
        (moments, "visits", '{ joined = "datetime64[us, UTC]" }', {}),
    ],
)
def test_every_prediction_is_the_notebooks(accounts, frame, notebook, label, schema, types):
    model, features = notebook(frame)
    fitted = frame[label].notna() & (frame.region != "late")
    model.fit(features[fitted], frame.loc[fitted, label])
    skops.io.dump(model, accounts / "model.skops")
    settings = f'from = "file:model.skops"\nschema = {schema}'
    found, said, release = scored(accounts, sorted(features), label=label, model=settings)
    expected = predicted(model, features, frame.id)
    assert len(found) == ROWS
    assert {key: (found[key], value) for key, value in expected.items() if found[key] != value} == {}
    assert types.items() <= {feature.name: feature.dtype for feature in release.model.schema}.items()
    assert "possibly seen in training" in said
