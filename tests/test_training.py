import math
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from inprocess import without

from predictions.errors import InputError
from predictions.formats.record_line import Column, field_ends
from predictions.scoring.files import load_model
from predictions.settings import load_settings
from predictions.stages.export import export
from predictions.stages.train import train
from predictions.storage import Storage


@pytest.fixture
def trained(orders):
    """Export and train with changed settings; return the model and its manifest.

    With `processes`, the model is tried in a new process, else in this one.
    """

    exports = {}  # by columns; each takes a second, as releases are named by the second

    def trained(processes=False, **changes):
        settings = load_settings(orders / "predictions.toml")
        settings = settings.model_copy(update={"model": settings.model.model_copy(update={"params": {}} | changes)})
        columns = settings.model.label, *settings.model.features
        if columns not in exports:
            storage = Storage(settings.hadoop.storage, settings.name)
            exports[columns] = export(settings, storage, lambda _done, _total: None, print)
        folder = exports[columns]
        folder.remove("model")
        with without(processes):
            manifest = train(settings, folder, lambda _text: None).only
        return load_model(Path(folder.path) / "model" / "model.json"), manifest

    return trained


def assert_calibrated(training):
    """Check that the bins have all holdout records, in order of the prediction, and that actual values rise with it."""
    bins = training.calibration
    assert sum(calibration_bin["records"] for calibration_bin in bins) == training.holdout
    predicted, actual = ([calibration_bin[side] for calibration_bin in bins] for side in ("predicted", "actual"))
    assert predicted == sorted(predicted)
    assert np.corrcoef(predicted, actual)[0, 1] > 0.5


@pytest.mark.parametrize(
    ("estimator", "params", "processes"),
    [
        ("sklearn.ensemble.HistGradientBoostingClassifier", {"max_iter": 5}, True),
        ("sklearn.ensemble.RandomForestClassifier", {"n_estimators": 5}, False),
        ("sklearn.ensemble.GradientBoostingClassifier", {"n_estimators": 5}, False),
        ("sklearn.linear_model.LogisticRegression", {}, False),
        ("sklearn.tree.DecisionTreeClassifier", {"max_depth": 3}, False),
    ],
)
def test_classifiers(trained, estimator, params, processes):
    model, manifest = trained(processes, estimator=estimator, params=params)
    assert manifest.task == "classification"
    assert manifest.classes == [0, 1]
    training = manifest.training
    assert (training.labelled, training.fitted + training.holdout) == (376, 376)
    assert training.metrics["roc_auc"] > 0.8 > training.baseline["roc_auc"] == 0.5
    assert_calibrated(training)
    # Missing values, and a category that is not in the training data.
    scores = model.score(b"1\tAT\t450\t2\t\\N\n2\t\\N\t\\N\t\\N\t\\N\n3\tnever seen\t1\t2\t\\N\n")
    assert set(scores.predictions) <= {b"0", b"1"}
    assert all(0.5 <= float(probability) <= 1 for probability in scores.probabilities)
    assert scores.predictions[0] == b"1"


@pytest.mark.parametrize(
    ("estimator", "params"),
    [
        ("sklearn.ensemble.HistGradientBoostingRegressor", {"max_iter": 20}),
        ("sklearn.ensemble.RandomForestRegressor", {"n_estimators": 5}),
        ("sklearn.linear_model.Ridge", {}),
    ],
)
def test_regressors(trained, estimator, params):
    model, manifest = trained(estimator=estimator, params=params, label="amount", features=["country", "paid"])
    assert (manifest.task, manifest.classes) == ("regression", None)
    assert manifest.training.metrics["rmse"] < manifest.training.baseline["rmse"]
    assert_calibrated(manifest.training)
    scores = model.score(b"1\tAT\t1\t\\N\n")
    assert math.isfinite(float(scores.predictions[0]))
    assert scores.probabilities == [b"\\N"]


def test_text_labels_and_several_classes(trained):
    model, manifest = trained(label="country", features=["amount", "items"])
    assert manifest.classes == ["AT", "CH", "Côte d'Ivoire", "tab\there"]
    assert "roc_auc" in manifest.training.metrics
    predictions = model.score(b"".join(b"%d\t%d\t1\t\\N\n" % (n, n) for n in range(1, 500))).predictions
    assert rb"tab\there" in predictions


@pytest.mark.parametrize(
    ("values", "code"), [(["a"] * 60 + ["b"] * 60 + ["z"], 0), (["a", "b", "c"] * 3, 2), (["a"] * 100 + ["b"] * 2, 0)]
)
def test_rare_labels(trained, orders, values, code):
    with closing(sqlite3.connect(orders / "orders.db")) as connection, connection:
        connection.execute("UPDATE orders SET note = NULL")
        connection.executemany(
            "UPDATE orders SET note = ? WHERE id = ?", [(note, f"order-{n:03}") for n, note in enumerate(values)]
        )
    for seed in range(4):  # the rare label may be in the training part or in the holdout
        if code:
            with pytest.raises(InputError, match="cannot be fitted"):
                trained(label="note", features=["amount"], seed=seed, params={"max_iter": 10})
        else:
            _model, manifest = trained(label="note", features=["amount"], seed=seed, params={"max_iter": 10})
            assert math.isfinite(manifest.training.metrics["log_loss"])
            assert all(map(math.isfinite, manifest.training.metrics.values()))


def test_training_is_repeatable_and_the_sample_is_stated(trained):
    _model, first = trained(sample=200, seed=3, params={"max_iter": 10})
    _model, second = trained(sample=200, seed=3, params={"max_iter": 10})
    _model, third = trained(sample=200, seed=4, params={"max_iter": 10})
    assert first.training.sample == 200
    assert first.training.metrics == second.training.metrics != third.training.metrics


def test_the_holdout_was_not_trained_on(trained):
    # No feature explains these labels: only a model measured on its own training records would look good.
    _model, manifest = trained(
        estimator="sklearn.tree.DecisionTreeClassifier", label="items", features=["amount"], params={}
    )
    assert manifest.training.metrics["roc_auc"] < 0.65


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"estimator": "sklearn.ensemble.Nope"}, "model.estimator: sklearn.ensemble.Nope"),
        ({"estimator": "nowhere.Nope"}, "model.estimator: nowhere.Nope"),
        ({"estimator": "Nope"}, "model.estimator: Nope"),
        ({"estimator": "sklearn.preprocessing.StandardScaler"}, "neither a classifier nor a regressor"),
        ({"estimator": "sklearn.svm.LinearSVC"}, "gives no probabilities"),
        ({"params": {"max_itr": 5}}, "model.params: .*max_itr"),
        ({"params": {"max_iter": -5}}, "cannot be fitted: .*max_iter"),
        ({"estimator": "sklearn.linear_model.Ridge", "label": "country", "features": ["amount"]}, "predicts numbers"),
        ({"label": "note", "features": ["amount"]}, "note is free text in every labelled record"),
        ({"label": "id", "features": ["amount"]}, "a different value in every record"),
        ({"estimator": "sklearn.neighbors.KNeighborsClassifier"}, "types that were not reviewed: .*KDTree"),
    ],
)
def test_settings_that_cannot_be_trained_are_named(trained, orders, changes, message):
    with pytest.raises(InputError, match=message):
        trained(**changes)
    assert not list(orders.glob("storage/orders/*/*model*"))


def test_the_trained_model_was_tried_in_a_process_of_its_own(trained, monkeypatch, tmp_path):
    broken = tmp_path / "mapper.py"
    broken.write_text("import sys; print('mapper.py: no such class', file=sys.stderr); sys.exit(2)")
    monkeypatch.setattr("predictions.stages.train.script", lambda _name: broken)
    with pytest.raises(InputError, match="does not work in a new process: mapper.py: no such class"):
        trained(processes=True)


def test_training_twice_gives_the_same_files(trained):
    _model, first = trained()
    _model, second = trained()
    assert (first.sha256, first.compiled) == (second.sha256, second.compiled)
    assert first.compiled


def test_numbers_survive_with_seven_digits(trained):
    model, _manifest = trained(estimator="sklearn.linear_model.Ridge", label="amount", features=["items"])
    lines = b"".join(b"%d\t%d\t\\N\n" % (number, number) for number in range(-500, 500, 7))
    values = np.array([float(value) for value in model.score(lines).predictions])
    exact = model.predictor.predict(lines, field_ends(lines, model.manifest.fields))[0]
    np.testing.assert_allclose(values, exact, rtol=5e-7)


def test_a_record_of_invalid_utf_8_is_learnt_from_but_is_no_golden_record(trained, orders):
    with closing(sqlite3.connect(orders / "orders.db")) as connection, connection:
        connection.execute("UPDATE orders SET country = CAST(x'ff' AS TEXT) WHERE id IN ('order-001', 'order-003')")
    model, manifest = trained()
    ids = [golden["record"].partition("\t")[0] for golden in manifest.golden]
    assert ids == ["order-002", "order-004", "order-005", "order-006", "order-007"]
    assert manifest.training.sample == 376
    assert model.score(b"1\t\xff\t450\t2\t1\n").errors == [b"country: not valid UTF-8"]


def test_training_takes_records_none_of_which_is_valid_utf_8(trained, orders):
    with closing(sqlite3.connect(orders / "orders.db")) as connection, connection:
        connection.execute("UPDATE orders SET country = CAST(x'ff' AS TEXT)")
    # Gradient boosting cannot be fitted on a column without any value.
    _model, manifest = trained(estimator="sklearn.linear_model.LogisticRegression")
    assert manifest.golden == []


def test_a_date_is_a_feature_as_a_number_is(trained, orders):
    with closing(sqlite3.connect(orders / "orders.db")) as connection, connection:
        connection.execute("ALTER TABLE orders ADD COLUMN day DATE")
        connection.execute("UPDATE orders SET day = date('2026-01-01', (2 * paid) || ' years') WHERE items > 1")
    model, manifest = trained(features=["day"])
    assert manifest.features == [Column("day", "date")]
    assert manifest.training.metrics["roc_auc"] > 0.8
    scores = model.score(b"1\t2026-01-01\t0\n2\t2028-01-01 10:00\t1\n3\t\\N\t\\N\n4\t1.1.2026\t0\n")
    assert scores.predictions[:2] == [b"0", b"1"]
    assert scores.errors == [b"\\N", b"\\N", b"\\N", b"day: not a date"]


def test_a_regressor_does_not_learn_dates(trained, orders):
    with closing(sqlite3.connect(orders / "orders.db")) as connection, connection:
        connection.execute("ALTER TABLE orders ADD COLUMN day DATE")
        connection.execute("UPDATE orders SET day = date('2026-01-01', items || ' days')")
    with pytest.raises(InputError, match="day is date, but a regressor predicts numbers"):
        trained(label="day", features=["amount"], estimator="sklearn.linear_model.Ridge")


def test_a_label_of_another_type_is_named_with_its_record(trained, orders):
    with closing(sqlite3.connect(orders / "orders.db")) as connection, connection:
        connection.execute("UPDATE orders SET amount = 'on request' WHERE id = 'order-007'")
    message = "amount of record order-007 is on request, which is not of type real: not a number"
    with pytest.raises(InputError, match=message):
        trained(label="amount", features=["items"], estimator="sklearn.linear_model.Ridge")


def test_a_category_of_digits_only_is_learnt_as_text(trained, orders):
    with closing(sqlite3.connect(orders / "orders.db")) as connection, connection:
        connection.execute("UPDATE orders SET country = '00' || (1 + paid)")
    model, manifest = trained(features=["country"])
    assert manifest.training.metrics["roc_auc"] == 1
    assert model.score(b"1\t001\t0\n2\t002\t0\n").predictions == [b"0", b"1"]
