"""The source database: a snapshot of all records for the export, single ones for the client. It is only ever read."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Protocol

from predictions.errors import InputError
from predictions.formats.record_line import Column


class Share(Protocol):
    """A part of a snapshot's records."""

    def blocks(self) -> Iterator[bytes]:
        """Yield the record lines in blocks of whole lines."""


class Snapshot(Protocol):
    """The records as of one moment, while its context is open.

    Args:
        columns: of the lines; their types may be known only when all were read.
        expected: about how many records there are.
        time: of the moment.
        id: by which the database knows it, if it has such a thing.
        note: what those who write to the database should know of it.
    """

    columns: list[Column]
    expected: int
    time: datetime
    id: str | None
    note: str | None

    def shares(self) -> Sequence[Share]:
        """Return its records in parts; where there are several, each is for a process of its own."""


class Database(Protocol):
    """What the stages need of a database."""

    name: str  # where it is, without a password

    def errors(self, setting: str) -> AbstractContextManager[None]:
        """Turn the driver's errors into one clear line each; the setting is the seconds that a statement may take."""

    def snapshot(self, columns: Sequence[str]) -> Any:
        """Open a context with a `Snapshot` of the columns, the record ID first."""

    def columns(self) -> list[Column]:
        """Return the source's columns as its catalogue names them."""

    def count(self) -> int:
        """Return how many records there are now."""


def no_table(table: str, place: str, known: list[str]) -> InputError:
    """Return the error of a table that is not among those of a database."""
    return InputError(f"database.table: no table or view {table!r} in {place}{_suggest(table, known)}")


def no_column(name: str, source: str, place: str, known: Iterable[str]) -> InputError:
    """Return the error of a column that is not among those of a table or a query."""
    return InputError(f"no column {name!r} in {source} of {place}{_suggest(name, list(known))}")


def null_ids(name: str, nulls: int, table: str | None) -> InputError:
    """Return the error of records without an ID."""
    source = table or "the query"
    return InputError(f"database.id: {name} is NULL in {nulls:,} rows of {source}: every record needs an ID")


def _suggest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known) or 'none'}"
