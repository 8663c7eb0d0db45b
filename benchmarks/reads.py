"""Read records of a table at a given rate with pgbench, and measure each read."""

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
CLIENTS = 16  # connections; a lock on the table stops all of them
START_SECONDS = 1  # until all connections are open
FLUSH_SECONDS = 2  # after a phase, until pgbench has certainly written the lines of its last reads
_VARIABLES = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}


class Read(NamedTuple):
    """A read: the time it was due, in seconds since 1970, and the seconds from then to its answer."""

    due: float
    seconds: float


class PacedReads:
    """Runs pgbench, which reads random records by primary key, within the context.

    Each read has its own due time, which does not depend on earlier reads: its seconds count from then, even if all
    connections are waiting.

    Args:
        url: the URL of the database.
        rows: the number of rows of the table; the IDs are 1 to this number.
        rate: reads per second, on average (a Poisson process).
        folder: the folder for pgbench's files.
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

    def answered(self) -> list[Read]:
        """Return the reads in the order of their answers; only after the context."""
        [log] = self._folder.glob("reads.*")
        lines = log.read_text().split("\n")[:-1]  # the last one may be cut off
        # pgbench's manual, "Per-Transaction Logging": microseconds since the read was due, and when it ended.
        fields = (line.split() for line in lines)
        reads = ((int(took) / 1e6, int(second) + int(us) / 1e6) for _, _, took, _, second, us, _ in fields)
        return [Read(end - seconds, seconds) for seconds, end in reads]


def summary(reads: Sequence[Read], begin: float, end: float) -> dict[str, float]:
    """Return milliseconds of the reads that were due from `begin` to `end`, and the answers per second in that time.

    Raises:
        ClickException: no read was due.
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
