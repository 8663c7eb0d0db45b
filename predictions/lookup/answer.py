"""The answer to a record ID: the record, its prediction, and the state of both."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from predictions.formats.manifest import Manifest
from predictions.formats.prediction_line import texts
from predictions.formats.record_line import fingerprints
from predictions.hbase.connection import Row
from predictions.lookup.served import ServedRelease
from predictions.sources.reader import Record

ONLINE = "online"


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
        if self.status == "failed":
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
        self._type: Callable[[str], Any] = str
        if served and served.manifest:
            self._release_fields = {"release": served.release, "model": served.model}
            self._features = [column.name for column in served.manifest.features]
            self._type = _type_of(served.manifest)

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
            fingerprint = cells["record"] or ""
            scored = next(iter(row.cells.values())).timestamp  # the same for all cells of a row
            fields = fields | self._prediction(cells["prediction"], cells["probability"], cells["error"], scored / 1000)
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

    def online_answer(self, answer: Answer, label: str | None, probability: str | None, error: str | None) -> Answer:
        """Return an answer to the same record ID with a prediction for the record as it is now."""
        fields = self._release_fields | self._prediction(label, probability, error, self._now)
        return Answer(answer.id, "failed" if error else "fresh", answer.record, source=ONLINE, **fields)

    def features(self, record: Record) -> bytes:
        """Return the features of a record for the release's model, in the form of a record line."""
        return record.features(self._features)

    def _status(self, record: Record, fingerprint: str, fields: dict[str, Any]) -> str:
        if fingerprints([self.features(record)]) != [fingerprint.encode()]:
            return "changed"
        if fields["error"]:
            return "failed"
        return "expired" if self._max_age is not None and fields["age"] > self._max_age else "fresh"

    def _prediction(
        self, label: str | None, probability: str | None, error: str | None, seconds: float
    ) -> dict[str, Any]:
        return {
            "prediction": None if label is None else self._type(label),
            "probability": float(probability) if probability else None,
            "error": error,
            "scored": _iso(int(seconds)),
            "age": max(0, int(self._now - seconds)),
        }


def _type_of(manifest: Manifest) -> Callable[[str], Any]:
    """Return the type of the predictions: the label's, but a float for every regressor."""
    if manifest.task == "regression" or manifest.label.type == "real":
        return float
    return int if manifest.label.type == "integer" else str


@lru_cache(8)  # most predictions of a release have the same time
def _iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
