"""A trained model on disk: `model.skops` and its manifest `model.json`, which are checked whenever they are loaded.

Unlike pickle, skops runs no code from the file. It refuses types outside its own list, but ordinary scikit-learn models
need a few more. Those in `TRUSTED` were reviewed one by one: they hold numbers, and are built without calling anything
that the file names. A file with any other type is refused.
"""

import hashlib
import importlib.metadata
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from predictions.errors import InputError
from predictions.formats.document import read, to_file
from predictions.formats.manifest import MODEL_MANIFEST, ModelManifest
from predictions.formats.prediction_line import MAX_CELL_BYTES
from predictions.formats.record_line import NULL, escape, join_lines
from predictions.scoring.features import FrameReader

MODEL_FILE = "model.skops"
DIGITS = 7  # significant digits of a number: the last bits of a matrix product differ with the size of the block
LARGEST_VALUE = MAX_CELL_BYTES - (64 << 10)  # bytes; the row key and the column count towards a cell's size, too
GOLDEN_TOLERANCE = 1e-5  # relative difference allowed when a golden record is scored again, perhaps on another machine

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

# The libraries that a prediction passes through; a model trained with another version of the first is refused.
_LIBRARIES = ("scikit-learn", "numpy", "scipy", "pandas", "skops")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that training and scoring use."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _LIBRARIES}


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Scores:
    """The fields `prediction`, `probability` and `error` for each row of a block, escaped."""

    predictions: list[bytes]
    probabilities: list[bytes]
    errors: list[bytes]


class Model:
    """A fitted estimator and its manifest.

    Args:
        estimator: a fitted scikit-learn estimator that takes a data frame with the features' names.
        manifest: the content of `model.json`.
    """

    def __init__(self, estimator: Any, manifest: ModelManifest) -> None:
        self.estimator = estimator
        self.manifest = manifest
        self.features = manifest.features
        self._reader = FrameReader(self.features)
        self._classes = [escape(str(label).encode()) for label in manifest.classes or ()]
        self._class_is_too_large = np.array([len(label) > LARGEST_VALUE for label in self._classes], dtype=bool)

    @property
    def fields(self) -> int:
        """The number of fields of a record line: ID, features, label."""
        return len(self.features) + 2

    def score(self, block: bytes) -> Scores:
        """Predict the records of one block.

        Args:
            block: whole record lines, at least one, whose fields have been counted.
        """
        frame, bad_rows = self._reader.read(block)
        if self._classes:
            class_probabilities = self.estimator.predict_proba(frame)
            best = class_probabilities.argmax(axis=1)
            values = class_probabilities[np.arange(len(best)), best]
            predictions = list(map(self._classes.__getitem__, best.tolist()))
            probabilities = format_numbers(values)
            for row in np.flatnonzero(self._class_is_too_large[best]).tolist():
                bad_rows.setdefault(row, f"prediction: {len(predictions[row]):,} bytes, more than HBase takes")
        else:
            values = self.estimator.predict(frame)
            predictions = format_numbers(values)
            probabilities = [NULL] * len(predictions)
        for row in np.flatnonzero(~np.isfinite(values)).tolist():
            bad_rows.setdefault(row, "prediction: not a finite number")
        errors = [NULL] * len(predictions)
        for row, reason in bad_rows.items():
            predictions[row], probabilities[row], errors[row] = NULL, NULL, escape(reason.encode())
        return Scores(predictions, probabilities, errors)

    def golden_records(self, lines: Sequence[bytes]) -> list[dict[str, str]]:
        """Return record lines with their predictions, as the manifest keeps them.

        Args:
            lines: record lines in valid UTF-8.
        """
        if not lines:
            return []  # scikit-learn's estimators raise on a frame without rows
        scores = self.score(join_lines(lines))
        rows = zip(lines, scores.predictions, scores.probabilities, strict=True)
        return [
            {"record": line.decode(), "prediction": prediction.decode(), "probability": probability.decode()}
            for line, prediction, probability in rows
        ]

    def replay_golden_records(self) -> None:
        """Score the manifest's golden records again and compare the predictions.

        Raises:
            InputError: a prediction differs from the one at training.
        """
        expected = self.manifest.golden
        replayed = self.golden_records([golden["record"].encode() for golden in expected])
        for then, now in zip(expected, replayed, strict=True):
            is_same_prediction = (
                then["prediction"] == now["prediction"]
                if self._classes
                else _is_close(then["prediction"], now["prediction"])
            )
            if not (is_same_prediction and _is_close(then["probability"], now["probability"])):
                record_id = then["record"].partition("\t")[0]
                raise InputError(
                    "the model does not predict what it did when it was trained: the prediction for record "
                    f"{record_id} was {then['prediction']} ({then['probability']}) and is {now['prediction']} "
                    f"({now['probability']}); start a new release with the versions of this machine"
                )


def format_numbers(values: np.ndarray) -> list[bytes]:
    """Return floats as text of 7 significant digits."""
    return (b"%.7g\n" * len(values) % tuple(values.tolist())).split(b"\n")[:-1]


def _is_close(then: str, now: str) -> bool:
    try:
        return then == now or math.isclose(float(then), float(now), rel_tol=GOLDEN_TOLERANCE)
    except ValueError:
        return False


def save_model(model: Model, folder: Path) -> None:
    """Write `model.skops` and `model.json` into a folder; add the file's hash and the versions to the manifest.

    Raises:
        InputError: skops cannot save the estimator, or it holds a type that was not reviewed.
    """
    import skops.io

    path = folder / MODEL_FILE
    try:
        skops.io.dump(model.estimator, path)
    except Exception as error:  # skops raises whatever an object's own state raises
        raise InputError(f"model.estimator: cannot be saved with skops: {error}") from error
    _check_types(path)
    manifest = replace(model.manifest, sha256=sha256(path), versions=versions())
    (folder / MODEL_MANIFEST).write_bytes(to_file(manifest))


def load_model(manifest_path: Path) -> Model:
    """Load a model after checking its hash, its versions and its types, and replay its golden records.

    Args:
        manifest_path: the path of `model.json`; `model.skops` must be in the same folder.

    Raises:
        InputError: the model is missing, was changed, needs another version of scikit-learn, holds a type that was not
            reviewed, or does not answer as at training.
    """
    import skops.io
    from skops.io.exceptions import UntrustedTypesFoundException

    manifest = read_manifest(manifest_path)
    path = manifest_path.with_name(MODEL_FILE)
    try:
        digest = sha256(path)
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}; a model is {MODEL_MANIFEST} and {MODEL_FILE} in the same folder"
        ) from error
    if digest != manifest.sha256:
        raise InputError(
            f"{path}: its sha256 is {digest[:16]}…, but {manifest_path} was written for {manifest.sha256[:16]}…: "
            "the file was changed or replaced; restore it, or start a new release"
        )
    trained_with = manifest.versions["scikit-learn"]
    installed = importlib.metadata.version("scikit-learn")
    if trained_with != installed:
        raise InputError(
            f"the model was trained with scikit-learn {trained_with}, this Python has {installed}: install "
            f"scikit-learn=={trained_with}, or train in a new release"
        )
    try:
        estimator = skops.io.load(path, trusted=list(TRUSTED))
    except UntrustedTypesFoundException:
        # Names the types. It is only called here, since it takes half as long as loading the model.
        _check_types(path)
        raise
    model = Model(estimator, manifest)
    model.replay_golden_records()
    return model


def read_manifest(path: Path) -> ModelManifest:
    """Read `model.json`.

    Raises:
        InputError: the file does not exist, is not JSON, or has another format.
    """
    try:
        return read(ModelManifest, path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; `predictions train` writes it") from error


def _check_types(path: Path) -> None:
    import skops.io

    untrusted = sorted(set(skops.io.get_untrusted_types(file=path)) - set(TRUSTED))
    if untrusted:
        raise InputError(
            f"{path}: holds types that were not reviewed: {', '.join(untrusted)}; choose an estimator without them, or "
            "review them and add them to TRUSTED in predictions/scoring/model.py"
        )
