"""A trained model: the predictions for a block of record lines, as text, and the golden records that prove them."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from predictions.errors import InputError
from predictions.formats.manifest import ModelManifest
from predictions.formats.prediction_line import MAX_CELL_BYTES
from predictions.formats.record_line import NULL, escape, join_lines

DIGITS = 7  # significant digits of a number: the last bits of a matrix product differ with the size of the block
LARGEST_VALUE = MAX_CELL_BYTES - (64 << 10)  # bytes; the row key and the column count towards a cell's size, too
GOLDEN_TOLERANCE = 1e-5  # relative difference allowed when scikit-learn scores a golden record on another machine


class Predictor(Protocol):
    """What computes the predictions: scikit-learn (`estimator.py`), or the tables of a compiled model (`bins.py`)."""

    def predict(self, block: bytes) -> tuple[np.ndarray[Any, Any], dict[int, str]]:
        """Predict the records of one block.

        Args:
            block: whole record lines, at least one, whose fields have been counted.

        Returns:
            float64: of a classifier the probabilities, shape (rows, classes), of a regressor the values, shape (rows);
            and for each row with a bad value the row's index, the column and the reason.
        """

    def one_thread(self) -> AbstractContextManager[object]:
        """Return a context in which the libraries use no more than one thread."""


@dataclass(frozen=True)
class Scores:
    """The fields `prediction`, `probability` and `error` for each row of a block, escaped."""

    predictions: list[bytes]
    probabilities: list[bytes]
    errors: list[bytes]


class Model:
    """A trained model and its manifest.

    Args:
        predictor: computes the predictions.
        manifest: the content of `model.json`.
    """

    def __init__(self, predictor: Predictor, manifest: ModelManifest) -> None:
        self.predictor = predictor
        self.manifest = manifest
        self._classes = [escape(str(label).encode()) for label in manifest.classes or ()]
        self._class_is_too_large = np.array([len(label) > LARGEST_VALUE for label in self._classes], dtype=bool)

    @property
    def fields(self) -> int:
        """The number of fields of a record line: ID, features, label."""
        return len(self.manifest.features) + 2

    def score(self, block: bytes) -> Scores:
        """Predict the records of one block.

        Args:
            block: whole record lines, at least one, whose fields have been counted.
        """
        values, bad_rows = self.predictor.predict(block)
        if self._classes:
            best = values.argmax(axis=1)
            values = values[np.arange(len(best)), best]
            predictions = list(map(self._classes.__getitem__, best.tolist()))
            probabilities = format_numbers(values)
            for row in np.flatnonzero(self._class_is_too_large[best]).tolist():
                bad_rows.setdefault(row, f"prediction: {len(predictions[row]):,} bytes, more than HBase takes")
        else:
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
        """Score the manifest's golden records again and compare the predictions: a compiled model's in every digit.

        Raises:
            InputError: a prediction differs from the one at training.
        """
        expected = self.manifest.golden
        replayed = self.golden_records([golden["record"].encode() for golden in expected])
        for then, now in zip(expected, replayed, strict=True):
            if then != now and (self.manifest.compiled or not self._is_close(then, now)):
                record_id = then["record"].partition("\t")[0]
                raise InputError(
                    "the model does not predict what it did when it was trained: the prediction for record "
                    f"{record_id} was {then['prediction']} ({then['probability']}) and is {now['prediction']} "
                    f"({now['probability']}); start a new release with the versions of this machine"
                )

    def _is_close(self, then: dict[str, str], now: dict[str, str]) -> bool:
        if self._classes and then["prediction"] != now["prediction"]:
            return False
        return all(_is_close(then[name], now[name]) for name in ("prediction", "probability"))


def format_numbers(values: np.ndarray[Any, Any]) -> list[bytes]:
    """Return floats as text of 7 significant digits."""
    return (b"%.7g\n" * len(values) % tuple(values.tolist())).split(b"\n")[:-1]


def _is_close(then: str, now: str) -> bool:
    try:
        return then == now or math.isclose(float(then), float(now), rel_tol=GOLDEN_TOLERANCE)
    except ValueError:
        return False
