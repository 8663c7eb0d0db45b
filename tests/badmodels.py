"""Two models for the orders of conftest.py that crash or raise on one kind of record, and score all others.

Each function writes a model's files, as training does, into an existing folder.
"""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.tree import DecisionTreeClassifier
from wheels import make_wheel

from predictions.formats.manifest import ModelManifest, Training
from predictions.formats.record_line import Column
from predictions.jobs.wheels import check_wheels
from predictions.scoring.files import save_model
from predictions.scoring.packages import install

FEATURES = [Column("country", "text"), Column("amount", "real"), Column("items", "integer")]
COUNTRIES = ["AT", "CH", "Côte d'Ivoire", "tab\there", np.nan]  # the countries of the orders
LARGEST_AMOUNT = 1_000_000.0  # above it, scoring kills the process
FATAL_LINE = b"fatal\tAT\t2000000.0\t1\t0"  # for `segfaulting`
CRASHING = f"""
import ctypes

from sklearn.base import BaseEstimator, TransformerMixin


class Crash(TransformerMixin, BaseEstimator):
    def fit(self, X, y=None):
        self.fitted_ = True
        return self

    def transform(self, X):
        if (X["amount"] > {LARGEST_AMOUNT}).any():
            ctypes.string_at(0)
        return X
"""
UNKNOWN_LINE = b"unknown\tXX\t12.5\t1\t0"  # for `raising`


def segfaulting(folder: Path) -> bytes:
    """Write a model that dies by SIGSEGV on amounts above 1,000,000; return a record line that makes it die.

    It is a decision tree over the amount, behind own code that reads at the address 0. All other records, also those
    without an amount, are scored: 1 above 200, else 0.
    """
    wheels = check_wheels([make_wheel(folder, "crashing", "1.0", **{"__init__.py": CRASHING})])
    install(wheels)
    amounts = np.concatenate([np.linspace(1, 500, 500), np.full(50, 1e5)])
    frame = pd.DataFrame({"country": "AT", "amount": amounts, "items": 1.0})
    columns = ColumnTransformer([("amount", "passthrough", ["amount"])])
    steps = [("crash", importlib.import_module("crashing").Crash()), ("columns", columns)]
    pipeline = Pipeline([*steps, ("estimator", DecisionTreeClassifier(max_depth=2, random_state=0))])
    pipeline.fit(frame, ((amounts > 200) & (amounts <= 500)).astype(int))
    _save(pipeline, folder, trusted=["crashing.Crash"], packages=[package for _path, package in wheels])
    return FATAL_LINE


def raising(folder: Path) -> bytes:
    """Write a model that raises ValueError on countries not in `COUNTRIES`; return a record line that makes it raise.

    It is a logistic regression over the one-hot country; the encoder refuses unknown categories.
    """
    frame = pd.DataFrame(
        {"country": pd.Series(COUNTRIES * 20, dtype=object), "amount": 12.5, "items": 1.0},
        columns=["country", "amount", "items"],
    )
    pipeline = _pipeline(
        ("country", OneHotEncoder(handle_unknown="error", sparse_output=False), ["country"]), LogisticRegression()
    )
    pipeline.fit(frame, [0, 1, 1, 0, 0] * 20)
    _save(pipeline, folder)
    return UNKNOWN_LINE


def _pipeline(prepare: tuple[str, Any, list[str]], estimator: Any) -> Pipeline:
    return Pipeline([("columns", ColumnTransformer([prepare])), ("estimator", estimator)])


def _save(pipeline: Pipeline, folder: Path, **more: Any) -> None:
    manifest = ModelManifest(
        id=Column("id", "text"),
        features=FEATURES,
        label=Column("paid", "integer"),
        classes=[0, 1],
        estimator=f"{type(pipeline[-1]).__module__}.{type(pipeline[-1]).__name__}",
        training=Training(labelled=376, sample=376, fitted=376),
        **more,
    )
    save_model(pipeline, manifest, folder)
