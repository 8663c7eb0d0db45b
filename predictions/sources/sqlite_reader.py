"""Single records of an SQLite database, for lookups."""

import base64
import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from predictions.settings import DatabaseSettings
from predictions.sources.reader import Columns, Record
from predictions.sources.sqlite import SqliteDatabase, field, quote_name

STEPS = 1_000  # instructions of SQLite's virtual machine between two checks of the deadline


class _ForkLock:
    """Let any number of threads read at once, and make a fork wait until none of them reads.

    SQLite has locks for the whole process. One that another thread holds at a fork would stay locked in the child.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._readers = 0

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Count as a reader while the context is open: a fork waits for its end."""
        with self._condition:
            self._readers += 1
        try:
            yield
        finally:
            with self._condition:
                self._readers -= 1
                self._condition.notify_all()

    def before_fork(self) -> None:
        """Wait for the readers, and keep new ones out."""
        self._condition.acquire()
        while self._readers:
            self._condition.wait()

    def after_in_parent(self) -> None:
        """Let readers in again."""
        self._condition.release()

    def after_in_child(self) -> None:
        """Start afresh: a forked process has no other thread."""
        self.__init__()  # type: ignore[misc]


_fork_lock = _ForkLock()
os.register_at_fork(
    before=_fork_lock.before_fork,
    after_in_parent=_fork_lock.after_in_parent,
    after_in_child=_fork_lock.after_in_child,
)


class SqliteSession:
    """A connection to the file that is at the database's path now (see `predictions.sources.reader.Session`)."""

    def __init__(self, database: SqliteDatabase, settings: DatabaseSettings, deadline: float) -> None:
        self._database = database
        self._id = settings.id
        self._deadline = deadline
        with _fork_lock.reading():
            self._open()

    def _open(self) -> None:
        file_identity, connection = self._database.identity(), self._database.connect()
        self._database.check(connection, [self._id])
        connection.set_progress_handler(lambda: time.monotonic() > self._deadline, STEPS)
        self._file_identity, self._connection = file_identity, connection

    def find(self, record_ids: Sequence[str], deadline: float) -> list[Record]:
        """See `predictions.sources.reader.Session`."""
        self._deadline = deadline
        values = [value for record_id in record_ids for value in _id_values(record_id)]
        parameters = ", ".join("?" * len(values))
        query = f"SELECT * FROM {self._database.source} WHERE {quote_name(self._id)} IN ({parameters})"
        with _fork_lock.reading():
            if self._database.identity() != self._file_identity:  # the file was replaced
                self._connection.close()
                self._open()
            cursor = self._connection.execute(query, values)
            indexes = {column[0]: index for index, column in enumerate(cursor.description)}
            if self._id not in indexes:  # the column is gone, and SQLite took its quoted name for a string
                raise self._database.no_column(self._id, indexes)
            columns = Columns(indexes, _fields, _plain, self._database.no_column)
            return [Record(columns, row) for row in cursor]

    def is_over(self, _error: Exception) -> bool:
        """Return False: an open file stays readable, even after it was replaced or removed."""
        return False

    def close(self) -> None:
        """See `predictions.sources.reader.Session`."""
        with _fork_lock.reading():
            self._connection.close()


def _fields(_names: Sequence[str], values: list[Any]) -> list[bytes]:
    return list(map(field, values))


def _plain(_name: str, value: Any) -> Any:
    if isinstance(value, bytearray):
        return value.decode(errors="replace")
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)  # JSON has no NaN and no infinity
    return value


def _id_values(record_id: str) -> list[Any]:
    """Return the values of any type that are written as this text: an ID may be stored as text, number or blob."""
    values: list[Any] = [record_id]
    with suppress(ValueError):
        number = int(record_id)
        if -(1 << 63) <= number < 1 << 63 and str(number) == record_id:  # SQLite's integers have 64 bits
            return [record_id, number]
    with suppress(ValueError):
        real = float(record_id)
        if repr(real) == record_id:
            return [record_id, real]
    if record_id.startswith("\\x"):
        with suppress(ValueError):
            values.append(bytes.fromhex(record_id[2:]))
    return values
