"""Single records of an SQLite database, for lookups."""

import base64
import math
import os
import re
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from predictions.formats.record_line import escape_all
from predictions.settings import DatabaseSettings
from predictions.sources.reader import Columns, Rows
from predictions.sources.sqlite import SqliteDatabase, field, quote_name

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")
STEPS = 1_000  # instructions of SQLite's virtual machine between two checks of the deadline


# SQLite has locks for the whole process. One that another thread holds at a fork would stay locked in the child. So a
# session holds a lock of its own while it reads, and a fork waits for all of these.
_opening = threading.Lock()  # held while a session is entered here
_sessions: WeakSet["SqliteSession"] = WeakSet()
_locked: list[threading.Lock] = []  # during a fork


def _before_fork() -> None:
    """Wait for the sessions that are reading, and keep the others from it."""
    _opening.acquire()
    for session in list(_sessions):
        session.lock.acquire()
        _locked.append(session.lock)


def _after_fork() -> None:
    """Let sessions read again; in the child, none of them is used."""
    while _locked:
        _locked.pop().release()
    _opening.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


class SqliteSession:
    """A connection to the file that is at the database's path now (see `predictions.sources.reader.Session`)."""

    def __init__(self, database: SqliteDatabase, settings: DatabaseSettings, deadline: float) -> None:
        self._database = database
        self._id = settings.id
        self._deadline = deadline
        self.lock = threading.Lock()  # held while it reads
        with _opening:
            _sessions.add(self)
        with self.lock:
            self._open()

    def _open(self) -> None:
        file_identity, connection = self._database.identity(), self._database.connect()
        self._database.check(connection, [self._id])
        connection.set_progress_handler(lambda: time.monotonic() > self._deadline, STEPS)
        self._file_identity, self._connection = file_identity, connection

    def find(self, record_ids: Sequence[str], deadline: float) -> list[Rows]:
        """See `predictions.sources.reader.Session`."""
        self._deadline = deadline
        values = [value for record_id in record_ids for value in _id_values(record_id)]
        parameters = ", ".join("?" * len(values))
        query = f"SELECT * FROM {self._database.source} WHERE {quote_name(self._id)} IN ({parameters})"
        with self.lock:
            if self._database.identity() != self._file_identity:  # the file was replaced
                self._connection.close()
                self._open()
            cursor = self._connection.execute(query, values)
            rows = cursor.fetchall()
        indexes = {column[0]: index for index, column in enumerate(cursor.description)}
        if self._id not in indexes:  # the column is gone, and SQLite took its quoted name for a string
            raise self._database.no_column(self._id, indexes)
        return [Rows(Columns(indexes, _fields, _plain, self._database.no_column), rows)]

    def is_over(self, _error: Exception) -> bool:
        """Return False: an open file stays readable, even after it was replaced or removed."""
        return False

    def close(self) -> None:
        """See `predictions.sources.reader.Session`."""
        with self.lock:
            self._connection.close()


# Mostly, all values of a column have one type.
def _fields(_name: str, values: Sequence[Any]) -> Sequence[bytes]:
    if {*map(type, values)} == {bytearray}:
        return escape_all(list(map(bytes, values)))
    return list(map(field, values))


def _plain(_name: str, values: Sequence[Any]) -> Sequence[Any]:
    types = {*map(type, values)}
    if types <= {int, type(None)}:
        return values
    if types == {bytearray}:
        return [value.decode(errors="replace") for value in values]
    return list(map(_plain_value, values))


def _plain_value(value: Any) -> Any:
    if isinstance(value, bytearray):
        return value.decode(errors="replace")
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)  # JSON has no NaN and no infinity
    return value


def _id_values(record_id: str) -> list[Any]:
    """Return the values of any type that are written as this text: an ID may be stored as text, number or blob."""
    if _INTEGER.fullmatch(record_id):
        number = int(record_id)
        if -(1 << 63) <= number < 1 << 63:  # SQLite's integers have 64 bits
            return [record_id, number]
    with suppress(ValueError):
        real = float(record_id)
        if repr(real) == record_id:
            return [record_id, real]
    if record_id.startswith("\\x"):
        with suppress(ValueError):
            return [record_id, bytes.fromhex(record_id[2:])]
    return [record_id]
