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
_UNUSED = "are not used"


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


def fit(pipeline: Pipeline, frame: pd.DataFrame, labels: np.ndarray) -> None:
    """Fit a pipeline with the fixed preparation.

    Args:
        pipeline: the pipeline, of any estimator.
        frame: the features; categories are objects.
        labels: the labels; of a classifier that `needs_class_numbers`, from 0.

    Raises:
        ValueError: the estimator refuses a parameter, ignores it, or cannot learn from the data.
    """
    estimator = pipeline[-1]
    name = library_of(estimator)
    if name == "lightgbm":
        _fit_lightgbm(pipeline, frame, labels)
    elif name == "xgboost":
        _fit_xgboost(pipeline, frame, labels)
    else:
        pipeline.fit(frame, labels)


def needs_class_numbers(estimator: Any) -> bool:
    """Return whether a classifier takes classes by number only, from 0."""
    return library_of(estimator) == "xgboost" and is_classifier(estimator)


def _fit_lightgbm(pipeline: Pipeline, frame: pd.DataFrame, labels: np.ndarray) -> None:
    lightgbm, params = boosters.library("lightgbm"), pipeline[-1].get_params()
    aliases = lightgbm.basic._ConfigAliases
    known = set(type(pipeline[-1])().get_params()) | aliases.get(*aliases._get_all_param_aliases())
    if unknown := sorted(params.keys() - known):
        raise ValueError(f"unknown parameter {unknown[0]}")
    kinds = _kinds(frame)
    categories = [index for index, kind in enumerate(kinds) if kind == "c"]
    chosen = {} if "categorical_feature" in params else {"categorical_feature": categories}
    try:
        pipeline.fit(frame, labels, **{f"estimator__{name}": value for name, value in chosen.items()})
    except lightgbm.basic.LightGBMError as error:
        raise ValueError(str(error)) from error


def _fit_xgboost(pipeline: Pipeline, frame: pd.DataFrame, labels: np.ndarray) -> None:
    xgboost = boosters.library("xgboost")
    if not pipeline[-1].get_params()["feature_types"]:
        kinds = _kinds(frame)
        pipeline[-1].set_params(enable_categorical="c" in kinds, feature_types=kinds)
    with warnings.catch_warnings(record=True) as caught, xgboost.config_context(verbosity=1):
        warnings.simplefilter("always")
        pipeline.fit(frame, labels)
    for warning in caught:
        if _UNUSED in str(warning.message):  # of a parameter that it does not know
            raise ValueError(" ".join(str(warning.message).splitlines()[1:]))
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _kinds(frame: pd.DataFrame) -> list[str]:
    """Return which columns are categories, `c`, and which numbers, `q`: the preparation puts numbers first."""
    return sorted(("c" if dtype == np.dtype(object) else "q" for dtype in frame.dtypes), reverse=True)
