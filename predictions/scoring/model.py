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
from predictions.formats.record_line import NULL, escape, field_ends, join_lines

DIGITS = 7  # significant digits of a number: the last bits of a matrix product differ with the size of the block
LARGEST_VALUE = MAX_CELL_BYTES - (64 << 10)  # bytes; the row key and the column count towards a cell's size, too
_NEAR_TIE = 1e-6  # a product of up to 10**7 is off by less than 1e-9, so further from a tie it is rounded correctly
GOLDEN_TOLERANCE = 1e-5  # relative difference allowed when scikit-learn scores a golden record on another machine


class Predictor(Protocol):
    """What computes the predictions: scikit-learn (`estimator.py`), or the tables of a compiled model (`bins.py`)."""

    def predict(self, block: bytes, ends: np.ndarray) -> tuple[np.ndarray[Any, Any], dict[int, str]]:
        """Predict the records of one block.

        Args:
            block: whole record lines, at least one.
            ends: where their fields end (`record_line.field_ends`).

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

    def score(self, block: bytes, ends: np.ndarray | None = None) -> Scores:
        """Predict the records of one block.

        Args:
            block: whole record lines, at least one, each with the right number of fields.
            ends: where their fields end (`record_line.field_ends`), if that is known already.
        """
        if ends is None:
            ends = field_ends(block, self.manifest.fields)
        values, bad_rows = self.predictor.predict(block, ends)
        if self._classes:
            best = values.argmax(axis=1)
            values = values[np.arange(len(best)), best]
            predictions = list(map(self._classes.__getitem__, best.tolist()))
            probabilities = format_probabilities(values)
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
            InputError: a prediction differs from the one at training, or the model raises.
        """
        expected = self.manifest.golden
        try:
            replayed = self.golden_records([golden["record"].encode() for golden in expected])
        except Exception as error:  # of a changed file; scikit-learn raises anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(
                f"the model raises for the records that it was tried with when it was trained: {reason}; restore its "
                "files, or start a new release"
            ) from error
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


def format_probabilities(values: np.ndarray[Any, Any]) -> list[bytes]:
    """Return the same text as `format_numbers`, in a third of its time, where most numbers are from 0.1 to 1."""
    # Those have seven digits after the point. All others, and those that end with a zero, are formatted at the end.
    scaled = np.where((values >= 0.1) & (values < 1), values, 0) * 10**DIGITS
    rounded = np.rint(scaled)
    texts = np.empty((len(values), DIGITS + 3), dtype=np.uint8)
    texts[:, :2], texts[:, -1] = (ord("0"), ord(".")), ord("\n")
    rest = rounded.astype(np.int32)
    for place in range(DIGITS + 1, 1, -1):
        tens = rest // 10
        texts[:, place] = rest - 10 * tens + ord("0")
        rest = tens
    formatted = texts.tobytes().split(b"\n")[:-1]
    others = np.flatnonzero((rounded % 10 == 0) | (np.abs(np.abs(scaled - rounded) - 0.5) <= _NEAR_TIE))
    for row, text in zip(others.tolist(), format_numbers(values[others]), strict=True):
        formatted[row] = text
    return formatted


def _is_close(then: str, now: str) -> bool:
    try:
        return then == now or math.isclose(float(then), float(now), rel_tol=GOLDEN_TOLERANCE)
    except ValueError:
        return False
