"""Compare the export from PostgreSQL with `psql -c 'COPY … TO STDOUT' > file` of the same columns, as whole processes.

Copies of the flights are in one table of a PostgreSQL on this machine (`examples/postgresql.py`), read into its memory
before. Both ways write to the same disk. They are measured in turn, round after round; a ratio is taken within each
round, and the result is the median of the rounds.

- `export`: `predictions export` into a folder, from the start of Python to its end: it counts every record, digests its
  ID and writes the manifest.
- `psql`: one connection, as one would type it.

`peak memory` is that of the largest process that each way starts, without PostgreSQL's own; it is also measured for an
export of a tenth of the flights.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import psycopg
from psycopg.conninfo import conninfo_to_dict

from benchmarks.database import Database
from benchmarks.flights import SETTINGS, VAR, machine
from examples.postgresql import running
from predictions.cli import exits
from predictions.settings import load_settings

SHARED_BUFFERS = "1GB"  # three million flights have room
_VARIABLES = {"HOST": "host", "PORT": "port", "USER": "user", "PASSWORD": "password", "DATABASE": "dbname"}


class Run(NamedTuple):
    """Seconds and peak memory of a process, with the processes that it started."""

    seconds: float
    peak_bytes: int


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--copies", type=click.IntRange(10), default=10, show_default=True, help="Copies of the flights, under new IDs."
)
@click.option(
    "--rounds", type=click.IntRange(1), default=5, show_default=True, help="Number of rounds, each of both ways."
)
def main(as_json: bool, copies: int, rounds: int) -> None:
    """Measure the export from PostgreSQL."""
    VAR.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="export.", dir=VAR) as name:
        local = Path(name)
        local.chmod(0o755)  # PostgreSQL, which does not run as root, must enter; it protects its own files
        with running(local / "postgresql", shared_buffers=SHARED_BUFFERS) as server:
            database = Database.make(server.url, copies)
            with database.copy() as url:
                runs = [(_export(url, "flights", local), _psql(url, local)) for _round in range(rounds)]
                with psycopg.connect(url) as connection:
                    connection.execute(f"CREATE TABLE tenth AS SELECT * FROM flights LIMIT {database.rows // 10}")
                tenth = _export(url, "tenth", local)
    ratios = [export.seconds / psql.seconds for export, psql in runs]
    peak = max(export.peak_bytes for export, _psql in runs)
    result = {
        "rows": database.rows,
        "rounds": rounds,
        "export_seconds": [round(export.seconds, 2) for export, _psql in runs],
        "psql_seconds": [round(psql.seconds, 2) for _export, psql in runs],
        "peak_bytes": {"export": peak, "export_of_a_tenth": tenth.peak_bytes},
        "ratios": {
            "export_vs_psql": round(statistics.median(ratios), 3),
            "peak_memory_vs_tenth": round(peak / tenth.peak_bytes, 3),
        },
        "machine": f"{database.version}, {machine()}",
    }
    print(json.dumps(result) if as_json else _table(result))


def _export(url: str, table: str, local: Path) -> Run:
    storage = local / "storage"
    command = [sys.executable, "-m", "predictions", "--settings", str(SETTINGS), "--storage", str(storage), "export"]
    source = {"PREDICTIONS_DATABASE_URL": url, "PREDICTIONS_DATABASE_TABLE": table}
    run = _measure(command, source, local / "release")
    shutil.rmtree(storage)
    return run


def _psql(url: str, local: Path) -> Run:
    settings = load_settings(SETTINGS)
    columns = ", ".join([settings.database.id, *settings.features, *(model.label for model in settings.models)])
    parameters = conninfo_to_dict(url)  # passed as variables, since one is a password
    variables = {f"PG{name}": str(parameters[key]) for name, key in _VARIABLES.items()}
    return _measure(["psql", "-X", "-c", f"COPY (SELECT {columns} FROM flights) TO STDOUT"], variables, local / "lines")


def _measure(command: Sequence[str], environment: dict[str, str], output: Path) -> Run:
    """Run a process with its output in a file.

    Raises:
        CalledProcessError: the process failed.
    """
    os.sync()  # else the disk would still be busy with earlier writes
    with open(output, "wb") as file:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.DEVNULL, env={**os.environ, **environment})
        _process_id, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
    output.unlink()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Run(seconds, usage.ru_maxrss << 10)


def _table(result: dict[str, Any]) -> str:
    peaks, ratios = result["peak_bytes"], result["ratios"]
    lines = [
        f"{result['rows']:,} flights, {result['rounds']} rounds; {result['machine']}",
        f"export  {statistics.median(result['export_seconds']):6.2f} s, peak memory {peaks['export'] / 1e6:.0f} MB",
        f"psql    {statistics.median(result['psql_seconds']):6.2f} s",
        f"export / psql: {ratios['export_vs_psql']:.2f}; peak memory / that of a tenth of the flights: "
        f"{ratios['peak_memory_vs_tenth']:.2f}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    exits.run(main, "benchmarks/export")
