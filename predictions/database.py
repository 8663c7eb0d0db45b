"""The source database: a snapshot of all records for the export, one record for the client. It is only ever read.

SQLite, by the standard library's own module: a column may hold values of any type whatever it declares, and readers
that go by the declaration fail on that.
"""

import base64
import difflib
import math
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from predictions.errors import InputError, ServiceError
from predictions.records import NULL, Column, escape
from predictions.settings import DatabaseSettings

FETCH_ROWS = 10_000
BUSY_TIMEOUT = 10.0  # seconds to wait for a lock
EXAMPLES = 5


class Snapshot(Protocol):
    """The records as of one moment, while its context is open."""

    columns: list[Column]
    rows: int

    def blocks(self) -> Iterator[list[tuple[bytes, ...]]]:
        """Yield the records' fields, escaped, in the columns' order, some thousands at a time."""


class Database(Protocol):
    """What the stages need of a database."""

    def snapshot(self, columns: Sequence[str]) -> Any:
        """Open a context with a `Snapshot` of the columns, the record ID first."""

    def columns(self) -> list[Column]:
        """Return the source's columns as its catalogue names them."""

    def count(self) -> int:
        """Return how many records there are now."""

    def record(self, record_id: str, features: Sequence[str]) -> tuple[dict[str, Any], bytes] | None:
        """Return a record's values by column and its feature bytes, or None where no ID is exactly this text."""


def open_database(settings: DatabaseSettings) -> Database:
    """Return the database that the settings name.

    Raises:
        InputError: the URL is of no known kind, or the database is not there.
    """
    if settings.url.startswith("sqlite:///"):
        return SqliteDatabase(settings)
    raise InputError(f"database.url: {settings.url}: must be sqlite:///PATH")


class SqliteDatabase:
    """A table, a view or a query of an SQLite file."""

    def __init__(self, settings: DatabaseSettings) -> None:
        self._settings = settings
        self._path = Path(settings.url.removeprefix("sqlite:///"))
        if not self._path.is_file():
            raise InputError(f"database.url: {self._path}: no such file")
        self._source = _quote(settings.table or "predictions_query")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        uri = f"file:{quote(str(self._path.resolve()))}?mode=ro"
        try:
            with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT, isolation_level=None)) as connection:
                # Text arrives as bytearray, blobs as bytes: the only way to tell them apart without decoding.
                connection.text_factory = bytearray
                connection.execute("BEGIN")
                if self._settings.query:
                    self._create_view(connection, self._settings.query)
                yield connection
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise ServiceError(f"{self._path}: {error}; another process holds it: try again later") from error
            raise InputError(f"{self._path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise InputError(f"{self._path}: {error}") from error

    def _create_view(self, connection: sqlite3.Connection, query: str) -> None:
        # A view of our own connection, in no database file: from here on a query is like a view.
        try:
            connection.execute(f"CREATE TEMP VIEW {self._source} AS {query}")
            connection.execute(f"SELECT * FROM {self._source} LIMIT 0")  # SQLite looks at the query only now
        except (sqlite3.OperationalError, sqlite3.ProgrammingError) as error:
            raise InputError(f"database.query: {error}: it must be one SELECT") from error

    def columns(self) -> list[Column]:
        with self._transaction() as connection:
            return self._catalogue(connection)

    def count(self) -> int:
        with self._transaction() as connection:
            self._catalogue(connection)
            return _count(connection, self._source)

    def _catalogue(self, connection: sqlite3.Connection) -> list[Column]:
        rows = connection.execute(f"PRAGMA table_xinfo({self._source})").fetchall()
        if not rows:
            names = connection.execute("SELECT name FROM sqlite_schema WHERE type IN ('table', 'view')")
            known = sorted(bytes(name).decode(errors="replace") for (name,) in names)
            table = self._settings.table or ""
            raise InputError(f"database.table: no table or view {table!r} in {self._path}{_suggest(table, known)}")
        return [Column(bytes(row[1]).decode(), _declared_type(bytes(row[2]).decode())) for row in rows]

    def _check(self, connection: sqlite3.Connection, names: Sequence[str]) -> list[Column]:
        # SQLite takes a quoted name that is no column for a string: every name is looked up first.
        known = {column.name: column for column in self._catalogue(connection)}
        for name in names:
            if name not in known:
                source = self._settings.table or "the query"
                raise InputError(f"no column {name!r} in {source} of {self._path}{_suggest(name, list(known))}")
        return [known[name] for name in names]

    @contextmanager
    def snapshot(self, columns: Sequence[str]) -> Iterator["SqliteSnapshot"]:
        """Read all records in one read transaction.

        Args:
            columns: the record ID, the features in the model's order, the label.

        Raises:
            InputError: a column is missing, an ID is NULL, or one ID stands for records with different features.
        """
        with self._transaction() as connection:
            known = self._check(connection, columns)
            self._check_ids(connection, columns)
            yield SqliteSnapshot(connection, self._source, known)

    def _check_ids(self, connection: sqlite3.Connection, columns: Sequence[str]) -> None:
        record_id, *features, _label = map(_quote, columns)
        (nulls,) = connection.execute(f"SELECT count(*) FROM {self._source} WHERE {record_id} IS NULL").fetchone()
        if nulls:
            raise InputError(
                f"database.id: {columns[0]} is NULL in {nulls} rows of {self._source}: every record needs an ID"
            )
        if self._is_unique(connection, columns[0]):
            return
        # As bytes, so that '7' and '07' differ and no collation takes two IDs for one.
        conflicts = connection.execute(
            f"SELECT id FROM (SELECT DISTINCT CAST({record_id} AS BLOB) AS id, {', '.join(features)}"
            f" FROM {self._source}) GROUP BY id HAVING count(*) > 1 LIMIT {EXAMPLES}"
        ).fetchall()
        if conflicts:
            examples = ", ".join(bytes(row[0]).decode(errors="replace") for row in conflicts)
            raise InputError(
                f"database.id: {columns[0]} is not unique in {self._source}: one ID stands for different records, "
                f"for example {examples}"
            )

    def _is_unique(self, connection: sqlite3.Connection, name: str) -> bool:
        keys = [row for row in connection.execute(f"PRAGMA table_xinfo({self._source})") if row[5]]
        if [bytes(row[1]).decode() for row in keys] == [name]:
            return True
        for _number, index, unique, _origin, partial in connection.execute(f"PRAGMA index_list({self._source})"):
            info = connection.execute(f"PRAGMA index_info({_quote(bytes(index).decode())})").fetchall()
            if unique and not partial and [row[2] for row in info] == [bytearray(name.encode())]:
                return True
        return False

    def record(self, record_id: str, features: Sequence[str]) -> tuple[dict[str, Any], bytes] | None:
        names = [column.name for column in self.columns()]
        selected = ", ".join(map(_quote, names))
        try:
            wanted = record_id.encode()
        except UnicodeEncodeError:
            return None  # no database text
        with self._transaction() as connection:
            self._check(connection, [self._settings.id, *features])
            candidates = _id_values(record_id)
            marks = ", ".join("?" * len(candidates))
            where = f"{_quote(self._settings.id)} IN ({marks})"
            for row in connection.execute(f"SELECT {selected} FROM {self._source} WHERE {where}", candidates):
                values = dict(zip(names, row, strict=True))
                # SQLite takes '007' for 7 where the column is a number; only the exact text is the record.
                if _text(values[self._settings.id]) == wanted:
                    return {name: _plain(value) for name, value in values.items()}, b"\t".join(
                        _field(values[name]) for name in features
                    )
        return None


class SqliteSnapshot:
    """The records of an open read transaction."""

    def __init__(self, connection: sqlite3.Connection, source: str, columns: list[Column]) -> None:
        self._connection = connection
        self._source = source
        self.columns = columns
        self.rows = _count(connection, source)

    def blocks(self) -> Iterator[list[tuple[bytes, ...]]]:
        """Yield the records' fields; afterwards `columns` has the types of what was found where none was declared."""
        selected = ", ".join(_quote(column.name) for column in self.columns)
        cursor = self._connection.execute(f"SELECT {selected} FROM {self._source}")
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


def _plain(value: Any) -> Any:
    """Return a value for JSON: numbers as numbers, NULL as None, bytes in base64, the rest as text."""
    if isinstance(value, bytearray):
        return value.decode(errors="replace")
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)  # JSON has no such number
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _id_values(record_id: str) -> list[Any]:
    """Return the values of any type whose text may be this one: a column may hold an ID as text or as a number."""
    values: list[Any] = [record_id]
    with suppress(ValueError):
        number = int(record_id)
        if -(1 << 63) <= number < 1 << 63:  # SQLite has no larger ones
            values.append(number)
    with suppress(ValueError):
        values.append(float(record_id))
    if record_id.startswith("\\x"):
        with suppress(ValueError):
            values.append(bytes.fromhex(record_id[2:]))
    return values
