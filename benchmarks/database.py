"""The flights in PostgreSQL, and what happens to their table: its size and columns, the locks on it, and the WAL."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import psycopg
from psycopg.rows import dict_row

from benchmarks.flights import ROWS, flights_database
from examples.flights.copy_to_postgresql import copy_flights

WATCH_SECONDS = 0.02  # between two samples of the locks; a shorter wait may be missed

_STATE = """
SELECT table_len AS table_bytes, pg_indexes_size(%(oid)s) AS index_bytes, free_space AS free_bytes,
       dead_tuple_count AS dead_rows,
       (SELECT count(*) FROM pg_attribute WHERE attrelid = %(oid)s AND attnum > 0 AND NOT attisdropped) AS columns
FROM pgstattuple(%(oid)s::regclass)"""

_LOCKS = """
SELECT mode, granted, coalesce(extract(epoch FROM clock_timestamp() - waitstart), 0)::float8
FROM pg_locks WHERE locktype = 'relation' AND relation = %s
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""


class Database(NamedTuple):
    """Copies of the flights, in the table `flights` of a template database.

    The IDs are 1 to `rows`; `url` is the URL of the server's own database.
    """

    url: str
    rows: int
    version: str

    @classmethod
    def make(cls, url: str, copies: int) -> "Database":
        """Make the template database on a server."""
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE DATABASE template")
            version = connection.info.parameter_status("server_version")
        database = cls(url, copies * ROWS, f"PostgreSQL {version}")
        with psycopg.connect(database._url("template"), autocommit=True) as connection:
            connection.execute("CREATE EXTENSION pgstattuple")
            connection.execute("CREATE EXTENSION pg_prewarm")
            copy_flights(flights_database(), connection)
            _multiply(connection, copies)
            connection.execute("VACUUM (ANALYZE) flights")
        return database

    @contextmanager
    def copy(self) -> Iterator[str]:
        """Provide the URL of a new copy of the database, read into memory; dropped at the end of the context."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("CREATE DATABASE measured TEMPLATE template STRATEGY file_copy")
            try:
                with psycopg.connect(self._url("measured")) as measured:
                    measured.execute("SELECT pg_prewarm('flights'), pg_prewarm('flights_pkey')")
                connection.execute("CHECKPOINT")
                yield self._url("measured")
            finally:
                connection.execute("DROP DATABASE measured WITH (FORCE)")

    @staticmethod
    @contextmanager
    def long_read(url: str, seconds: float) -> Iterator[None]:
        """Keep the table open in a transaction for so many seconds from here, as a report would."""
        with psycopg.connect(url) as connection, ThreadPoolExecutor(1) as pool:
            connection.execute("SELECT FROM flights LIMIT 1")

            def end() -> None:
                time.sleep(seconds)
                connection.commit()

            ending = pool.submit(end)
            yield
            ending.result()

    def _url(self, name: str) -> str:
        return f"{self.url.rpartition('/')[0]}/{name}"


def _multiply(connection: psycopg.Connection[Any], copies: int) -> None:
    described = connection.execute("SELECT * FROM flights LIMIT 0").description or ()
    others = ", ".join(column.name for column in described[1:])  # the ID is the first
    connection.execute(
        f"INSERT INTO flights SELECT flight_id + copy * {ROWS}, {others}"
        f" FROM generate_series(1, {copies - 1}) AS copy, flights ORDER BY 1"
    )


class Watch:
    """Measures a table before and after the context, and samples its locks within.

    Args:
        url: the URL of the database.
        table: the table's name.
    """

    def __init__(self, url: str, table: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)
        self._table = table
        self._end = threading.Event()
        self._pool = ThreadPoolExecutor(1)
        self._modes: set[str] = set()
        self._longest: dict[str, float] = {}  # the longest wait for a lock of each mode, in seconds

    def __enter__(self) -> Self:
        self._oid = self._one("SELECT %s::regclass::oid AS oid", self._table)["oid"]
        self._before = self._state()
        self._wal = self._one("SELECT pg_current_wal_lsn() AS lsn")["lsn"]
        self._watching = self._pool.submit(self._watch)
        return self

    def __exit__(self, kind: object, *_exception: object) -> None:
        self._end.set()
        self._pool.shutdown()
        with self._connection:
            if kind is None:
                self._watching.result()
                wal = self._one("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), %s)::bigint AS bytes", self._wal)
                self.wal_bytes = wal["bytes"]
                self._after = self._state()

    def measurements(self) -> dict[str, Any]:
        """Return the measurements; only after the context."""
        return {
            "wal_bytes": self.wal_bytes,
            "before": self._before,
            "after": self._after,
            "schema_changed": self._before["columns"] != self._after["columns"],
            "locks": sorted(self._modes),
            "longest_wait_ms": {mode: round(1e3 * seconds) for mode, seconds in sorted(self._longest.items())},
        }

    def _state(self) -> dict[str, int]:
        return self._one(_STATE, {"oid": self._oid})

    def _one(self, query: str, parameter: Any = None) -> dict[str, Any]:
        parameters = parameter if isinstance(parameter, dict) or parameter is None else [parameter]
        cursor = self._connection.cursor(row_factory=dict_row)
        row = cursor.execute(query, parameters).fetchone()
        assert row
        return row

    def _watch(self) -> None:
        while not self._end.wait(WATCH_SECONDS):
            for mode, is_granted, waited in self._connection.execute(_LOCKS, [self._oid]):
                self._modes.add(mode)
                if not is_granted:
                    self._longest[mode] = max(waited, self._longest.get(mode, 0.0))
