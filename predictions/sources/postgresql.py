"""A PostgreSQL database, or a read replica of one, as the source (see `predictions.sources.base`), by psycopg.

Record lines are what COPY itself writes (its documentation, "Text Format"), for the export as for a lookup. What a
value looks like there depends on a session's settings: `PINNED` makes them the same in all of ours.
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
    "extra_float_digits": "1",  # the shortest text that is exactly the number
    "bytea_output": "hex",
    "lc_monetary": "C",
}
OLDEST = 15  # of which COPY can name the columns
RANGE_PAGES = 1024  # of a table, read by one statement: 8 MB as a rule
BLOCK_BYTES = 256 << 10  # of lines; what is done with them stays in a processor's cache
LOOK_LINES = 32  # between two looks at how large a block has become
WAKE_SECONDS = 0.1  # between two looks for an interruption while a session waits
KEEPALIVE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}

_BOOLEAN, _BYTEA = 16, 17  # OIDs of types (pg_type.dat)
_INTEGERS = (20, 21, 23, 26)  # int8, int2, int4, oid
_REALS = (700, 701, 1700)  # float4, float8, numeric
_DATES = (1082, 1114, 1184)  # date, timestamp, timestamptz
_OURS = (errors.DataError, errors.ProgrammingError, errors.NotSupportedError, errors.ReadOnlySqlTransaction)
_CONFLICT = "conflict with recovery"
_PORTS = re.compile(r"[0-9,]*")
TOO_LATE = (errors.QueryCanceled, errors._WaitTimeout)


class Field(NamedTuple):
    """A column as PostgreSQL describes it."""

    name: str
    type: int  # its OID
    modifier: int

    @property
    def column(self) -> Column:
        """The column of a release."""
        kinds = {
            **dict.fromkeys(_INTEGERS, "integer"),
            **dict.fromkeys(_REALS, "real"),
            **dict.fromkeys(_DATES, "date"),
        }
        return Column(self.name, kinds.get(self.type, "text"))

    @property
    def is_boolean(self) -> bool:
        """Whether it holds true and false."""
        return self.type == _BOOLEAN

    @property
    def is_bytes(self) -> bool:
        """Whether it holds bytes."""
        return self.type == _BYTEA


class Session(psycopg.Connection[tuple[Any, ...]]):
    """A connection that waits so many seconds for an answer, or for the next block of its lines, and no longer.

    With a `deadline`, by the monotonic clock, it waits until then.
    """

    patience: float | None = None
    deadline: float | None = None

    def wait(self, gen: Any, interval: float = WAKE_SECONDS, timeout: float | None = None) -> Any:
        patience = self.patience if self.deadline is None else max(0.0, self.deadline - time.monotonic())
        return super().wait(gen, interval, patience if timeout is None else timeout)


class PostgresDatabase:
    """A table, a view or a query of a PostgreSQL database."""

    def __init__(self, settings: DatabaseSettings) -> None:
        self._settings = settings
        try:
            self._parameters = conninfo_to_dict(settings.url)
            shown = "".join(str(self._parameters.get(key, "")) for key in ("host", "port", "dbname"))
            if "@" in shown or not _PORTS.fullmatch(str(self._parameters.get("port", ""))):
                raise ValueError  # what stands there then is a part of the password
        except (psycopg.ProgrammingError, ValueError):  # whose texts may have it, too
            raise InputError(
                "database.url: not a URL of PostgreSQL: postgresql://USER:PASSWORD@HOST:PORT/DATABASE; within the "
                "password, an @ is written %40 and a / is written %2F"
            ) from None
        place = ":".join(str(self._parameters[key]) for key in ("host", "port") if self._parameters.get(key))
        self.name = f"postgresql://{place}/{self._parameters.get('dbname', '')}"

    def connect(self, seconds: float, deadline: float | None = None) -> Session:
        """Open a session whose statements may take so many seconds each; with a deadline, it and they until then."""
        patience = self._settings.timeout if deadline is None else max(0.0, deadline - time.monotonic())
        given = {**KEEPALIVE, "application_name": "predictions", **self._parameters}
        given["connect_timeout"] = max(1, round(patience))  # libpq knows whole seconds
        connection = Session.connect(make_conninfo("", **given), autocommit=True, prepare_threshold=None)
        try:
            connection.patience, connection.deadline = patience, deadline
            if connection.info.server_version < OLDEST * 10000:
                version = connection.info.parameter_status("server_version")
                raise InputError(f"{self.name}: PostgreSQL {version}; it must be {OLDEST} or later")
            pinned = PINNED | {
                "default_transaction_read_only": "on",
                "statement_timeout": str(round(seconds * 1000)),
                "lock_timeout": str(round(self._settings.timeout * 1000)),
                "idle_in_transaction_session_timeout": "0",  # who holds the snapshot has nothing to do
            }
            pairs = [
                sql.SQL("set_config({}, {}, false)").format(sql.Literal(name), sql.Literal(value))
                for name, value in pinned.items()
            ]
            connection.execute(sql.SQL("SELECT ") + sql.SQL(", ").join(pairs))
            connection.patience = seconds
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def errors(self, setting: str) -> Iterator[None]:
        """Turn psycopg's errors into one clear line each; `setting` says how many seconds a statement may take."""
        try:
            yield
        except psycopg.Error as error:
            raise self._error(error, f"{getattr(self._settings, setting):g} s (database.{setting})") from error

    def _error(self, error: psycopg.Error, patience: str) -> PredictionsError:
        text = _text(error)
        if isinstance(error, TOO_LATE):
            return ServiceError(f"{self.name}: no answer within {patience}")
        if isinstance(error, errors.LockNotAvailable):
            return ServiceError(f"{self.name}: {text}; somebody is changing the table, try again later")
        if _CONFLICT in text:  # a replica's, perhaps while it lets one in, where there is no SQLSTATE to go by
            return SnapshotLostError(f"{self.name}: {text}")
        return InputError(f"{self.name}: {text}") if isinstance(error, _OURS) else ServiceError(f"{self.name}: {text}")

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
        """Return the source's columns."""
        # In binary, since then PostgreSQL takes one statement and no more.
        cursor = connection.execute(sql.SQL("SELECT * FROM {} LIMIT 0").format(source.relation), binary=True)
        return [Field(column.name, column.type_code, column._fmod) for column in cursor.description or ()]

    @contextmanager
    def snapshot(self, columns: Sequence[str]) -> Iterator["PostgresSnapshot"]:
        """Read all records of one snapshot, over several connections.

        Args:
            columns: the record ID, the features in the model's order, the label.

        Raises:
            InputError: a column is missing.
        """
        # A table could be emptied or written anew (TRUNCATE, ALTER) behind a snapshot that was taken before there was a
        # lock on it: a session of its own has looked at all that the source reads, and holds it until the end.
        with self._session("export_timeout") as guard, self._session("export_timeout") as connection:
            source = Source.find(self, self._settings, guard)
            guard.execute("BEGIN READ ONLY")
            known = {field.name: field.column for field in self.fields(guard, source)}
            for name in columns:
                if name not in known:
                    raise no_column(name, source.shown, self.name, known)
            with _lost(self, errors.OperationalError):
                connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                row = connection.execute("SELECT pg_export_snapshot(), clock_timestamp()").fetchone()
                assert row
                yield PostgresSnapshot(self, connection, source, [known[name] for name in columns], *row)


class Source(NamedTuple):
    """What records are read from."""

    relation: sql.Composable  # for FROM
    shown: str
    oid: int | None  # of a relation
    is_table: bool

    @classmethod
    def find(cls, database: PostgresDatabase, settings: DatabaseSettings, connection: Session) -> "Source":
        """Return the query or the relation that the settings name: as `NAME` on the search path, or `SCHEMA.NAME`."""
        if settings.query is not None:
            # Who writes the settings may write any query; a comment at its end is not to take the bracket with it.
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
            known = connection.execute(
                "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'f') AND pg_table_is_visible(oid)"
                " AND relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)"
            )
            raise no_table(settings.table or "", database.name, sorted(name for (name,) in known))
        schema, name, oid, is_table = row
        return cls(sql.Identifier(schema, name), settings.table or "", oid, is_table)


class PostgresSnapshot:
    """The records of an open transaction, for other sessions to read as well: a `predictions.sources.base.Snapshot`."""

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
        """Return what each connection reads: every so-manieth range of a table's pages, so that all have as much."""
        settings = self._database._settings
        selected = sql.SQL(", ").join(sql.Identifier(column.name) for column in self.columns)
        query = sql.SQL("SELECT {} FROM {}").format(selected, self._source.relation)
        queries = [sql.SQL("COPY ({}{}) TO STDOUT").format(query, where) for where in self._ranges()]
        statements = [each.as_string(self._connection) for each in queries]
        count = min(settings.connections, len(statements))
        return [PostgresShare(settings, self.id, statements[start::count]) for start in range(count)]

    def _ranges(self) -> Iterable[sql.Composable]:
        """Return conditions each of which a part of the records satisfies; one that all do where there are no pages."""
        pages = self._pages() if self._source.is_table else 0
        bounds = range(RANGE_PAGES, pages, RANGE_PAGES)
        if not bounds:
            return [sql.SQL("")]
        # The last range is open: who counts pages now counts those that were added since as well.
        tids = [sql.Literal(f"({page},0)") for page in bounds]
        between = sql.SQL(" WHERE ctid >= {}::tid AND ctid < {}::tid")
        return [
            sql.SQL(" WHERE ctid < {}::tid").format(tids[0]),
            *(between.format(low, high) for low, high in pairwise(tids)),
            sql.SQL(" WHERE ctid >= {}::tid").format(tids[-1]),
        ]

    def _pages(self) -> int:
        """Return the pages of a table, of its largest partition or child; 0 where one has no ctid to go by."""
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
    """What one connection reads of a snapshot; another process may do so (see `predictions.sources.base.Share`)."""

    settings: DatabaseSettings
    snapshot: str
    statements: list[str]

    def blocks(self) -> Iterator[bytes]:
        """Yield the lines.

        Raises:
            SnapshotLostError: the session ended that held the snapshot, or PostgreSQL could not keep it.
        """
        database = PostgresDatabase(self.settings)
        with (
            database.errors("export_timeout"),
            _lost(database, errors.AdminShutdown),  # whenever the session is ended
            closing(database.connect(self.settings.export_timeout)) as connection,
        ):
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            with _lost(database, psycopg.Error):
                connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(self.snapshot)))
            with _lost(database, errors.OperationalError):
                for statement in self.statements:
                    yield from copy(connection, statement)


@contextmanager
def _lost(database: PostgresDatabase, kind: type[psycopg.Error]) -> Iterator[None]:
    """Tell errors of one kind as the loss of the snapshot, but for those of time."""
    try:
        yield
    except kind as error:
        if isinstance(error, TOO_LATE):
            raise
        raise SnapshotLostError(f"{database.name}: the snapshot was lost: {_text(error)}") from error


def _text(error: psycopg.Error) -> str:
    """Return what the database says, in one line."""
    return " ".join((error.diag.message_primary or str(error)).split())


def copy(connection: Session, statement: str) -> Iterator[bytes]:
    """Run a COPY … TO STDOUT and yield its lines in blocks of whole lines.

    It goes by psycopg's interface to libpq: `Cursor.copy` takes four times as long for each line.
    """
    connection.pgconn.send_query(statement.encode())
    [result] = connection.wait(generators.execute(connection.pgconn))
    _check(connection, result, ExecStatus.COPY_OUT)
    is_over = False
    while not is_over:
        block, is_over = connection.wait(_block(connection.pgconn))
        if block:
            yield block
    [result] = connection.wait(generators.fetch_many(connection.pgconn))
    _check(connection, result, ExecStatus.COMMAND_OK)


def _check(connection: Session, result: Any, wanted: ExecStatus) -> None:
    if result.status != wanted:
        raise errors.error_from_result(result, encoding=connection.info.encoding)


def _block(pgconn: Any) -> Any:
    """Read a block of lines and whether it was the last one; for `psycopg.Connection.wait`."""
    lines = io.BytesIO()
    write, get = lines.write, pgconn.get_copy_data
    while lines.tell() < BLOCK_BYTES:
        for _turn in range(LOOK_LINES):
            size, line = get(1)
            if size > 0:
                write(line)
            elif size == 0:
                while not (yield Wait.R):
                    pass
                pgconn.consume_input()
            else:
                return lines.getvalue(), True
    return lines.getvalue(), False
