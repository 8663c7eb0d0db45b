"""Compare ways to load prediction lines into HBase: this loader's two, a plain HappyBase loop, and HBase's ImportTsv.

All ways are measured in one run, on the same prediction lines of the flights, with three cells a row, into four regions
of the embedded cluster (which is started, and stopped again, unless it is running).

- `plain`: what one would write first: HappyBase's `table.batch(batch_size=1000)`, in a process of its own, with the
  lines in the order of the export, so that row keys are in no order.
- `puts1`, `puts2`: `predictions load --via puts` with one and with two processes, from the part files that
  `predictions score` wrote: sorted, one part for each region. It includes the checks of the lines and the checkpoints.
- `hfiles`: `load --via hfiles` with two processes, from the same part files on HDFS: it writes the HFiles, as the
  reducers of a scoring job do, copies them to HDFS and has HBase take them over. All of this counts, with start-up.
- `importtsv`: HBase's ImportTsv, a MapReduce job that makes HFiles of text, and its bulk load. The text is on HDFS
  before: the lines without the column that ImportTsv cannot leave out.

The time is that of the same four steps for every way, with the start of its processes: making the table, writing files,
loading, and the proof that nothing is missing. For `hfiles`, HBase's files prove that (`loader/proof.py`); for the
others, the rows of each region are counted and their IDs digested. Afterwards, and not counted, every cell is compared
with its line (not for `plain`, whose cells have the server's time).

Each load has a new table with the same regions, which is dropped after it. A load with two processes comes first, to
warm up the JVMs. Then all ways are measured in turn, round after round, each round beginning with another way. A ratio
is taken within each round, since the machine's speed drifts.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click

from benchmarks.flights import CHECKOUT, VAR, machine, make_copies, make_release, running_cluster, score_local
from benchmarks.ways import HOST, WAYS, Lines, write_tsv, writer_speed
from loader.plan import Plan
from loader.tables import make_table
from predictions.cli import exits
from predictions.formats.id_digest import NO_IDS, IdDigest
from predictions.formats.manifest import Part
from predictions.formats.record_line import split_lines
from predictions.formats.row_key import record_id
from predictions.hbase.connection import Connection
from predictions.hbase.releases import Releases
from predictions.hbase.server import Server
from predictions.jobs.bundle import script
from predictions.progress import say
from predictions.stages.verify import verify_table
from predictions.storage import ReleaseFolder, Storage
from predictions.workers import cores

TIMEOUT = 600.0  # seconds for a request with its repetitions: the default of hbase.load_timeout
WARM_UP = ("puts2",)
RATIOS = {  # the seconds of the first way over those of the second
    "puts1_vs_plain": ("plain", "puts1"),
    "puts2_vs_plain": ("plain", "puts2"),
    "puts2_time_vs_hfiles": ("puts2", "hfiles"),
    "plain_time_vs_hfiles": ("plain", "hfiles"),
    "importtsv_time_vs_hfiles": ("importtsv", "hfiles"),
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--rounds", type=click.IntRange(1), default=3, show_default=True, help="Number of rounds, each of all ways."
)
@click.option(
    "--copies", type=click.IntRange(1), default=1, show_default=True, help="Copies of the flights, under new IDs."
)
def main(as_json: bool, rounds: int, copies: int) -> None:
    """Measure how fast predictions get into HBase."""
    VAR.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="load.", dir=VAR) as local, running_cluster() as cluster:
        server = Server(HOST, cluster.port("thrift"), timeout=TIMEOUT)
        storage = f"webhdfs://{HOST}:{cluster.port('namenode_web')}/benchmarks"
        with Connection(server) as connection, _name(connection, storage) as name:
            lines = _make_lines(Path(local), Storage(storage, name), copies)
            write_tsv(lines)
            writer = writer_speed(lines, Path(local))
            measure = partial(_measure, server, connection, name, lines)
            for way in WARM_UP:
                measure(way, "warm-up")
            measured = [{way: measure(way, f"round {number + 1}") for way in _turn(number)} for number in range(rounds)]
    by_round = {
        ratio: [seconds[one] / seconds[other] for seconds in measured] for ratio, (one, other) in RATIOS.items()
    }
    result = {
        "ratios": {ratio: round(statistics.median(values), 3) for ratio, values in by_round.items()},
        "rows_per_second": {
            way: round(lines.rows / statistics.median(seconds[way] for seconds in measured)) for way in WAYS
        },
        "writer_rows_per_second": round(writer),
        "rows": lines.rows,
        "rounds": rounds,
        "machine": machine(),
        "by_round": {ratio: [round(value, 3) for value in values] for ratio, values in by_round.items()},
    }
    print(json.dumps(result) if as_json else _table(result))


def _make_lines(local: Path, storage: Storage, copies: int) -> Lines:
    """Score copies of the flights, and return their prediction lines."""
    folder = make_release(local)
    if copies > 1:
        folder = make_copies(folder, copies)
    score_local(folder)
    arrival = local / "arrival"
    score = [sys.executable, script("mapper.py"), f"{folder.path}/model/model.json", folder.release]
    with open(arrival, "wb") as stdout:
        for path in folder.files("export"):
            with open(path, "rb") as stdin:
                subprocess.run(score, stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL, check=True)
    scored = folder.scored
    parts = [_facts(folder.blocks(path)) for path in folder.files("scored")]
    on_hdfs = ReleaseFolder(storage, folder.release)
    for path in folder.files("scored"):
        with open(path, "rb") as file:
            on_hdfs.put(f"scored/{Path(path).name}", file)
    on_hdfs.write_manifest(ReleaseFolder(folder.storage, folder.release).manifest)  # as scoring has left it
    return Lines(folder, on_hdfs, arrival, scored.split_points, parts, scored.rows)


def _facts(blocks: Iterable[bytes]) -> Part:
    """Return the row count and the ID digest of a part's lines, for `verify_table`."""
    rows, digest = 0, NO_IDS
    for block in blocks:
        ids = [record_id(line.partition(b"\t")[0]) for line in split_lines(block)]
        rows, digest = rows + len(ids), digest + IdDigest.of(ids)
    return Part(rows, digest)


@contextmanager
def _name(connection: Connection, storage: str) -> Iterator[str]:
    """Provide a new name of predictions, with the table for its checkpoints; both are removed at the end."""
    name = f"benchmark_{uuid.uuid4().hex[:8]}"
    Releases(connection, name).make_table()
    try:
        yield name
    finally:
        connection.delete_table(name)
        files = Storage(storage, name)
        if files.names(files.folder):
            files.fs.rm(files.folder, recursive=True)


def _turn(number: int) -> list[str]:
    """Return the ways in the order of a round; each round begins with another way."""
    ways, first = list(WAYS), number % len(WAYS)
    return ways[first:] + ways[:first]


def _measure(server: Server, connection: Connection, name: str, lines: Lines, way: str, when: str) -> float:
    """Return the seconds of one load into a new table.

    Raises:
        ClickException: the table does not hold the lines after the load.
    """
    load_id = uuid.uuid4().hex  # a new load has no checkpoints
    plan = Plan(server, name, lines.scored.release, load_id, lines.points)
    os.sync()  # else the disk would still be busy with earlier writes
    started = time.perf_counter()
    make_table(connection, plan.table, plan.points, CHECKOUT / "hadoop" / "bin", say)
    try:
        proved = WAYS[way].load(lines, plan)
        verify = partial(verify_table, plan, lines.parts, processes=cores(), progress=lambda _done, _total: None)
        mismatches = verify(None, numbers=[part for part in range(plan.parts) if part not in proved]).mismatches
        seconds = time.perf_counter() - started
        if WAYS[way].keeps_times:
            mismatches += verify(lines.scored).mismatches
    finally:
        connection.delete_table(plan.table)
    if mismatches:
        raise click.ClickException(f"{WAYS[way].title}: the table is not what was loaded: {'; '.join(mismatches)}")
    say(f"{when}, {WAYS[way].title}: {lines.rows / seconds:,.0f} rows per second")
    return seconds


def _table(result: dict) -> str:
    lines = [
        f"{result['rows']:,} flights, 3 cells a row, median of {result['rounds']} rounds; {result['machine']}",
        f"{'':32}{'rows a second':>16}{'over plain':>14}{'time over hfiles':>20}",
    ]
    speeds, ratios = result["rows_per_second"], result["ratios"]
    for way, speed in speeds.items():
        over_plain = ratios.get(f"{way}_vs_plain", speed / speeds["plain"])
        over_hfiles = ratios.get(f"{way}_time_vs_hfiles", speeds["hfiles"] / speed)
        lines.append(f"{WAYS[way].title:32}{speed:16,}{over_plain:14.3g}{over_hfiles:20.3g}")
    lines.append(f"the HFile writer alone, one core: {result['writer_rows_per_second']:,} rows a second")
    return "\n".join(lines)


if __name__ == "__main__":
    exits.run(main, "load")
