"""The answer to a record ID: the record, its prediction, and what is known of both."""

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
    """What is known of one record ID.

    Args:
        id: the ID.
        status: the first of these that applies: `unavailable` (one half could not be had, `error` says why), `missing`
            (no record has exactly this ID), `unscored` (not in the release), `changed` (since it was scored), `failed`
            (could not be scored, `error` says why), `expired` (scored longer ago than `max_age`), `fresh`.
        record: all columns of the record's row as it is now.
        prediction: the predicted label or value, in the label's type.
        probability: of a classifier's prediction.
        release: the release that is current.
        scored: when the prediction was made: the time of the release that computed it.
        model: SHA-256 of the model that made it.
        age: seconds since then.
        source: `online` where it was computed for this answer, rather than read from HBase.
        error: why it is `failed` or `unavailable`, or could not be scored now.
        unavailable: which half could not be had: `hbase`, `database`, or both.
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
        """Return the answer for JSON, without what is not known."""
        known = {key: value for key, value in vars(self).items() if value is not None}
        if self.status == "failed":
            known |= {"prediction": None, "probability": None}
        return known


class Answers:
    """Makes the answers of one lookup.

    Args:
        current: the release that was looked in; None where HBase did not answer.
        unavailable: which halves could not be had, and why.
        max_age: seconds after which a prediction is `expired`; None for never.
    """

    def __init__(self, current: ServedRelease | None, unavailable: dict[str, str], max_age: float | None) -> None:
        self._now = time.time()
        self._unavailable = unavailable
        self._max_age = max_age
        self._of_release: dict[str, Any] = {}
        self._features: list[str] = []
        self._type: Callable[[str], Any] = str
        if current and current.manifest:
            self._of_release = {"release": current.release, "model": current.model}
            self._features = [column.name for column in current.manifest.features]
            self._type = _type_of(current.manifest)

    def of(self, record_id: str, record: Record | None, row: Row | None) -> Answer:
        """Return the answer to one ID.

        Args:
            record_id: the ID.
            record: the database's; None where it is not there, or the database did not answer.
            row: HBase's; None where it is not there, or HBase did not answer.
        """
        known, fingerprint = self._of_release, None
        if row:
            cells = texts({column: cell.value for column, cell in row.cells.items()})
            fingerprint = cells["record"] or ""
            scored = next(iter(row.cells.values())).timestamp  # all of a row have the same
            known = known | self._prediction(cells["prediction"], cells["probability"], cells["error"], scored / 1000)
        if self._unavailable:
            values, error = record.values if record else None, "; ".join(self._unavailable.values())
            return Answer(
                record_id, "unavailable", values, unavailable=list(self._unavailable), **known | {"error": error}
            )
        if record is None:
            return Answer(record_id, "missing", **self._of_release)
        if fingerprint is None:
            return Answer(record_id, "unscored", record.values, **known)
        return Answer(record_id, self._status(record, fingerprint, known), record.values, **known)

    def online(self, found: Answer, label: str | None, probability: str | None, error: str | None) -> Answer:
        """Return an answer to the same ID with a prediction of the record as it is now."""
        known = self._of_release | self._prediction(label, probability, error, self._now)
        return Answer(found.id, "failed" if error else "fresh", found.record, source=ONLINE, **known)

    def features(self, record: Record) -> bytes:
        """Return what the release's model is given of a record, as it would stand in its line."""
        return record.features(self._features)

    def _status(self, record: Record, fingerprint: str, known: dict[str, Any]) -> str:
        if fingerprints([self.features(record)]) != [fingerprint.encode()]:
            return "changed"
        if known["error"]:
            return "failed"
        return "expired" if self._max_age is not None and known["age"] > self._max_age else "fresh"

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
    """Return the type of predictions: that of the label, but a regressor's are numbers whatever that is."""
    if manifest.task == "regression" or manifest.label.type == "real":
        return float
    return int if manifest.label.type == "integer" else str


@lru_cache(8)  # most predictions are of one time
def _iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
