"""The source database, one kind a module: all its records for the export, single ones for lookups; it is only read."""

import re
from collections.abc import Callable
from functools import partial

from predictions.errors import InputError
from predictions.settings import DatabaseSettings
from predictions.sources.base import Database, Reader


def open_database(settings: DatabaseSettings) -> Database:
    """Return the database that the settings name.

    Raises:
        InputError: the URL is of no known kind, or the database is not there.
    """
    return _open(settings)[0]


def open_reader(settings: DatabaseSettings) -> Callable[[], Reader]:
    """Return what makes readers of single records of the database that the settings name; InputError as above."""
    return _open(settings)[1]


def _open(settings: DatabaseSettings) -> tuple[Database, Callable[[], Reader]]:
    for pattern, open_kind in _KINDS.items():
        if re.match(pattern, settings.url):
            return open_kind(settings)
    kind = settings.url.partition(":")[0][:20]  # what follows may have a password
    raise InputError(
        f"database.url: {kind}…: must be sqlite:///PATH, postgresql://USER@HOST:PORT/DATABASE "
        "or, for others, DIALECT+DRIVER://USER@HOST:PORT/DATABASE"
    )


def _sqlite(settings: DatabaseSettings) -> tuple[Database, Callable[[], Reader]]:
    from predictions.sources.sqlite import SqliteDatabase
    from predictions.sources.sqlite_reader import SqliteReader

    database = SqliteDatabase(settings)
    return database, partial(SqliteReader, database, settings)


def _postgresql(settings: DatabaseSettings) -> tuple[Database, Callable[[], Reader]]:
    try:
        from predictions.sources.postgresql import PostgresDatabase
        from predictions.sources.postgresql_reader import PostgresReader
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed: pip install 'predictions[postgresql]'") from error
    database = PostgresDatabase(settings)
    return database, partial(PostgresReader, database, settings)


def _sqlalchemy(settings: DatabaseSettings) -> tuple[Database, Callable[[], Reader]]:
    try:
        from predictions.sources.sqlalchemy import SqlalchemyDatabase
        from predictions.sources.sqlalchemy_reader import SqlalchemyReader
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed: pip install 'predictions[sqlalchemy]'") from error
    database = SqlalchemyDatabase(settings)
    return database, partial(SqlalchemyReader, database, settings)


_KINDS = {"sqlite:///": _sqlite, "postgres(ql)?://": _postgresql, r"\w+\+\w+://": _sqlalchemy}
