"""Compare scoring only the records that changed with scoring all records, on the embedded cluster or without a job.

The records are copies of the flights, exported to HDFS before; the model is a random forest of 1,000 trees
(`benchmarks/forest.toml`). A first release is scored whole. In a second one with the same model, every hundredth record
has another scheduled departure. It is scored twice: `full`, and `changed`, which keeps the first release's lines of
unchanged records. The time is that of the call behind `predictions score`: the job is submitted and run, its output is
counted and put in its place. With `--runner local`, the same scripts run as processes of this machine, from HDFS and to
HDFS; the difference is Hadoop's part.

Then both are loaded, and the two tables are compared cell by cell: they must be the same but for the cells' times.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import click

from benchmarks.flights import CHECKOUT, VAR, machine, release_on_hdfs, running_cluster
from predictions.cli import exits
from predictions.formats.names import release_table
from predictions.formats.record_line import SEPARATOR, join_lines, split_lines
from predictions.hbase.connection import Connection
from predictions.progress import bar, say
from predictions.settings import Settings, load_settings
from predictions.stages.load import How, load
from predictions.stages.score import score, take_models
from predictions.storage import ReleaseFolder, Storage

HOST = "127.0.0.1"
SETTINGS = CHECKOUT / "benchmarks" / "forest.toml"
EVERY = 100  # every hundredth record changes
FIELD = "sched_dep_time"  # the field that changes, by a minute
PAGE_ROWS = 5_000


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--copies", type=click.IntRange(1), default=3, show_default=True, help="Copies of the flights, under new IDs."
)
@click.option(
    "--runner", type=click.Choice(["hadoop", "local"]), default="hadoop", show_default=True, help="How to score."
)
def main(as_json: bool, copies: int, runner: str) -> None:
    """Measure a job that scores only records that changed."""
    VAR.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="changed.", dir=VAR) as local, running_cluster() as cluster:
        settings = load_settings(SETTINGS)
        thrift = settings.hbase.model_copy(update={"thrift": f"{HOST}:{cluster.port('thrift')}"})
        settings = settings.model_copy(update={"hbase": thrift})
        storage = Storage(f"webhdfs://{HOST}:{cluster.port('namenode_web')}/benchmarks", settings.name)
        with release_on_hdfs(settings, Path(local), storage, copies, SETTINGS) as first:
            _score(settings, first, runner)
            full, changed = _changed(first), _changed(first)
            seconds = {"full": _score(settings, full, runner), "changed": _score(settings, changed, runner, first)}
            scored = changed.scored
            different_rows = _compare(settings, full, changed)
    result = {
        "model": f"{settings.model.estimator.rpartition('.')[2]} {settings.model.params}",
        "regions": settings.hbase.regions,
        "runner": runner,
        "rows": scored.rows,
        "changed": scored.rows - scored.carried,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "different_rows": different_rows,
        "ratios": {"changed_vs_full": round(seconds["changed"] / seconds["full"], 3)},
        "machine": machine(),
    }
    print(json.dumps(result) if as_json else _table(result))


def _changed(first: ReleaseFolder) -> ReleaseFolder:
    """Make a release with the same model, in which every hundredth record has changed."""
    target, manifest = first.storage.new_release(), first.manifest
    field = 1 + [column.name for column in manifest.features].index(FIELD)
    with target.writing("export") as temporary:
        for path in first.files("export"):
            with target.create(f"{temporary}/{path.rpartition('/')[2]}") as file:
                for block in first.blocks(path):
                    lines = split_lines(block)
                    lines[::EVERY] = [_later(line, field) for line in lines[::EVERY]]
                    file.write(join_lines(lines))
    target.write_manifest(replace(manifest, release=target.release, scored=None))
    take_models(target, first)
    return target


def _later(line: bytes, field: int) -> bytes:
    fields = line.split(SEPARATOR)
    fields[field] = b"%d" % (int(fields[field]) + 1)
    return SEPARATOR.join(fields)


def _score(settings: Settings, folder: ReleaseFolder, runner: str, current: ReleaseFolder | None = None) -> float:
    """Score a release, keeping the lines of the current one if there is one, and return the seconds."""
    started = time.perf_counter()
    score(settings, folder, runner, lambda _share: None, current, changed=current is not None)
    return time.perf_counter() - started


def _compare(settings: Settings, *folders: ReleaseFolder) -> int:
    """Load two releases, and return the number of rows that are not the same in both tables."""
    for folder in folders:
        load(settings, folder, How(), bar, say)
    with Connection(settings.hbase.server(loading=True)) as one, Connection(settings.hbase.server(loading=True)) as two:
        rows = [
            _rows(connection, release_table(settings.name, folder.release))
            for connection, folder in zip((one, two), folders, strict=True)
        ]
        left, right = dict[bytes, Any](), dict[bytes, Any]()
        # Both tables come in row key order, so equal rows are dropped at once.
        for page in zip_longest(*rows, fillvalue={}):
            left.update(page[0])
            right.update(page[1])
            for key in [key for key, cells in left.items() if right.get(key) == cells]:
                del left[key], right[key]
    return len(left.keys() | right.keys())


def _rows(connection: Connection, table: str) -> Iterator[dict[bytes, dict[bytes, bytes]]]:
    for page in connection.scan(table, b"", b"", page_rows=PAGE_ROWS):
        yield {row.key: {column: cell.value for column, cell in row.cells.items()} for row in page}


def _table(result: dict[str, Any]) -> str:
    seconds = result["seconds"]
    return "\n".join(
        [
            f"{result['rows']:,} flights, {result['changed']:,} of them changed; {result['model']}; "
            f"{result['regions']} regions; {result['runner']}; {result['machine']}",
            f"full     {seconds['full']:7.1f} s",
            f"changed  {seconds['changed']:7.1f} s, {result['ratios']['changed_vs_full']:.1%} of it",
            f"rows that differ between the two tables: {result['different_rows']:,}",
        ]
    )


if __name__ == "__main__":
    exits.run(main, "benchmarks/changed")
