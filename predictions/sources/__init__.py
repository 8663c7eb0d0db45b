"""The source database, which is only ever read: all records for the export, single records for lookups.

Each kind of database has a module for all records and one, `…_reader`, for single records.
"""

import re
from collections.abc import Callable
from functools import partial

from predictions.errors import InputError
from predictions.settings import DatabaseSettings
from predictions.sources.base import Database
from predictions.sources.reader import Reader, Session

# The database, and a function that opens a session for single records, given a deadline by the monotonic clock.
Opened = tuple[Database, Callable[[float], Session]]


def open_database(settings: DatabaseSettings) -> Database:
    """Return the database that the settings name.

    Raises:
        InputError: the URL is wrong or of an unknown kind, a library or a driver is not installed, or the SQLite file
            does not exist.
    """
    return _open(settings)[0]


def open_reader(settings: DatabaseSettings) -> Callable[[], Reader]:
    """Return a function that makes readers of single records of the database that the settings name.

    Raises:
        InputError: as for `open_database`.
    """
    database, open_session = _open(settings)
    return partial(Reader, database, settings, open_session)


def _open(settings: DatabaseSettings) -> Opened:
    for pattern, (open_kind, extra) in _KINDS.items():
        if re.match(pattern, settings.url):
            try:
                return open_kind(settings)
            except ModuleNotFoundError as error:
                raise InputError(f"{error.name} is not installed: pip install 'predictions[{extra}]'") from error
    kind = settings.url.partition(":")[0][:20]  # the rest may hold a password
    raise InputError(
        f"database.url: {kind}…: it must be sqlite:///PATH, postgresql://USER@HOST:PORT/DATABASE "
        "or, for other databases, DIALECT+DRIVER://USER@HOST:PORT/DATABASE"
    )


def _sqlite(settings: DatabaseSettings) -> Opened:
    from predictions.sources.sqlite import SqliteDatabase
    from predictions.sources.sqlite_reader import SqliteSession

    database = SqliteDatabase(settings)
    return database, partial(SqliteSession, database, settings)


def _postgresql(settings: DatabaseSettings) -> Opened:
    from predictions.sources.postgresql import PostgresDatabase
    from predictions.sources.postgresql_reader import PostgresSession

    database = PostgresDatabase(settings)
    return database, partial(PostgresSession, database, settings)


def _sqlalchemy(settings: DatabaseSettings) -> Opened:
    from predictions.sources.sqlalchemy import SqlalchemyDatabase
    from predictions.sources.sqlalchemy_reader import SqlalchemySession

    database = SqlalchemyDatabase(settings)
    return database, partial(SqlalchemySession, database, settings)


# By how the URL begins: the function that opens the database, and the extra (of pip) that it needs.
_KINDS = {
    "sqlite:///": (_sqlite, ""),
    "postgres(ql)?://": (_postgresql, "postgresql"),
    r"\w+\+\w+://": (_sqlalchemy, "sqlalchemy"),
}
