"""A trained model on disk: `model.skops` beside its manifest `model.json`, checked whenever it is loaded.

skops, unlike pickle, runs no code from the file. It refuses types outside its own list, and ordinary scikit-learn
models need a few more: those in `TRUSTED` were looked at one by one. They hold numbers and are built without calling
anything that the file names. A file with any other type is refused.
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
DIGITS = 7  # significant digits written: the last bits of a matrix product differ with the size of the block
LARGEST_VALUE = MAX_CELL_BYTES - (64 << 10)  # a cell's size counts the row key and the column too
GOLDEN_TOLERANCE = 1e-5  # relative, of a golden record's value replayed on another machine

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

# Of the libraries that a prediction passes through; another version of the first is refused.
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
    """The predictions of one block: for each row its fields `prediction`, `probability` and `error`, escaped."""

    predictions: list[bytes]
    probabilities: list[bytes]
    errors: list[bytes]


class Model:
    """An estimator with what its manifest says of it.

    Args:
        estimator: a fitted scikit-learn estimator that takes a data frame with the features' names.
        manifest: what `model.json` says of it.
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
        """Predict the records of one block: whole record lines, at least one, whose fields have been counted."""
        frame, bad_rows = self._reader.read(block)
        if self._classes:
            shares = self.estimator.predict_proba(frame)
            best = shares.argmax(axis=1)
            values = shares[np.arange(len(shares)), best]
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
        """Return record lines, which must be valid UTF-8, with the model's answers, for the manifest."""
        if not lines:
            return []  # scikit-learn's estimators raise on a frame without rows
        scores = self.score(join_lines(lines))
        answers = zip(lines, scores.predictions, scores.probabilities, strict=True)
        return [
            {"record": line.decode(), "prediction": prediction.decode(), "probability": probability.decode()}
            for line, prediction, probability in answers
        ]

    def replay_golden_records(self) -> None:
        """Predict the manifest's golden records again and compare.

        Raises:
            InputError: an answer differs from the one at training.
        """
        expected = self.manifest.golden
        replayed = self.golden_records([golden["record"].encode() for golden in expected])
        for then, now in zip(expected, replayed, strict=True):
            same = (
                then["prediction"] == now["prediction"]
                if self._classes
                else _same(then["prediction"], now["prediction"])
            )
            if not (same and _same(then["probability"], now["probability"])):
                record_id = then["record"].partition("\t")[0]
                raise InputError(
                    f"the model does not answer as it did when it was trained: record {record_id} was "
                    f"{then['prediction']} ({then['probability']}), is {now['prediction']} ({now['probability']}); "
                    "start a new release with the versions of this machine"
                )


def format_numbers(values: np.ndarray) -> list[bytes]:
    """Return floats as text of 7 significant digits."""
    return (b"%.7g\n" * len(values) % tuple(values.tolist())).split(b"\n")[:-1]


def _same(then: str, now: str) -> bool:
    try:
        return then == now or math.isclose(float(then), float(now), rel_tol=GOLDEN_TOLERANCE)
    except ValueError:
        return False


def save_model(model: Model, folder: Path) -> None:
    """Write `model.skops` and `model.json` into a folder; the manifest gets the file's hash and the versions.

    Raises:
        InputError: the estimator holds a type that was not reviewed.
    """
    import skops.io

    path = folder / MODEL_FILE
    try:
        skops.io.dump(model.estimator, path)
    except Exception as error:  # skops raises whatever an object's own state raises
        raise InputError(f"the estimator cannot be saved with skops: {error}") from error
    _check_types(path)
    manifest = replace(model.manifest, sha256=sha256(path), versions=versions())
    (folder / MODEL_MANIFEST).write_bytes(to_file(manifest))


def load_model(manifest_path: Path) -> Model:
    """Load a model after checking its hash, its versions and its types, and replay its golden records.

    Args:
        manifest_path: `model.json`; the model is the file beside it.

    Raises:
        InputError: the model is missing, is another one, or does not belong to these versions.
    """
    import skops.io
    from skops.io.exceptions import UntrustedTypesFoundException

    manifest = read_manifest(manifest_path)
    path = manifest_path.with_name(MODEL_FILE)
    try:
        found = sha256(path)
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}; a model is {MODEL_MANIFEST} with {MODEL_FILE} beside it"
        ) from error
    if found != manifest.sha256:
        raise InputError(
            f"{path}: its sha256 is {found[:16]}…, but {manifest_path} was written for {manifest.sha256[:16]}…: "
            "the file was changed or replaced; restore it, or start a new release"
        )
    trained_with = manifest.versions["scikit-learn"]
    here = importlib.metadata.version("scikit-learn")
    if trained_with != here:
        raise InputError(
            f"the model was trained with scikit-learn {trained_with}, this Python has {here}: install "
            f"scikit-learn=={trained_with}, or train in a new release"
        )
    try:
        estimator = skops.io.load(path, trusted=list(TRUSTED))
    except UntrustedTypesFoundException:
        _check_types(path)  # names them; where all is well, this is not spent: it takes as long as half of the loading
        raise
    model = Model(estimator, manifest)
    model.replay_golden_records()
    return model


def read_manifest(path: Path) -> ModelManifest:
    """Read `model.json`.

    Raises:
        InputError: it is not there, not JSON, or of another format.
    """
    try:
        return read(ModelManifest, path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; `predictions train` writes it") from error


def _check_types(path: Path) -> None:
    import skops.io

    unknown = sorted(set(skops.io.get_untrusted_types(file=path)) - set(TRUSTED))
    if unknown:
        raise InputError(
            f"{path}: holds types that were not reviewed: {', '.join(unknown)}; choose an estimator without them, or "
            "review them and add them to TRUSTED in predictions/scoring/model.py"
        )
