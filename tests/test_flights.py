"""The example database of flights."""

import sqlite3
from contextlib import closing

import pandas as pd
import pytest
from conftest import CHECKOUT
from sklearn.base import clone
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
)

from examples.flights.make_database import make_database, read_flights
from predictions.formats.record_line import Column
from predictions.scoring.compiler import check, compile_pipeline
from predictions.settings import load_settings
from predictions.stages.fit import make_pipeline_for


@pytest.fixture(scope="module")
def flights():
    return read_flights()


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    path = tmp_path_factory.mktemp("flights") / "flights.db"
    assert make_database(path) == 336_776
    assert list(path.parent.iterdir()) == [path]
    with closing(sqlite3.connect(path)) as connection:
        yield connection


def test_every_flight_with_all_its_columns(database, flights):
    names = [row[1] for row in database.execute("PRAGMA table_info(flights)")]
    assert names == ["flight_id", *flights.columns, "late"]
    low, high, rows = database.execute("SELECT min(flight_id), max(flight_id), count(*) FROM flights").fetchone()
    assert (low, high, rows) == (1, 336_776, 336_776)
    first = database.execute("SELECT carrier, tailnum, arr_delay, distance FROM flights WHERE flight_id = 1").fetchone()
    assert first == ("UA", "N14228", 11, 1400)


def test_late_is_more_than_fifteen_minutes_and_null_without_an_arrival(database, flights):
    counts = dict(database.execute("SELECT late, count(*) FROM flights GROUP BY late"))
    assert counts == {
        None: int(flights.arr_delay.isna().sum()),
        1: int((flights.arr_delay > 15).sum()),
        0: int((flights.arr_delay <= 15).sum()),
    }
    assert {late for (late,) in database.execute("SELECT late FROM flights WHERE arr_delay = 15")} == {0}
    assert {late for (late,) in database.execute("SELECT late FROM flights WHERE arr_time IS NULL")} == {None}


@pytest.mark.parametrize(
    ("estimator", "label"),
    [
        (HistGradientBoostingClassifier(max_iter=200), "late"),
        (HistGradientBoostingRegressor(max_iter=100), "arr_delay"),
        (GradientBoostingClassifier(n_estimators=50), "late"),
    ],
    ids=str,
)
def test_compiled_models_predict_all_flights_as_scikit_learn_does_to_the_last_bit(database, full, estimator, label):
    """Without --full, models of a few trees predict a part of the flights."""
    settings = load_settings(CHECKOUT / "predictions.toml").model
    columns = [
        Column(name, "text" if name in ("carrier", "origin", "dest") else "integer") for name in settings.features
    ]
    frame = pd.read_sql(f"SELECT * FROM flights WHERE flight_id % {1 if full else 16} = 0", database)
    features = frame[settings.features].astype({column.name: float for column in columns if column.is_number})
    if not full:
        estimator = clone(estimator).set_params(**{"max_iter" if "Hist" in str(estimator) else "n_estimators": 5})
    is_known = frame[label].notna()
    sample = is_known & (frame["flight_id"] % (16 if "Hist" not in str(estimator) else 1) == 0)
    pipeline = make_pipeline_for(estimator, columns).fit(features[sample], frame[label][sample])
    assert check(compile_pipeline(pipeline, columns), pipeline, features) > len(frame)


def test_only_what_is_known_before_take_off_is_a_feature():
    features = load_settings(CHECKOUT / "predictions.toml").model.features
    assert not {"dep_time", "dep_delay", "arr_time", "arr_delay", "air_time", "late"} & set(features)
