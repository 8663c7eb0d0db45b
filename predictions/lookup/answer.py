"""The answer to a record ID: the record, its prediction, and the state of both."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from predictions.formats.manifest import Predicted
from predictions.formats.prediction_line import (
    COLUMNS,
    CONTRIBUTIONS,
    ERROR,
    PREDICTION,
    PROBABILITIES,
    PROBABILITY,
    RECORD,
    names_of,
    qualifier,
    texts,
)
from predictions.formats.record_line import fingerprints
from predictions.hbase.connection import Row
from predictions.lookup.served import ServedRelease
from predictions.sources.reader import Record

ONLINE = "online"


@dataclass(frozen=True)
class LabelAnswer:
    """What one of several labels says about a record.

    Args:
        prediction, probability, probabilities, predictions, contributions, model: as in `Answer`.
        error: why this label has no prediction, though another one has.
    """

    prediction: Any = None
    probability: float | None = None
    probabilities: dict[Any, float] | None = None
    predictions: dict[str, float] | None = None
    contributions: dict[str, float] | None = None
    model: str | None = None
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it for JSON, without the values that are unknown."""
        return {"prediction": self.prediction} | {key: value for key, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Answer:
    """The answer to one record ID.

    Args:
        id: record ID.
        status: the first of these that applies: `unavailable` (HBase or the database did not answer, `error` says
            why), `missing` (no record has exactly this ID), `unscored` (not in the release), `changed` (the record has
            changed since it was scored), `failed` (it could not be scored, `error` says why), `expired` (it was scored
            longer ago than `max_age`), `fresh`.
        record: all columns of the record's row as it is now.
        prediction: the predicted label or value, in the label's type.
        probability: probability of the predicted label; classifiers only.
        probabilities: the probability of each class, or of the most probable ones, if the model keeps them; the classes
            are in the label's type.
        predictions: the values by their names, if a regressor predicts several; `prediction` is the first one.
        contributions: by how much features moved the model's raw score, the largest first, if the model keeps them.
        labels: what each label says, if the release has several; the fields above, and `model`, are then None.
        release: the served release.
        scored: when the prediction was made: the time of the release that computed it.
        model: SHA-256 of the model that made it.
        age: seconds since it was made.
        source: `online` if the prediction was computed for this answer; None if it was read from HBase.
        error: why the status is `failed` or `unavailable`, or why the record could not be scored online.
        unavailable: what did not answer: `hbase`, `database`, or both.
    """

    id: str
    status: str
    record: dict[str, Any] | None = None
    prediction: Any = None
    probability: float | None = None
    probabilities: dict[Any, float] | None = None
    predictions: dict[str, float] | None = None
    contributions: dict[str, float] | None = None
    labels: dict[str, LabelAnswer] | None = None
    release: str | None = None
    scored: str | None = None
    model: str | None = None
    age: int | None = None
    source: str | None = None
    error: str | None = None
    unavailable: list[str] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the answer for JSON, without the values that are unknown."""
        fields = {key: value for key, value in vars(self).items() if value is not None}
        if self.labels is not None:
            fields["labels"] = {label: answer.as_json() for label, answer in self.labels.items()}
        elif self.status == "failed":
            fields |= {"prediction": None, "probability": None}
        return fields


class AnswerBuilder:
    """Build the answers of one lookup.

    Args:
        served: the release that the rows were read from; None if HBase did not answer.
        unavailable: what did not answer (`hbase`, `database`), with the error message.
        max_age: seconds after which a prediction is `expired`; None for never.
    """

    def __init__(self, served: ServedRelease | None, unavailable: dict[str, str], max_age: float | None) -> None:
        self._now = time.time()
        self._unavailable = unavailable
        self._max_age = max_age
        self._release_fields: dict[str, Any] = {}
        self._features: list[str] = []
        self._labels: list[_Cells] = []
        if served and served.manifest:
            manifest = served.manifest
            self._labels = [_Cells(manifest.columns, predicted) for predicted in manifest.predicted]
            self._release_fields = {"release": served.release}
            if len(self._labels) == 1:
                self._release_fields["model"] = served.model
            else:
                self._release_fields["labels"] = {label.name: LabelAnswer(model=label.model) for label in self._labels}
            self._features = [column.name for column in manifest.features]

    def answer(self, record_id: str, record: Record | None, row: Row | None) -> Answer:
        """Return the answer to one record ID.

        Args:
            record_id: record ID.
            record: the record in the database; None if it does not exist, or the database did not answer.
            row: the row in HBase; None if it does not exist, or HBase did not answer.
        """
        fields, fingerprint = self._release_fields, None
        if row:
            cells = texts({column: cell.value for column, cell in row.cells.items()})
            fingerprint = cells[RECORD] or ""
            scored = next(iter(row.cells.values())).timestamp  # the same for all cells of a row
            fields = fields | self._prediction(cells, scored / 1000)
        if self._unavailable:
            values, error = record.values if record else None, "; ".join(self._unavailable.values())
            return Answer(
                record_id, "unavailable", values, unavailable=list(self._unavailable), **fields | {"error": error}
            )
        if record is None:
            return Answer(record_id, "missing", **self._release_fields)
        if fingerprint is None:
            return Answer(record_id, "unscored", record.values, **fields)
        return Answer(record_id, self._status(record, fingerprint, fields), record.values, **fields)

    def online_answer(self, answer: Answer, cells: Mapping[str, str | None]) -> Answer:
        """Return an answer to the same record ID with a prediction for the record as it is now.

        Args:
            answer: the answer without this prediction.
            cells: the cells of the prediction, as text by their columns, and `error`.
        """
        fields = self._release_fields | self._prediction(cells, self._now)
        return Answer(answer.id, "failed" if fields["error"] else "fresh", answer.record, source=ONLINE, **fields)

    def features(self, record: Record) -> bytes:
        """Return the features of a record for the release's model, in the form of a record line."""
        return record.features(self._features)

    def _status(self, record: Record, fingerprint: str, fields: dict[str, Any]) -> str:
        if fingerprints([self.features(record)]) != [fingerprint.encode()]:
            return "changed"
        if fields["error"]:
            return "failed"
        return "expired" if self._max_age is not None and fields["age"] > self._max_age else "fresh"

    def _prediction(self, cells: Mapping[str, str | None], seconds: float) -> dict[str, Any]:
        fields = {"error": cells[ERROR], "scored": _iso(int(seconds)), "age": max(0, int(self._now - seconds))}
        if len(self._labels) == 1:
            return fields | self._labels[0].values(cells)
        return fields | {"labels": {label.name: LabelAnswer(**label.values(cells)) for label in self._labels}}


class _Cells:
    """Where a label's values are among the cells of a row.

    Args:
        columns: the columns of the release.
        predicted: the label.
    """

    def __init__(self, columns: Sequence[str], predicted: Predicted) -> None:
        self.name = predicted.name or ""
        prefix = [] if predicted.name is None else [predicted.name]
        self._type = _type_of(predicted)
        self._prediction, self._probability = (qualifier(*prefix, name) for name in COLUMNS)
        self._probabilities: dict[str, Any] = {}  # by column, the class
        self._predictions: dict[str, str] = {}  # by column, the name of the value
        self._most_probable = qualifier(*prefix, PROBABILITIES)
        self._contributions = qualifier(*prefix, CONTRIBUTIONS)
        self.model = predicted.model.sha256
        self._error = qualifier(*prefix, ERROR) if prefix else None
        for column in columns:
            *group, name = names_of(column)
            if group == [*prefix, PROBABILITY]:
                self._probabilities[column] = self._type(name)
            elif group == [*prefix, PREDICTION]:
                self._predictions[column] = name

    def values(self, cells: Mapping[str, str | None]) -> dict[str, Any]:
        """Return the values that cells have, given as text by their columns, in Python's types."""
        label, probability = cells.get(self._prediction), cells.get(self._probability)
        values: dict[str, Any] = {
            "prediction": None if label is None else self._type(label),
            "probability": float(probability) if probability else None,
        }
        if most_probable := cells.get(self._most_probable):
            shares = json.loads(most_probable)
            values["probabilities"] = {self._type(name): float(share) for name, share in shares.items()}
        elif label is not None and self._probabilities:
            values["probabilities"] = _numbers(cells, self._probabilities)
        elif label is not None and self._predictions:
            values["predictions"] = _numbers(cells, self._predictions)
        if contributions := cells.get(self._contributions):
            values["contributions"] = json.loads(contributions)
        if self._error:
            values |= {"error": cells.get(self._error), "model": self.model}
        return values


def _numbers(cells: Mapping[str, str | None], columns: Mapping[str, Any]) -> dict[Any, float]:
    """Return the numbers in some columns, by what the columns stand for."""
    texts = {name: cells.get(column) for column, name in columns.items()}
    return {name: float(text) for name, text in texts.items() if text is not None}


def _type_of(predicted: Predicted) -> Callable[[str], Any]:
    """Return the type of the predictions: the label's, but a float for every regressor."""
    if predicted.task == "regression" or predicted.label.type == "real":
        return float
    return int if predicted.label.type == "integer" else str


@lru_cache(8)  # most predictions of a release have the same time
def _iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
