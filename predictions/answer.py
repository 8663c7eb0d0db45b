"""The answer to a record ID: the record, its prediction, and what is known of both."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from loader.connection import Row
from predictions.database import Record
from predictions.records import fingerprints
from predictions.schema import texts
from predictions.served import Current

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


def answer(
    record_id: str,
    record: Record | None,
    row: Row | None,
    current: Current | None,
    unavailable: dict[str, str],
    max_age: float | None,
) -> Answer:
    """Return the answer to one ID.

    Args:
        record_id: the ID.
        record: the database's; None where it is not there, or the database did not answer.
        row: HBase's; None where it is not there, or HBase did not answer.
        current: the release that the row is of, or was looked for in; None where HBase did not answer.
        unavailable: which halves could not be had, and why.
        max_age: seconds after which a prediction is `expired`; None for never.
    """
    known: dict[str, Any] = {}
    if current and current.release:
        known = {"release": current.release, "model": current.manifest["model"]["sha256"]}
    cells = texts({column: cell.value for column, cell in row.cells.items()}) if row else None
    if row and cells and current:
        known |= prediction(current, cells["prediction"], cells["probability"], cells["error"])
        known |= _time(max(cell.timestamp for cell in row.cells.values()) / 1000)
    values = record.values if record else None
    if unavailable:
        known["error"] = "; ".join(unavailable.values())
        return Answer(record_id, "unavailable", values, unavailable=list(unavailable), **known)
    if record is None:
        return Answer(record_id, "missing", release=known.get("release"), model=known.get("model"))
    if cells is None or current is None:
        return Answer(record_id, "unscored", values, **known)
    if fingerprints([record.features(features(current))]) != [(cells["record"] or "").encode()]:
        return Answer(record_id, "changed", values, **known)
    if cells["error"]:
        return Answer(record_id, "failed", values, **known)
    expired = max_age is not None and known["age"] > max_age
    return Answer(record_id, "expired" if expired else "fresh", values, **known)


def prediction(current: Current, label: str | None, probability: str | None, error: str | None) -> dict[str, Any]:
    """Return a prediction's texts as an answer has them: the label in its own type, the probability as a number."""
    return {
        "prediction": _typed(label, current.manifest),
        "probability": float(probability) if probability else None,
        "error": error,
    }


def scored_now() -> dict[str, Any]:
    """Return what an answer says of a prediction that was computed for it."""
    return {**_time(time.time()), "source": ONLINE}


def features(current: Current) -> list[str]:
    """Return the names of the features of a release's model."""
    return [column["name"] for column in current.manifest["features"]]


def _typed(text: str | None, manifest: dict[str, Any]) -> Any:
    """Return a prediction in the type of its label; a regressor's is a number whatever the label's."""
    if text is None:
        return None
    if manifest["task"] == "regression" or manifest["label"]["type"] == "real":
        return float(text)
    return int(text) if manifest["label"]["type"] == "integer" else text


def _time(seconds: float) -> dict[str, Any]:
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return {"scored": text, "age": max(0, int(time.time() - seconds))}
