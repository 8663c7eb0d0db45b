"""An SQLite database as the source (see `predictions.database`), by the standard library's own module.

A column may hold values of any type whatever it declares, and readers that go by the declaration fail on that.
"""

import base64
import difflib
import math
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from predictions.errors import InputError, PredictionsError, ServiceError
from predictions.records import NULL, Column, escape
from predictions.settings import DatabaseSettings

FETCH_ROWS = 10_000
EXAMPLES = 5
STEPS = 100_000  # of SQLite's virtual machine between two looks at the clock


class SqliteDatabase:
    """A table, a view or a query of an SQLite file."""

    def __init__(self, settings: DatabaseSettings) -> None:
        self._settings = settings
        self.path = Path(settings.url.removeprefix("sqlite:///"))
        if not self.path.is_file():
            raise InputError(f"database.url: {self.path}: no such file")
        self.source = _quote(settings.table or "predictions_query")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self.errors(), closing(self.connect()) as connection:
            connection.execute("BEGIN")
            yield connection

    def connect(self) -> sqlite3.Connection:
        """Open a connection of which only one thread at a time makes use."""
        uri = f"file:{quote(str(self.path.resolve()))}?mode=ro"
        connection = sqlite3.connect(
            uri, uri=True, timeout=self._settings.timeout, isolation_level=None, check_same_thread=False
        )
        # Text arrives as bytearray, blobs as bytes: the only way to tell them apart without decoding.
        connection.text_factory = bytearray
        if self._settings.query:
            self._create_view(connection, self._settings.query)
        return connection

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn SQLite's errors into one clear line each."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise self._error(error) from error

    def _error(self, error: sqlite3.DatabaseError) -> PredictionsError:
        timeout = f"waited {self._settings.timeout:g} s (database.timeout)"
        if "locked" in str(error):
            return ServiceError(f"{self.path}: {error}; another process holds it: {timeout}, try again later")
        if "interrupted" in str(error):
            return ServiceError(f"{self.path}: no answer, {timeout}; is there an index on {self._settings.id}?")
        return InputError(f"{self.path}: {error}")

    def _create_view(self, connection: sqlite3.Connection, query: str) -> None:
        # A view of our own connection, in no database file: from here on a query is like a view.
        try:
            connection.execute(f"CREATE TEMP VIEW {self.source} AS {query}")
            connection.execute(f"SELECT * FROM {self.source} LIMIT 0")  # SQLite looks at the query only now
        except (sqlite3.OperationalError, sqlite3.ProgrammingError) as error:
            raise InputError(f"database.query: {error}: it must be one SELECT") from error

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
            known = sorted(bytes(name).decode(errors="replace") for (name,) in names)
            table = self._settings.table or ""
            raise InputError(f"database.table: no table or view {table!r} in {self.path}{_suggest(table, known)}")
        return [Column(bytes(row[1]).decode(), _declared_type(bytes(row[2]).decode())) for row in rows]

    @contextmanager
    def snapshot(self, columns: Sequence[str]) -> Iterator["SqliteSnapshot"]:
        """Read all records in one read transaction.

        Args:
            columns: the record ID, the features in the model's order, the label.

        Raises:
            InputError: a column is missing, an ID is NULL, or one ID stands for records with different features.
        """
        with self._transaction() as connection:
            known = self.check(connection, columns)
            self._check_ids(connection, columns)
            yield SqliteSnapshot(connection, self.source, known)

    def _check_ids(self, connection: sqlite3.Connection, columns: Sequence[str]) -> None:
        record_id, *features, _label = map(_quote, columns)
        (nulls,) = connection.execute(f"SELECT count(*) FROM {self.source} WHERE {record_id} IS NULL").fetchone()
        if nulls:
            raise InputError(
                f"database.id: {columns[0]} is NULL in {nulls} rows of {self.source}: every record needs an ID"
            )
        if self._is_unique(connection, columns[0]):
            return
        # As bytes, so that '7' and '07' differ and no collation takes two IDs for one.
        conflicts = connection.execute(
            f"SELECT id FROM (SELECT DISTINCT CAST({record_id} AS BLOB) AS id, {', '.join(features)}"
            f" FROM {self.source}) GROUP BY id HAVING count(*) > 1 LIMIT {EXAMPLES}"
        ).fetchall()
        if conflicts:
            examples = ", ".join(bytes(row[0]).decode(errors="replace") for row in conflicts)
            raise InputError(
                f"database.id: {columns[0]} is not unique in {self.source}: one ID stands for different records, "
                f"for example {examples}"
            )

    def _is_unique(self, connection: sqlite3.Connection, name: str) -> bool:
        keys = [row for row in connection.execute(f"PRAGMA table_xinfo({self.source})") if row[5]]
        if [bytes(row[1]).decode() for row in keys] == [name]:
            return True
        for _number, index, unique, _origin, partial in connection.execute(f"PRAGMA index_list({self.source})"):
            info = connection.execute(f"PRAGMA index_info({_quote(bytes(index).decode())})").fetchall()
            if unique and not partial and [row[2] for row in info] == [bytearray(name.encode())]:
                return True
        return False

    def reader(self) -> "SqliteReader":
        return SqliteReader(self, self._settings)

    def check(self, connection: sqlite3.Connection, names: Sequence[str]) -> list[Column]:
        """Return columns of the source; InputError where one is not there.

        SQLite takes a quoted name that is no column for a string: every name is looked up first.
        """
        known = {column.name: column for column in self._catalogue(connection)}
        for name in names:
            if name not in known:
                raise self.no_column(name, known)
        return [known[name] for name in names]

    def no_column(self, name: str, known: Iterable[str]) -> InputError:
        """Return the error of a column that is not among the source's."""
        source = self._settings.table or "the query"
        return InputError(f"no column {name!r} in {source} of {self.path}{_suggest(name, list(known))}")


class SqliteReader:
    """Reads single records, each time as they are then."""

    def __init__(self, database: SqliteDatabase, settings: DatabaseSettings) -> None:
        self._database = database
        self._settings = settings
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._deadline = 0.0

    def records(self, record_ids: Sequence[str]) -> dict[str, "SqliteRecord"]:
        """See `predictions.database.Reader`."""
        wanted = {text: record_id for record_id in record_ids if (text := _encoded(record_id)) is not None}
        candidates = [value for record_id in wanted.values() for value in _id_values(record_id)]
        marks = ", ".join("?" * len(candidates))
        query = f"SELECT * FROM {self._database.source} WHERE {_quote(self._settings.id)} IN ({marks})"
        self._deadline = time.monotonic() + self._settings.timeout
        with self._database.errors():
            cursor = self._open().execute(query, candidates)
            names = {column[0]: place for place, column in enumerate(cursor.description)}
            if self._settings.id not in names:  # any more
                raise self._database.no_column(self._settings.id, names)
            place = names[self._settings.id]
            found: dict[str, SqliteRecord] = {}
            for row in cursor:
                # SQLite takes '007' for 7 where the column is a number; only the exact text is the record.
                record_id = wanted.get(_text(row[place]))
                if record_id is not None:
                    found.setdefault(record_id, SqliteRecord(self._database, names, row, _plain(names, row)))
            return found

    def _open(self) -> sqlite3.Connection:
        # Where another file was put into its place, what is open is the old one.
        try:
            there = os.stat(self._database.path)
        except OSError as error:
            raise InputError(f"database.url: {self._database.path}: {error.strerror}") from error
        if self._connection and self._file != (there.st_dev, there.st_ino):
            self.close()
        if self._connection is None:
            connection = self._database.connect()
            self._database.check(connection, [self._settings.id])
            connection.set_progress_handler(lambda: time.monotonic() > self._deadline, STEPS)
            self._connection, self._file = connection, (there.st_dev, there.st_ino)
        return self._connection

    def adopt(self) -> None:
        """Nothing to do: SQLite's own locks make a connection safe in any thread."""

    def close(self) -> None:
        """See `predictions.database.Reader`."""
        if self._connection:
            self._connection.close()
            self._connection = None

    def forget(self) -> None:
        """Keep it for ever: in a forked process it must not even be closed (SQLite, "How To Corrupt", 2.6)."""
        _inherited.append(self._connection)
        self._connection = None


_inherited: list[sqlite3.Connection | None] = []


class SqliteRecord(NamedTuple):
    """See `predictions.database.Record`; with the row as SQLite gave it, and the places of its columns."""

    database: SqliteDatabase
    names: dict[str, int]
    row: tuple[Any, ...]
    values: dict[str, Any]

    def features(self, names: Sequence[str]) -> bytes:
        """See `predictions.database.Record`."""
        try:
            return b"\t".join([_field(self.row[self.names[name]]) for name in names])
        except KeyError as error:
            raise self.database.no_column(error.args[0], self.names) from None


class SqliteSnapshot:
    """The records of an open read transaction."""

    def __init__(self, connection: sqlite3.Connection, source: str, columns: list[Column]) -> None:
        self._connection = connection
        self.source = source
        self.columns = columns
        self.rows = _count(connection, source)

    def blocks(self) -> Iterator[list[tuple[bytes, ...]]]:
        """Yield the records' fields; afterwards `columns` has the types of what was found where none was declared."""
        selected = ", ".join(_quote(column.name) for column in self.columns)
        cursor = self._connection.execute(f"SELECT {selected} FROM {self.source}")
        seen: list[set[type]] = [set() for _column in self.columns]
        undeclared = [index for index, column in enumerate(self.columns) if column.type in ("", "date")]
        while rows := cursor.fetchmany(FETCH_ROWS):
            for index in undeclared:
                seen[index].update({type(row[index]) for row in rows})
            yield [tuple(map(_field, row)) for row in rows]
        for index in undeclared:
            declared = self.columns[index]
            self.columns[index] = Column(declared.name, _seen_type(seen[index], declared.type))


def _count(connection: sqlite3.Connection, source: str) -> int:
    (rows,) = connection.execute(f"SELECT count(*) FROM {source}").fetchone()
    return int(rows)


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _suggest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known) or 'none'}"


def _declared_type(declared: str) -> str:
    """Return `integer`, `real` or `text`, by SQLite's rules of column affinity, or `date`; "" where it is open."""
    upper = declared.upper()
    if "DATE" in upper or "TIMESTAMP" in upper:
        return "date"  # SQLite has no such type: what the column holds decides
    if "INT" in upper:
        return "integer"
    if any(word in upper for word in ("CHAR", "CLOB", "TEXT", "BLOB")):
        return "text"
    if any(word in upper for word in ("REAL", "FLOA", "DOUB")):
        return "real"
    return ""


def _seen_type(types: set[type], declared: str) -> str:
    types = types - {type(None)}
    if declared == "date" and types <= {bytearray}:
        return "date"
    if types and types <= {int}:
        return "integer"
    return "real" if types and types <= {int, float} else "text"


def _text(value: Any) -> bytes:
    """Return a value's text, which for an ID is what names the record."""
    if isinstance(value, bytearray):
        return bytes(value)
    if isinstance(value, bytes):
        return b"\\x" + value.hex().encode()  # as PostgreSQL writes bytea
    return repr(value).encode()


_FIELDS: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda _value: NULL,
    int: lambda value: b"%d" % value,
    float: lambda value: repr(value).encode(),
    bytearray: lambda value: escape(bytes(value)),
    bytes: lambda value: escape(_text(value)),
}


def _field(value: Any) -> bytes:
    return _FIELDS[type(value)](value)


def _plain(names: Iterable[str], row: Sequence[Any]) -> dict[str, Any]:
    """Return a row's values for JSON: numbers as numbers, NULL as None, bytes in base64, the rest as text."""
    values = dict(zip(names, row, strict=True))
    for name, value in values.items():
        kind = type(value)
        if kind is bytearray:
            values[name] = value.decode(errors="replace")
        elif kind is bytes:
            values[name] = base64.b64encode(value).decode()
        elif kind is float and not math.isfinite(value):
            values[name] = repr(value)  # JSON has no such number
    return values


def _encoded(record_id: str) -> bytes | None:
    try:
        return record_id.encode()
    except UnicodeEncodeError:
        return None  # no database text


def _id_values(record_id: str) -> list[Any]:
    """Return the values of any type whose text is this one: a column may hold an ID as text or as a number."""
    values: list[Any] = [record_id]
    with suppress(ValueError):
        number = int(record_id)
        if -(1 << 63) <= number < 1 << 63 and str(number) == record_id:  # SQLite has no larger ones
            return [record_id, number]
    with suppress(ValueError):
        real = float(record_id)
        if repr(real) == record_id:
            return [record_id, real]
    if record_id.startswith("\\x"):
        with suppress(ValueError):
            values.append(bytes.fromhex(record_id[2:]))
    return values
