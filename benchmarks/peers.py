"""Compare the whole job with two ways to build it of other parts: from exported lines to the first lookup.

The records are copies of the flights, exported before, with a trained model. All ways run in one run on this machine,
one after the other, with the embedded cluster (which is started, and stopped again, unless it is running); each step is
a process, from its start to its end:

- `local`: `predictions score --runner local`, `load --via hfiles` and `activate`. It is the counterpart of the others,
  whose Spark is `local[2]`: scripts on both cores, without YARN. The lines are on HDFS, from where HBase takes HFiles
  over; Spark reads them from the disk.
- `hadoop`: the same with `--runner hadoop`, a job on the cluster, as one would run it on many machines. Nothing stands
  against it here: it shows what the cluster costs.
- `Feast`: PySpark scores the lines with scikit-learn, by `mapInPandas`, into Parquet files. Feast materializes them
  into its HBase store, with batches, into the table that it makes itself.
- `HappyBase`: the same Parquet files; on each core a loop of plain HappyBase puts them, in batches, into a table with
  as many regions as this package's.

PySpark runs once, and counts for both. The first lookup begins with making the client, not with its imports.

Afterwards, and not counted, the rows of each table are counted. Then each one's own client looks up the same random
IDs, on one thread, one client after the other, each after a warm-up; and the predictions of 5,000 other IDs, which must
be the same.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click
import happybase

from benchmarks.environments import install, install_spark, run, spark_variables
from benchmarks.flights import (
    ROWS,
    SETTINGS,
    VAR,
    copies_database,
    environment,
    machine,
    make_copies,
    make_release,
    predictions_command,
    put_release,
    running_cluster,
)
from loader.tables import make_table
from predictions.cli import exits
from predictions.formats.names import release_table, scored_at
from predictions.formats.row_key import split_points
from predictions.hbase.connection import Connection
from predictions.progress import say
from predictions.settings import Settings, load_settings
from predictions.storage import ReleaseFolder, Storage

HOST = "127.0.0.1"
NAME = "benchmark_peers"
FEAST = ("feast[hbase]>=0.67",)  # with HappyBase and pyarrow; it needs an older pandas than this package
FEAST_SHARES = ("xxhash",)
JOBS, LOOK_UP = (Path(__file__).with_name(f"peers_{name}.py") for name in ("jobs", "lookups"))
LOOKUPS = 10_000  # of one ID; a tenth as many are of 100 IDs
SCAN_ROWS = 10_000  # of a request that counts rows
STEPS = ("score", "load", "serve", "first lookup")
TITLES = {
    "local": "this package, --runner local",
    "hadoop": "this package, --runner hadoop",
    "Feast": "PySpark, Feast",
    "HappyBase": "PySpark, HappyBase",
}


class Way(NamedTuple):
    """A way that has made its predictions, and serves them.

    Args:
        seconds: what the steps took, without the first lookup.
        table: the table with the predictions.
        client: the Python, the client and its target, for `peers_lookups.py`.
        environment: the client's environment variables.
    """

    seconds: dict[str, float]
    table: str
    client: tuple[Path, str, str]
    environment: Mapping[str, str]

    def look_up(self, copies: int, lookups: int) -> dict[str, Any]:
        """Look up so many random records by the way's client, in a process, and return what it says."""
        python, name, target = self.client
        numbers = map(str, (copies, ROWS, lookups))
        _seconds, output = run([python, LOOK_UP, name, target, *numbers], self.environment)
        return json.loads(output.splitlines()[-1])


class Job(NamedTuple):
    """What all ways begin with.

    Args:
        release: a local release with the exported lines and a model.
        settings: where HBase and the database with the records are.
        storage: the URL of the storage on HDFS.
        local: a folder for files.
        spark, feast: the Pythons of the environments with Spark, and with Feast and HappyBase.
    """

    release: ReleaseFolder
    settings: Settings
    storage: str
    local: Path
    spark: Path
    feast: Path

    @property
    def port(self) -> str:
        """The port of HBase's Thrift server."""
        return self.settings.hbase.thrift.rpartition(":")[2]

    @property
    def scored(self) -> Path:
        """The folder with PySpark's predictions."""
        return self.local / "scored"

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables for programs of `feast`."""
        return environment(self.settings)

    def seconds(self, *arguments: str | Path) -> float:
        """Run a step of `peers_jobs.py` with HappyBase or Feast, and return its seconds."""
        return run([self.feast, JOBS, *arguments], self.environment)[0]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--copies", type=click.IntRange(1), default=10, show_default=True, help="Copies of the flights, under new IDs."
)
def main(as_json: bool, copies: int) -> None:
    """Measure the whole job, and lookups, against PySpark with Feast and PySpark with HappyBase."""
    VAR.mkdir(exist_ok=True)
    spark, feast = install_spark(), install("feast-venv", FEAST, FEAST_SHARES)
    with (
        tempfile.TemporaryDirectory(prefix="peers.", dir=VAR) as name,
        running_cluster() as cluster,
        ExitStack() as stack,
    ):
        local, settings = Path(name), load_settings(SETTINGS)
        hbase = settings.hbase.model_copy(update={"thrift": f"{HOST}:{cluster.port('thrift')}"})
        database = settings.database.model_copy(update={"url": copies_database(local / "records.db", copies)})
        settings = settings.model_copy(update={"hbase": hbase, "database": database})
        storage = f"webhdfs://{HOST}:{cluster.port('namenode_web')}/benchmarks"
        job = Job(make_copies(make_release(local), copies), settings, storage, local, spark, feast)
        ways = {way: _finish(stack.enter_context(_package(job, way)), copies) for way in ("hadoop", "local")}
        scored = _spark(job)
        ways["HappyBase"] = _finish(stack.enter_context(_happybase(job, scored)), copies)
        ways["Feast"] = _finish(stack.enter_context(_feast(job, scored)), copies)
        rows = job.release.manifest.export.rows
        lookups = _compare(job, ways, rows, copies)
    totals = {way: sum(ways[way].seconds.values()) for way in TITLES}
    result = {
        "rows": rows,
        "seconds": {
            way: {step: round(seconds, 2) for step, seconds in ways[way].seconds.items()} | {"total": round(total, 2)}
            for way, total in totals.items()
        },
        "ratios": {way: round(total / totals["local"], 3) for way, total in totals.items()},
        "lookups": {way: lookups[way] for way in TITLES},
        "machine": machine(),
    }
    print(json.dumps(result) if as_json else _table(result))


@contextmanager
def _package(job: Job, runner: str) -> Iterator[Way]:
    """Provide what this package makes of the lines, by a runner, and remove it at the end."""
    settings = job.settings.model_copy(update={"name": f"{NAME}_{runner}"})
    with put_release(settings, job.release, Storage(job.storage, settings.name)) as folder:
        commands = {
            "score": ("score", "--runner", runner),
            "load": ("load", "--via", "hfiles"),
            "serve": ("activate",),
        }
        variables = environment(settings)
        seconds = {
            step: run(predictions_command(job.storage, *command), variables)[0] for step, command in commands.items()
        }
        table = release_table(settings.name, folder.release)
        yield Way(seconds, table, (Path(sys.executable), "package", str(SETTINGS)), variables)


def _spark(job: Job) -> float:
    """Score the lines with PySpark, and return the seconds."""
    folder, scored = job.release, scored_at(job.release.release).decode()
    step = ["spark", f"{folder.path}/model/model.json", scored, f"{folder.path}/export", job.scored]
    return run([job.spark, JOBS, *step], spark_variables(job.spark, job.local))[0]


@contextmanager
def _happybase(job: Job, scored: float) -> Iterator[Way]:
    """Provide a table into which loops have put Spark's predictions, and remove it at the end."""
    table, hbase = f"{NAME}_happybase", job.settings.hbase
    with _dropped(job, table):
        started = time.perf_counter()
        with Connection(hbase.server(loading=True)) as connection:
            points = [point.decode() for point in split_points(hbase.regions)]
            make_table(connection, table, points, job.settings.hadoop.bin, say)
        seconds = time.perf_counter() - started + job.seconds("happybase", job.port, table, job.scored)
        client = (job.feast, "happybase", f"{job.port},{table}")
        yield Way({"score": scored, "load": seconds}, table, client, job.environment)


@contextmanager
def _feast(job: Job, scored: float) -> Iterator[Way]:
    """Provide a feature view with Spark's predictions, materialized into HBase, and remove it at the end."""
    view = f"{NAME}_feast"
    with _dropped(job, view):
        seconds = job.seconds("feast", job.port, view, job.scored)
        client = (job.feast, "feast", f"{job.port},{view},{job.scored}")
        yield Way({"score": scored, "load": seconds}, view, client, job.environment)


@contextmanager
def _dropped(job: Job, table: str) -> Iterator[None]:
    """Drop a table at the end of the context, if it was made."""
    try:
        yield
    finally:
        with Connection(job.settings.hbase.server(loading=True)) as connection:
            if table.encode() in connection.tables():
                connection.delete_table(table)


def _finish(way: Way, copies: int) -> Way:
    """Return a way with its first lookup."""
    seconds = way.seconds | {"first lookup": way.look_up(copies, 0)["first"]}
    say(f"{way.table}: {sum(seconds.values()):.1f} s")
    return way._replace(seconds=seconds)


def _compare(job: Job, ways: Mapping[str, Way], rows: int, copies: int) -> dict[str, dict[str, Any]]:
    """Measure the lookups of all ways, and return them.

    Raises:
        ClickException: a table has not all rows, or predictions differ.
    """
    for way in ways.values():
        if (count := _count(job, way.table)) != rows:
            raise click.ClickException(f"table {way.table} has {count:,} rows, not {rows:,}")
    answers = {name: way.look_up(copies, LOOKUPS) for name, way in ways.items()}
    for name, answer in answers.items():
        for own, other in zip(answers["local"]["sample"], answer["sample"], strict=True):
            if own != other:
                raise click.ClickException(f"{name} answers {other}, this package {own}")
    return {name: answer["lookups"] for name, answer in answers.items()}


def _count(job: Job, table: str) -> int:
    rows = happybase.Connection(HOST, int(job.port)).table(table)
    return sum(1 for _row in rows.scan(filter=b"FirstKeyOnlyFilter() AND KeyOnlyFilter()", batch_size=SCAN_ROWS))


def _table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['rows']:,} records, from exported lines to the first lookup; {result['machine']}",
        f"{'seconds':32}" + "".join(f"{step:>14}" for step in (*STEPS, "total", "ratio")),
    ]
    for way, title in TITLES.items():
        seconds = result["seconds"][way]
        steps = "".join(f"{seconds[step]:14.2f}" if step in seconds else f"{'–':>14}" for step in (*STEPS, "total"))
        lines.append(f"{title:32}{steps}{result['ratios'][way]:14.2f}")
    lines += ["", f"{'lookups, ms':32}" + "".join(f"{ids:>14}" for ids in ("1 ID, p50", "p99", "100 IDs, p50", "p99"))]
    for way, title in TITLES.items():
        figures = result["lookups"][way]
        lines.append(
            f"{title:32}"
            + "".join(
                f"{figures[ids][percentile]:14.3f}" for ids in ("1", "100") for percentile in ("p50_ms", "p99_ms")
            )
        )
    return "\n".join(lines)


if __name__ == "__main__":
    exits.run(main, "benchmarks/peers")
