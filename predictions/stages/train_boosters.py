"""Fit LightGBM's and XGBoost's estimators as scikit-learn's are: the same bytes each time, on the free cores."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import is_classifier
from sklearn.pipeline import Pipeline

from predictions.scoring import boosters

# 0: as many threads as OpenMP is limited to, as for scikit-learn's estimators. LightGBM would time two ways of making
# histograms, and take the faster one, whose sums differ in the last bits.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "lightgbm": {"n_jobs": 0, "verbose": -1, "deterministic": True, "force_row_wise": True},
    "xgboost": {"n_jobs": 0},
}
_UNUSED = "are not used"  # how XGBoost warns of parameters that it does not know


def library_of(estimator: Any) -> str | None:
    """Return `lightgbm` or `xgboost` if an estimator, fitted or not, is from one of them."""
    name = type(estimator).__module__.partition(".")[0]
    return name if name in boosters.DISTRIBUTIONS else None


def with_defaults(estimator: Any, params: Mapping[str, Any]) -> Any:
    """Return an estimator, with the parameters above that the settings have not."""
    own = _DEFAULTS.get(library_of(estimator) or "", {})
    return estimator.set_params(**{name: value for name, value in own.items() if name not in params})


def is_ranker(estimator: Any) -> bool:
    """Return whether an estimator ranks the records within groups."""
    return library_of(estimator) is not None and type(estimator).__name__.endswith("Ranker")


def needs_class_numbers(estimator: Any) -> bool:
    """Return whether a classifier takes classes by number only, from 0."""
    return library_of(estimator) == "xgboost" and is_classifier(estimator)


def fit(pipeline: Pipeline, frame: pd.DataFrame, labels: np.ndarray) -> None:
    """Fit a pipeline of any estimator.

    Args:
        pipeline: the pipeline.
        frame: the features.
        labels: the labels; of a classifier that `needs_class_numbers`, numbers from 0.

    Raises:
        ValueError: the estimator refuses a parameter, does not know it, or cannot learn from the data.
    """
    name = library_of(pipeline[-1])
    if name == "lightgbm":
        _fit_lightgbm(pipeline, frame, labels)
    elif name == "xgboost":
        _fit_xgboost(pipeline, frame, labels)
    else:
        pipeline.fit(frame, labels)


def _fit_lightgbm(pipeline: Pipeline, frame: pd.DataFrame, labels: np.ndarray) -> None:
    lightgbm = boosters.library("lightgbm")
    aliases, estimator = lightgbm.basic._ConfigAliases, pipeline[-1]
    known = set(type(estimator)().get_params()) | aliases.get(*aliases._get_all_param_aliases())
    if unknown := sorted(estimator.get_params().keys() - known):
        raise ValueError(f"unknown parameter {unknown[0]}")
    try:
        pipeline.fit(frame, labels)
    except lightgbm.basic.LightGBMError as error:
        raise ValueError(boosters.one_line(error)) from error


def _fit_xgboost(pipeline: Pipeline, frame: pd.DataFrame, labels: np.ndarray) -> None:
    xgboost = boosters.library("xgboost")
    with warnings.catch_warnings(record=True) as caught, xgboost.config_context(verbosity=1):
        warnings.simplefilter("always")
        try:
            pipeline.fit(frame, labels)
        except xgboost.core.XGBoostError as error:
            raise ValueError(boosters.one_line(error)) from error
    for warning in caught:
        message = " ".join(str(warning.message).split())
        if _UNUSED in message:
            raise ValueError(message[message.index("Parameters") :])
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
