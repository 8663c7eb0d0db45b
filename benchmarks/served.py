"""Measure the time from a scoring job's end to served predictions, for copies of the flights and for ten times as many.

The prediction lines are made by the runner `local`, and the HFiles written from them, as the reducers of a job would:
HDFS then has what a job leaves behind. The release's table is made before, as `predictions run` does while the job
runs. What is measured are the calls behind `predictions load` and `activate`, and reading a row; the time should depend
on the number of files, not of rows.
"""

import json
import shutil
import tempfile
import time
from collections import deque
from functools import partial
from pathlib import Path

import click

from benchmarks.flights import (
    SETTINGS,
    VAR,
    machine,
    make_copies,
    make_release,
    remove_release,
    running_cluster,
    score_local,
)
from loader.bulk import write_hfile
from predictions.cli import exits
from predictions.formats.names import release_table
from predictions.hbase.connection import Connection
from predictions.hbase.releases import Releases
from predictions.progress import bar, say
from predictions.settings import Settings, load_settings
from predictions.stages.load import How, load, table_ahead
from predictions.storage import ReleaseFolder, Storage
from predictions.workers import cores, run_tasks

HOST = "127.0.0.1"
TIMES = 10  # as many copies in the second release


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--copies", type=click.IntRange(1), default=10, show_default=True, help="Copies of the flights.")
def main(as_json: bool, copies: int) -> None:
    """Measure how long it takes to serve what a job has scored."""
    VAR.mkdir(exist_ok=True)
    measured = []
    with tempfile.TemporaryDirectory(prefix="served.", dir=VAR) as name, running_cluster() as cluster:
        local, settings = Path(name), load_settings(SETTINGS)
        thrift = settings.hbase.model_copy(update={"thrift": f"{HOST}:{cluster.port('thrift')}"})
        settings = settings.model_copy(update={"hbase": thrift, "name": "benchmark_served"})
        storage = Storage(f"webhdfs://{HOST}:{cluster.port('namenode_web')}/benchmarks", settings.name)
        flights = make_release(local)
        for number in (copies, TIMES * copies):
            try:
                folder = _scored(flights, number, storage)
                measured.append((folder.scored.rows, _seconds(settings, folder)))
            finally:
                remove_release(settings, storage)
    result = {
        "rows": [rows for rows, _seconds in measured],
        "seconds": [round(seconds, 2) for _rows, seconds in measured],
        "ratio": round(measured[1][1] / measured[0][1], 3),
        "machine": machine(),
    }
    print(json.dumps(result) if as_json else _table(result))


def _scored(flights: ReleaseFolder, copies: int, storage: Storage) -> ReleaseFolder:
    """Make a release with copies of the flights on HDFS, as a scoring job leaves it."""
    local = make_copies(flights, copies)
    score_local(local)
    local = ReleaseFolder(local.storage, local.release)  # whose manifest says what was scored
    folder = ReleaseFolder(storage, local.release)
    for path in local.files("scored"):
        with open(path, "rb") as file:
            folder.put(f"scored/{Path(path).name}", file)
    folder.write_manifest(local.manifest)
    shutil.rmtree(local.path)  # the disk need not hold it twice
    deque(run_tasks(partial(write_hfile, folder), range(folder.scored.parts), cores()), maxlen=0)
    return folder


def _seconds(settings: Settings, folder: ReleaseFolder) -> float:
    """Load and activate a release; return the seconds.

    Raises:
        ClickException: it is not served, or not every region was proved by its file.
    """
    with table_ahead(settings, folder.release, say):
        pass
    started = time.perf_counter()
    loaded = load(settings, folder, How(via="hfiles"), bar, say)
    with Connection(settings.hbase.server()) as connection:
        releases = Releases(connection, settings.name)
        releases.activate(folder.release)
        first = next(connection.scan(release_table(settings.name, folder.release), b"", b"", page_rows=1))
        seconds = time.perf_counter() - started
        if not first or releases.pointer().current != folder.release or loaded.proved != len(loaded.parts):
            raise click.ClickException(f"the release is not served, or not proved by its files: {loaded}")
    return seconds


def _table(result: dict) -> str:
    lines = [result["machine"], f"{'rows':>14}{'seconds to served':>20}"]
    lines += [f"{rows:14,}{seconds:20.2f}" for rows, seconds in zip(result["rows"], result["seconds"], strict=True)]
    return "\n".join([*lines, f"ratio: {result['ratio']:.2f}"])


if __name__ == "__main__":
    exits.run(main, "benchmarks/served")
