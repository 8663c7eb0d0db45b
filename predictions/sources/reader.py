"""Single records of a database, for lookups: each is found by the exact text of its ID, as it is at that moment."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from predictions.errors import InputError
from predictions.formats.record_line import SEPARATOR, escape
from predictions.settings import DatabaseSettings
from predictions.sources.base import Database


@dataclass(frozen=True)
class Columns:
    """The columns of rows, and how their values are written.

    Args:
        places: of the columns in a row, by their names.
        fields: returns values of the columns of these names as they stand in a record line.
        plain: returns a value of the column of this name for JSON.
        missing: returns the error of a name that is no column.
    """

    places: Mapping[str, int]
    fields: Callable[[Sequence[str], list[Any]], list[bytes]]
    plain: Callable[[str, Any], Any]
    missing: Callable[[str, Mapping[str, int]], InputError]


class Record(NamedTuple):
    """A record: its row as the database gave it, with the columns of that."""

    columns: Columns
    row: Sequence[Any]

    @property
    def values(self) -> dict[str, Any]:
        """All its values by column, for JSON: numbers as numbers, NULL as None, bytes in base64, the rest as text."""
        return {name: self.columns.plain(name, self.row[place]) for name, place in self.columns.places.items()}

    def features(self, names: Sequence[str]) -> bytes:
        """Return the columns of these names as they stand in its line; InputError where one is missing."""
        columns = self.columns
        try:
            values = [self.row[columns.places[name]] for name in names]
        except KeyError as error:
            raise columns.missing(error.args[0], columns.places) from None
        return SEPARATOR.join(columns.fields(names, values))


class Session(Protocol):
    """An open session with a database, and what it knows of the source."""

    def find(self, record_ids: Sequence[str], deadline: float) -> Sequence[Record]:
        """Return the records whose ID the database calls equal to one of these texts, before the deadline."""

    def is_over(self, error: Exception) -> bool:
        """Whether an error is one that a new session may not have."""

    def close(self) -> None:
        """End it."""


class Reader:
    """Reads single records by a session that opens with the first of them; for one thread at a time.

    Args:
        database: whose records.
        settings: name the source and its ID.
        open_session: opens a session, before a deadline by the monotonic clock.
    """

    def __init__(
        self, database: Database, settings: DatabaseSettings, open_session: Callable[[float], Session]
    ) -> None:
        self._database = database
        self._settings = settings
        self._open = open_session
        self._session: Session | None = None

    def records(self, record_ids: Sequence[str]) -> dict[str, Record]:
        """Return those of the records that are there; only an ID that is exactly the text is the record's.

        Raises:
            ServiceError: the database does not answer within `database.timeout` seconds.
            InputError: there is no such database, table or column.
        """
        wanted = {escape(text): record_id for record_id in record_ids if (text := _encoded(record_id)) is not None}
        found: dict[str, Record] = {}
        with self._database.errors("timeout"):
            for record in self._find(list(wanted.values()), time.monotonic() + self._settings.timeout):
                # What a database calls equal may be another text: 7 and 7.0, 7 and 007, a padded or a case-blind one.
                record_id = wanted.get(record.features([self._settings.id]))
                if record_id is not None:
                    found.setdefault(record_id, record)
        return found

    def _find(self, record_ids: Sequence[str], deadline: float) -> Sequence[Record]:
        if self._session:
            try:
                return self._session.find(record_ids, deadline)
            except Exception as error:
                if not self._session.is_over(error) or time.monotonic() >= deadline:
                    raise
                self.close()  # the server may have been started anew, or the table be another one
        self._session = self._open(deadline)
        return self._session.find(record_ids, deadline)

    def adopt(self) -> None:
        """Nothing to do: a session may go from thread to thread."""

    def close(self) -> None:
        """Close it; `records` would open it anew."""
        session, self._session = self._session, None
        if session:
            session.close()

    def forget(self) -> None:
        """Let go of it in a forked process, where it is the parent's: what was inherited is kept for ever.

        Freed, a driver may tell the server; and SQLite must not even close it ("How To Corrupt", 2.6).
        """
        _inherited.append(self._session)
        self._session = None


_inherited: list[Session | None] = []


def _encoded(record_id: str) -> bytes | None:
    try:
        return record_id.encode()
    except UnicodeEncodeError:
        return None  # no database text
