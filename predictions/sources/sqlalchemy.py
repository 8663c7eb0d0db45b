"""A database of another kind as the source (see `predictions.sources.base`), by SQLAlchemy and a driver for it.

Only SQL's own parts go by SQLAlchemy. Its types do not: some of them change what the driver gave (a DOUBLE of MySQL
is rounded, what an ENUM does not declare is an error). What a driver gives is what
`predictions.sources.sqlalchemy_values` writes.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import Connection, Dialect, FromClause, column, create_engine, exc, func, inspect, select, table, text
from sqlalchemy import types as sql
from sqlalchemy.engine import URL, make_url
from sqlalchemy.pool import StaticPool

from predictions.errors import InputError, PredictionsError, ServiceError, SnapshotLostError
from predictions.formats.record_line import Column, write_rows
from predictions.settings import DatabaseSettings
from predictions.sources.base import no_column, no_table
from predictions.sources.sqlalchemy_values import fields

FETCH_ROWS = 10_000
LONGEST = 31_536_000.0  # seconds, a year: MySQL and its driver take no longer time
MYSQL = ("mysql", "mariadb")
_SNAPSHOT_LEVELS = ("SNAPSHOT", "SERIALIZABLE")  # one of them, where a database has no rule of its own
_TRANSACTIONAL = ("innodb", "rocksdb")  # engines of MySQL
_TABLE_CHANGED = 1412  # MySQL: since the snapshot
_LATE_STATES = ("57014", "70100")  # SQLSTATE of a statement that took too long: PostgreSQL, MariaDB
_LATE_CODES = (1205, 3024)  # MySQL: waited for a lock, for a statement
_LOST = 2013  # MySQL's drivers: no answer
_OUR_STATES = ("21", "22", "25", "42")  # classes of SQLSTATE: the statement is at fault
_OURS = (exc.DataError, exc.ProgrammingError, exc.NotSupportedError)
_KINDS: list[tuple[type[sql.TypeEngine[Any]], str]] = [
    (sql.Integer, "integer"),
    (sql.Numeric, "real"),
    (sql.Float, "real"),
    (sql.Date, "date"),
    (sql.DateTime, "date"),
    (sql.String, "text"),
]
_SEEN: list[tuple[set[type], str]] = [
    ({int}, "integer"),
    ({int, float, Decimal}, "real"),
    ({date, datetime}, "date"),
]


class SqlalchemyDatabase:
    """A table, a view or a query of a database that SQLAlchemy has a dialect for."""

    def __init__(self, settings: DatabaseSettings) -> None:
        self._settings = settings
        self._url = _parse(settings.url)
        self.name = URL.create(
            self._url.drivername, host=self._url.host, port=self._url.port, database=self._url.database
        ).render_as_string()

    def connect(self, seconds: float) -> Connection:
        """Open a session, in which each statement is its own transaction and may take so many seconds."""
        seconds = min(seconds, LONGEST)
        engine = create_engine(
            self._url,
            connect_args=self._driver_options(seconds),
            isolation_level="AUTOCOMMIT",
            # The pool holds the one connection and says nothing to the server of its own accord: a forked process
            # lets go of it unnoticed.
            poolclass=StaticPool,
            pool_reset_on_return=None,
        )
        try:
            connection = engine.connect()
            for statement in self._session_statements(connection.dialect, seconds):
                connection.exec_driver_sql(statement)
        except RuntimeError as error:  # a driver misses another package
            raise InputError(f"{self.name}: {error}") from error
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise InputError(
                "database.url: an option after the ? is unknown to the driver, or has a wrong value"
            ) from error
        except BaseException:
            engine.dispose()
            raise
        return connection

    def _driver_options(self, seconds: float) -> dict[str, Any]:
        patience = min(self._settings.timeout, LONGEST)
        match self._url.get_driver_name():
            case "pymysql":
                return {"connect_timeout": patience, "read_timeout": seconds, "write_timeout": patience}
            case "psycopg":
                return {"connect_timeout": max(1, round(patience))}  # libpq knows whole seconds
        return {}

    def _session_statements(self, dialect: Dialect, seconds: float) -> list[str]:
        """Return what makes a session read only, and its texts those of any other."""
        patience = math.ceil(min(self._settings.timeout, LONGEST))
        if dialect.name == "postgresql":
            return [
                "SET default_transaction_read_only = on",
                "SET TimeZone = 'UTC'",
                "SET DateStyle = 'ISO, YMD'",
                "SET IntervalStyle = 'postgres'",
                "SET lc_monetary = 'C'",
                f"SET statement_timeout = {round(seconds * 1000)}",
                f"SET lock_timeout = {patience * 1000}",
            ]
        if dialect.name not in MYSQL:
            return []
        is_mariadb = getattr(dialect, "is_mariadb", False)
        limit = f"max_statement_time = {seconds:f}" if is_mariadb else f"max_execution_time = {round(seconds * 1000)}"
        return [
            "SET SESSION TRANSACTION READ ONLY",
            f"SET SESSION time_zone = '+00:00', lock_wait_timeout = {patience}, {limit}",
            # Who writes slowly to the storage, or is told to by --rate, reads slowly.
            f"SET SESSION net_write_timeout = {math.ceil(seconds)}",
        ]

    @contextmanager
    def errors(self, setting: str) -> Iterator[None]:
        """Turn SQLAlchemy's errors into one clear line each; `setting` says how long a statement may take."""
        try:
            yield
        except exc.DBAPIError as error:
            raise self._error(error, f"{getattr(self._settings, setting):g} s (database.{setting})") from error
        except exc.SQLAlchemyError as error:
            raise InputError(f"{self.name}: {_line(error)}") from error

    def _error(self, error: exc.DBAPIError, patience: str) -> PredictionsError:
        if is_late(error):
            return ServiceError(f"{self.name}: no answer within {patience}")
        text = f"{self.name}: {_line(error.orig)}"
        if code(error) == _TABLE_CHANGED:
            return SnapshotLostError(text)
        is_ours = isinstance(error, _OURS) or state(error)[:2] in _OUR_STATES
        return InputError(text) if is_ours and not error.connection_invalidated else ServiceError(text)

    @contextmanager
    def _session(self, setting: str = "timeout") -> Iterator[Connection]:
        with self.errors(setting):
            connection = self.connect(getattr(self._settings, setting))
            try:
                yield connection
            finally:
                connection.engine.dispose()

    def columns(self) -> list[Column]:
        with self._session() as connection:
            return Source.find(self, self._settings, connection).columns

    def count(self) -> int:
        with self._session("export_timeout") as connection:
            return Source.find(self, self._settings, connection).count(connection)

    @contextmanager
    def snapshot(self, columns: Sequence[str]) -> Iterator["SqlalchemySnapshot"]:
        """Read all records in one read transaction.

        Args:
            columns: the record ID, the features in the model's order, the label.

        Raises:
            InputError: a column is missing, or the database has no snapshots.
        """
        with self._session("export_timeout") as connection:
            self._begin(connection)
            source = Source.find(self, self._settings, connection)
            yield SqlalchemySnapshot(self, connection, source, [source.column(self, name) for name in columns])

    def _begin(self, connection: Connection) -> None:
        """Begin the transaction whose statements all see one moment.

        A release of records of different moments would be wrong without a sign of it: where there is no such
        transaction, there is no export.
        """
        connection.commit()  # what SQLAlchemy began
        if connection.dialect.name in MYSQL:
            connection.execution_options(isolation_level="REPEATABLE READ")
            connection.exec_driver_sql("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
        elif connection.dialect.name == "postgresql":
            connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        else:
            driver = connection.connection.dbapi_connection
            offered = connection.dialect.get_isolation_level_values(driver) if driver else ()
            level = next((level for level in _SNAPSHOT_LEVELS if level in offered), None)
            if level is None:
                raise InputError(
                    f"{self.name}: it has no transactions that see one moment ({' or '.join(_SNAPSHOT_LEVELS)})"
                )
            connection.execution_options(isolation_level=level)


def _parse(given: str) -> URL:
    """Return a URL that SQLAlchemy and a driver can make use of; what is wrong with it is told without its text."""
    wrong = "not a URL of SQLAlchemy: DIALECT+DRIVER://USER:PASSWORD@HOST:PORT/DATABASE"
    try:
        url = make_url(given)
    except (exc.ArgumentError, ValueError):
        raise InputError(f"database.url: {wrong}") from None
    if "@" in f"{url.host}{url.database}":  # what stands there then is a part of the password
        raise InputError(f"database.url: {wrong}; an @ within the password is written %40")
    try:
        dialect = url.get_dialect()
        dialect.import_dbapi()
    except exc.NoSuchModuleError:
        raise InputError(f"database.url: SQLAlchemy knows no {url.drivername}") from None
    except ImportError as error:
        raise InputError(f"database.url: {error.name}, the driver of {url.drivername}, is not installed") from error
    if dialect.is_async:
        raise InputError(f"database.url: {url.drivername}: the driver must be one that is not asynchronous")
    if dialect.name == "sqlite":
        raise InputError("database.url: SQLite is read as sqlite:///PATH")
    return url


def code(error: exc.DBAPIError) -> int:
    """Return the number of an error of MySQL's; 0 where it has none."""
    first = next(iter(getattr(error.orig, "args", ())), 0)
    return first if isinstance(first, int) else 0


def state(error: exc.DBAPIError) -> str:
    """Return the SQLSTATE of an error; "" where the driver does not tell it."""
    return getattr(error.orig, "sqlstate", None) or ""


def is_late(error: exc.DBAPIError) -> bool:
    """Whether an error is that of a statement that took too long."""
    timed_out = code(error) == _LOST and "timed out" in str(error.orig)
    return timed_out or state(error) in _LATE_STATES or code(error) in _LATE_CODES


def _line(error: BaseException | None) -> str:
    """Return an error's text in one line; MySQL's drivers give a number and the text."""
    args: Any = getattr(error, "args", ())
    text = f"{args[1]} ({args[0]})" if len(args) > 1 and isinstance(args[0], int) else str(error)
    return " ".join(text.split())


class Source(NamedTuple):
    """What records are read from."""

    relation: FromClause
    shown: str
    columns: list[Column]  # with no type where the values will tell it
    types: dict[str, sql.TypeEngine[Any]]  # of the columns, as far as they are known
    note: str | None = None

    @classmethod
    def find(cls, database: SqlalchemyDatabase, settings: DatabaseSettings, connection: Connection) -> "Source":
        """Return the query or the relation that the settings name, as `NAME` or `SCHEMA.NAME`."""
        if settings.query is not None:
            return cls._of_query(settings.query, connection)
        given = settings.table or ""
        inspector = inspect(connection)
        schema, dot, last = given.rpartition(".")
        for name, place in [(given, None), *([(last, schema)] if dot else [])]:
            if not inspector.has_table(name, place):
                continue
            with warnings.catch_warnings():
                # A type that SQLAlchemy does not know is none of our concern: the driver knows its values.
                warnings.filterwarnings("ignore", "Did not recognize type", exc.SAWarning)
                found = inspector.get_columns(name, place)
            if connection.dialect.name in MYSQL:  # where SQLAlchemy leaves a backtick of a name doubled
                found = [{**each, "name": each["name"].replace("``", "`")} for each in found]
            types = {each["name"]: each["type"] for each in found}
            options = inspector.get_table_options(name, place)
            engine = str(options.get("mysql_engine") or options.get("mariadb_engine") or "")
            note = (
                None
                if not engine or engine.lower() in _TRANSACTIONAL
                else f"{given} is of the engine {engine}, which has no snapshots: records may be of different moments"
            )
            relation = table(name, *map(column, types), schema=place)
            columns = [Column(each, _kind(type_)) for each, type_ in types.items()]
            return cls(relation, given, columns, types, note)
        raise no_table(given, database.name, sorted([*inspector.get_table_names(), *inspector.get_view_names()]))

    @classmethod
    def _of_query(cls, query: str, connection: Connection) -> "Source":
        # Who writes the settings may write any query: a colon in it names no parameter, and a comment at its end is
        # not to take the bracket with it.
        given = text(query.replace(":", r"\:") + "\n")
        star = select(text("*")).select_from(given.columns().subquery("predictions_query")).limit(0)
        names = list(connection.execute(star).keys())
        relation = given.columns(*map(column, names)).subquery("predictions_query")
        return cls(relation, "the query", [Column(name, "") for name in names], {})

    def column(self, database: SqlalchemyDatabase, name: str) -> Column:
        """Return one of the columns; InputError where it is not there."""
        known = {column.name: column for column in self.columns}
        if name not in known:
            raise no_column(name, self.shown, database.name, known)
        return known[name]

    def count(self, connection: Connection) -> int:
        """Return how many records there are."""
        return connection.execute(select(func.count()).select_from(self.relation)).scalar_one()


def _kind(type_: sql.TypeEngine[Any]) -> str:
    return next((kind for known, kind in _KINDS if isinstance(type_, known)), "")


class SqlalchemySnapshot:
    """The records of an open transaction (see `predictions.sources.base.Snapshot`)."""

    id = None

    def __init__(
        self, database: SqlalchemyDatabase, connection: Connection, source: Source, columns: list[Column]
    ) -> None:
        self._database = database
        self._connection = connection
        self._source = source
        self.columns = columns
        self.expected = source.count(connection)
        self.time = datetime.now(UTC)
        self.note = source.note

    def shares(self) -> list["SqlalchemySnapshot"]:
        """Return the one part that there is: a transaction belongs to its connection."""
        return [self]

    def blocks(self) -> Iterator[bytes]:
        """Yield the lines; afterwards `columns` has the types of what was found where none is declared.

        Raises:
            SnapshotLostError: the connection was lost.
        """
        names = [column.name for column in self.columns]
        statement = select(*(self._source.relation.c[name] for name in names))
        seen: dict[int, set[type]] = {index: set() for index, column in enumerate(self.columns) if not column.type}
        driver = self._connection.connection.dbapi_connection
        with self._lost(), _unread(driver):
            result = self._connection.execution_options(yield_per=FETCH_ROWS).execute(statement)
            for rows in result.partitions():
                for index, kinds in seen.items():
                    kinds.update({type(row[index]) for row in rows})
                yield write_rows(fields(names, row) for row in rows)
        for index, kinds in seen.items():
            self.columns[index] = Column(names[index], _seen_kind(kinds))

    @contextmanager
    def _lost(self) -> Iterator[None]:
        try:
            yield
        except exc.DBAPIError as error:
            if is_late(error) or not error.connection_invalidated:
                raise
            raise SnapshotLostError(f"{self._database.name}: the snapshot was lost: {_line(error.orig)}") from error


def _seen_kind(types: set[type]) -> str:
    types = types - {type(None)}
    for kinds, name in _SEEN:
        if types and types <= kinds:
            return name
    return "text"


@contextmanager
def _unread(driver: Any) -> Iterator[None]:
    """Leave what is not read yet: PyMySQL would read the rest of the table when its result is let go of."""
    try:
        yield
    finally:
        if result := getattr(driver, "_result", None):
            result.unbuffered_active = False
