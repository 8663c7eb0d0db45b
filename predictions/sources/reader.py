"""Read single records of a database for lookups, by the exact text of the record ID, as they are now."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

from predictions.errors import InputError
from predictions.formats.record_line import SEPARATOR, escape, fingerprints
from predictions.settings import DatabaseSettings
from predictions.sources.base import Database


@dataclass(frozen=True, eq=False)
class Columns:
    """The columns of a result, and how to write their values.

    Args:
        indexes: the index of each column in a row, by column name.
        fields: takes a column's name and its values in some rows, returns them as fields of record lines.
        plain: takes a column's name and its values in some rows, returns them for JSON.
        missing: takes the name of a missing column and `indexes`, returns the error.
    """

    indexes: Mapping[str, int]
    fields: Callable[[str, Sequence[Any]], Sequence[bytes]]
    plain: Callable[[str, Sequence[Any]], Sequence[Any]]
    missing: Callable[[str, Mapping[str, int]], InputError]

    def lines(self, rows: Sequence[Sequence[Any]], names: Sequence[str]) -> list[bytes]:
        """Return some columns, at least one, of each row as in its record line, joined by tabs.

        Raises:
            InputError: a column is missing.
        """
        columns = []
        for name in names:
            index = self.indexes.get(name)
            if index is None:
                raise self.missing(name, self.indexes)
            columns.append(self.fields(name, [row[index] for row in rows]))
        return list(map(SEPARATOR.join, zip(*columns, strict=True)))

    def values(self, rows: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
        """Return all columns of each row by name, for JSON."""
        # By index: of columns with the same name, the last one counts.
        columns = [self.plain(name, [row[index] for row in rows]) for name, index in self.indexes.items()]
        return [dict(zip(self.indexes, values, strict=True)) for values in zip(*columns, strict=True)]


class Rows(NamedTuple):
    """Rows as the database returned them, and their columns."""

    columns: Columns
    rows: Sequence[Sequence[Any]]


class Record:
    """A record; what was computed of it is kept.

    Args:
        columns: the columns of its row.
        row: its row as the database returned it.
    """

    __slots__ = ("_columns", "_fingerprint", "_row", "_values")

    def __init__(self, columns: Columns, row: Sequence[Any]) -> None:
        self._columns = columns
        self._row = row
        self._values: dict[str, Any] | None = None
        self._fingerprint: tuple[Sequence[str], bytes] | None = None

    @property
    def values(self) -> dict[str, Any]:
        """All values by column, for JSON: numbers as numbers, NULL as None, bytes in base64, the rest as text."""
        if self._values is None:
            [self._values] = self._columns.values([self._row])
        return self._values

    def features(self, names: Sequence[str]) -> bytes:
        """Return the values of these columns, at least one, as in the record's line, joined by tabs.

        Raises:
            InputError: a column is missing.
        """
        return self._columns.lines([self._row], names)[0]

    def fingerprint(self, names: Sequence[str]) -> bytes:
        """Return the fingerprint of these features (see `record_line.fingerprints`); errors are those of `features`."""
        if self._fingerprint is None or self._fingerprint[0] != names:
            [fingerprint] = fingerprints([self.features(names)])
            self._fingerprint = names, fingerprint
        return self._fingerprint[1]

    @staticmethod
    def prepare(records: Iterable["Record"], names: Sequence[str]) -> None:
        """Compute, of many records at once, their values and the fingerprints of these features, if there are any.

        Errors are those of `features`.
        """
        for columns, group in groupby(records, attrgetter("_columns")):  # mostly the same for all
            alike = list(group)
            rows = [record._row for record in alike]
            for record, values in zip(alike, columns.values(rows), strict=True):
                record._values = values
            if names:
                for record, fingerprint in zip(alike, fingerprints(columns.lines(rows, names)), strict=True):
                    record._fingerprint = names, fingerprint


class Session(Protocol):
    """An open session with a database."""

    def find(self, record_ids: Sequence[str], deadline: float) -> Sequence[Rows]:
        """Return the rows whose ID the database considers equal to one of these texts.

        Args:
            record_ids: the texts.
            deadline: when the answer must be there, by the monotonic clock.
        """

    def is_over(self, error: Exception) -> bool:
        """Return whether a new session may work although this one raised the error."""

    def close(self) -> None:
        """End the session."""


class Reader:
    """Read single records in a session that opens at the first lookup; for one thread at a time.

    Args:
        database: the database.
        settings: the source, its ID column and the timeout.
        open_session: opens a session, given a deadline by the monotonic clock.
    """

    def __init__(
        self, database: Database, settings: DatabaseSettings, open_session: Callable[[float], Session]
    ) -> None:
        self._database = database
        self._settings = settings
        self._open_session = open_session
        self._session: Session | None = None

    def records(self, record_ids: Sequence[str]) -> dict[str, Record]:
        """Return the records that exist, by record ID; the ID in the database must be exactly the same text.

        Raises:
            ServiceError: the database does not answer within `database.timeout` seconds.
            InputError: the database, the table or a column does not exist.
        """
        encoded_ids = ((record_id, _encoded(record_id)) for record_id in record_ids)
        ids_by_field = {escape(text): record_id for record_id, text in encoded_ids if text is not None}
        records: dict[str, Record] = {}
        with self._database.errors("timeout"):
            for columns, rows in self._find(list(ids_by_field.values()), time.monotonic() + self._settings.timeout):
                for field, row in zip(columns.lines(rows, [self._settings.id]), rows, strict=True):
                    # A database may consider different texts equal: 7 and 7.0, with padding, in another case.
                    if (record_id := ids_by_field.get(field)) is not None:
                        records.setdefault(record_id, Record(columns, row))
        return records

    def _find(self, record_ids: Sequence[str], deadline: float) -> Sequence[Rows]:
        if self._session:
            try:
                return self._session.find(record_ids, deadline)
            except Exception as error:
                may_retry = self._session.is_over(error) and time.monotonic() < deadline
                self.close()  # the server may have been restarted, or the table replaced
                if not may_retry:
                    raise
        self._session = self._open_session(deadline)
        return self._session.find(record_ids, deadline)

    def adopt(self) -> None:
        """Do nothing: any thread may use the session, as long as it is one at a time."""

    def close(self) -> None:
        """Close the session; the next lookup opens a new one."""
        session, self._session = self._session, None
        if session:
            session.close()

    def forget(self) -> None:
        """Drop the session in a forked process, without closing it: it belongs to the parent process.

        The object is kept for ever. If it were freed, a driver might end the parent's session on the server, and an
        SQLite connection must not even be closed here ("How To Corrupt An SQLite Database File", 2.6).
        """
        _inherited.append(self._session)
        self._session = None


_inherited: list[Session | None] = []


def _encoded(record_id: str) -> bytes | None:
    try:
        return record_id.encode()
    except UnicodeEncodeError:
        return None  # a lone surrogate, which no ID of a record can hold
