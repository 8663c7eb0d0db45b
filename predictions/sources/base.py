"""What the stages need of a source database: its columns, and a snapshot of all its records as record lines."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Protocol

from predictions.errors import InputError
from predictions.formats.record_line import Column


class Share(Protocol):
    """Some of a snapshot's records, for one process to read."""

    def blocks(self) -> Iterator[bytes]:
        """Yield the record lines in blocks of whole lines."""


class Snapshot(Protocol):
    """All records as of one moment; it can be read while its context is open.

    Args:
        columns: the columns of the record lines; some types may be known only after all records were read.
        expected: the approximate number of records.
        time: that moment.
        id: the ID that the database gave to the snapshot, if it gives any.
        note: a drawback of the snapshot, for the user: that writers must wait, or that it is not of one moment.
    """

    columns: list[Column]
    expected: int
    time: datetime
    id: str | None
    note: str | None

    def shares(self) -> Sequence[Share]:
        """Return the records in shares; if there are several, each is read by a process of its own."""


class Database(Protocol):
    """A source database."""

    name: str  # its URL without the user and the password

    def errors(self, setting: str) -> AbstractContextManager[None]:
        """Turn the driver's errors into ours, one clear line each.

        Args:
            setting: the field of `DatabaseSettings` with the time limit in seconds, for the message of a timeout.
        """

    def snapshot(self, names: Sequence[str]) -> Any:
        """Open a context with a `Snapshot` of these columns, of which the first is the record ID."""

    def columns(self) -> list[Column]:
        """Return the columns of the table, view or query, as the database describes them."""

    def count(self) -> int:
        """Return the number of records now."""


def no_table(table: str, database: str, tables: list[str]) -> InputError:
    """Return the error for a table that the database does not have."""
    return InputError(f"database.table: no table or view {table!r} in {database}{_suggest(table, tables)}")


def no_column(name: str, source: str, database: str, columns: Iterable[str]) -> InputError:
    """Return the error for a column that the source (a table, a view or the query) does not have."""
    return InputError(f"no column {name!r} in {source} of {database}{_suggest(name, list(columns))}")


def null_ids(name: str, nulls: int, table: str | None) -> InputError:
    """Return the error for records without an ID."""
    source = table or "the query"
    return InputError(f"database.id: {name} is NULL in {nulls:,} rows of {source}: every record needs an ID")


def _suggest(name: str, existing: list[str]) -> str:
    close = difflib.get_close_matches(name, existing, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(existing) or 'none'}"
