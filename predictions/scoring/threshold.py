"""The threshold of a classifier that has its own: scikit-learn's `FixedThresholdClassifier` and the tuned one.

Both only add a threshold to a classifier with probabilities. So the classifier inside them is kept, which may have a
compiled form, and the threshold goes to the model's manifest. Training alone imports this.
"""

from typing import Any, NamedTuple

from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV
from sklearn.pipeline import Pipeline

from predictions.errors import InputError

_AUTO = 0.5  # of a probability, as scikit-learn defines it


class Threshold(NamedTuple):
    """From which probability on one of two classes is predicted: `positive` is the index of that class."""

    share: float
    positive: int = 1


def split_threshold(estimator: Any) -> tuple[Any, Threshold | None]:
    """Return a fitted estimator without its own threshold, and the threshold; None if it has none.

    Args:
        estimator: a fitted estimator, or a pipeline with one at its end.

    Raises:
        InputError: the threshold is not one of probabilities.
    """
    if isinstance(estimator, Pipeline):
        *steps, (name, last) = estimator.steps
        inner, threshold = split_threshold(last)
        return (Pipeline([*steps, (name, inner)]) if threshold else estimator), threshold
    if isinstance(estimator, TunedThresholdClassifierCV):
        share, positive = estimator.best_threshold_, estimator._curve_scorer._get_pos_label()
    elif isinstance(estimator, FixedThresholdClassifier):
        share, positive = estimator.threshold, estimator.pos_label
    else:
        return estimator, None
    inner = getattr(estimator, "estimator_", estimator.estimator)
    if estimator.response_method == "decision_function" or not hasattr(inner, "predict_proba"):
        raise InputError(
            f"model.estimator: {type(estimator).__name__} has a threshold of its decision function; give it "
            'response_method="predict_proba"'
        )
    index = 1 if positive is None else list(inner.classes_).index(positive)
    return inner, Threshold(_AUTO if share == "auto" else float(share), index)
