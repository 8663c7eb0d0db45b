"""What the benchmarks share: releases of the flights and of copies of them, `predictions score`, and the cluster."""

import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import click
import psutil

from hadoop.config import ClusterConfig
from hadoop.engine import Cluster
from predictions.formats.id_digest import IdDigest
from predictions.formats.record_line import SEPARATOR, join_lines, split_lines
from predictions.hbase.connection import Connection
from predictions.progress import say
from predictions.settings import Settings, load_settings
from predictions.stages.export import PART_BYTES
from predictions.stages.score import take_models
from predictions.storage import ReleaseFolder, Storage

CHECKOUT = Path(__file__).resolve().parent.parent
VAR = CHECKOUT / "var"
SETTINGS = CHECKOUT / "examples" / "flights" / "predictions.toml"
LABELS = CHECKOUT / "benchmarks" / "labels.toml"  # settings with three labels
ROWS = 336_776
CHANGING = "sched_dep_time"  # the field of the records that change


def flights_database() -> Path:
    """Return the path of the flights' SQLite database, and make it if it is missing."""
    database = VAR / "flights.db"
    if not database.exists():
        subprocess.run([sys.executable, CHECKOUT / "examples" / "flights" / "make_database.py", database], check=True)
    return database


def copies_database(path: Path, copies: int) -> str:
    """Make a SQLite database with copies of the flights, under the IDs of `make_copies`, and return its URL."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("ATTACH ? AS source", [str(flights_database())])
        described = connection.execute("SELECT name, type FROM source.pragma_table_info('flights')").fetchall()
        others = described[1:]  # the ID is the first
        columns = ", ".join(f"{name} {kind}" for name, kind in others)
        connection.execute(f"CREATE TABLE flights (flight_id TEXT PRIMARY KEY, {columns})")
        names = ", ".join(name for name, _kind in others)
        for copy in range(copies):
            connection.execute(f"INSERT INTO flights SELECT '{copy}-' || flight_id, {names} FROM source.flights")
    return f"sqlite:///{path}"


def make_release(storage: Path, settings: Path = SETTINGS) -> ReleaseFolder:
    """Export the flights and train their model, in child processes."""
    flights_database()
    for stage in ("export", "train"):
        subprocess.run(predictions_command(storage, stage, settings=settings), stdout=subprocess.DEVNULL, check=True)
    return Storage(str(storage), load_settings(settings).name).release()


def make_copies(folder: ReleaseFolder, copies: int) -> ReleaseFolder:
    """Make a release with the same model and copies of each record, with the IDs `0-ID`, `1-ID` and so on."""
    target = folder.storage.new_release()
    shutil.copytree(f"{folder.path}/model", f"{target.path}/model")
    os.mkdir(f"{target.path}/export")
    digest = parts = part_bytes = total_bytes = 0
    file = None
    try:
        for block in _copies(folder, copies):
            if file is None or part_bytes >= PART_BYTES:
                if file:
                    file.close()
                file = target.create(f"{target.path}/export/part-{parts:05d}")
                parts, part_bytes = parts + 1, 0
            file.write(block)
            part_bytes += len(block)
            total_bytes += len(block)
            digest += IdDigest.of(line.partition(b"\t")[0] for line in split_lines(block))
    finally:
        if file:
            file.close()
    export = replace(
        folder.manifest.export,
        rows=copies * folder.manifest.export.rows,
        labelled=copies * folder.manifest.export.labelled,
        id_digest=digest,
        parts=parts,
        bytes=total_bytes,
    )
    target.write_manifest(replace(folder.manifest, release=target.release, export=export))
    return target


def change(first: ReleaseFolder, every: int) -> ReleaseFolder:
    """Make a release with the same model, in which one record of every `every` has changed: `CHANGING`, by a minute."""
    target, manifest = first.storage.new_release(), first.manifest
    field = 1 + [column.name for column in manifest.features].index(CHANGING)
    with target.writing("export") as temporary:
        for path in first.files("export"):
            with target.create(f"{temporary}/{path.rpartition('/')[2]}") as file:
                for block in first.blocks(path):
                    lines = split_lines(block)
                    lines[::every] = [_later(line, field) for line in lines[::every]]
                    file.write(join_lines(lines))
    target.write_manifest(replace(manifest, release=target.release, scored=None))
    take_models(target, first)
    return target


def _later(line: bytes, field: int) -> bytes:
    fields = line.split(SEPARATOR)
    fields[field] = b"%d" % (int(fields[field]) + 1)
    return SEPARATOR.join(fields)


def _copies(folder: ReleaseFolder, copies: int) -> Iterator[bytes]:
    for copy in range(copies):
        prefix = b"%d-" % copy
        for path in folder.files("export"):
            for block in folder.blocks(path):
                yield prefix + block[:-1].replace(b"\n", b"\n" + prefix) + b"\n"


@contextmanager
def release_on_hdfs(
    settings: Settings, local: Path, storage: Storage, copies: int, file: Path = SETTINGS
) -> Iterator[ReleaseFolder]:
    """Provide a release on HDFS, exported and with a model; at the end, remove all files and tables of its name.

    Args:
        settings: where HBase is, and the name of the predictions.
        local: a local folder to make the release in.
        storage: a storage on HDFS.
        copies: the number of copies of each record.
        file: the settings file for export and training.
    """
    with put_release(settings, make_copies(make_release(local, file), copies), storage) as folder:
        yield folder


@contextmanager
def put_release(settings: Settings, release: ReleaseFolder, storage: Storage) -> Iterator[ReleaseFolder]:
    """Provide a copy on HDFS of a local release, exported and with a model; at the end, see `release_on_hdfs`."""
    folder = ReleaseFolder(storage, release.release)
    try:
        put_folders(release, folder, "export", "model")
        folder.write_manifest(release.manifest)
        yield folder
    finally:
        remove_release(settings, storage)


def put_folders(source: ReleaseFolder, target: ReleaseFolder, *names: str) -> None:
    """Copy folders of a local release to a release on HDFS."""
    for name in names:
        for path in sorted(Path(source.path, name).iterdir()):
            with open(path, "rb") as file:
                target.put(f"{name}/{path.name}", file)


def remove_release(settings: Settings, storage: Storage) -> None:
    """Remove all files and tables of the settings' name."""
    if storage.names(storage.folder):
        storage.fs.rm(storage.folder, recursive=True)
    with Connection(settings.hbase.server(loading=True)) as connection:
        for table in connection.tables():
            if table.decode().partition(".")[0] == settings.name:
                connection.delete_table(table.decode())


def predictions_command(storage: Path | str, *arguments: str, settings: Path = SETTINGS) -> list[str]:
    """Return a command line of this package, which takes the storage and a settings file."""
    return [sys.executable, "-m", "predictions", "--settings", str(settings), "--storage", str(storage), *arguments]


def environment(settings: Settings) -> dict[str, str]:
    """Return environment variables with which a process gets the name, HBase and the database of settings."""
    return os.environ | {
        "PREDICTIONS_NAME": settings.name,
        "PREDICTIONS_HBASE_THRIFT": settings.hbase.thrift,
        "PREDICTIONS_DATABASE_URL": settings.database.url,
        "PYTHONPATH": str(CHECKOUT),
    }


def score_local(folder: ReleaseFolder) -> float:
    """Score a release with `predictions score --runner local`, as a process, and return the seconds."""
    storage = Path(folder.storage.folder).parent
    command = predictions_command(storage, "score", "--runner", "local", "--release", folder.release)
    os.sync()  # else the disk would still be busy with earlier writes
    started = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - started


@contextmanager
def running_cluster(*region_server_options: str) -> Iterator[ClusterConfig]:
    """Start the embedded cluster if it is not running, and stop it at the end if it was started here.

    Args:
        region_server_options: options that its region server must have, so that it must be started here.

    Raises:
        ClickException: it is running, without these options.
    """
    cluster = Cluster(replace(ClusterConfig.from_environment(), region_server_options=region_server_options))
    if all(state.startswith("running") for _daemon, state in cluster.status()):
        if region_server_options:
            raise click.ClickException("the cluster is running; this benchmark starts one: hadoop/cluster stop")
        yield cluster.config
        return
    try:
        cluster.start(cluster.region_servers, say)
        yield cluster.config
    finally:
        cluster.stop(say)


def cluster_processes(cluster: ClusterConfig) -> dict[str, psutil.Process]:
    """Return the processes of a running cluster's daemons, by name."""
    engine = Cluster(cluster)
    processes = {name: engine.process(name) for name, _state in engine.status()}
    return {name: process for name, process in processes.items() if process}


def machine() -> str:
    """Return a line about the machine."""
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
