"""Fitted models that are brought in: what the scripts predict is what the notebook predicts, for every record."""

import json
import pickle
import re
import sqlite3
import sys
import warnings
import zipfile
from contextlib import closing
from pathlib import Path

import lightgbm
import numpy as np
import pandas as pd
import psycopg
import pytest
import skops.io
import xgboost
from inprocess import call
from sklearn.base import is_classifier
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, StandardScaler
from wheels import make_wheel

from predictions.formats.record_line import Column, join_lines, split_lines
from predictions.jobs.wheels import check_wheels
from predictions.scoring.files import load_model
from predictions.scoring.packages import install
from predictions.settings import load_settings
from predictions.stages.fitted import classes_as_labels
from predictions.storage import Storage

BIG = 2**53 + 1  # the first integer that a float cannot hold
ROWS = 400
FEATURES = ["active", "plan", "region", "spent", "visits"]
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


def read_accounts(folder):
    """Return the frame of a notebook."""
    with closing(sqlite3.connect(folder / "accounts.db")) as connection:
        return pd.read_sql("SELECT * FROM accounts", connection)


@pytest.fixture
def frame(accounts):
    return read_accounts(accounts)


def write_settings(
    folder, features=FEATURES, model='from = "file:model.skops"', label="churned", url="sqlite:///accounts.db"
):
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


def boosted_categories(frame):
    """The same of LightGBM."""
    frame = frame.assign(plan=frame.plan.astype("category"), region=frame.region[:300].astype("category"))
    model = lightgbm.LGBMClassifier(n_estimators=10, min_data_per_group=1, cat_smooth=1, verbose=-1)
    return model, frame[["plan", "visits", "region", "spent"]]


def boosted_categories_of_xgboost(frame):
    frame = frame.assign(region=frame.region[:300].astype("category"), active=frame.active.astype("category"))
    model = xgboost.XGBClassifier(n_estimators=10, enable_categorical=True, max_cat_to_onehot=1)
    return model, frame[["visits", "region", "spent", "active"]]


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
        (boosted_categories, "churned", "{}", {"plan": "category", "region": "category", "visits": "float64"}),
        (boosted_categories_of_xgboost, "churned", "{}", {"region": "category", "active": "category"}),
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


@pytest.mark.parametrize(
    "ranker", [lightgbm.LGBMRanker(n_estimators=10, verbose=-1), xgboost.XGBRanker(n_estimators=10)]
)
def test_a_rankers_score_is_its_prediction(accounts, frame, ranker):
    """It is measured on the scale of the labels, and compared on that of the scores."""
    features, labels = frame[["spent", "visits"]], frame.churned.fillna(0).astype(int)
    model = make_pipeline(SimpleImputer(), ranker).fit(
        features, labels, **{f"{type(ranker).__name__.lower()}__group": [200, 200]}
    )
    skops.io.dump(model, accounts / "model.skops")
    found, _said, release = scored(accounts, ["spent", "visits"])
    assert call(["model", "check"], accounts).returncode == 0
    scores = dict(zip(map(str, frame.id), model.predict(features).tolist(), strict=True))
    assert found == {key: (f"{score:.7g}", "\\N", "\\N") for key, score in scores.items()}
    training = release.model.training
    assert training.metrics["rmse"] < training.baseline["rmse"] / 1.2
    assert min(scores.values()) <= training.quantiles[0] < training.quantiles[-1] <= max(scores.values())


@pytest.fixture
def fitted(frame):
    """A fitted pipeline, on a scikit-learn that takes no missing values where its imputer does not."""
    known = frame.churned.notna()
    return make_pipeline(numbers_and_text("spent", "visits", "active"), LogisticRegression()).fit(
        frame.loc[known, FEATURES], frame.churned[known].astype(int)
    )


@pytest.fixture
def saved(accounts, fitted):
    """Its file, and settings."""
    skops.io.dump(fitted, accounts / "model.skops")
    write_settings(accounts)
    return accounts / "model.skops"


def train(folder, **settings):
    """Run export and train, and return the result of `train` and the release."""
    settings = write_settings(folder, **settings)
    assert call(["export"], folder).returncode == 0
    return call(["train"], folder), Storage(settings.hadoop.storage, settings.name).release()


def test_the_file_stays_the_one_that_its_owner_knows(accounts, saved):
    result, release = train(accounts)
    assert result.returncode == 0, result.stderr
    assert release.read("model/model.skops") == saved.read_bytes()
    model = release.model
    assert (model.origin, model.estimator) == (f"file:{saved}", "sklearn.linear_model._logistic.LogisticRegression")
    assert len(model.golden) == 5
    assert model.training.possibly_seen
    # A later release can take it from there, and the settings can say so.
    result, later = train(accounts, model=f'from = "release:{release.release}"')
    assert "took the model of release" in result.stderr
    assert later.model == model


@pytest.mark.parametrize("holdout", ["is_test", "SELECT id FROM accounts WHERE joined IS NOT NULL AND is_test = 1"])
def test_a_holdout_is_what_the_model_has_not_seen(accounts, saved, frame, holdout):
    result, release = train(accounts, model=f'from = "file:model.skops"\nholdout = "{holdout}"')
    unseen = int((frame.churned.notna() & (frame.is_test == 1)).sum())
    assert f"on a holdout of {unseen} records" in result.stderr
    assert (release.model.training.holdout, release.model.training.possibly_seen) == (unseen, False)


def test_records_that_make_the_model_raise_fail_alone(accounts, frame):
    known = frame.dropna(subset=["churned", "spent", "visits"])
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(known[["visits", "spent"]], known.churned)
    skops.io.dump(model, accounts / "model.skops")
    found, said, _release = scored(
        accounts, ["spent", "visits"], model='from = "file:model.skops"\n[gates]\nmax_failed = 1'
    )
    assert f"measured on {len(known)} records" in said
    complete = frame.dropna(subset=["spent", "visits"])
    expected = predicted(model, complete[["visits", "spent"]], complete.id)
    assert expected.items() <= found.items()
    reason = "visits, spent: missing, and the model raises ValueError: Input X contains NaN."
    assert found[str(BIG)] == ("\\N", "\\N", reason)
    assert sum(error != "\\N" for *_rest, error in found.values()) == ROWS - len(complete)


def test_the_values_of_a_record_that_fails_are_missing(accounts, frame):
    """In its block, which has the first labelled record, and alone."""
    complete, columns = frame.dropna(subset=["visits", "spent"]), ["visits", "spent"]
    model = LinearRegression().fit(complete[columns], complete[["visits", "spent"]])
    skops.io.dump(model, accounts / "model.skops")
    settings = 'from = "file:model.skops"\n[gates]\nmax_failed = 1'
    _found, _said, release = scored(accounts, columns, model=settings, label="customer")
    scorer = load_model(Path(release.path) / "model" / "model.json")
    lines = [line for path in release.files("export") for block in release.blocks(path) for line in split_lines(block)]
    assert lines[0].split(b"\t")[1] == b"\\N"
    whole = scorer.score(join_lines(lines))
    for row in range(20):
        alone = scorer.score(join_lines(lines[row : row + 1]))
        assert [cells[0] for cells in alone.cells] == [cells[row] for cells in whole.cells]
        assert len(alone.cells) == 4


@pytest.mark.parametrize(
    ("fit", "settings", "label", "message"),
    [
        (lambda x, _y: LinearRegression(), "", "visits", "is not fitted"),
        (lambda x, _y: LogisticRegression(), "", "churned", "is not fitted"),
        (lambda x, _y: {"a": 1}, "", "churned", "dict is neither"),
        (lambda x, y: RandomForestClassifier(2).fit(x, np.c_[y, y]), "", "churned", "predicts several labels"),
        (lambda x, y: RandomForestClassifier(2).fit(x, 0 * y), "", "churned", "has one class only"),
        (lambda x, y: RandomForestClassifier(2).fit(x, y), "", "plan", "no labelled record|the model's are '0', '1'"),
        (
            lambda x, y: RandomForestClassifier(2).fit(x, y + x.spent // 400),
            "threshold = 0.3",
            "churned",
            "two classes",
        ),
        (lambda x, y: LinearRegression().fit(x, y), "", "plan", "plan is text"),
        (lambda x, y: LinearRegression().fit(x, y), 'outputs = ["probabilities"]', "visits", "is a regressor"),
        (lambda x, y: LinearRegression().fit(x, y), 'outputs = ["contributions"]', "visits", "that `train` fits"),
    ],
)
def test_a_check_refuses_what_train_refuses(accounts, frame, fit, settings, label, message):
    known = frame.dropna(subset=["spent", "churned"])
    skops.io.dump(fit(known[["spent"]], known.churned.astype(int)), accounts / "model.skops")
    write_settings(accounts, ["spent"], model=f'from = "file:model.skops"\n{settings}', label=label)
    assert call(["export"], accounts).returncode == 0
    for command in (["model", "check"], ["train"]):
        result = call(command, accounts)
        assert (result.returncode, bool(re.search(message, result.stdout + result.stderr))) == (2, True), result


def test_a_model_may_have_been_fitted_on_an_array(accounts, frame):
    known, columns = frame.churned.notna(), ["visits", "active", "spent"]
    model = HistGradientBoostingClassifier(max_iter=3).fit(frame.loc[known, columns].to_numpy(), frame.churned[known])
    skops.io.dump(model, accounts / "model.skops")
    found, _said, _release = scored(accounts, columns)
    assert found == predicted(model, frame[columns].to_numpy(), frame.id)


def test_what_a_model_raises_is_said(accounts, frame):
    known = frame.churned.notna()
    model = make_pipeline(OneHotEncoder(), LogisticRegression()).fit(frame.loc[known, ["region"]], frame.churned[known])
    skops.io.dump(model, accounts / "model.skops")
    for command, code in (["model", "check"], 2), (["train"], 2):
        write_settings(accounts, ["plan"], model='from = "file:model.skops"')
        assert call(["export"], accounts).returncode == 0
        result = call(command, accounts)
        assert (result.returncode, "the model takes region as well" in result.stdout + result.stderr) == (code, True)
    model[0].feature_names_in_ = np.array(["plan"], dtype=object)
    skops.io.dump(model, accounts / "model.skops")
    result, _release = train(accounts, features=["plan"])
    assert "raises ValueError for the labelled records: Found unknown categories" in result.stderr


def touch(path):
    """What a harmful file would call when it is loaded."""
    open(path, "w").close()


class Harmful:
    def __init__(self, path):
        self._path = str(path)

    def __reduce__(self):
        return touch, (self._path,)


@pytest.mark.parametrize("name", ["churn.pkl", "churn.joblib", "churn.skops"])
def test_a_pickle_is_refused_and_not_loaded(accounts, name):
    with open(accounts / name, "wb") as file:
        pickle.dump(Harmful(accounts / "harm"), file)
    for command in (["model", "check", f"file:{name}"], ["train"]):
        write_settings(accounts, model=f'from = "file:{name}"')
        assert call(["export"], accounts).returncode == 0
        result = call(command, accounts)
        assert result.returncode == 2
        assert "a pickle, which runs code" in result.stderr
        assert "skops.io.dump(model, 'churn.skops')" in result.stderr
    assert not (accounts / "harm").exists()


def test_types_are_trusted_by_the_settings_alone(accounts, frame):
    columns = make_column_transformer((FunctionTransformer(np.loadtxt), ["spent"]), remainder="drop")
    model = make_pipeline(columns, HistGradientBoostingClassifier())
    skops.io.dump(model, accounts / "model.skops")
    settings = write_settings(accounts)
    result = call(["model", "check"], accounts)
    assert result.returncode == 2
    assert "numpy.loadtxt: a function from numpy" in result.stdout
    assert '[model] trusted = ["numpy.loadtxt"]' in result.stdout
    result, _release = train(accounts)
    assert "holds types that are not trusted: numpy.loadtxt" in result.stderr
    assert not list(accounts.glob("storage/accounts/*/_*"))
    write_settings(accounts, model='from = "file:model.skops"\ntrusted = ["numpy.loadtxt"]')
    assert "all are trusted" in call(["model", "check"], accounts).stdout
    assert settings.model.trusted == []


def rewritten(path, target, change):
    """Copy a file of skops with a change of its schema."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as copy:
        for name in source.namelist():
            data = source.read(name)
            copy.writestr(name, change(data) if name == "schema.json" else data)


def test_another_scikit_learn_is_refused(accounts, saved):
    rewritten(saved, accounts / "old.skops", lambda schema: schema.replace(b'"\\"1.9.', b'"\\"1.8.'))
    result = call(["model", "check", "file:old.skops"], accounts)
    assert result.returncode == 2
    assert "install scikit-learn==1.8." in result.stdout


@pytest.mark.parametrize(
    ("features", "settings", "message"),
    [
        (FEATURES[1:], "", 'the model takes active as well; set ["active", "plan", "region", "spent", "visits"]'),
        ([*FEATURES, "joined"], "", "the model does not take joined; set"),
        (FEATURES, 'schema = { spent = "complex64" }', "spent: complex64: not a data type"),
        (FEATURES, 'schema = { visits = "category" }', '"category" needs the categories of the fit'),
        (FEATURES, 'schema = { spnt = "int64" }', "schema: spnt is not one of the features"),
        (FEATURES, "params = { max_iter = 3 }", "params: the model `from` is fitted already"),
        (FEATURES, 'holdout = "SELECT id FROM accounts WHERE 0"', "no labelled record is in it"),
    ],
)
def test_what_does_not_fit_is_named(accounts, saved, features, settings, message):
    (accounts / "predictions.toml").write_text(
        SETTINGS.format(
            url="sqlite:///accounts.db",
            label="churned",
            features=json.dumps(features),
            model=f'from = "file:model.skops"\n{settings}',
        )
    )
    result = call(["export"], accounts)
    result = result if result.returncode else call(["train"], accounts)
    assert result.returncode == 2
    assert message in " ".join(result.stderr.split())


def test_a_check_says_what_the_model_takes(accounts, saved):
    result = call(["model", "check"], accounts)
    assert result.returncode == 0, result.stdout
    said = result.stdout
    for text in ("visits: integer as float64", "plan: text as str", "0 of 400 cannot be predicted", "µs a record"):
        assert text in said
    assert "100 records are predicted alone as in their block" in said


def test_a_model_that_looks_at_its_neighbours_is_found(accounts, frame, tmp_path):
    code = "from sklearn.preprocessing import StandardScaler\n\n\nclass Batch(StandardScaler):\n"
    code += "    def transform(self, X):\n        return ((X - X.mean()) / (X.std() + 1)).fillna(0)\n"
    wheel = make_wheel(accounts, "neighbours", **{"__init__.py": code})
    sys.path.insert(0, str(wheel))
    try:
        from neighbours import Batch

        known = frame.churned.notna()
        model = make_pipeline(Batch(), LogisticRegression()).fit(frame.loc[known, ["spent"]], frame.churned[known])
        skops.io.dump(model, accounts / "model.skops")
    finally:
        sys.path.remove(str(wheel))
        del sys.modules["neighbours"]
    settings = f'from = "file:model.skops"\npackages = ["{wheel.name}"]\n'
    write_settings(accounts, ["spent"], model=f'{settings}trusted = ["neighbours.Batch"]')
    result = call(["model", "check"], accounts)
    assert result.returncode == 2
    assert "predicted otherwise alone than in their block" in result.stdout
    write_settings(accounts, ["spent"], model=settings)
    assert "neighbours.Batch: a class from neighbours-1.2-py3-none-any.whl" in call(["model", "check"], accounts).stdout


def test_labels_may_be_booleans_or_floats(accounts, frame):
    known = frame.churned.notna()
    for labels in (frame.churned[known] == 1, frame.churned[known]):
        model = HistGradientBoostingClassifier(max_iter=2).fit(frame.loc[known, ["spent"]], labels)
        skops.io.dump(model, accounts / "model.skops")
        result, release = train(accounts, features=["spent"])
        assert result.returncode == 0, result.stderr
        assert release.model.classes == [0, 1]
    model.fit(frame.loc[known, ["spent"]], labels.map({0: "stays", 1: "goes"}))
    skops.io.dump(model, accounts / "model.skops")
    result, _release = train(accounts, features=["spent"])
    assert "the model's classes are 'goes', 'stays', which are not values of churned (integer)" in result.stderr


@pytest.mark.parametrize("classes", [[False, True], [0, 1], [0.0, 1.0]])
def test_classes_of_a_boolean_of_postgresql(classes):
    model = RandomForestClassifier(1).fit([[0], [1]], classes)
    assert classes_as_labels(model, Column("churned", "text", "boolean")) == ["f", "t"]


def test_a_pipeline_like_those_that_are_trained_here_is_compiled(accounts, frame):
    known = frame.churned.notna()
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan, encoded_missing_value=np.nan)
    columns = make_column_transformer((encoder, ["plan", "region"]), ("passthrough", ["active", "spent", "visits"]))
    model = make_pipeline(columns, HistGradientBoostingClassifier(max_iter=5))
    model.fit(frame.loc[known, FEATURES[::-1]], frame.churned[known])
    skops.io.dump(model, accounts / "model.skops")
    found, said, release = scored(accounts, FEATURES)
    assert release.model.engine == "numpy"
    assert "scikit-learn's to the last bit" in said
    assert found == predicted(model, frame[FEATURES[::-1]], frame.id)


POSTGRESQL = """
CREATE TABLE accounts (
    id bigint PRIMARY KEY, visits int, active boolean, trial boolean, since timestamptz, joined timestamp, born date,
    spent numeric(9, 2), ratio real, plan text, customer bigint, churned boolean
);
INSERT INTO accounts
SELECT 9007199254740993 + n, CASE WHEN n % 7 > 0 THEN n % 50 END, n % 2 = 0, CASE WHEN n % 5 > 0 THEN n % 3 = 0 END,
    '2026-03-29 00:30+00'::timestamptz + n * interval '1 minute 1 microsecond', '2026-01-01'::timestamp + n * interval '1 hour',
    '1970-01-01'::date + n, (n * 7919 % 50000) / 100.0, n / 7.0, CASE WHEN n % 13 > 0 THEN 'p' || n % 3 END,
    9007199254740993 + n / 3, CASE WHEN n % 17 > 0 THEN n * 7919 % 50000 > 25000 END
FROM generate_series(0, 399) AS n
"""
# A step of a notebook that takes the frame as it is, and makes every column a number.
BARE = """
import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin


class Bare(TransformerMixin, BaseEstimator):
    def fit(self, X, y=None):
        self.dtypes_ = [str(dtype) for dtype in X.dtypes]
        return self

    def transform(self, X):
        assert [str(dtype) for dtype in X.dtypes] == self.dtypes_, X.dtypes
        columns = [
            X.visits.fillna(-1), X.active.astype(int), X.trial.map({True: 1, False: 0}).fillna(2),
            X.since.dt.tz_convert("Europe/Vienna").dt.hour, X.since.astype("int64") % 1000, X.joined.dt.day_of_year,
            X.born.map(lambda day: day.toordinal()), X.spent, X.ratio, X.plan.str.len().fillna(0), X.customer % 2,
            X.id % 2,
        ]
        return np.column_stack([np.asarray(column, dtype=float) for column in columns])
"""


def test_the_types_of_postgresql_are_those_of_the_frame(tmp_path, postgresql):
    sqlalchemy = pytest.importorskip("sqlalchemy")
    with psycopg.connect(postgresql.url, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS accounts")
        connection.execute(POSTGRESQL)
    engine = sqlalchemy.create_engine(postgresql.url.replace("postgresql://", "postgresql+psycopg://"))
    frame = pd.read_sql("SELECT * FROM accounts", engine)
    wheel = make_wheel(tmp_path, "bare", **{"__init__.py": BARE})
    install(check_wheels([wheel]))
    from bare import Bare

    features = [name for name in frame if name != "churned"]
    known = frame.churned.notna()
    model = make_pipeline(Bare(), RandomForestClassifier(10, random_state=0))
    model.fit(frame.loc[known, features], frame.churned[known].astype(bool))
    skops.io.dump(model, tmp_path / "model.skops")
    settings = f'from = "file:model.skops"\npackages = ["{wheel.name}"]\ntrusted = ["bare.Bare"]'
    found, said, release = scored(tmp_path, features, url=postgresql.url, model=settings)
    shares = model.predict_proba(frame[features])
    expected = {
        str(record_id): ("ft"[best], f"{share:.7g}", "\\N")
        for record_id, best, share in zip(frame.id, shares.argmax(axis=1), shares.max(axis=1), strict=True)
    }
    assert found == expected
    assert {str(dtype) for dtype in frame.dtypes} == {
        feature.dtype.replace("object[bool]", "object").replace("object[date]", "object")
        for feature in release.model.schema
    } | {"object"}
    assert "possibly seen" in said
    unseen = int((known & (frame.trial == True)).sum())  # noqa: E712
    for holdout in ("trial", "SELECT id FROM accounts WHERE trial"):
        result, _release = train(
            tmp_path, features=features, url=postgresql.url, model=f'{settings}\nholdout = "{holdout}"'
        )
        assert f"on a holdout of {unseen} records" in result.stderr, result.stderr


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A registry in a folder; return a function that saves a model there, as MLflow does, and moves the alias to it."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/registry")
    pytest.importorskip("mlflow")
    import mlflow.sklearn

    client = mlflow.MlflowClient()
    client.create_registered_model("churn")

    def register(model, frame, **options):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            signature = mlflow.models.infer_signature(frame)
            mlflow.sklearn.save_model(model, folder, signature=signature, pip_requirements=["scikit-learn"], **options)
        version = client.create_model_version("churn", source=folder.as_uri()).version
        client.set_registered_model_alias("churn", "champion", version)
        return version

    return register


def test_a_registry_has_the_model_and_its_signature(accounts, frame, registry):
    frame = frame.astype({"visits": "Int64", "spent": "float32"})[["visits", "spent"]].assign(
        churned=frame.churned, id=frame.id
    )
    known, settings = frame.churned.notna(), 'from = "models:/churn@champion"'
    for depth in (2, 3):  # the alias moves between two runs
        model = HistGradientBoostingClassifier(max_iter=10, max_depth=depth)
        model.fit(frame.loc[known, ["spent", "visits"]], frame.churned[known])
        tree = "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"
        version = registry(model, frame[["spent", "visits"]], skops_trusted_types=[tree])
        found, said, release = scored(accounts, ["visits", "spent"], model=settings)
        assert found == predicted(model, frame[["spent", "visits"]], frame.id)
        assert f"took in models:/churn@champion (version {version})" in said
        assert {feature.name: feature.dtype for feature in release.model.schema} == {
            "spent": "float32",
            "visits": "Int64",
        }
        assert release.manifest.model.origin == f"models:/churn@champion (version {version})"
    result = call(["model", "check", "models:/churn/1"], accounts)
    assert (result.returncode, "(version 1)" in result.stdout) == (0, True)


def test_a_registry_does_not_say_what_is_trusted(accounts, frame, registry):
    write_settings(accounts, ["spent"])
    model = make_pipeline(FunctionTransformer(np.loadtxt), LogisticRegression())
    registry(model, frame[["spent"]], skops_trusted_types=["numpy.loadtxt"])
    result = call(["model", "check", "models:/churn@champion"], accounts)
    assert (result.returncode, "numpy.loadtxt: a function from numpy" in result.stdout) == (2, True)
    registry(LogisticRegression(), frame[["spent"]], serialization_format="cloudpickle")
    result = call(["model", "check", "models:/churn@champion"], accounts)
    assert result.returncode == 2
    assert "saved with cloudpickle, which runs code when it is loaded; save it again: mlflow.sklearn" in result.stderr
    for name in ("models:/churn@nobody", "models:/none/1"):
        result = call(["model", "check", name], accounts)
        assert (result.returncode, "not found" in result.stderr) == (2, True), result.stderr


def test_a_registry_that_is_not_set_or_does_not_answer_is_named(accounts, monkeypatch):
    write_settings(accounts, ["spent"])
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    result = call(["model", "check", "models:/churn/1"], accounts)
    assert (result.returncode, "set MLFLOW_TRACKING_URI to the address" in result.stderr) == (2, True)
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    result = call(["model", "check", "models:/churn/1"], accounts)
    assert (result.returncode, "MLflow at http://127.0.0.1:1" in result.stderr) == (4, True), result.stderr
    assert "secret" not in result.stderr
