"""The batches that `benchmarks/writeback` compares: predictions written into the table, two ways, and this package."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import click
import psycopg
from psycopg.errors import LockNotAvailable

from benchmarks.flights import CHECKOUT, SETTINGS
from hadoop.config import ClusterConfig
from predictions.hbase.connection import Connection
from predictions.hbase.server import Server
from predictions.storage import Storage

HOST = "127.0.0.1"
NAME = "benchmark_writeback"
LOCK_TIMEOUT = "100ms"  # reads wait as long, behind the ALTER TABLE that waits
RETRY_SECONDS = 1.0
BATCH_ROWS = 10_000  # rows of one UPDATE, which is one transaction
VACUUMS = 10  # over the whole table
READ_BYTES = 1 << 20

_UPDATE = "UPDATE flights SET prediction = p.prediction FROM predictions p"


class Step(NamedTuple):
    """A part of a batch, in seconds since 1970."""

    name: str
    begin: float
    end: float


def write_back(url: str, predictions: Path) -> list[Step]:
    """Write predictions into a new column of the table `flights`, as one does who knows how.

    Args:
        url: the URL of the database.
        predictions: a file with a line of `ID TAB prediction` for every record; the IDs count from 1.

    Returns:
        The steps, with their times.
    """
    times = [time.time()]
    with psycopg.connect(url, autocommit=True) as connection:
        _add_column(connection)
        times.append(time.time())
        rows = _copy(connection, predictions)
        times.append(time.time())
        _update(connection, rows)
        times.append(time.time())
    return _steps(times)


def write_back_at_once(url: str, predictions: Path) -> list[Step]:
    """Write predictions into a new column, as one would do it first; arguments and result are those of `write_back`."""
    times = [time.time()]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER TABLE flights ADD COLUMN prediction integer")
        times.append(time.time())
        connection.execute("CREATE TABLE predictions (flight_id integer PRIMARY KEY, prediction integer)")
        _copy_into(connection, predictions)
        times.append(time.time())
        connection.execute(f"{_UPDATE} WHERE flights.flight_id = p.flight_id")
        times.append(time.time())
    return _steps(times)


def _steps(times: list[float]) -> list[Step]:
    return [Step(*step) for step in zip(("add column", "copy", "update"), times, times[1:], strict=False)]


def _add_column(connection: psycopg.Connection[Any]) -> None:
    connection.execute(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
    while True:
        try:
            connection.execute("ALTER TABLE flights ADD COLUMN prediction integer")
            break
        except LockNotAvailable:
            time.sleep(RETRY_SECONDS)
    connection.execute("RESET lock_timeout")


def _copy(connection: psycopg.Connection[Any], predictions: Path) -> int:
    """Return the number of rows."""
    connection.execute("CREATE TEMPORARY TABLE predictions (flight_id integer, prediction integer)")
    rows = _copy_into(connection, predictions)
    connection.execute("ALTER TABLE predictions ADD PRIMARY KEY (flight_id)")
    connection.execute("ANALYZE predictions")
    return rows


def _copy_into(connection: psycopg.Connection[Any], predictions: Path) -> int:
    cursor = connection.cursor()
    with open(predictions, "rb") as file, cursor.copy("COPY predictions FROM STDIN") as copy:
        while block := file.read(READ_BYTES):
            copy.write(block)
    return cursor.rowcount


def _update(connection: psycopg.Connection[Any], rows: int) -> None:
    # Without TRUNCATE false, VACUUM may lock the table with ACCESS EXCLUSIVE at its end, to give back empty pages.
    vacuum = "VACUUM (ANALYZE, TRUNCATE false) flights"
    vacuumed = 0
    for first in range(1, rows + 1, BATCH_ROWS):
        connection.execute(
            f"{_UPDATE} WHERE flights.flight_id = p.flight_id"
            f" AND p.flight_id BETWEEN {first} AND {first + BATCH_ROWS - 1}"
        )
        if first - vacuumed > rows / VACUUMS:
            connection.execute(vacuum)
            vacuumed = first
    connection.execute(vacuum)


class Package:
    """This package's run, on an embedded cluster.

    Args:
        cluster: the running cluster.
        export_rate: rows per second to read from the database, at most; None: no limit.
    """

    def __init__(self, cluster: ClusterConfig, export_rate: float | None) -> None:
        self._rate = [f"--rate={export_rate}"] if export_rate else []
        self._thrift = f"{HOST}:{cluster.port('thrift')}"
        self._server = Server(HOST, cluster.port("thrift"))
        self._url = f"webhdfs://{HOST}:{cluster.port('namenode_web')}/benchmarks"
        self._storage = Storage(self._url, NAME)

    def run(self, url: str) -> list[Step]:
        """Run `predictions run` for the database of the URL, and return its export as a step."""
        variables = {
            "PREDICTIONS_NAME": NAME,
            "PREDICTIONS_HBASE_THRIFT": self._thrift,
            "PREDICTIONS_DATABASE_URL": url,
        }
        command = [sys.executable, "-m", "predictions", "--settings", str(SETTINGS), "--storage", self._url]
        _run([*command, "run", *self._rate], os.environ | variables | {"PYTHONPATH": str(CHECKOUT)})
        manifest = self._storage.release().manifest
        begin = datetime.fromisoformat(manifest.snapshot.time).timestamp()
        return [Step("export", begin, begin + manifest.export.seconds)]

    @contextmanager
    def removed(self) -> Iterator[None]:
        """Remove the run's files on HDFS and its tables at the end of the context."""
        try:
            yield
        finally:
            self._storage.delete(self._storage.folder)
            with Connection(self._server) as connection:
                for table in map(bytes.decode, connection.tables()):
                    if table == NAME or table.startswith(f"{NAME}."):
                        connection.delete_table(table)


def _run(command: list[str], environment: dict[str, str]) -> None:
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        if process.wait():
            raise click.ClickException(f"predictions run ended with exit code {process.returncode}")
    except BaseException:
        process.terminate()  # which also ends its job on the cluster
        process.wait()
        raise
