"""The answer to a record ID: the record, its prediction, and the state of both."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from predictions.formats.prediction_line import ERROR, RECORD, cell_column
from predictions.hbase.rows import Row
from predictions.lookup.labels import text_of
from predictions.lookup.served import ServedRelease
from predictions.sources.reader import Record

ONLINE = "online"
_RECORD, _ERROR = cell_column(RECORD), cell_column(ERROR)


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
        self.now = time.time()
        self._unavailable = unavailable
        self._max_age = max_age
        self._served = served
        self._dated_fields: dict[int, dict[str, Any]] = {}  # with `scored` and `age`, by timestamp: mostly one for all
        self._release_fields = dict(_UNKNOWN)
        if served and served.manifest:
            self._release_fields["release"] = served.release
            if len(served.labels) == 1:
                self._release_fields["model"] = served.model
            else:
                self._release_fields["labels"] = {label.name: LabelAnswer(model=label.model) for label in served.labels}

    def answer(self, record_id: str, record: Record | None, row: Row | None) -> Answer:
        """Return the answer to one record ID.

        Args:
            record_id: record ID.
            record: the record in the database; None if it does not exist, or the database did not answer.
            row: the row in HBase; None if it does not exist, or HBase did not answer.
        """
        if self._unavailable:
            values, error = record.values if record else None, "; ".join(self._unavailable.values())
            further = {"error": error, "unavailable": list(self._unavailable)}
            return _answer(record_id, "unavailable", values, self._fields(row) | further)
        if record is None:
            return _answer(record_id, "missing", None, self._release_fields)
        fields = self._fields(row)
        status = self._status(record, row, fields) if row else "unscored"
        return _answer(record_id, status, record.values, fields)

    def online_answer(self, answer: Answer, row: Row) -> Answer:
        """Return an answer to the same record ID with a prediction for the record as it is now.

        Args:
            answer: the answer without this prediction.
            row: the prediction, as a row of the release would have it.
        """
        fields = self._fields(row) | {"source": ONLINE}
        return _answer(answer.id, "failed" if fields["error"] else "fresh", answer.record, fields)

    def features(self, record: Record) -> bytes:
        """Return the features of a record for the release's model, in the form of a record line."""
        assert self._served
        return record.features(self._served.features)

    def _status(self, record: Record, row: Row, fields: dict[str, Any]) -> str:
        assert self._served
        scored = row.cells.get(_RECORD)
        if scored is None or record.fingerprint(self._served.features) != scored.value:
            return "changed"
        if fields["error"]:
            return "failed"
        return "expired" if self._max_age is not None and fields["age"] > self._max_age else "fresh"

    def _fields(self, row: Row | None) -> dict[str, Any]:
        """Return an answer's fields that do not depend on the record."""
        if row is None:
            return self._release_fields
        assert self._served
        timestamp = next(iter(row.cells.values())).timestamp  # the same for all cells of a row
        if timestamp not in self._dated_fields:
            seconds = timestamp / 1000
            times = {"scored": _iso(int(seconds)), "age": max(0, int(self.now - seconds))}
            self._dated_fields[timestamp] = self._release_fields | times
        if len(self._served.labels) == 1:
            values = self._served.labels[0].values(row.cells)
        else:
            values = {"labels": {label.name: LabelAnswer(**label.values(row.cells)) for label in self._served.labels}}
        values["error"] = text_of(row.cells.get(_ERROR))
        return self._dated_fields[timestamp] | values


def _answer(record_id: str, status: str, values: dict[str, Any] | None, fields: dict[str, Any]) -> Answer:
    """Make an answer; the `__init__` of a frozen dataclass takes three times as long."""
    answer = object.__new__(Answer)
    vars(answer).update(fields, id=record_id, status=status, record=values)
    return answer


@lru_cache(8)  # most predictions of a release have the same time
def _iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


_UNKNOWN = vars(Answer("", ""))  # all fields, in their order
