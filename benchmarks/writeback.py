"""Measure what a batch of predictions does to the database: written back into its table, or made by this package.

A PostgreSQL (with default settings except for `shared_buffers`, so with fsync) holds copies of the flights in one table
with a primary key. Random records are read by that key, at a given rate, while

- `nothing` else happens;
- `write_back`: predictions for every record are written into a new column, as an expert would do it. They exist before,
  in a file, sorted by ID. ALTER TABLE adds the column, which rewrites nothing; it gives up after waiting 0.1 seconds
  for its lock and tries again a second later, since every read waits behind it. COPY fills a temporary table, which
  needs no WAL and then gets a primary key. UPDATE … FROM goes through the table in batches by key range, each a
  transaction. VACUUM runs after every tenth of the table, so that the next tenth finds free space.
- `package`: `predictions run`, with this database and the embedded cluster (which is started, and stopped again, unless
  it is running): export, training, scoring by Hadoop, bulk load into HBase, activation. It comes before `write_back`,
  which writes its predictions.

Each phase has a new database, copied from the same template and read into memory, with a checkpoint before. In its
first seconds (`--long-read`), one transaction has the table open, as a report or a dump would: ALTER TABLE has to wait
for it.

A read's time begins when it was due, not when a connection was free for it. Figures are those of a whole phase and of
its steps; in `package`, the export is the only step that uses the database. The others take the same cores as the
database and pgbench here; `busy` is the share of the cores' time in which they worked, for any program.

WAL is the difference of `pg_current_wal_lsn()`. Sizes, dead rows and free space are those of `pgstattuple`, before and
after. The locks on the table, held or waited for, and the longest wait for each mode are sampled fifty times a second.
"""

import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import psutil

from benchmarks.batches import Package, Step, write_back
from benchmarks.database import Database, Watch
from benchmarks.flights import VAR, machine, running_cluster
from benchmarks.reads import PacedReads, by_second, summary
from examples.postgresql import running
from predictions.cli import exits

SHARED_BUFFERS = "512MB"  # enough for a million records
PHASES = {"nothing": "nothing else", "write_back": "writing back", "package": "this package"}
Work = Callable[[str], list[Step]]  # does a phase's work in the database of a URL, and returns its steps
Figures = dict[str, Any]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--copies", type=click.IntRange(1), default=3, show_default=True, help="Copies of the flights, under new IDs."
)
@click.option("--rate", type=click.IntRange(1), default=1000, show_default=True, help="Reads per second.")
@click.option(
    "--seconds", type=click.IntRange(10), default=30, show_default=True, help="Seconds of the phase `nothing`."
)
@click.option(
    "--long-read",
    type=click.FloatRange(0),
    default=5.0,
    show_default=True,
    help="Seconds that a transaction keeps the table open.",
)
@click.option(
    "--export-rate",
    type=click.FloatRange(1),
    help="Records per second that `package` reads, at most; default: no limit.",
)
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), help="PNG file to draw the figures into; default: none."
)
def main(
    as_json: bool,
    copies: int,
    rate: int,
    seconds: int,
    long_read: float,
    export_rate: float | None,
    plot: Path | None,
) -> None:
    """Measure what a batch of predictions does to the database and its readers."""
    VAR.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="writeback.", dir=VAR) as name, running_cluster() as cluster:
        local = Path(name)
        local.chmod(0o755)  # PostgreSQL, which does not run as root, must enter; it protects its own files
        with running(local / "postgresql", shared_buffers=SHARED_BUFFERS) as server:
            database = Database.make(server.url, copies)
            measure = partial(_measure, database, rate, long_read, local)
            figures = _phases(measure, Package(cluster, export_rate), seconds, local / "predictions", database.rows)
    result = {
        "rows": database.rows,
        "rate": rate,
        "long_read_seconds": long_read,
        "export_rate": export_rate,
        "phases": {phase: figures[phase] for phase in PHASES},
        "machine": f"{database.version}, {machine()}",
    }
    if plot:
        from benchmarks.writeback_plot import draw

        draw(result, plot)
    print(json.dumps(result) if as_json else _table(result))


def _phases(
    measure: Callable[[str, Work], Figures], package: Package, seconds: int, predictions: Path, rows: int
) -> dict[str, Figures]:
    def idle(_url: str) -> list[Step]:
        time.sleep(seconds)
        return []

    figures = {"nothing": measure("nothing", idle)}
    with package.removed():
        figures["package"] = measure("package", package.run)
        package.write_predictions(predictions)
    figures["write_back"] = measure("write_back", lambda url: write_back(url, predictions, rows))
    return figures


def _measure(database: Database, rate: int, long_read: float, local: Path, phase: str, work: Work) -> Figures:
    """Do the work in a new copy of the database, and return the figures of the phase."""
    folder = local / phase
    folder.mkdir()
    with (
        database.copy() as url,
        PacedReads(url, database.rows, rate, folder) as reads,
        Watch(url, "flights") as watch,
        database.long_read(url, long_read),
    ):
        psutil.cpu_percent()
        begin = time.time()
        steps = work(url)
        end = time.time()
        busy = psutil.cpu_percent() / 100
    all_reads = reads.answered()
    return {
        "seconds": round(end - begin, 2),
        "busy": round(busy, 3),
        "reads": summary(all_reads, begin, end),
        "steps": {
            step.name: {
                "begin": round(step.begin - begin, 2),
                "seconds": round(step.end - step.begin, 2),
                **summary(all_reads, step.begin, step.end),
            }
            for step in steps
        },
        **watch.measurements(),
        "by_second": by_second(all_reads, begin, end),
    }


def _table(result: dict[str, Any]) -> str:
    phases = result["phases"]
    lines = [
        f"{result['rows']:,} records, {result['rate']:,} reads a second asked for; {result['machine']}",
        f"{'':28}{'seconds':>9}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}{'reads/s':>9}",
    ]
    for phase, title in PHASES.items():
        figures = phases[phase]
        lines.append(_line(title, figures["seconds"], figures["reads"]))
        lines += [_line(f"  {name}", step["seconds"], step) for name, step in figures["steps"].items()]
    lines.append(f"{'':28}{'WAL MB':>9}{'table MB':>15}{'index MB':>15}{'dead rows':>10}{'free MB':>9}{'schema':>10}")
    for phase, title in PHASES.items():
        figures = phases[phase]
        before, after = figures["before"], figures["after"]
        table, index = (f"{before[key] / 1e6:.1f} → {after[key] / 1e6:.1f}" for key in ("table_bytes", "index_bytes"))
        schema = "changed" if figures["schema_changed"] else "same"
        lines.append(
            f"{title:28}{figures['wal_bytes'] / 1e6:9.1f}{table:>15}{index:>15}"
            f"{after['dead_rows']:10,}{after['free_bytes'] / 1e6:9.1f}{schema:>10}"
        )
    for phase, title in PHASES.items():
        figures = phases[phase]
        waits = ", ".join(f"{mode} {wait} ms" for mode, wait in figures["longest_wait_ms"].items()) or "none"
        locks = ", ".join(figures["locks"])
        lines.append(f"{title}: locks {locks}; longest waits: {waits}; cores {figures['busy']:.0%} busy")
    return "\n".join(lines)


def _line(title: str, seconds: float, reads: dict[str, Any]) -> str:
    milliseconds = "".join(f"{reads[name]:9.2f}" for name in ("p50_ms", "p99_ms", "max_ms"))
    return f"{title:28}{seconds:9.1f}{milliseconds}{reads['reads_per_second']:9.1f}"


if __name__ == "__main__":
    exits.run(main, "benchmarks/writeback")
