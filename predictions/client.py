"""The client: a record from the database and its prediction from HBase, in two requests."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loader.connection import Connection
from predictions.database import open_database
from predictions.errors import ServiceError
from predictions.pointer import Releases
from predictions.records import escape, fingerprints
from predictions.release import release_table
from predictions.rowkey import row_keys
from predictions.schema import texts
from predictions.settings import Settings, load_settings


@dataclass(frozen=True)
class Answer:
    """What is known of one record ID.

    `status` is the first that applies: `unavailable` (one half could not be had, `error` says why), `missing` (no
    record has exactly this ID), `unscored` (not in the release), `changed` (since it was scored), `failed` (could not
    be scored, `error` says why), `fresh`.
    """

    id: str
    status: str
    record: dict[str, Any] | None = None
    prediction: Any = None
    probability: float | None = None
    release: str | None = None
    scored: str | None = None
    error: str | None = None
    unavailable: list[str] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the answer for JSON, without what is not known."""
        known = {key: value for key, value in asdict(self).items() if value is not None}
        if self.status == "failed":
            known |= {"prediction": None, "probability": None}
        return known


@dataclass(frozen=True)
class _Prediction:
    """A release's row of one record: its cells as texts, the time of its writing, and the release's manifest."""

    release: str
    manifest: dict[str, Any]
    cells: dict[str, str | None] | None
    scored: str | None


class Client:
    """Answers record IDs.

    Args:
        settings: the settings, or the path of their file; by default `predictions.toml` of the working directory.
    """

    def __init__(self, settings: Settings | Path | str | None = None) -> None:
        if not isinstance(settings, Settings):
            settings = load_settings(Path(settings) if settings else None)
        self._settings = settings

    def get(self, record_id: str | int) -> Answer:
        """Look up a record and its prediction.

        Args:
            record_id: the ID as text, exactly as the database writes it; an integer stands for its decimal digits.

        Raises:
            InputError: the settings name a database, a table or a column that is not there.
        """
        record_id = str(record_id)
        unavailable: dict[str, str] = {}
        prediction = found = None
        try:
            prediction = self._prediction(record_id)
        except ServiceError as error:
            unavailable["hbase"] = str(error)
        features = [column["name"] for column in prediction.manifest["features"]] if prediction else []
        try:
            found = open_database(self._settings.database).record(record_id, features)
        except ServiceError as error:
            unavailable["database"] = str(error)
        return self._answer(record_id, found, prediction, unavailable)

    def _prediction(self, record_id: str) -> _Prediction | None:
        name = self._settings.name
        with Connection(self._settings.hbase.server()) as connection:
            releases = Releases(connection, name)
            if not releases.is_there:
                return None
            release = releases.pointer().current
            if release is None:
                return None
            [key] = row_keys([escape(record_id.encode(errors="surrogatepass"))])
            row = connection.row(release_table(name, release), key)
            cells = texts({column: cell.value for column, cell in row.items()}) if row else None
            times = {cell.timestamp for cell in row.values()}
            return _Prediction(release, releases.manifest(release), cells, _iso(max(times)) if times else None)

    def _answer(
        self,
        record_id: str,
        found: tuple[dict[str, Any], bytes] | None,
        prediction: _Prediction | None,
        unavailable: dict[str, str],
    ) -> Answer:
        record, feature_bytes = found or (None, b"")
        cells = prediction.cells if prediction else None
        values: dict[str, Any] = {}
        if prediction and cells:
            values = {
                "prediction": _typed(cells["prediction"], prediction.manifest),
                "probability": float(cells["probability"]) if cells["probability"] else None,
                "error": cells["error"],
                "scored": prediction.scored,
            }
        if prediction:
            values["release"] = prediction.release
        if unavailable:
            values["error"] = "; ".join(unavailable.values())
            return Answer(record_id, "unavailable", record, unavailable=list(unavailable), **values)
        if record is None:
            return Answer(record_id, "missing", release=values.get("release"))
        if cells is None:
            return Answer(record_id, "unscored", record, **values)
        if fingerprints([feature_bytes]) != [(cells["record"] or "").encode()]:
            return Answer(record_id, "changed", record, **values)
        return Answer(record_id, "failed" if cells["error"] else "fresh", record, **values)


def _typed(text: str | None, manifest: dict[str, Any]) -> Any:
    """Return a prediction in the type of its label; a regressor's is a number whatever the label's."""
    if text is None:
        return None
    if manifest["task"] == "regression" or manifest["label"]["type"] == "real":
        return float(text)
    return int(text) if manifest["label"]["type"] == "integer" else text


def _iso(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
