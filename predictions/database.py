"""The source database: a snapshot of all records for the export, single ones for the client. It is only ever read."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from predictions.errors import InputError
from predictions.records import Column
from predictions.settings import DatabaseSettings


class Snapshot(Protocol):
    """The records as of one moment, while its context is open."""

    columns: list[Column]
    rows: int

    def blocks(self) -> Iterator[list[tuple[bytes, ...]]]:
        """Yield the records' fields, escaped, in the columns' order, some thousands at a time."""


class Record(Protocol):
    """A record as it is now."""

    @property
    def values(self) -> dict[str, Any]:
        """All its values by column, for JSON: numbers as numbers, NULL as None, bytes in base64, the rest as text."""

    def features(self, names: Sequence[str]) -> bytes:
        """Return the features as they would stand in its line, tabs between; InputError where there is no such one."""


class Reader(Protocol):
    """A connection that reads single records, for one thread at a time (`loader.pool`)."""

    def records(self, record_ids: Sequence[str]) -> Mapping[str, Record]:
        """Return those of the records that are there; only an ID that is exactly the text is the record's.

        Raises:
            ServiceError: the database does not answer within `database.timeout` seconds.
            InputError: there is no such database, table or column.
        """

    def adopt(self) -> None:
        """Make the calling thread the one that it belongs to."""

    def close(self) -> None:
        """Close it; `records` would open it anew."""

    def forget(self) -> None:
        """Let go of it in a forked process, where it is the parent's."""


class Database(Protocol):
    """What the stages need of a database."""

    def snapshot(self, columns: Sequence[str]) -> Any:
        """Open a context with a `Snapshot` of the columns, the record ID first."""

    def columns(self) -> list[Column]:
        """Return the source's columns as its catalogue names them."""

    def count(self) -> int:
        """Return how many records there are now."""

    def reader(self) -> Reader:
        """Return what reads single records; it opens with the first of them."""


def open_database(settings: DatabaseSettings) -> Database:
    """Return the database that the settings name.

    Raises:
        InputError: the URL is of no known kind, or the database is not there.
    """
    if settings.url.startswith("sqlite:///"):
        from predictions.sqlite import SqliteDatabase

        return SqliteDatabase(settings)
    raise InputError(f"database.url: {settings.url}: must be sqlite:///PATH")
