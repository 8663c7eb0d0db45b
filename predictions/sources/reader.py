"""Read single records of a database for lookups, by the exact text of the record ID, as they are now."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from predictions.errors import InputError
from predictions.formats.record_line import SEPARATOR, escape, fingerprints
from predictions.settings import DatabaseSettings
from predictions.sources.base import Database


@dataclass(frozen=True)
class Columns:
    """The columns of a result, and how to write their values.

    Args:
        indexes: the index of each column in a row, by column name.
        fields: takes column names and their values, returns the values as fields of a record line.
        plain: takes column names and their values, returns the values for JSON.
        missing: takes the name of a missing column and `indexes`, returns the error.
    """

    indexes: Mapping[str, int]
    fields: Callable[[Sequence[str], Sequence[Any]], list[bytes]]
    plain: Callable[[Sequence[str], Sequence[Any]], list[Any]]
    missing: Callable[[str, Mapping[str, int]], InputError]
    _chosen: dict[tuple[str, ...], list[int]] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of all columns."""
        return tuple(self.indexes)

    def chosen(self, names: tuple[str, ...]) -> list[int]:
        """Return the indexes of some columns in a row.

        Raises:
            InputError: a column is missing.
        """
        if names not in self._chosen:  # once for all rows
            try:
                self._chosen[names] = [self.indexes[name] for name in names]
            except KeyError as error:
                raise self.missing(error.args[0], self.indexes) from None
        return self._chosen[names]


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
            names, row = self._columns.names, self._row
            values = [row[index] for index in self._columns.chosen(names)]
            self._values = dict(zip(names, self._columns.plain(names, values), strict=True))
        return self._values

    def features(self, names: Sequence[str]) -> bytes:
        """Return the values of these columns as in the record's line, joined by tabs.

        Raises:
            InputError: a column is missing.
        """
        row = self._row
        return SEPARATOR.join(self._columns.fields(names, [row[index] for index in self._columns.chosen(tuple(names))]))

    def fingerprint(self, names: Sequence[str]) -> bytes:
        """Return the fingerprint of these features (see `record_line.fingerprints`); errors are those of `features`."""
        if self._fingerprint is None or self._fingerprint[0] != names:
            self.prepare([self], names)
        assert self._fingerprint
        return self._fingerprint[1]

    @staticmethod
    def prepare(records: Collection["Record"], names: Sequence[str]) -> None:
        """Compute the values of records and the fingerprints of these features, for when they are asked for.

        Errors are those of `features`.
        """
        features = [record.features(names) for record in records]
        for record, fingerprint in zip(records, fingerprints(features), strict=False):  # of no record, there is one
            record._fingerprint, _values = (names, fingerprint), record.values


class Session(Protocol):
    """An open session with a database."""

    def find(self, record_ids: Sequence[str], deadline: float) -> Sequence[Record]:
        """Return the records whose ID the database considers equal to one of these texts.

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
            for record in self._find(list(ids_by_field.values()), time.monotonic() + self._settings.timeout):
                # A database may consider different texts equal: 7 and 7.0, 7 and 007, with padding, in another case.
                record_id = ids_by_field.get(record.features([self._settings.id]))
                if record_id is not None:
                    records.setdefault(record_id, record)
        return records

    def _find(self, record_ids: Sequence[str], deadline: float) -> Sequence[Record]:
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
