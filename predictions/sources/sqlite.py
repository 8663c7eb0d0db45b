"""An SQLite database as the source (see `predictions.sources.base`), read with the standard library's `sqlite3`.

An SQLite column may hold values of any type, whatever type it declares; a reader that relies on the declared type fails
on such values.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from predictions.errors import InputError, PredictionsError, ServiceError
from predictions.formats.record_line import NULL, Column, escape, write_rows
from predictions.settings import DatabaseSettings
from predictions.sources.base import no_column, no_table, null_ids

FETCH_ROWS = 10_000
EXAMPLES = 5  # IDs that an error message names
_LOCKED = sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED


class SqliteDatabase:
    """A table, a view or a query of an SQLite file."""

    def __init__(self, settings: DatabaseSettings) -> None:
        self._settings = settings
        self.path = Path(settings.url.removeprefix("sqlite:///"))
        self.name = settings.url
        if not self.path.is_file():
            raise InputError(f"database.url: {self.path}: no such file")
        self.source = quote_name(settings.table or "predictions_query")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self.errors(), closing(self.connect()) as connection:
            connection.execute("BEGIN")
            yield connection

    def connect(self) -> sqlite3.Connection:
        """Open a read-only connection, for one thread at a time."""
        uri = f"file:{quote(str(self.path.resolve()))}?mode=ro"
        connection = sqlite3.connect(
            uri, uri=True, timeout=self._settings.timeout, isolation_level=None, check_same_thread=False
        )
        # With this, text arrives as bytearray and blobs as bytes: the only way to tell them apart without decoding.
        connection.text_factory = bytearray
        if self._settings.query:
            self._create_view(connection, self._settings.query)
        return connection

    def identity(self) -> tuple[int, int]:
        """Return the device and inode of the file, which differ after another file has taken its path.

        Raises:
            InputError: there is no such file.
        """
        try:
            status = self.path.stat()
        except OSError as error:
            raise InputError(f"database.url: {self.path}: {error.strerror}") from error
        return status.st_dev, status.st_ino

    @contextmanager
    def errors(self, setting: str = "timeout") -> Iterator[None]:
        """Turn SQLite's errors into ours, one clear line each.

        Args:
            setting: the field of `DatabaseSettings` with the time limit in seconds, for the message of a timeout.
        """
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise self._error(error, f"{getattr(self._settings, setting):g} s (database.{setting})") from error

    def _error(self, error: sqlite3.DatabaseError, limit: str) -> PredictionsError:
        if _has_code(error, *_LOCKED):
            return ServiceError(
                f"{self.path}: {error}: another process still holds the lock after {limit}; try again later"
            )
        if _has_code(error, sqlite3.SQLITE_INTERRUPT):
            return ServiceError(f"{self.path}: no answer within {limit}; is there an index on {self._settings.id}?")
        return InputError(f"{self.path}: {error}")

    def _create_view(self, connection: sqlite3.Connection, query: str) -> None:
        # A temporary view belongs to this connection and is in no database file. From here on a query is like a view.
        try:
            connection.execute(f"CREATE TEMP VIEW {self.source} AS {query}")
            connection.execute(f"SELECT * FROM {self.source} LIMIT 0")  # only now does SQLite check the query
        except (sqlite3.OperationalError, sqlite3.ProgrammingError) as error:
            if _has_code(error, *_LOCKED):
                raise
            raise InputError(f"database.query: {error}; it must be one SELECT") from error

    def columns(self) -> list[Column]:
        with self._transaction() as connection:
            return self._catalogue(connection)

    def count(self) -> int:
        with self._transaction() as connection:
            self._catalogue(connection)
            return _count(connection, self.source)

    def _catalogue(self, connection: sqlite3.Connection) -> list[Column]:
        rows = connection.execute(f"PRAGMA table_xinfo({self.source})").fetchall()
        if not rows:
            names = connection.execute("SELECT name FROM sqlite_schema WHERE type IN ('table', 'view')")
            tables = sorted(bytes(name).decode(errors="replace") for (name,) in names)
            raise no_table(self._settings.table or "", str(self.path), tables)
        return [Column(bytes(row[1]).decode(), _declared_type(bytes(row[2]).decode())) for row in rows]

    @contextmanager
    def snapshot(self, names: Sequence[str]) -> Iterator["SqliteSnapshot"]:
        """Open a read transaction on all records.

        Args:
            names: the columns: the record ID, the features in the model's order, the label.

        Raises:
            InputError: a column is missing, an ID is NULL, or one ID stands for records with different features.
        """
        with self._transaction() as connection:
            columns = self.check(connection, names)
            self._check_ids(connection, names)
            yield SqliteSnapshot(connection, self.source, columns)

    def _check_ids(self, connection: sqlite3.Connection, names: Sequence[str]) -> None:
        record_id, *features, _label = map(quote_name, names)
        (nulls,) = connection.execute(f"SELECT count(*) FROM {self.source} WHERE {record_id} IS NULL").fetchone()
        if nulls:
            raise null_ids(names[0], nulls, self._settings.table)
        if self._is_unique(connection, names[0]):
            return
        # Compared as bytes: '7' and '07' are different IDs, and a collation must not make two IDs equal.
        conflicts = connection.execute(
            f"SELECT id FROM (SELECT DISTINCT CAST({record_id} AS BLOB) AS id, {', '.join(features)}"
            f" FROM {self.source}) GROUP BY id HAVING count(*) > 1 LIMIT {EXAMPLES}"
        ).fetchall()
        if conflicts:
            examples = ", ".join(bytes(row[0]).decode(errors="replace") for row in conflicts)
            raise InputError(
                f"database.id: {names[0]} is not unique in {self.source}: one ID stands for different records, "
                f"for example {examples}"
            )

    def _is_unique(self, connection: sqlite3.Connection, name: str) -> bool:
        key_columns = [row for row in connection.execute(f"PRAGMA table_xinfo({self.source})") if row[5]]
        if [bytes(row[1]).decode() for row in key_columns] == [name]:
            return True
        for _number, index, unique, _origin, partial in connection.execute(f"PRAGMA index_list({self.source})"):
            index_columns = connection.execute(f"PRAGMA index_info({quote_name(bytes(index).decode())})").fetchall()
            if unique and not partial and [row[2] for row in index_columns] == [bytearray(name.encode())]:
                return True
        return False

    def check(self, connection: sqlite3.Connection, names: Sequence[str]) -> list[Column]:
        """Return the columns of these names.

        A query would not notice a missing column: SQLite takes its quoted name for a string.

        Raises:
            InputError: a column is missing.
        """
        columns = {column.name: column for column in self._catalogue(connection)}
        for name in names:
            if name not in columns:
                raise self.no_column(name, columns)
        return [columns[name] for name in names]

    def no_column(self, name: str, columns: Iterable[str]) -> InputError:
        """Return the error for a column that the source does not have."""
        return no_column(name, self._settings.table or "the query", str(self.path), columns)


class SqliteSnapshot:
    """The records of an open read transaction (see `predictions.sources.base.Snapshot`)."""

    id = None

    def __init__(self, connection: sqlite3.Connection, source: str, columns: list[Column]) -> None:
        self._connection = connection
        self._source = source
        self.columns = columns
        self.expected = _count(connection, source)
        self.time = datetime.now(UTC)
        [(mode,)] = connection.execute("PRAGMA journal_mode")
        self.note = (
            None if bytes(mode) == b"wal" else "the database is not in WAL mode: until the export ends, writers wait"
        )

    def shares(self) -> list["SqliteSnapshot"]:
        """Return one share: other connections cannot read this transaction's records."""
        return [self]

    def blocks(self) -> Iterator[bytes]:
        """Yield the record lines; afterwards `columns` also has the types that were not declared, by the values."""
        selected = ", ".join(quote_name(column.name) for column in self.columns)
        cursor = self._connection.execute(f"SELECT {selected} FROM {self._source}")
        value_types: list[set[type]] = [set() for _column in self.columns]
        undeclared = [index for index, column in enumerate(self.columns) if column.type in ("", "date")]
        while rows := cursor.fetchmany(FETCH_ROWS):
            for index in undeclared:
                value_types[index].update({type(row[index]) for row in rows})
            yield write_rows(map(field, row) for row in rows)
        for index in undeclared:
            column = self.columns[index]
            self.columns[index] = Column(column.name, _type_of_values(value_types[index], column.type))


def _count(connection: sqlite3.Connection, source: str) -> int:
    (rows,) = connection.execute(f"SELECT count(*) FROM {source}").fetchone()
    return int(rows)


def _has_code(error: sqlite3.Error, *codes: int) -> bool:
    # SQLite, "Result and Error Codes": the lower byte of an extended code is the primary one. Errors of Python's own
    # have no code.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in codes


def quote_name(name: str) -> str:
    """Return a table's or column's name, quoted for SQL."""
    return '"' + name.replace('"', '""') + '"'


def _declared_type(declared: str) -> str:
    """Return `integer`, `real` or `text` by SQLite's rules of column affinity, or `date`; "" if the values decide."""
    upper = declared.upper()
    if "DATE" in upper or "TIMESTAMP" in upper:
        return "date"  # SQLite has no date type: the values decide whether these are dates
    if "INT" in upper:
        return "integer"
    if any(word in upper for word in ("CHAR", "CLOB", "TEXT", "BLOB")):
        return "text"
    if any(word in upper for word in ("REAL", "FLOA", "DOUB")):
        return "real"
    return ""


def _type_of_values(types: set[type], declared: str) -> str:
    types = types - {type(None)}
    if declared == "date" and types <= {bytearray}:
        return "date"
    if types and types <= {int}:
        return "integer"
    return "real" if types and types <= {int, float} else "text"


_FIELDS: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda _value: NULL,
    int: lambda value: b"%d" % value,
    float: lambda value: repr(value).encode(),
    bytearray: lambda value: escape(bytes(value)),
    bytes: lambda value: escape(b"\\x" + value.hex().encode()),  # as PostgreSQL writes bytea
}


def field(value: Any) -> bytes:
    """Return a value as a field of a record line."""
    return _FIELDS[type(value)](value)
