"""Measure lookups while nothing else happens, while a release is made and loaded, and right after it is served.

A release with copies of the flights is served from the embedded cluster, which is started with a cache that holds two
such releases, and stopped again. HBase, HDFS, Thrift and the lookups have one CPU; what makes and loads a release has
another one: the commands, YARN and the containers of its jobs. So the lookups wait for what a job or a load asks of the
servers, not for its own computing. Disk and memory are shared. Before the first phase, two minutes of lookups warm the
JVMs.

Two processes look up random records of the first copy at a fixed rate, one ID (`Client.get`) and 100 IDs
(`Client.get_many`), from SQLite and HBase; each answer must be `fresh`. A lookup's time begins when it was due (an open
loop). p999 needs 10,000 lookups. The phases, each with the calls behind the command:

- `idle`: nothing else happens;
- `job`: `score --runner hadoop` scores another release of the same records, and writes its HFiles;
- `hand over`: `load --via hfiles` loads the job's HFiles: HBase takes them over;
- `hfiles`: the same from prediction lines on HDFS: HFiles are written and copied to HDFS before;
- `before`, `warm` and `after`, for each way to warm a release: ten seconds (`--switch-seconds`) before the switch to
  the release that was just loaded, the warm-up, and the ten seconds after the switch;
- `puts`: `load --via puts` at full speed, ended after `--seconds`; `puts --rate`: the same with a rate.

Before each switch there is a load; those named `hfiles` are counted together. The ways:

- `nothing`: the switch alone; every block is read from HDFS by the lookup that needs it first;
- `region`: one key of each region, so that the Thrift server knows where the regions are, and their indexes are read;
- `sample`: what `predictions activate` does: keys spread evenly over the regions, about one for each block;
- `prefetch`: nothing, but the table has HBase's PREFETCH_BLOCKS_ON_OPEN, which is `hbase.rs.prefetchblocksonopen` for
  one table: the region server reads all blocks when it opens a file. Needs `hbase-driver`, which makes such a table.
"""

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import click

from benchmarks.cores import Cores, confined, on_cpu
from benchmarks.flights import (
    SETTINGS,
    VAR,
    cluster_processes,
    copies_database,
    environment,
    machine,
    make_copies,
    make_release,
    predictions_command,
    put_folders,
    remove_release,
    running_cluster,
    score_local,
)
from benchmarks.latency import by_second, due, summary
from benchmarks.paced import PacedLookups
from benchmarks.plots import plot_option
from benchmarks.serving_plot import draw
from hadoop.config import ClusterConfig
from predictions.cli import exits
from predictions.formats.names import release_table
from predictions.formats.prediction_line import FAMILY
from predictions.formats.row_key import split_points
from predictions.hbase.connection import Connection
from predictions.hbase.releases import Releases
from predictions.progress import say
from predictions.settings import Settings, load_settings
from predictions.stages.warm import warm
from predictions.storage import HFILES, ReleaseFolder, Storage

HOST = "127.0.0.1"
NAME = "benchmark_serving"
MANY = 100  # IDs of a lookup
YARN = ("resourcemanager", "nodemanager")  # whose containers get the CPU of the NodeManager
WARMING = ("nothing", "region", "sample", "prefetch")
TABLE_SECONDS = 60.0  # until HBase has made a table
WARM_UP_SECONDS = 120.0  # of lookups before the first phase: a JVM compiles its code while it runs
REST_SECONDS = 2.0  # after a command, before what follows it is measured
SETTLE_SECONDS = 15.0  # after a switch has been measured, in which lookups warm the release that is served now
# A cache that holds both releases, outside of the JVM's heap, as on servers. In the heap, a third of a release fits.
CACHE = ("-Dhbase.bucketcache.ioengine=offheap", "-Dhbase.bucketcache.size=1400")  # MB


class Phase(NamedTuple):
    """A phase, in seconds of the monotonic clock."""

    name: str
    begin: float
    end: float


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--copies", type=click.IntRange(1), default=10, show_default=True, help="Copies of the flights, under new IDs."
)
@click.option("--rate", type=click.FloatRange(1), default=250.0, show_default=True, help="Lookups of one ID a second.")
@click.option(
    "--many-rate", type=click.FloatRange(1), default=10.0, show_default=True, help="Lookups of 100 IDs a second."
)
@click.option(
    "--puts-rate", type=click.FloatRange(1), default=10_000.0, show_default=True, help="Rows a second with `--rate`."
)
@click.option(
    "--seconds", type=click.FloatRange(1), default=45.0, show_default=True, help="Seconds of `idle` and the puts."
)
@click.option(
    "--switch-seconds", type=click.FloatRange(1), default=10.0, show_default=True, help="Seconds around a switch."
)
@plot_option
def main(
    as_json: bool,
    copies: int,
    rate: float,
    many_rate: float,
    puts_rate: float,
    seconds: float,
    switch_seconds: float,
    plot: Path | None,
) -> None:
    """Measure lookups while releases are made, loaded and switched."""
    VAR.mkdir(exist_ok=True)
    cores = Cores.choose()
    with tempfile.TemporaryDirectory(prefix="serving.", dir=VAR) as name, running_cluster(*CACHE) as cluster:
        local = Path(name)
        with _serving(local, cluster, copies) as serving, ExitStack() as stack:
            processes = cluster_processes(cluster)
            yarn = [process for name, process in processes.items() if name in YARN]
            servers = [process for name, process in processes.items() if name not in YARN]
            stack.enter_context(confined(servers, cores.servers))
            stack.enter_context(confined(yarn, cores.others))
            with on_cpu(cores.servers):
                lookups = [
                    stack.enter_context(PacedLookups(ids, per_second, local / f"lookups-{ids}", serving.environment))
                    for ids, per_second in ((1, rate), (MANY, many_rate))
                ]
            with on_cpu(cores.others):
                phases = _phases(serving, seconds, switch_seconds, puts_rate)
        measured, rows = [paced.answered() for paced in lookups], serving.rows
    begin, end = phases[0].begin, phases[-1].end
    result = {
        "rows": rows,
        "rates": {str(paced.ids): paced.rate for paced in lookups},
        "puts_rate": puts_rate,
        "switch_seconds": switch_seconds,
        "lookups": {
            str(paced.ids): {
                "phases": _figures(phases, requests, not_fresh),
                "by_second": by_second(requests, begin, end),
            }
            for paced, (requests, not_fresh) in zip(lookups, measured, strict=True)
        },
        "phases": [
            {"name": phase.name, "begin": round(phase.begin - begin, 2), "end": round(phase.end - begin, 2)}
            for phase in phases
        ],
        "cpus": str(cores),
        "machine": machine(),
    }
    if plot:
        draw(result, plot)
    print(json.dumps(result) if as_json else _table(result))


class Serving(NamedTuple):
    """A served release, and another one of the same records that has not been scored yet.

    Args:
        cluster: the cluster.
        settings: where HBase and the lookups' database are.
        url: the URL of the releases' storage on HDFS.
        releases: the IDs of the two releases; the first one is served.
        rows: the number of records of each.
    """

    cluster: ClusterConfig
    settings: Settings
    url: str
    releases: tuple[str, str]
    rows: int

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables with which commands and lookups get the settings."""
        return environment(self.settings)

    def command(self, *arguments: str, seconds: float | None = None) -> None:
        """Run a command of this package, for so many seconds at most.

        Raises:
            ClickException: it failed.
        """
        command = predictions_command(self.url, *arguments)
        process = subprocess.Popen(command, env=self.environment, stdout=subprocess.DEVNULL)
        try:
            if process.wait(seconds):
                raise click.ClickException(f"{' '.join(arguments)}: ended with exit code {process.returncode}")
        except subprocess.TimeoutExpired:
            pass
        finally:
            process.terminate()  # which also ends its job on the cluster
            process.wait()

    def forget(self, release: str) -> None:
        """Undo a release's load: drop its table and HFiles, so that it can be loaded again."""
        folder = ReleaseFolder(Storage(self.url, NAME), release)
        with self.connection() as connection:
            if (table := release_table(NAME, release)).encode() in connection.tables():
                connection.delete_table(table)
        folder.remove(HFILES)
        folder.write_manifest(replace(folder.manifest, loaded=None))

    def connection(self) -> Connection:
        """Return a connection to HBase."""
        return Connection(self.settings.hbase.server(loading=True))

    def switch(self, release: str, warming: str) -> tuple[float, float]:
        """Warm a loaded release and serve it; return when the warm-up ended and when the release was served."""
        with self.connection() as connection:
            table = release_table(NAME, release)
            if warming == "region":
                points = split_points(self.settings.hbase.regions)
                connection.receive(connection.send_rows(table, [b"0", *points]))
            elif warming == "sample":
                warm(connection, table, self.rows)
            warmed = time.monotonic()
            Releases(connection, NAME).activate(release)
        return warmed, time.monotonic()

    def make_prefetched(self, release: str) -> None:
        """Make a release's table, which `load` finds then, with PREFETCH_BLOCKS_ON_OPEN; Thrift 1 cannot set it."""
        from hbasedriver.client.client import Client
        from hbasedriver.protobuf_py.HBase_pb2 import ColumnFamilySchema

        table, points = release_table(NAME, release), split_points(self.settings.hbase.regions)
        family = ColumnFamilySchema(name=FAMILY)
        family.attributes.add(first=b"PREFETCH_BLOCKS_ON_OPEN", second=b"true")
        with self.connection() as connection:
            Releases(connection, NAME).start_load(release)  # first, as in `load`
            client = Client({"hbase.zookeeper.quorum": f"localhost:{self.cluster.port('zookeeper')}"})
            try:
                client.master_conn.create_table(b"", table.encode(), [family], points)
                deadline = time.monotonic() + TABLE_SECONDS
                while len(connection.regions(table)) <= len(points):
                    if time.monotonic() > deadline:
                        raise click.ClickException(f"table {table} was not made within {TABLE_SECONDS:.0f} s")
                    time.sleep(0.1)
            finally:
                client.close()
                client.cluster_connection.registry.zk.stop()  # hbase-driver leaves it open, and it would reconnect


@contextmanager
def _serving(local: Path, cluster: ClusterConfig, copies: int) -> Iterator[Serving]:
    """Serve a release, and put another one on HDFS, exported and with a model; remove both at the end."""
    settings = load_settings(SETTINGS)
    hbase = settings.hbase.model_copy(update={"thrift": f"{HOST}:{cluster.port('thrift')}"})
    database = settings.database.model_copy(update={"url": copies_database(local / "records.db", 1)})
    settings = settings.model_copy(update={"name": NAME, "hbase": hbase, "database": database})
    url = f"webhdfs://{HOST}:{cluster.port('namenode_web')}/benchmarks"
    storage = Storage(url, NAME)
    try:
        made = make_copies(make_release(local), copies)
        score_local(made)
        made = ReleaseFolder(made.storage, made.release)  # whose manifest says what was scored
        served, other = ReleaseFolder(storage, made.release), storage.new_release()
        put_folders(made, served, "model", "scored")
        served.write_manifest(made.manifest)
        put_folders(made, other, "model", "export")
        other.write_manifest(replace(made.manifest, release=other.release, scored=None))
        serving = Serving(cluster, settings, url, (served.release, other.release), made.scored.rows)
        serving.command("load", "--release", served.release, "--via", "hfiles")
        serving.switch(served.release, "sample")
        yield serving
    finally:
        remove_release(settings, storage)


def _phases(serving: Serving, seconds: float, switch_seconds: float, puts_rate: float) -> list[Phase]:
    """Run all phases, and return their times."""
    phases: list[Phase] = []

    def measure(name: str, work: Callable[[], None]) -> None:
        begin = time.monotonic()
        work()
        phases.append(Phase(name, begin, time.monotonic()))
        say(f"{name}: {phases[-1].end - begin:.1f} s")
        time.sleep(REST_SECONDS)

    served, other = serving.releases
    time.sleep(WARM_UP_SECONDS)
    measure("idle", lambda: time.sleep(seconds))
    measure("job", lambda: serving.command("score", "--release", other, "--runner", "hadoop"))
    for number, warming in enumerate(WARMING):
        if number:
            serving.forget(other)
            time.sleep(SETTLE_SECONDS)
        if warming == "prefetch":
            serving.make_prefetched(other)
        load = ["load", "--release", other, "--via", "hfiles"]
        measure("hfiles" if number else "hand over", lambda load=load: serving.command(*load))
        measure(f"before: {warming}", lambda: time.sleep(switch_seconds))
        begin = time.monotonic()
        warmed, switched = serving.switch(other, warming)
        time.sleep(switch_seconds)
        phases += [
            Phase(f"warm: {warming}", begin, warmed),
            Phase(f"after: {warming}", switched, switched + switch_seconds),
        ]
        served, other = other, served
    for name, options in (("puts", []), ("puts --rate", ["--rate", str(puts_rate)])):
        serving.forget(other)
        arguments = ["load", "--release", other, "--via", "puts", *options]
        measure(name, lambda arguments=arguments: serving.command(*arguments, seconds=seconds))
    return phases


def _figures(phases: list[Phase], requests: list[Any], not_fresh: list[float]) -> dict[str, dict[str, Any]]:
    """Return the figures of each phase, over all times that it came, with its p99 over that of another phase."""
    figures: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(phase.name for phase in phases):
        times = [(phase.begin, phase.end) for phase in phases if phase.name == name]
        kind, _colon, warming = name.partition(": ")
        compared = figures.get(f"before: {warming}" if kind in ("warm", "after") else "idle", {})
        part = summary(due(requests, *times))
        ratio = part["p99_ms"] / compared["p99_ms"] if part["p99_ms"] and compared.get("p99_ms") else None
        figures[name] = {
            "seconds": round(sum(end - begin for begin, end in times), 2),
            **part,
            "p99_ratio": ratio and round(ratio, 3),
            "not_fresh": sum(begin <= time < end for time in not_fresh for begin, end in times),
        }
    return figures


def _table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['rows']:,} records in the served release, and in the one that is made, loaded and served",
        f"{result['machine']}; {result['cpus']}: servers and lookups on the first, jobs and loads on the second",
        "times in ms from when a lookup was due; the ratio is that of p99 to `idle`, or to `before` for a switch",
    ]
    for ids, lookups in result["lookups"].items():
        heading = f"{ids} ID{'s' if ids != '1' else ''}, {result['rates'][ids]:g} a second"
        lines += [
            "",
            f"{heading:24}{'seconds':>9}{'p50':>9}{'p99':>9}{'p999':>9}{'longest':>9}{'ratio':>8}{'lookups':>10}",
        ]
        for name, figures in lookups["phases"].items():
            times = "".join(_shown(figures[key]) for key in ("p50_ms", "p99_ms", "p999_ms", "max_ms"))
            ratio = f"{figures['p99_ratio']:8.2f}" if figures["p99_ratio"] else f"{'':8}"
            wrong = f"  {figures['not_fresh']} NOT FRESH" if figures["not_fresh"] else ""
            lines.append(f"{name:24}{figures['seconds']:9.1f}{times}{ratio}{figures['samples']:10,}{wrong}")
    return "\n".join(lines)


def _shown(milliseconds: float | None) -> str:
    return f"{'–':>9}" if milliseconds is None else f"{milliseconds:9.2f}"


if __name__ == "__main__":
    exits.run(main, "benchmarks/serving")
