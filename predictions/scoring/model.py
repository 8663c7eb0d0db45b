"""A trained model: the predictions for a block of record lines, as text, and the golden records that prove them."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from predictions.errors import InputError
from predictions.formats.manifest import ModelManifest, ReleaseModels
from predictions.formats.prediction_line import CONTRIBUTIONS, MAX_CELL_BYTES, PREDICTION, PROBABILITIES
from predictions.formats.record_line import NULL, Column, escape, field_ends, join_lines, unescape
from predictions.scoring.contributions import as_json
from predictions.scoring.numbers import format_numbers, format_probabilities
from predictions.scoring.outputs import further_cells

LARGEST_VALUE = MAX_CELL_BYTES - (64 << 10)  # bytes; the row key and the column count towards a cell's size, too
CONTRIBUTION_TOLERANCE = 1e-3  # of the largest contribution: they are written with 4 digits
GOLDEN_TOLERANCE = 1e-5  # relative difference allowed when scikit-learn scores a golden record on another machine


class Predictor(Protocol):
    """What computes the predictions: scikit-learn (`estimator.py`), or the tables of a compiled model (`bins.py`)."""

    def predict(self, block: bytes, ends: np.ndarray) -> tuple[np.ndarray[Any, Any], dict[int, str]]:
        """Predict the records of one block.

        Args:
            block: whole record lines, at least one.
            ends: where their fields end (`record_line.field_ends`).

        Returns:
            float64: of a classifier the probabilities, shape (rows, classes), of a regressor the values, shape (rows)
            or, if it predicts several, (rows, values); and for each row with a bad value the row's index, the column
            and the reason.
        """

    def contributions(self, block: bytes, ends: np.ndarray, outputs: np.ndarray) -> np.ndarray[Any, Any]:
        """Return how much each column moved the raw score of each record; only if the manifest has `contributions`.

        Args:
            block, ends: as of `predict`.
            outputs: intp, shape (rows): with several classes, the index of the class that is explained; else 0.

        Returns:
            float64, shape (rows, columns); rows with a bad value count.
        """

    def one_thread(self) -> AbstractContextManager[object]:
        """Return a context in which the libraries use no more than one thread."""


@dataclass(frozen=True)
class Scores:
    """The fields of a block's prediction lines that the model decides, escaped.

    Args:
        cells: for each column of the model (`ModelManifest.columns`), the field of each row.
        errors: the field `error` of each row.
    """

    cells: list[list[bytes]]
    errors: list[bytes]

    @property
    def predictions(self) -> list[bytes]:
        """The field `prediction` of each row."""
        return self.cells[0]

    @property
    def probabilities(self) -> list[bytes]:
        """The field `probability` of each row."""
        return self.cells[1]


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
        self._further_cells = further_cells(manifest)
        self._features = [escape(json.dumps(column.name, ensure_ascii=False).encode()) for column in manifest.features]
        json_columns = (PROBABILITIES, CONTRIBUTIONS)
        self._json_cells = [(index, name) for index, name in enumerate(manifest.columns) if name in json_columns]

    @property
    def features(self) -> Sequence[Column]:
        """The columns that it predicts from."""
        return self.manifest.features

    @property
    def columns(self) -> list[str]:
        """The columns of the cells of `score`."""
        return self.manifest.columns

    @property
    def sha256(self) -> str:
        """The SHA-256 of the model, in hex."""
        return self.manifest.sha256

    def one_thread(self) -> AbstractContextManager[object]:
        """Return a context in which the libraries use no more than one thread."""
        return self.predictor.one_thread()

    def score(self, block: bytes, ends: np.ndarray | None = None) -> Scores:
        """Predict the records of one block.

        Args:
            block: whole record lines, at least one; without `ends`, each with the ID, the features and one label.
            ends: where their fields end (`record_line.field_ends`).
        """
        if ends is None:
            ends = field_ends(block, self.manifest.fields)
        values, bad_rows = self.predictor.predict(block, ends)
        if self._classes:
            predicted = self._predicted(values)
            shares = values[np.arange(len(predicted)), predicted]
            cells = [list(map(self._classes.__getitem__, predicted.tolist())), format_probabilities(shares)]
        else:
            predicted, values = None, values.reshape(len(values), -1)
            shares = values[:, 0]
            cells = [format_numbers(shares), [NULL] * len(values)]
        for more in self._further_cells:
            cells += more(values)
        written = values if self._further_cells else shares[:, None]
        if CONTRIBUTIONS in self.manifest.outputs:
            outputs = np.zeros(len(values), dtype=np.intp) if predicted is None else predicted
            moved = self._contributions(block, ends, outputs)
            cells.append(as_json(moved, self._features, self.manifest.top))
            written = np.hstack([written, moved])
        for row, reason in self._failures(predicted, written, cells):
            # A bad value in the record is the reason, a bad prediction its consequence.
            bad_rows.setdefault(row, reason)
        errors = [NULL] * len(values)
        for row, reason in bad_rows.items():
            errors[row] = escape(reason.encode())
            for column in cells:
                column[row] = NULL
        return Scores(cells, errors)

    def _predicted(self, probabilities: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the index of the predicted class of each row (shape: rows)."""
        if self.manifest.threshold is None:
            return probabilities.argmax(axis=1)
        positive = self.manifest.positive
        # NaN is not below the threshold, so it is the predicted class's and fails the record.
        is_below = probabilities[:, positive] < self.manifest.threshold
        return np.where(is_below, 1 - positive, positive)

    def _contributions(self, block: bytes, ends: np.ndarray, predicted: np.ndarray) -> np.ndarray[Any, Any]:
        """Return by how much features moved the raw score of each record of a block (shape: rows, features).

        Args:
            block, ends: as of `score`.
            predicted: intp, shape (rows): the index of the predicted class.
        """
        outputs = predicted if len(self._classes) > 2 else np.zeros_like(predicted)
        return self.predictor.contributions(block, ends, outputs)

    def _failures(
        self, predicted: np.ndarray[Any, Any] | None, values: np.ndarray[Any, Any], cells: list[list[bytes]]
    ) -> Iterator[tuple[int, str]]:
        """Yield the rows whose cells cannot be written, with the reason.

        Args:
            predicted: of a classifier, the index of the predicted class (shape: rows).
            values: what the cells are made of (shape: rows, values).
            cells: the cells.
        """
        if predicted is not None:
            for row in np.flatnonzero(self._class_is_too_large[predicted]).tolist():
                yield row, f"prediction: {len(cells[0][row]):,} bytes, more than HBase takes"
        for row in np.flatnonzero(~np.isfinite(values).all(axis=1)).tolist():
            yield row, "prediction: not a finite number"
        for index, name in self._json_cells:
            sizes = np.fromiter(map(len, cells[index]), np.int64, len(values))
            for row in np.flatnonzero(sizes > LARGEST_VALUE).tolist():
                yield row, f"{name}: {sizes[row]:,} bytes, more than HBase takes"

    def golden_records(self, lines: Sequence[bytes]) -> list[dict[str, str]]:
        """Return record lines with their predictions, as the manifest keeps them: the fields by their columns.

        Args:
            lines: record lines in valid UTF-8.
        """
        if not lines:
            return []  # scikit-learn's estimators raise on a frame without rows
        cells, columns = self.score(join_lines(lines)).cells, self.manifest.columns
        return [
            {"record": line.decode()} | {name: field.decode() for name, field in zip(columns, fields, strict=True)}
            for line, *fields in zip(lines, *cells, strict=True)
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
                    f"{record_id} was {_answer(then)} and is {_answer(now)}; start a new release with the versions of "
                    "this machine"
                )

    def _is_close(self, then: dict[str, str], now: dict[str, str]) -> bool:
        if then.keys() != now.keys() or (self._classes and then[PREDICTION] != now[PREDICTION]):
            return False
        pairs = {name: (_value(then[name]), _value(now[name])) for name in then if then[name] != now[name]}
        return all(_are_close(*pair) if name == CONTRIBUTIONS else _is_close(*pair) for name, pair in pairs.items())


class Models:
    """The models of several labels over the same features.

    Args:
        models: the models, by label.
        manifest: the content of `model.json`.
    """

    def __init__(self, models: Mapping[str, Model], manifest: ReleaseModels) -> None:
        self._models = models
        self.columns, self.sha256 = manifest.columns, manifest.sha256
        self.features: Sequence[Column] = manifest.features

    @contextmanager
    def one_thread(self) -> Iterator[None]:
        """See `Model`."""
        with ExitStack() as limits:
            for model in self._models.values():
                limits.enter_context(model.one_thread())
            yield

    def score(self, block: bytes, ends: np.ndarray | None = None) -> Scores:
        """See `Model`; `Scores.errors` has the records for which no label has a prediction."""
        if ends is None:
            ends = field_ends(block, len(self.features) + 2)
        scores = {label: model.score(block, ends) for label, model in self._models.items()}
        errors = _errors({label: label_scores.errors for label, label_scores in scores.items()})
        cells = [column for each in scores.values() for column in (*each.cells, each.errors)]
        return Scores(cells, errors)


def _errors(by_label: Mapping[str, list[bytes]]) -> list[bytes]:
    """Return the errors of records for which no label has a prediction, and take them out of the labels' own errors."""
    fewest = min(by_label.values(), key=lambda own: len(own) - own.count(NULL))
    errors = [NULL] * len(fewest)
    if fewest.count(NULL) == len(fewest):
        return errors
    for row, reason in enumerate(fewest):
        if reason == NULL:
            continue
        reasons = {label: own[row] for label, own in by_label.items()}
        if NULL not in reasons.values():
            is_same = len(set(reasons.values())) == 1  # as for a bad value of a feature
            texts = [reason] if is_same else (b"%b: %b" % (escape(label.encode()), reasons[label]) for label in reasons)
            errors[row] = b"; ".join(texts)
            for own in by_label.values():
                own[row] = NULL
    return errors


def _answer(golden: dict[str, str]) -> str:
    """Return a golden record's prediction as text for a message: the first cell, and the others in brackets."""
    _record, prediction, *others = golden.values()
    return f"{prediction} ({', '.join(others)})"


def _value(field: str) -> Any:
    """Return the value of a field that holds a number or JSON; others as they are."""
    try:
        return json.loads(unescape(field.encode()))
    except ValueError:
        return field


def _is_close(then: Any, now: Any) -> bool:
    if isinstance(then, dict) and isinstance(now, dict):
        return then.keys() == now.keys() and all(_is_close(then[name], now[name]) for name in then)
    if isinstance(then, list) and isinstance(now, list):
        return len(then) == len(now) and all(map(_is_close, then, now))
    if isinstance(then, (int, float)) and isinstance(now, (int, float)):
        return math.isclose(then, now, rel_tol=GOLDEN_TOLERANCE)
    return bool(then == now)


def _are_close(then: Any, now: Any) -> bool:
    """Return whether contributions are the same but for rounding: to a thousandth of the largest.

    With `top`, the smallest that are kept may be others. So one that is missing may be as large as the smallest kept.
    """
    if not isinstance(then, dict) or not isinstance(now, dict):
        return False  # one is NULL
    sizes = [abs(value) for each in (then, now) for value in each.values()]
    tolerance = CONTRIBUTION_TOLERANCE * max(sizes, default=0.0)

    def is_close(name: str) -> bool:
        if name in then and name in now:
            return abs(then[name] - now[name]) <= tolerance
        other, lacking = (then, now) if name in then else (now, then)
        return abs(other[name]) <= min(map(abs, lacking.values()), default=0.0) + tolerance

    return all(map(is_close, then.keys() | now.keys()))
