"""The two batches that `benchmarks/writeback` compares: predictions into the table, and this package's run."""

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
from predictions.formats.prediction_line import split_block
from predictions.formats.row_key import record_id
from predictions.hbase.connection import Connection
from predictions.hbase.server import Server
from predictions.storage import Storage

HOST = "127.0.0.1"
NAME = "benchmark_writeback"
LOCK_TIMEOUT = "100ms"  # reads wait as long, behind who waits for the table
RETRY_SECONDS = 1.0
BATCH_ROWS = 10_000  # of an UPDATE and its transaction
VACUUMS = 10  # in the course of the table
READ_BYTES = 1 << 20


class Step(NamedTuple):
    """A part of a batch, in seconds since 1970."""

    name: str
    begin: float
    end: float


def write_back(url: str, predictions: Path, rows: int) -> list[Step]:
    """Write predictions into a new column of the table `flights`.

    Args:
        url: of the database.
        predictions: a file with lines of `ID TAB prediction`.
        rows: of the table; the IDs are 1 to this.

    Returns:
        When it did what.
    """
    times = [time.time()]
    with psycopg.connect(url, autocommit=True) as connection:
        _add_column(connection)
        times.append(time.time())
        _copy(connection, predictions)
        times.append(time.time())
        _update(connection, rows)
        times.append(time.time())
    return [Step(*each) for each in zip(("add column", "copy", "update"), times, times[1:], strict=False)]


def _add_column(connection: psycopg.Connection[Any]) -> None:
    connection.execute(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
    while True:
        try:
            connection.execute("ALTER TABLE flights ADD COLUMN prediction integer")
            break
        except LockNotAvailable:
            time.sleep(RETRY_SECONDS)
    connection.execute("RESET lock_timeout")


def _copy(connection: psycopg.Connection[Any], predictions: Path) -> None:
    connection.execute("CREATE TEMPORARY TABLE predictions (flight_id integer, prediction integer)")
    with open(predictions, "rb") as file, connection.cursor().copy("COPY predictions FROM STDIN") as copy:
        while block := file.read(READ_BYTES):
            copy.write(block)
    connection.execute("ALTER TABLE predictions ADD PRIMARY KEY (flight_id)")
    connection.execute("ANALYZE predictions")


def _update(connection: psycopg.Connection[Any], rows: int) -> None:
    # Without TRUNCATE false, VACUUM may take ACCESS EXCLUSIVE at its end, to give empty pages back.
    vacuum = "VACUUM (ANALYZE, TRUNCATE false) flights"
    vacuumed = 0
    for first in range(1, rows + 1, BATCH_ROWS):
        connection.execute(
            "UPDATE flights SET prediction = p.prediction FROM predictions p WHERE flights.flight_id = p.flight_id"
            f" AND p.flight_id BETWEEN {first} AND {first + BATCH_ROWS - 1}"
        )
        if first - vacuumed > rows / VACUUMS:
            connection.execute(vacuum)
            vacuumed = first
    connection.execute(vacuum)


class Package:
    """This package's run, on an embedded cluster.

    Args:
        cluster: which runs.
        export_rate: rows that it reads a second, at most; None for as many as the database gives.
    """

    def __init__(self, cluster: ClusterConfig, export_rate: float | None) -> None:
        self._pace = [f"--rate={export_rate}"] if export_rate else []
        self._thrift = f"{HOST}:{cluster.port('thrift')}"
        self._server = Server(HOST, cluster.port("thrift"))
        self._url = f"webhdfs://{HOST}:{cluster.port('namenode_web')}/benchmarks"
        self._storage = Storage(self._url, NAME)

    def run(self, url: str) -> list[Step]:
        """Do `predictions run` for the database of the URL; return when it exported."""
        given = {"PREDICTIONS_NAME": NAME, "PREDICTIONS_HBASE_THRIFT": self._thrift, "PREDICTIONS_DATABASE_URL": url}
        command = [sys.executable, "-m", "predictions", "--settings", str(SETTINGS), "--storage", self._url]
        _run([*command, "run", *self._pace], os.environ | given | {"PYTHONPATH": str(CHECKOUT)})
        manifest = self._storage.release().manifest
        begin = datetime.fromisoformat(manifest.snapshot.time).timestamp()
        return [Step("export", begin, begin + manifest.export.seconds)]

    def write_predictions(self, target: Path) -> None:
        """Write what the run predicted to a file for `write_back`, by ID."""
        folder, found = self._storage.release(), []
        for path in folder.files("scored"):
            for block in folder.blocks(path):
                keys, labels, *_others = split_block(block)
                found += zip((int(record_id(key)) for key in keys), labels, strict=True)
        target.write_bytes(b"".join(b"%d\t%b\n" % each for each in sorted(found)))

    @contextmanager
    def removed(self) -> Iterator[None]:
        """Remove what the run left on HDFS and in HBase at the context's end."""
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
        process.terminate()  # it ends its job on the cluster, too
        process.wait()
        raise
