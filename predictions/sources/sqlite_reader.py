"""Single records of an SQLite database, for lookups (see `predictions.sources.base.Reader`)."""

import base64
import math
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from predictions.errors import InputError
from predictions.settings import DatabaseSettings
from predictions.sources.sqlite import SqliteDatabase, field, quote_name, text_of

STEPS = 1_000  # of SQLite's virtual machine between two looks at the clock


class _Gate:
    """Lets readers through together, and a fork only when nobody is within.

    SQLite has locks for the whole process. One that another thread holds at a fork would stay locked in the child.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._within = 0

    @contextmanager
    def passed(self) -> Iterator[None]:
        """Be within; a fork waits until nobody is."""
        with self._changed:
            self._within += 1
        try:
            yield
        finally:
            with self._changed:
                self._within -= 1
                self._changed.notify_all()

    def before_fork(self) -> None:
        """Wait for those within, and keep others from entering."""
        self._changed.acquire()
        while self._within:
            self._changed.wait()

    def after_in_parent(self) -> None:
        """Let others enter again."""
        self._changed.release()

    def after_in_child(self) -> None:
        """Begin anew: nobody else is here."""
        self.__init__()  # type: ignore[misc]


_gate = _Gate()
os.register_at_fork(
    before=_gate.before_fork, after_in_parent=_gate.after_in_parent, after_in_child=_gate.after_in_child
)


class SqliteReader:
    """Reads single records, each time as they are then."""

    def __init__(self, database: SqliteDatabase, settings: DatabaseSettings) -> None:
        self._database = database
        self._settings = settings
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._deadline = 0.0

    def records(self, record_ids: Sequence[str]) -> dict[str, "SqliteRecord"]:
        """See `predictions.sources.base.Reader`."""
        wanted = {text: record_id for record_id in record_ids if (text := _encoded(record_id)) is not None}
        candidates = [value for record_id in wanted.values() for value in _id_values(record_id)]
        marks = ", ".join("?" * len(candidates))
        query = f"SELECT * FROM {self._database.source} WHERE {quote_name(self._settings.id)} IN ({marks})"
        self._deadline = time.monotonic() + self._settings.timeout
        with _gate.passed(), self._database.errors():
            cursor = self._open().execute(query, candidates)
            names = {column[0]: place for place, column in enumerate(cursor.description)}
            if self._settings.id not in names:  # any more
                raise self._database.no_column(self._settings.id, names)
            place = names[self._settings.id]
            found: dict[str, SqliteRecord] = {}
            for row in cursor:
                # SQLite takes '007' for 7 where the column is a number; only the exact text is the record.
                record_id = wanted.get(text_of(row[place]))
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
            self._shut()
        if self._connection is None:
            connection = self._database.connect()
            self._database.check(connection, [self._settings.id])
            connection.set_progress_handler(lambda: time.monotonic() > self._deadline, STEPS)
            self._connection, self._file = connection, (there.st_dev, there.st_ino)
        return self._connection

    def adopt(self) -> None:
        """Nothing to do: SQLite's own locks make a connection safe in any thread."""

    def close(self) -> None:
        """See `predictions.sources.base.Reader`."""
        with _gate.passed():
            self._shut()

    def _shut(self) -> None:
        if self._connection:
            self._connection.close()
            self._connection = None

    def forget(self) -> None:
        """Keep it for ever: in a forked process it must not even be closed (SQLite, "How To Corrupt", 2.6)."""
        _inherited.append(self._connection)
        self._connection = None


_inherited: list[sqlite3.Connection | None] = []


class SqliteRecord(NamedTuple):
    """See `predictions.sources.base.Record`; with the row as SQLite gave it, and the places of its columns."""

    database: SqliteDatabase
    names: dict[str, int]
    row: tuple[Any, ...]
    values: dict[str, Any]

    def features(self, names: Sequence[str]) -> bytes:
        """See `predictions.sources.base.Record`."""
        try:
            return b"\t".join([field(self.row[self.names[name]]) for name in names])
        except KeyError as error:
            raise self.database.no_column(error.args[0], self.names) from None


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
