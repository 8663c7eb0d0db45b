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


class SqliteSession:
    """A connection to the database file that stands at its path (see `predictions.sources.reader.Session`)."""

    def __init__(self, database: SqliteDatabase, settings: DatabaseSettings, deadline: float) -> None:
        self._database = database
        self._id = settings.id
        self._deadline = deadline
        with _gate.passed():
            self._open()

    def _open(self) -> None:
        self._file = self._database.identity()
        self._connection = self._database.connect()
        self._database.check(self._connection, [self._id])
        self._connection.set_progress_handler(lambda: time.monotonic() > self._deadline, STEPS)

    def find(self, record_ids: Sequence[str], deadline: float) -> list[Record]:
        """See `predictions.sources.reader.Session`."""
        self._deadline = deadline
        candidates = [value for record_id in record_ids for value in _id_values(record_id)]
        marks = ", ".join("?" * len(candidates))
        query = f"SELECT * FROM {self._database.source} WHERE {quote_name(self._id)} IN ({marks})"
        with _gate.passed():
            if self._database.identity() != self._file:  # another one was put into its place
                self._connection.close()
                self._open()
            cursor = self._connection.execute(query, candidates)
            places = {column[0]: place for place, column in enumerate(cursor.description)}
            if self._id not in places:  # any more: SQLite took its name for a text
                raise self._database.no_column(self._id, places)
            columns = Columns(places, _fields, _plain, self._database.no_column)
            return [Record(columns, row) for row in cursor]

    def is_over(self, _error: Exception) -> bool:
        """Never: a file does not go away from who has it open."""
        return False

    def close(self) -> None:
        """See `predictions.sources.reader.Session`."""
        with _gate.passed():
            self._connection.close()


def _fields(_names: Sequence[str], values: list[Any]) -> list[bytes]:
    return list(map(field, values))


def _plain(_name: str, value: Any) -> Any:
    if isinstance(value, bytearray):
        return value.decode(errors="replace")
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)  # JSON has no such number
    return value


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
