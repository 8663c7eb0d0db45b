"""Read and update records of a table at given rates with pgbench, and measure each request."""

import os
import subprocess
import time
from pathlib import Path
from typing import Self

import click
from psycopg.conninfo import conninfo_to_dict

from benchmarks.latency import Request
from examples.postgresql import find_program

READ = "\\set id random(1, :rows)\nSELECT * FROM flights WHERE flight_id = :id;\n"
UPDATE = (
    "\\set id random(1, :rows)\n\\set delay random(-30, 300)\n"
    "UPDATE flights SET dep_delay = :delay WHERE flight_id = :id;\n"
)
CLIENTS = 16  # connections; a lock on the table stops all of them
START_SECONDS = 1  # until all connections are open
FLUSH_LINES = 150  # of further requests after a phase, after which pgbench has certainly written those before
_VARIABLES = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}


class Paced:
    """Runs pgbench, which repeats a transaction for random records, within the context.

    Each request has its own due time, which does not depend on earlier requests: its seconds count from then, even if
    all connections are waiting.

    Args:
        url: the URL of the database.
        script: the transaction, in pgbench's language.
        rows: the number of rows of the table; the IDs are 1 to this number.
        rate: requests per second, on average (a Poisson process).
        folder: a new folder for pgbench's files.
    """

    def __init__(self, url: str, script: str, rows: int, rate: float, folder: Path) -> None:
        self._folder, self._rate = folder, rate
        folder.mkdir()
        (folder / "script.sql").write_text(script)
        parameters = conninfo_to_dict(url)
        self._environment = os.environ | {name: str(parameters[key]) for key, name in _VARIABLES.items()}
        self._command = [
            *(find_program("pgbench"), "--no-vacuum", f"--client={CLIENTS}", "--time=86400", f"--rate={rate}"),
            *(f"--file={folder}/script.sql", f"--define=rows={rows}", "--random-seed=1", "--log"),
            f"--log-prefix={folder}/requests",
        ]

    def __enter__(self) -> Self:
        with open(self._folder / "pgbench.txt", "wb") as output:
            self._process = subprocess.Popen(self._command, env=self._environment, stdout=output, stderr=output)
        time.sleep(START_SECONDS)
        return self

    def __exit__(self, kind: object, *_exception: object) -> None:
        if kind is None:
            time.sleep(max(1.0, FLUSH_LINES / self._rate))  # its log has a buffer, which is lost when it is ended
        has_failed = self._process.poll() is not None
        self._process.terminate()
        self._process.wait()
        if has_failed and kind is None:
            raise click.ClickException(f"pgbench ended: {(self._folder / 'pgbench.txt').read_text()[-2000:]}")

    def answered(self) -> list[Request]:
        """Return the requests in the order of their answers, with times since 1970; only after the context."""
        [log] = self._folder.glob("requests.*")
        lines = log.read_text().split("\n")[:-1]  # the last one may be cut off
        # pgbench's manual, "Per-Transaction Logging": microseconds since the request was due, and when it ended.
        fields = (line.split() for line in lines)
        requests = ((int(took) / 1e6, int(second) + int(us) / 1e6) for _, _, took, _, second, us, _ in fields)
        return [Request(end - seconds, seconds) for seconds, end in requests]
