"""A PostgreSQL database, or a read replica of one, as the source (see `predictions.sources.base`), read with psycopg.

COPY itself writes the record lines (its documentation, "Text Format"), in the export as in a lookup. The text of a
value depends on the session's settings: `PINNED` makes them the same in all our sessions.
"""

import io
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, NamedTuple

import psycopg
from psycopg import errors, generators, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import ExecStatus
from psycopg.waiting import Wait

from predictions.errors import InputError, PredictionsError, ServiceError, SnapshotLostError
from predictions.formats.record_line import Column
from predictions.settings import DatabaseSettings
from predictions.sources.base import no_column, no_table

PINNED = {
    "client_encoding": "UTF8",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "1",  # the shortest text that reads back as the same number
    "bytea_output": "hex",
    "lc_monetary": "C",
}
MIN_VERSION = 15  # the first version whose COPY writes a header with the column names
RANGE_PAGES = 1024  # pages of a table that one statement reads: 8 MB with the default page size
BLOCK_BYTES = 256 << 10  # of lines: small enough that the steps after this one find a block in the CPU's cache
SIZE_CHECK_LINES = 32  # lines between two checks of a block's size
WAKE_SECONDS = 0.1  # while a session waits, how often it checks for an interruption
KEEPALIVE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}

_BOOLEAN, _BYTEA = 16, 17  # OIDs of types (pg_type.dat)
_INTEGERS = (20, 21, 23, 26)  # int8, int2, int4, oid
_REALS = (700, 701, 1700)  # float4, float8, numeric
_DATES = (1082, 1114, 1184)  # date, timestamp, timestamptz
_DECLARED = {_BOOLEAN: "boolean", **dict(zip(_DATES, ("day", "timestamp", "timestamptz"), strict=True))}
# These errors mean that the settings or the data are wrong; any other error is a failure of the service.
_INPUT_ERRORS = (errors.DataError, errors.ProgrammingError, errors.NotSupportedError, errors.ReadOnlySqlTransaction)
_CONFLICT = "conflict with recovery"
_PORTS = re.compile(r"[0-9,]*")
TIMEOUTS = (errors.QueryCanceled, errors._WaitTimeout)


class Field(NamedTuple):
    """A column as PostgreSQL describes it."""

    name: str
    type: int  # its OID
    modifier: int

    @property
    def column(self) -> Column:
        """The column as a release records it."""
        types = {
            **dict.fromkeys(_INTEGERS, "integer"),
            **dict.fromkeys(_REALS, "real"),
            **dict.fromkeys(_DATES, "date"),
        }
        return Column(self.name, types.get(self.type, "text"), _DECLARED.get(self.type, ""))

    @property
    def is_boolean(self) -> bool:
        return self.type == _BOOLEAN

    @property
    def is_bytes(self) -> bool:
        return self.type == _BYTEA


class Session(psycopg.Connection[tuple[Any, ...]]):
    """A connection that waits no longer than `max_wait` seconds for an answer, or for the next block of lines.

    If `deadline` is set, by the monotonic clock, it waits until then instead.
    """

    max_wait: float | None = None
    deadline: float | None = None

    def wait(self, gen: Any, interval: float = WAKE_SECONDS, timeout: float | None = None) -> Any:
        max_wait = self.max_wait if self.deadline is None else max(0.0, self.deadline - time.monotonic())
        return super().wait(gen, interval, max_wait if timeout is None else timeout)


class PostgresDatabase:
    """A table, a view or a query of a PostgreSQL database."""

    def __init__(self, settings: DatabaseSettings) -> None:
        self._settings = settings
        try:
            self._parameters = conninfo_to_dict(settings.url)
            public_parts = "".join(str(self._parameters.get(key, "")) for key in ("host", "port", "dbname"))
            if "@" in public_parts or not _PORTS.fullmatch(str(self._parameters.get("port", ""))):
                raise ValueError  # the URL was split at the wrong place: these hold a part of the password
        except (psycopg.ProgrammingError, ValueError):  # left out of the message: their texts may hold the password
            raise InputError(
                "database.url: not a URL of PostgreSQL: postgresql://USER:PASSWORD@HOST:PORT/DATABASE; within the "
                "password, write %40 for @ and %2F for /"
            ) from None
        address = ":".join(str(self._parameters[key]) for key in ("host", "port") if self._parameters.get(key))
        self.name = f"postgresql://{address}/{self._parameters.get('dbname', '')}"

    def connect(self, seconds: float, deadline: float | None = None) -> Session:
        """Open a read-only session.

        Args:
            seconds: how long each statement may take.
            deadline: when connecting and all statements must have ended, by the monotonic clock; None for no deadline.
        """
        max_wait = self._settings.timeout if deadline is None else max(0.0, deadline - time.monotonic())
        parameters = {**KEEPALIVE, "application_name": "predictions", **self._parameters}
        parameters["connect_timeout"] = max(1, round(max_wait))  # libpq takes whole seconds only
        connection = Session.connect(make_conninfo("", **parameters), autocommit=True, prepare_threshold=None)
        try:
            connection.max_wait, connection.deadline = max_wait, deadline
            if connection.info.server_version < MIN_VERSION * 10000:
                version = connection.info.parameter_status("server_version")
                raise InputError(f"{self.name}: PostgreSQL {version} is too old; it must be {MIN_VERSION} or later")
            session_settings = PINNED | {
                "default_transaction_read_only": "on",
                "statement_timeout": str(round(seconds * 1000)),
                "lock_timeout": str(round(self._settings.timeout * 1000)),
                "idle_in_transaction_session_timeout": "0",  # the session that holds the snapshot is idle
            }
            calls = [
                sql.SQL("set_config({}, {}, false)").format(sql.Literal(name), sql.Literal(value))
                for name, value in session_settings.items()
            ]
            connection.execute(sql.SQL("SELECT ") + sql.SQL(", ").join(calls))
            connection.max_wait = seconds
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def errors(self, setting: str) -> Iterator[None]:
        """Turn psycopg's errors into ours, one clear line each.

        Args:
            setting: the field of `DatabaseSettings` with the time limit in seconds, for the message of a timeout.
        """
        try:
            yield
        except psycopg.Error as error:
            raise self._error(error, f"{getattr(self._settings, setting):g} s (database.{setting})") from error

    def _error(self, error: psycopg.Error, limit: str) -> PredictionsError:
        text = f"{self.name}: {_text(error)}"
        if isinstance(error, TIMEOUTS):
            return ServiceError(f"{self.name}: no answer within {limit}")
        if isinstance(error, errors.LockNotAvailable):
            return ServiceError(f"{text}; another session is changing the table, try again later")
        # A replica's conflict is recognised by its text: if it comes while the session connects, it has no SQLSTATE.
        if _CONFLICT in text:
            return SnapshotLostError(text)
        return InputError(text) if isinstance(error, _INPUT_ERRORS) else ServiceError(text)

    @contextmanager
    def _session(self, setting: str = "timeout") -> Iterator[Session]:
        with self.errors(setting), closing(self.connect(getattr(self._settings, setting))) as connection:
            yield connection

    def columns(self) -> list[Column]:
        with self._session() as connection:
            return [field.column for field in self.fields(connection, Source.find(self, self._settings, connection))]

    def count(self) -> int:
        with self._session("export_timeout") as connection:
            source = Source.find(self, self._settings, connection)
            row = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(source.relation)).fetchone()
            assert row
            return int(row[0])

    def fields(self, connection: Session, source: "Source") -> list[Field]:
        """Return the source's columns as PostgreSQL describes them."""
        # In binary format, PostgreSQL accepts one statement only: a query cannot bring a second one along.
        cursor = connection.execute(sql.SQL("SELECT * FROM {} LIMIT 0").format(source.relation), binary=True)
        return [Field(column.name, column.type_code, column._fmod) for column in cursor.description or ()]

    @contextmanager
    def snapshot(self, names: Sequence[str]) -> Iterator["PostgresSnapshot"]:
        """Open one snapshot of all records, which several connections can read.

        Args:
            names: the columns: the record ID, the features in the model's order, the label.

        Raises:
            InputError: a column is missing.
        """
        # If the snapshot were taken before the tables are locked, TRUNCATE or ALTER could empty or rewrite a table
        # behind it. So `guard`, a session of its own, first locks all tables of the source, by a SELECT from it in a
        # transaction that lasts until the end.
        with self._session("export_timeout") as guard, self._session("export_timeout") as connection:
            source = Source.find(self, self._settings, guard)
            guard.execute("BEGIN READ ONLY")
            columns = {field.name: field.column for field in self.fields(guard, source)}
            for name in names:
                if name not in columns:
                    raise no_column(name, source.display_name, self.name, columns)
            with _lost(self, errors.OperationalError):
                connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                row = connection.execute("SELECT pg_export_snapshot(), clock_timestamp()").fetchone()
                assert row
                yield PostgresSnapshot(self, connection, source, [columns[name] for name in names], *row)


class Source(NamedTuple):
    """A table, a view or a query that records are read from."""

    relation: sql.Composable  # what follows FROM
    display_name: str  # in messages
    oid: int | None  # None for a query
    is_table: bool

    @classmethod
    def find(cls, database: PostgresDatabase, settings: DatabaseSettings, connection: Session) -> "Source":
        """Return the query, or the table or view that the settings name: `NAME` on the search path, or `SCHEMA.NAME`.

        Raises:
            InputError: there is no such table or view.
        """
        if settings.query is not None:
            # The author of the settings may write any query. The line feed keeps a comment at its end from hiding the
            # bracket.
            return cls(
                sql.SQL("({}\n) AS predictions_query").format(sql.SQL(settings.query.strip().removesuffix(";"))),
                "the query",
                None,
                False,
            )
        row = connection.execute(
            "SELECT n.nspname, c.relname, c.oid, c.relkind IN ('r', 'p') FROM pg_class c"
            " JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')"
            " AND (c.relname = %(table)s AND pg_table_is_visible(c.oid) OR n.nspname || '.' || c.relname = %(table)s)"
            " ORDER BY c.relname = %(table)s DESC LIMIT 1",
            {"table": settings.table},
        ).fetchone()
        if not row:
            relations = connection.execute(
                "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'f') AND pg_table_is_visible(oid)"
                " AND relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)"
            )
            raise no_table(settings.table or "", database.name, sorted(name for (name,) in relations))
        schema, name, oid, is_table = row
        return cls(sql.Identifier(schema, name), settings.table or "", oid, is_table)


class PostgresSnapshot:
    """The records of an open transaction, which other sessions can join (see `predictions.sources.base.Snapshot`)."""

    note = None

    def __init__(
        self,
        database: PostgresDatabase,
        connection: Session,
        source: Source,
        columns: list[Column],
        snapshot: str,
        taken: datetime,
    ) -> None:
        self._database = database
        self._connection = connection
        self._source = source
        self.columns = columns
        self.id = snapshot
        self.time = taken.astimezone(UTC)
        plan = connection.execute(sql.SQL("EXPLAIN (FORMAT JSON) SELECT * FROM {}").format(source.relation)).fetchone()
        assert plan
        self.expected: int = plan[0][0]["Plan"]["Plan Rows"]

    def shares(self) -> list["PostgresShare"]:
        """Return a share for each of N connections: every Nth range of pages, so that all shares are of a size."""
        settings = self._database._settings
        selected = sql.SQL(", ").join(sql.Identifier(column.name) for column in self.columns)
        query = sql.SQL("SELECT {} FROM {}").format(selected, self._source.relation)
        copies = [sql.SQL("COPY ({}{}) TO STDOUT").format(query, where) for where in self._ranges()]
        statements = [statement.as_string(self._connection) for statement in copies]
        count = min(settings.connections, len(statements))
        return [PostgresShare(settings, self.id, statements[start::count]) for start in range(count)]

    def _ranges(self) -> Iterable[sql.Composable]:
        """Return a WHERE clause for each range of pages; one empty clause if the source cannot be read by pages."""
        pages = self._pages() if self._source.is_table else 0
        bounds = range(RANGE_PAGES, pages, RANGE_PAGES)
        if not bounds:
            return [sql.SQL("")]
        # The last range has no upper bound: the snapshot may see pages beyond those that were counted.
        tids = [sql.Literal(f"({page},0)") for page in bounds]
        between = sql.SQL(" WHERE ctid >= {}::tid AND ctid < {}::tid")
        return [
            sql.SQL(" WHERE ctid < {}::tid").format(tids[0]),
            *(between.format(low, high) for low, high in pairwise(tids)),
            sql.SQL(" WHERE ctid >= {}::tid").format(tids[-1]),
        ]

    def _pages(self) -> int:
        """Return the pages of the table or of its largest partition or child; 0 if one of them has no ctid."""
        row = self._connection.execute(
            "WITH RECURSIVE tree AS (SELECT %s::oid AS oid UNION ALL"
            " SELECT inhrelid FROM pg_inherits JOIN tree ON inhparent = tree.oid)"
            " SELECT CASE WHEN bool_and(c.relkind = 'p' OR c.relkind = 'r' AND a.amname = 'heap')"
            " THEN max(pg_relation_size(c.oid)) / current_setting('block_size')::bigint ELSE 0 END"
            " FROM tree JOIN pg_class c USING (oid) LEFT JOIN pg_am a ON a.oid = c.relam",
            [self._source.oid],
        ).fetchone()
        assert row
        return int(row[0])


@dataclass(frozen=True)
class PostgresShare:
    """What one connection reads of a snapshot, in any process (see `predictions.sources.base.Share`)."""

    settings: DatabaseSettings
    snapshot: str
    statements: list[str]

    def blocks(self) -> Iterator[bytes]:
        """Yield the record lines in blocks.

        Raises:
            SnapshotLostError: the session that held the snapshot ended, or PostgreSQL could not keep the snapshot.
        """
        database = PostgresDatabase(self.settings)
        with (
            database.errors("export_timeout"),
            _lost(database, errors.AdminShutdown),  # the session may be ended at any time
            closing(database.connect(self.settings.export_timeout)) as connection,
        ):
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            with _lost(database, psycopg.Error):
                connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(self.snapshot)))
            with _lost(database, errors.OperationalError):
                for statement in self.statements:
                    yield from copy(connection, statement)


@contextmanager
def _lost(database: PostgresDatabase, error_class: type[psycopg.Error]) -> Iterator[None]:
    """Turn errors of one class into SnapshotLostError, except timeouts."""
    try:
        yield
    except error_class as error:
        if isinstance(error, TIMEOUTS):
            raise
        raise SnapshotLostError(f"{database.name}: the snapshot was lost: {_text(error)}") from error


def _text(error: psycopg.Error) -> str:
    """Return the database's message in one line."""
    return " ".join((error.diag.message_primary or str(error)).split())


def copy(connection: Session, statement: str) -> Iterator[bytes]:
    """Run a COPY … TO STDOUT and yield its lines in blocks of whole lines.

    This uses psycopg's interface to libpq: `Cursor.copy` takes four times as long for each line.
    """
    connection.pgconn.send_query(statement.encode())
    [result] = connection.wait(generators.execute(connection.pgconn))
    _check(connection, result, ExecStatus.COPY_OUT)
    is_last = False
    while not is_last:
        block, is_last = connection.wait(_block(connection.pgconn))
        if block:
            yield block
    [result] = connection.wait(generators.fetch_many(connection.pgconn))
    _check(connection, result, ExecStatus.COMMAND_OK)


def _check(connection: Session, result: Any, expected: ExecStatus) -> None:
    if result.status != expected:
        raise errors.error_from_result(result, encoding=connection.info.encoding)


def _block(pgconn: Any) -> Any:
    """Read a block of lines; return it, and whether it is the last one. For `psycopg.Connection.wait`."""
    lines = io.BytesIO()
    write, get_line = lines.write, pgconn.get_copy_data
    while lines.tell() < BLOCK_BYTES:
        for _line in range(SIZE_CHECK_LINES):
            size, line = get_line(1)
            if size > 0:
                write(line)
            elif size == 0:
                while not (yield Wait.R):
                    pass
                pgconn.consume_input()
            else:
                return lines.getvalue(), True
    return lines.getvalue(), False
