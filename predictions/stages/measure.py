"""Measure models: metrics on labelled records, next to those of a baseline without features."""

from typing import Any

import numpy as np
from sklearn.base import is_classifier, is_regressor
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import LinearRegression
from sklearn.metrics import log_loss, mean_absolute_error, roc_auc_score, root_mean_squared_error

from predictions.comparison.distribution import SHARES

CALIBRATION_BINS = 10


def measure(model: Any, features: Any, labels: np.ndarray) -> dict[str, Any]:
    """Measure a fitted model, as fields of `Training`; the baseline knows how frequent each label is.

    Args:
        model: a classifier, a regressor or a ranker.
        features: the frame or the array that it takes, at least one row.
        labels: values of its classes, or numbers (shape: rows).
    """
    classify = is_classifier(model)
    if not classify and not is_regressor(model):
        return _measure_ranker(model, features, labels)
    baseline = _Prior(model.classes_, labels) if classify else DummyRegressor().fit(features, labels)
    metrics = _classifier_metrics if classify else _regressor_metrics
    return {
        "metrics": metrics(model, features, labels),
        "baseline": metrics(baseline, features, labels),
        "calibration": calibration(model, features, labels),
        "quantiles": None if classify else label_quantiles(labels),
    }


def _measure_ranker(ranker: Any, features: Any, labels: np.ndarray) -> dict[str, Any]:
    """Measure by the line that fits the labels best: a ranker's score has no scale of its own."""
    scores = ranker.predict(features)[:, None]
    line = LinearRegression().fit(scores, labels)
    measured = measure(line, scores, labels)
    return measured | {"calibration": calibration(ranker, features, labels), "quantiles": label_quantiles(scores)}


class _Prior:
    """A classifier that gives each class its share of the labels, which need not have all of a model's classes."""

    def __init__(self, classes: np.ndarray, labels: np.ndarray) -> None:
        self.classes_ = classes
        self._shares = np.array([(labels == value).mean() for value in classes])

    def predict_proba(self, features: Any) -> np.ndarray:
        return np.tile(self._shares, (len(features), 1))


def label_quantiles(labels: np.ndarray) -> list[float]:
    """Return the edges of the bins of a regressor's predictions (`predictions.comparison.distribution`).

    Args:
        labels: the labels, or of a ranker the scores.
    """
    return np.unique(np.quantile(labels, SHARES)).tolist()


def metrics_of(model: Any, features: Any, labels: np.ndarray) -> dict[str, float]:
    """Return the metrics of a fitted classifier or regressor."""
    metrics = _classifier_metrics if is_classifier(model) else _regressor_metrics
    return metrics(model, features, labels)


def _classifier_metrics(classifier: Any, features: Any, labels: np.ndarray) -> dict[str, float]:
    # A label so rare that only the holdout has it can be neither predicted nor measured.
    is_class = np.isin(labels, classifier.classes_)
    labels, shares = labels[is_class], classifier.predict_proba(features)[is_class]
    metrics = {"log_loss": float(log_loss(labels, shares, labels=classifier.classes_))}
    if not np.isin(classifier.classes_, labels).all():
        return metrics
    if len(classifier.classes_) == 2:
        metrics["roc_auc"] = float(roc_auc_score(labels == classifier.classes_[1], shares[:, 1]))
    else:
        metrics["roc_auc"] = float(roc_auc_score(labels, shares, multi_class="ovr", labels=classifier.classes_))
    return metrics


def _regressor_metrics(regressor: Any, features: Any, labels: np.ndarray) -> dict[str, float]:
    values = _first_value(regressor, features)
    return {
        "rmse": float(root_mean_squared_error(labels, values)),
        "mae": float(mean_absolute_error(labels, values)),
    }


def _first_value(regressor: Any, features: Any) -> np.ndarray:
    """Return the first value that a regressor predicts for each row (shape: rows)."""
    values = regressor.predict(features)
    return values if values.ndim == 1 else values[:, 0]


def calibration(model: Any, features: Any, labels: np.ndarray) -> list[dict[str, float]]:
    """Return the predicted and the actual means of the holdout, in bins of equally many records by predicted value.

    The predicted value is, with two classes, the probability of the second one; with more, the probability of the
    predicted class; with a regressor or a ranker, its prediction.
    """
    if not is_classifier(model):
        predicted, actual = _first_value(model, features), labels
    else:
        shares = model.predict_proba(features)
        column = np.ones(len(labels), dtype=int) if len(model.classes_) == 2 else shares.argmax(axis=1)
        predicted, actual = shares[np.arange(len(labels)), column], labels == model.classes_[column]
    order = np.argsort(predicted, kind="stable")
    bins = [rows for rows in np.array_split(order, CALIBRATION_BINS) if len(rows)]
    return [
        {"predicted": float(predicted[rows].mean()), "actual": float(actual[rows].mean()), "records": len(rows)}
        for rows in bins
    ]
