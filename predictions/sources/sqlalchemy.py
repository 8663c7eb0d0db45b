"""A database of another kind as the source (see `predictions.sources.base`), read with SQLAlchemy and a driver.

SQLAlchemy builds the statements, but its types are not used: some of them change what the driver returned (a DOUBLE of
MySQL is rounded, and a value that an ENUM does not declare is an error). `predictions.sources.sqlalchemy_values` writes
the values as the driver returned them.
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
MAX_SECONDS = 31_536_000.0  # a year: MySQL and its driver accept no longer time limit
MYSQL = ("mysql", "mariadb")
_SNAPSHOT_LEVELS = ("SNAPSHOT", "SERIALIZABLE")  # the first that a database has, if it is not named in `_begin`
_SNAPSHOT_ENGINES = ("innodb", "rocksdb")  # engines of MySQL that have snapshots
_TABLE_CHANGED = 1412  # MySQL: the table was changed after the snapshot
_TIMEOUT_STATES = ("57014", "70100")  # SQLSTATE of a statement that took too long: PostgreSQL, MariaDB
_TIMEOUT_NUMBERS = (1205, 3024)  # MySQL: a lock, or a statement, took too long
_NO_ANSWER = 2013  # MySQL's drivers: the connection was lost while waiting for an answer
# These classes of SQLSTATE and these errors mean that the settings or the data are wrong; any other error is a failure
# of the service.
_INPUT_STATES = ("21", "22", "25", "42")
_INPUT_ERRORS = (exc.DataError, exc.ProgrammingError, exc.NotSupportedError)
_DECLARED_TYPES: list[tuple[type[sql.TypeEngine[Any]], str]] = [
    (sql.Integer, "integer"),
    (sql.Numeric, "real"),
    (sql.Float, "real"),
    (sql.Date, "date"),
    (sql.DateTime, "date"),
    (sql.String, "text"),
]
_VALUE_TYPES: list[tuple[set[type], str]] = [
    ({int}, "integer"),
    ({int, float, Decimal}, "real"),
    ({date, datetime}, "date"),
]
_EXACT_TYPES: dict[type, str] = {bool: "boolean", date: "day", datetime: "timestamp"}  # by the type of all values


class SqlalchemyDatabase:
    """A table, a view or a query of a database that SQLAlchemy has a dialect for."""

    def __init__(self, settings: DatabaseSettings) -> None:
        self._settings = settings
        self._url = _parse(settings.url)
        self.name = URL.create(
            self._url.drivername, host=self._url.host, port=self._url.port, database=self._url.database
        ).render_as_string()

    def connect(self, seconds: float) -> Connection:
        """Open a read-only session in which each statement is a transaction of its own.

        Args:
            seconds: how long each statement may take.
        """
        seconds = min(seconds, MAX_SECONDS)
        engine = create_engine(
            self._url,
            connect_args=self._driver_options(seconds),
            isolation_level="AUTOCOMMIT",
            # The pool holds one connection and sends nothing to the server unasked, so a forked process can drop the
            # connection without any effect on its parent.
            poolclass=StaticPool,
            pool_reset_on_return=None,
        )
        try:
            connection = engine.connect()
            for statement in self._session_statements(connection.dialect, seconds):
                connection.exec_driver_sql(statement)
        except RuntimeError as error:  # the driver needs another package
            raise InputError(f"{self.name}: {error}") from error
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise InputError(
                "database.url: the driver does not know an option after the ?, or its value is wrong"
            ) from error
        except BaseException:
            engine.dispose()
            raise
        return connection

    def _driver_options(self, seconds: float) -> dict[str, Any]:
        timeout = min(self._settings.timeout, MAX_SECONDS)
        match self._url.get_driver_name():
            case "pymysql":
                return {"connect_timeout": timeout, "read_timeout": seconds, "write_timeout": timeout}
            case "psycopg":
                return {"connect_timeout": max(1, round(timeout))}  # libpq takes whole seconds only
        return {}

    def _session_statements(self, dialect: Dialect, seconds: float) -> list[str]:
        """Return statements that make a session read-only, limit its time and make it write values as all others do."""
        lock_seconds = math.ceil(min(self._settings.timeout, MAX_SECONDS))
        if dialect.name == "postgresql":
            return [
                "SET default_transaction_read_only = on",
                "SET TimeZone = 'UTC'",
                "SET DateStyle = 'ISO, YMD'",
                "SET IntervalStyle = 'postgres'",
                "SET lc_monetary = 'C'",
                f"SET statement_timeout = {round(seconds * 1000)}",
                f"SET lock_timeout = {lock_seconds * 1000}",
            ]
        if dialect.name not in MYSQL:
            return []
        is_mariadb = getattr(dialect, "is_mariadb", False)
        limit = f"max_statement_time = {seconds:f}" if is_mariadb else f"max_execution_time = {round(seconds * 1000)}"
        return [
            "SET SESSION TRANSACTION READ ONLY",
            f"SET SESSION time_zone = '+00:00', lock_wait_timeout = {lock_seconds}, {limit}",
            # An export reads slowly if the storage is slow, or with --rate.
            f"SET SESSION net_write_timeout = {math.ceil(seconds)}",
        ]

    @contextmanager
    def errors(self, setting: str) -> Iterator[None]:
        """Turn SQLAlchemy's errors into ours, one clear line each.

        Args:
            setting: the field of `DatabaseSettings` with the time limit in seconds, for the message of a timeout.
        """
        try:
            yield
        except exc.DBAPIError as error:
            raise self._error(error, f"{getattr(self._settings, setting):g} s (database.{setting})") from error
        except exc.SQLAlchemyError as error:
            raise InputError(f"{self.name}: {_line(error)}") from error

    def _error(self, error: exc.DBAPIError, limit: str) -> PredictionsError:
        if is_timeout(error):
            return ServiceError(f"{self.name}: no answer within {limit}")
        text = f"{self.name}: {_line(error.orig)}"
        if error_number(error) == _TABLE_CHANGED:
            return SnapshotLostError(text)
        is_input = isinstance(error, _INPUT_ERRORS) or sqlstate(error)[:2] in _INPUT_STATES
        return InputError(text) if is_input and not error.connection_invalidated else ServiceError(text)

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
    def snapshot(self, names: Sequence[str]) -> Iterator["SqlalchemySnapshot"]:
        """Open a read transaction on all records.

        Args:
            names: the columns: the record ID, the features in the model's order, the label.

        Raises:
            InputError: a column is missing, or the database has no snapshots.
        """
        with self._session("export_timeout") as connection:
            self._begin(connection)
            source = Source.find(self, self._settings, connection)
            yield SqlalchemySnapshot(self, connection, source, [source.column(self, name) for name in names])

    def _begin(self, connection: Connection) -> None:
        """Begin a transaction whose statements all see the same moment.

        A database without such transactions is refused: records of different moments would make a release wrong, and
        nothing would show it.
        """
        connection.commit()  # end the transaction that SQLAlchemy began
        if connection.dialect.name in MYSQL:
            connection.execution_options(isolation_level="REPEATABLE READ")
            connection.exec_driver_sql("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
        elif connection.dialect.name == "postgresql":
            connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        else:
            driver = connection.connection.dbapi_connection
            levels = connection.dialect.get_isolation_level_values(driver) if driver else ()
            level = next((level for level in _SNAPSHOT_LEVELS if level in levels), None)
            if level is None:
                raise InputError(
                    f"{self.name}: cannot be exported: it has no transactions with a snapshot (isolation level "
                    f"{' or '.join(_SNAPSHOT_LEVELS)})"
                )
            connection.execution_options(isolation_level=level)


def _parse(url_text: str) -> URL:
    """Parse the URL; errors never include it, since it may hold a password.

    Raises:
        InputError: it is not a URL, or SQLAlchemy has no dialect or driver for it that can be used here.
    """
    reason = "not a URL of SQLAlchemy: DIALECT+DRIVER://USER:PASSWORD@HOST:PORT/DATABASE"
    try:
        url = make_url(url_text)
    except (exc.ArgumentError, ValueError):
        raise InputError(f"database.url: {reason}") from None
    if "@" in f"{url.host}{url.database}":  # the URL was split at the wrong place: these hold a part of the password
        raise InputError(f"database.url: {reason}; within the password, write %40 for @")
    try:
        dialect = url.get_dialect()
        dialect.import_dbapi()
    except exc.NoSuchModuleError:
        raise InputError(
            f"database.url: SQLAlchemy does not know {url.drivername}; check the name, or install the dialect's package"
        ) from None
    except ImportError as error:
        raise InputError(f"database.url: {error.name}, the driver of {url.drivername}, is not installed") from error
    if dialect.is_async:
        raise InputError(f"database.url: {url.drivername} is asynchronous; choose a synchronous driver")
    if dialect.name == "sqlite":
        raise InputError("database.url: write sqlite:///PATH for SQLite")
    return url


def error_number(error: exc.DBAPIError) -> int:
    """Return MySQL's number of an error; 0 for an error without a number."""
    first = next(iter(getattr(error.orig, "args", ())), 0)
    return first if isinstance(first, int) else 0


def sqlstate(error: exc.DBAPIError) -> str:
    """Return the SQLSTATE of an error; "" if the driver does not provide it."""
    return getattr(error.orig, "sqlstate", None) or ""


def is_timeout(error: exc.DBAPIError) -> bool:
    """Return whether a statement took too long."""
    timed_out = error_number(error) == _NO_ANSWER and "timed out" in str(error.orig)
    return timed_out or sqlstate(error) in _TIMEOUT_STATES or error_number(error) in _TIMEOUT_NUMBERS


def _line(error: BaseException | None) -> str:
    # Errors of MySQL's drivers hold a number and a text.
    args: Any = getattr(error, "args", ())
    text = f"{args[1]} ({args[0]})" if len(args) > 1 and isinstance(args[0], int) else str(error)
    return " ".join(text.split())


class Source(NamedTuple):
    """A table, a view or a query that records are read from."""

    relation: FromClause
    display_name: str  # in messages
    columns: list[Column]  # with the type "" where only the values can show it
    types: dict[str, sql.TypeEngine[Any]]  # SQLAlchemy's types of the columns; empty for a query
    note: str | None = None  # see `predictions.sources.base.Snapshot`

    @classmethod
    def find(cls, database: SqlalchemyDatabase, settings: DatabaseSettings, connection: Connection) -> "Source":
        """Return the query, or the table or view that the settings name as `NAME` or `SCHEMA.NAME`.

        Raises:
            InputError: there is no such table or view.
        """
        if settings.query is not None:
            return cls._of_query(settings.query, connection)
        full_name = settings.table or ""
        inspector = inspect(connection)
        before_dot, dot, after_dot = full_name.rpartition(".")
        for name, schema in [(full_name, None), *([(after_dot, before_dot)] if dot else [])]:
            if not inspector.has_table(name, schema):
                continue
            with warnings.catch_warnings():
                # SQLAlchemy need not know a column's type: the driver knows the values.
                warnings.filterwarnings("ignore", "Did not recognize type", exc.SAWarning)
                described = inspector.get_columns(name, schema)
            types = {description["name"]: description["type"] for description in described}
            if connection.dialect.name in MYSQL:  # SQLAlchemy returns a backtick in a name doubled, as it is quoted
                types = {column_name.replace("``", "`"): type_ for column_name, type_ in types.items()}
            options = inspector.get_table_options(name, schema)
            engine = str(options.get("mysql_engine") or options.get("mariadb_engine") or "")
            note = (
                None
                if not engine or engine.lower() in _SNAPSHOT_ENGINES
                else f"{full_name} has the engine {engine}, which has no snapshots: its records may be from different "
                "moments"
            )
            relation = table(name, *map(column, types), schema=schema)
            columns = [
                Column(column_name, _declared_type(type_), _exact_type(type_)) for column_name, type_ in types.items()
            ]
            return cls(relation, full_name, columns, types, note)
        raise no_table(full_name, database.name, sorted([*inspector.get_table_names(), *inspector.get_view_names()]))

    @classmethod
    def _of_query(cls, query: str, connection: Connection) -> "Source":
        # The author of the settings may write any query. The backslash keeps a colon from naming a parameter, and the
        # line feed keeps a comment at the end from hiding the bracket.
        statement = text(query.replace(":", r"\:") + "\n")
        no_rows = select(text("*")).select_from(statement.columns().subquery("predictions_query")).limit(0)
        names = list(connection.execute(no_rows).keys())
        relation = statement.columns(*map(column, names)).subquery("predictions_query")
        return cls(relation, "the query", [Column(name, "") for name in names], {})

    def column(self, database: SqlalchemyDatabase, name: str) -> Column:
        """Return the column of this name.

        Raises:
            InputError: there is no such column.
        """
        columns = {column.name: column for column in self.columns}
        if name not in columns:
            raise no_column(name, self.display_name, database.name, columns)
        return columns[name]

    def count(self, connection: Connection) -> int:
        """Return the number of records."""
        return connection.execute(select(func.count()).select_from(self.relation)).scalar_one()


def _declared_type(type_: sql.TypeEngine[Any]) -> str:
    return next((column_type for class_, column_type in _DECLARED_TYPES if isinstance(type_, class_)), "")


def _exact_type(type_: sql.TypeEngine[Any]) -> str:
    if isinstance(type_, sql.DateTime):
        return "timestamptz" if type_.timezone else "timestamp"
    return "boolean" if isinstance(type_, sql.Boolean) else "day" if isinstance(type_, sql.Date) else ""


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
        """Return one share: other connections cannot read this transaction's records."""
        return [self]

    def blocks(self) -> Iterator[bytes]:
        """Yield the record lines; afterwards `columns` also has the types that were not declared, by the values.

        Raises:
            SnapshotLostError: the connection was lost.
        """
        names = [column.name for column in self.columns]
        statement = select(*(self._source.relation.c[name] for name in names))
        undeclared: dict[int, set[type]] = {
            index: set() for index, column in enumerate(self.columns) if not column.type
        }
        driver = self._connection.connection.dbapi_connection
        with self._lost(), _rest_unread(driver):
            result = self._connection.execution_options(yield_per=FETCH_ROWS).execute(statement)
            for rows in result.partitions():
                for index, types in undeclared.items():
                    types.update({type(row[index]) for row in rows})
                yield write_rows(fields(names, row) for row in rows)
        for index, types in undeclared.items():
            exact = {_EXACT_TYPES.get(type_, "") for type_ in types - {type(None)}}
            self.columns[index] = Column(
                names[index], _type_of_values(types), exact.pop() if len(exact) == 1 else self.columns[index].declared
            )

    @contextmanager
    def _lost(self) -> Iterator[None]:
        try:
            yield
        except exc.DBAPIError as error:
            if is_timeout(error) or not error.connection_invalidated:
                raise
            raise SnapshotLostError(f"{self._database.name}: the snapshot was lost: {_line(error.orig)}") from error


def _type_of_values(types: set[type]) -> str:
    types = types - {type(None)}
    for allowed, column_type in _VALUE_TYPES:
        if types and types <= allowed:
            return column_type
    return "text"


@contextmanager
def _rest_unread(driver: Any) -> Iterator[None]:
    """Leave the rest of a result unread: PyMySQL would read it to the end, be it a whole table, to free the result."""
    try:
        yield
    finally:
        if result := getattr(driver, "_result", None):
            result.unbuffered_active = False
