"""Reads of a table at a given rate, by pgbench, and what each of them took."""

import os
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import click
from psycopg.conninfo import conninfo_to_dict

from examples.postgresql import find_program

SCRIPT = "\\set id random(1, :rows)\nSELECT * FROM flights WHERE flight_id = :id;\n"
CLIENTS = 16  # connections; what one lock stops, it stops on all of them
START_SECONDS = 1  # until all are open
FLUSH_SECONDS = 2  # after a phase, until pgbench has surely written the lines of the phase's last reads
_VARIABLES = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}


class Read(NamedTuple):
    """A read: when it was due, in seconds since 1970, and how many seconds later its answer was there."""

    due: float
    seconds: float


class PacedReads:
    """A pgbench that reads records at random, by primary key, within the context.

    A read is due at a time of its own, whatever became of those before it: where all connections wait, its seconds
    begin nevertheless.

    Args:
        url: of the database.
        rows: of the table; the IDs are 1 to this.
        rate: reads a second, on average (a Poisson process).
        folder: for its files.
    """

    def __init__(self, url: str, rows: int, rate: float, folder: Path) -> None:
        self._folder = folder
        script = folder / "read.sql"
        script.write_text(SCRIPT)
        parameters = conninfo_to_dict(url)
        self._environment = os.environ | {name: str(parameters[key]) for key, name in _VARIABLES.items()}
        self._command = [
            *(find_program("pgbench"), "--no-vacuum", f"--client={CLIENTS}", "--time=86400", f"--rate={rate}"),
            *(f"--file={script}", f"--define=rows={rows}", "--random-seed=1", "--log", f"--log-prefix={folder}/reads"),
        ]

    def __enter__(self) -> Self:
        with open(self._folder / "pgbench.txt", "wb") as output:
            self._process = subprocess.Popen(self._command, env=self._environment, stdout=output, stderr=output)
        time.sleep(START_SECONDS)
        return self

    def __exit__(self, kind: object, *_exception: object) -> None:
        if kind is None:
            time.sleep(FLUSH_SECONDS)
        has_failed = self._process.poll() is not None
        self._process.terminate()
        self._process.wait()
        if has_failed and kind is None:
            raise click.ClickException(f"pgbench ended: {(self._folder / 'pgbench.txt').read_text()[-2000:]}")

    def done(self) -> list[Read]:
        """Return the reads in the order of their answers; after the context."""
        [log] = self._folder.glob("reads.*")
        lines = log.read_text().split("\n")[:-1]  # the last one may be cut off
        # pgbench's manual, "Per-Transaction Logging": microseconds since the read was due, and when it ended.
        found = (line.split() for line in lines)
        ended = ((int(took) / 1e6, int(second) + int(us) / 1e6) for _, _, took, _, second, us, _ in found)
        return [Read(end - took, took) for took, end in ended]


def summary(reads: Sequence[Read], begin: float, end: float) -> dict[str, float]:
    """Return milliseconds of the reads that were due from `begin` to `end`, and how many a second were answered then.

    Raises:
        ClickException: there were none.
    """
    milliseconds = sorted(1e3 * read.seconds for read in reads if begin <= read.due < end)
    if not milliseconds:
        raise click.ClickException("no read was due")
    answered = sum(begin <= read.due + read.seconds < end for read in reads)
    return {
        "p50_ms": round(statistics.median(milliseconds), 3),
        "p99_ms": round(milliseconds[int(0.99 * len(milliseconds))], 3),
        "max_ms": round(milliseconds[-1], 3),
        "reads_per_second": round(answered / (end - begin), 1),
    }


def by_second(reads: Sequence[Read], begin: float, end: float) -> list[dict[str, Any]]:
    """Return the `summary` of each whole second."""
    return [summary(reads, begin + second, begin + second + 1) for second in range(int(end - begin))]
