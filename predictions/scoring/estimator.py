"""Score with scikit-learn, and keep its estimators in files that skops writes and checks.

Unlike pickle, skops runs no code from the file. It refuses types outside its own list, but ordinary scikit-learn models
need a few more. Those in `TRUSTED` were reviewed one by one: they hold numbers, and are built without calling anything
that the file names. A file with any other type is refused.
"""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import skops.io
from skops.io.exceptions import UntrustedTypesFoundException
from threadpoolctl import ThreadpoolController

from predictions.errors import InputError
from predictions.formats.manifest import ModelManifest
from predictions.scoring.frame import FrameReader

TRUSTED = (
    "numpy.dtype",
    "sklearn._loss.link.IdentityLink",
    "sklearn._loss.link.Interval",
    "sklearn._loss.link.LogitLink",
    "sklearn._loss.link.LogLink",
    "sklearn._loss.link.MultinomialLogit",
    "sklearn._loss.loss.AbsoluteError",
    "sklearn._loss.loss.HalfBinomialLoss",
    "sklearn._loss.loss.HalfGammaLoss",
    "sklearn._loss.loss.HalfMultinomialLoss",
    "sklearn._loss.loss.HalfPoissonLoss",
    "sklearn._loss.loss.HalfSquaredError",
    "sklearn._loss.loss.PinballLoss",
    "sklearn.ensemble._hist_gradient_boosting.binning._BinMapper",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.tree._tree.Tree",
)


class EstimatorPredictor:
    """Score with a fitted estimator.

    Args:
        estimator: a fitted scikit-learn estimator that takes a data frame with the features' names.
        manifest: their names and types, and whether the estimator is a classifier.
    """

    def __init__(self, estimator: Any, manifest: ModelManifest) -> None:
        self.estimator = estimator
        self._predict = estimator.predict_proba if manifest.classes else estimator.predict
        self._reader = FrameReader(manifest.features)
        # Made once the estimator's libraries are loaded: it limits those that it sees.
        self._threads = ThreadpoolController()

    def predict(self, block: bytes) -> tuple[np.ndarray[Any, Any], dict[int, str]]:
        """See `predictions.scoring.model.Predictor`."""
        frame, bad_rows = self._reader.read(block)
        return self._predict(frame), bad_rows

    def one_thread(self) -> AbstractContextManager[object]:
        """See `predictions.scoring.model.Predictor`."""
        return self._threads.limit(limits=1)


def save(estimator: Any, path: Path) -> None:
    """Write an estimator.

    Raises:
        InputError: skops cannot save it, or it holds a type that was not reviewed.
    """
    try:
        skops.io.dump(estimator, path)
    except Exception as error:  # skops raises whatever an object's own state raises
        raise InputError(f"model.estimator: cannot be saved with skops: {error}") from error
    _check_types(path)


def load(path: Path) -> Any:
    """Read an estimator; raise InputError if it holds a type that was not reviewed."""
    try:
        return skops.io.load(path, trusted=list(TRUSTED))
    except UntrustedTypesFoundException:
        # Names the types. It is only called here, since it takes half as long as loading the model.
        _check_types(path)
        raise


def _check_types(path: Path) -> None:
    untrusted = sorted(set(skops.io.get_untrusted_types(file=path)) - set(TRUSTED))
    if untrusted:
        raise InputError(
            f"{path}: holds types that were not reviewed: {', '.join(untrusted)}; choose an estimator without them, or "
            "review them and add them to TRUSTED in predictions/scoring/estimator.py"
        )
