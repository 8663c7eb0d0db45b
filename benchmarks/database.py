"""The flights in PostgreSQL, and what happens to their table: size, columns, locks, reads, WAL, the replica's lag."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import click
import numpy as np
import psycopg
from psycopg.rows import dict_row

from benchmarks.flights import ROWS, flights_database
from examples.flights.copy_to_postgresql import copy_flights

WATCH_SECONDS = 0.02  # between two samples of the locks; a shorter wait may be missed
REPLICA_SECONDS = 120.0  # a replica that takes longer to catch up is not streaming
INDEXES = {  # besides the primary key
    "flights_delay": "dep_delay",  # which the application often updates
    "flights_flight": "carrier, flight",
}

_STATE = """
SELECT table_len AS table_bytes, pg_indexes_size(%(oid)s) AS index_bytes, free_space AS free_bytes,
       dead_tuple_count AS dead_rows, dead_tuple_len AS dead_bytes,
       (SELECT count(*) FROM pg_attribute WHERE attrelid = %(oid)s AND attnum > 0 AND NOT attisdropped) AS columns
FROM pgstattuple(%(oid)s::regclass)"""

_LOCKS = """
SELECT mode, granted, coalesce(extract(epoch FROM clock_timestamp() - waitstart), 0)::float8
FROM pg_locks WHERE locktype = 'relation' AND relation = %s
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""

_LAG = """
SELECT coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)), 0)::float8,
       coalesce(max(extract(epoch FROM replay_lag)), 0)::float8
FROM pg_stat_replication"""
_BEHIND = "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn IS NULL OR replay_lsn < %s"
_BLOCKS = "SELECT heap_blks_read + idx_blks_read AS blocks FROM pg_statio_user_tables WHERE relid = %s"


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
            for name, columns in INDEXES.items():
                connection.execute(f"CREATE INDEX {name} ON flights ({columns})")
            connection.execute("VACUUM (ANALYZE) flights")
        return database

    @contextmanager
    def copy(self) -> Iterator[str]:
        """Provide the URL of a new copy of the database, dropped at the end of the context.

        It was read, so its files are in the system's memory, and the replicas have it.
        """
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("CREATE DATABASE measured TEMPLATE template STRATEGY file_copy")
            try:
                with psycopg.connect(self._url("measured")) as measured:
                    for name in ("flights", *INDEXES, "flights_pkey"):
                        measured.execute("SELECT pg_prewarm(%s)", [name])
                connection.execute("CHECKPOINT")
                _wait_for_replicas(connection)
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

    def write_predictions(self, target: Path) -> None:
        """Write a prediction for each record to a file, as `ID TAB prediction`, sorted by ID; any integer will do."""
        numbers = np.arange(1, self.rows + 1)
        np.savetxt(target, np.column_stack((numbers, numbers % 5 == 0)), fmt="%d", delimiter="\t")

    def _url(self, name: str) -> str:
        return f"{self.url.rpartition('/')[0]}/{name}"


def _multiply(connection: psycopg.Connection[Any], copies: int) -> None:
    described = connection.execute("SELECT * FROM flights LIMIT 0").description or ()
    others = ", ".join(column.name for column in described[1:])  # the ID is the first
    connection.execute(
        f"INSERT INTO flights SELECT flight_id + copy * {ROWS}, {others}"
        f" FROM generate_series(1, {copies - 1}) AS copy, flights ORDER BY 1"
    )


def _wait_for_replicas(connection: psycopg.Connection[Any]) -> None:
    [written] = connection.execute("SELECT pg_current_wal_lsn()").fetchone() or ()
    deadline = time.monotonic() + REPLICA_SECONDS
    while connection.execute(_BEHIND, [written]).fetchone() != (0,):
        if time.monotonic() > deadline:
            raise click.ClickException(f"the replica has not caught up within {REPLICA_SECONDS:.0f} s")
        time.sleep(WATCH_SECONDS)


class Watch:
    """Measures a table before and after the context, and samples its locks and the replica's lag within.

    Args:
        url: the URL of the database.
        table: the table's name.
    """

    def __init__(self, url: str, table: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)
        self._table = table
        self._end = threading.Event()
        self._pool = ThreadPoolExecutor(1)
        self._locked: Counter[str] = Counter()  # seconds in which locks of each mode were held or waited for
        self._longest: dict[str, float] = {}  # the longest wait for a lock of each mode, in seconds
        self._lag_bytes = self._lag_seconds = 0.0

    def __enter__(self) -> Self:
        self._oid = self._one("SELECT %s::regclass::oid AS oid", self._table)["oid"]
        self._before = self._state()
        self._blocks = self._blocks_read()
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
                self._blocks = self._blocks_read() - self._blocks
                self._after = self._state()

    def measurements(self) -> dict[str, Any]:
        """Return the measurements; only after the context."""
        return {
            "wal_bytes": self.wal_bytes,
            "before": self._before,
            "after": self._after,
            "schema_changed": self._before["columns"] != self._after["columns"],
            "blocks_read": self._blocks,
            "replica_lag": {"bytes": round(self._lag_bytes), "seconds": round(self._lag_seconds, 3)},
            "locked_seconds": {mode: round(seconds, 2) for mode, seconds in sorted(self._locked.items())},
            "longest_wait_ms": {mode: round(1e3 * seconds) for mode, seconds in sorted(self._longest.items())},
        }

    def _state(self) -> dict[str, int]:
        return self._one(_STATE, {"oid": self._oid})

    def _blocks_read(self) -> int:
        self._connection.execute("SELECT pg_stat_force_next_flush()")  # else this session's own reads count later
        return self._one(_BLOCKS, self._oid)["blocks"]

    def _one(self, query: str, parameter: Any = None) -> dict[str, Any]:
        parameters = parameter if isinstance(parameter, dict) or parameter is None else [parameter]
        cursor = self._connection.cursor(row_factory=dict_row)
        row = cursor.execute(query, parameters).fetchone()
        assert row
        return row

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._end.wait(WATCH_SECONDS):
            locks = self._connection.execute(_LOCKS, [self._oid]).fetchall()
            [(lag_bytes, lag_seconds)] = self._connection.execute(_LAG).fetchall()
            now = time.monotonic()
            for mode in {mode for mode, _is_granted, _waited in locks}:
                self._locked[mode] += now - last
            for mode, is_granted, waited in locks:
                if not is_granted:
                    self._longest[mode] = max(waited, self._longest.get(mode, 0.0))
            self._lag_bytes = max(self._lag_bytes, lag_bytes)
            self._lag_seconds = max(self._lag_seconds, lag_seconds)
            last = now
