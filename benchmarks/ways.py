"""The ways to get prediction lines into an HBase table that `benchmarks/load` compares."""

import gc
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Collection
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import happybase

from benchmarks.flights import CHECKOUT, SETTINGS
from loader.bulk import HFileLoad
from loader.checkpoints import Checkpoint
from loader.plan import Plan
from loader.puts import load_here
from predictions.formats.hfile.writer import HFileWriter
from predictions.formats.manifest import Part
from predictions.formats.prediction_line import FAMILY, FIELDS, columns
from predictions.formats.record_line import split_columns, write_rows
from predictions.hbase.connection import Connection
from predictions.progress import bar, say
from predictions.settings import load_settings
from predictions.storage import HFILES, ReleaseFolder

HOST = "127.0.0.1"
BATCH_SIZE = 1000  # of the plain loop; HappyBase counts cells, not rows
WRITER_BYTES = 60_000_000  # bytes of lines with which the writer alone is measured
WRITER_TIMES = 5

_HBASE = str(CHECKOUT / "hadoop" / "bin" / "hbase")
_IMPORT = "org.apache.hadoop.hbase.mapreduce.ImportTsv"
_BULK_LOAD = "org.apache.hadoop.hbase.tool.BulkLoadHFilesTool"
_TSV_COLUMNS = "HBASE_ROW_KEY,p:prediction,p:probability,p:record,HBASE_TS_KEY"


class Lines(NamedTuple):
    """The prediction lines that every way loads, in two orders and in two storages."""

    scored: ReleaseFolder  # in row key order, one part for each region, in a local folder
    on_hdfs: ReleaseFolder  # the same on HDFS
    arrival: Path  # in the order of the export
    points: list[str]  # the split points between the regions
    parts: list[Part]  # the row count and the ID digest of each part
    rows: int


class Way(NamedTuple):
    """A way to load."""

    title: str
    load: Callable[[Lines, Plan], Collection[int]]  # fills the empty table; returns regions that are proved
    keeps_times: bool = True  # whether cells get their lines' times, so that they can be compared


def _plain(lines: Lines, plan: Plan) -> Collection[int]:
    subprocess.run([sys.executable, __file__, str(plan.server.port), plan.table, str(lines.arrival)], check=True)
    return ()


def _plain_loop(port: str, name: str, path: str) -> None:
    """Load lines; those of the flights need no unescaping and have no errors."""
    table = happybase.Connection(HOST, int(port)).table(name)
    with open(path, "rb") as lines, table.batch(batch_size=BATCH_SIZE) as batch:
        for line in lines:
            key, prediction, probability, record, _scored, _error = line.split(b"\t")
            batch.put(key, {b"p:prediction": prediction, b"p:probability": probability, b"p:record": record})


def _puts(processes: int, lines: Lines, plan: Plan) -> Collection[int]:
    parts = dict.fromkeys(range(plan.parts), Checkpoint())
    deque(load_here(lines.scored, plan, parts, processes, say), maxlen=0)
    return ()


def _hfiles(processes: int, lines: Lines, plan: Plan) -> Collection[int]:
    lines.on_hdfs.remove(HFILES)
    load = HFileLoad(load_settings(SETTINGS), lines.on_hdfs, processes)
    with Connection(plan.server) as connection:
        facts = load.load(connection, plan, lines.rows, bar, say)
    return load.prove(plan, facts).proved


def _import_tsv(lines: Lines, plan: Plan) -> Collection[int]:
    """Load with HBase's own tool for text: a MapReduce job makes HFiles, and another command hands them to HBase."""
    folder, fs = lines.on_hdfs.path, lines.on_hdfs.storage.fs
    target = f"hdfs://{folder}/tsv_hfiles"
    job = [
        f"-Dimporttsv.columns={_TSV_COLUMNS}",
        f"-Dimporttsv.bulk.output={target}",
        plan.table,
        f"hdfs://{folder}/tsv",
    ]
    for command in ([_HBASE, _IMPORT, *job], [_HBASE, _BULK_LOAD, "-Dcreate.table=no", target, plan.table]):
        process = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if process.returncode:
            raise RuntimeError(process.stderr[-2000:])
    fs.rm(f"{folder}/tsv_hfiles", recursive=True)
    return ()


def write_tsv(lines: Lines) -> None:
    """Write the text for ImportTsv: without `error`, which it would load as a cell; the flights have no errors."""
    for path in lines.scored.files("scored"):
        with lines.on_hdfs.create(f"{lines.on_hdfs.path}/tsv/{Path(path).name}") as file:
            for block in lines.scored.blocks(path):
                file.write(write_rows(zip(*split_columns(block, FIELDS)[:-1], strict=True)))


def writer_speed(lines: Lines, folder: Path) -> float:
    """Return the median rows per second of the HFile writer alone, on one core, from columns in memory to a file."""
    prefix = len(FAMILY) + 1
    chunks, size = [], 0
    for block in chain.from_iterable(map(lines.scored.blocks, lines.scored.files("scored"))):
        keys, by_column, times = columns(block)
        chunks.append((keys, {column[prefix:]: values for column, values in by_column.items()}, times))
        size += len(block)
        if size > WRITER_BYTES:
            break
    gc.freeze()  # so that the garbage collector does not search the chunks while the writer runs
    seconds = []
    for _time in range(WRITER_TIMES):
        started = time.perf_counter()
        with HFileWriter(str(folder / "writer.hfile"), FAMILY) as file:
            for chunk in chunks:
                file.write(*chunk)
        seconds.append(time.perf_counter() - started)
        (folder / "writer.hfile").unlink()
    gc.unfreeze()
    return sum(len(times) for _keys, _columns, times in chunks) / statistics.median(seconds)


WAYS = {
    "plain": Way("plain HappyBase loop", _plain, keeps_times=False),
    "puts1": Way("load --via puts, 1 process", partial(_puts, 1)),
    "puts2": Way("load --via puts, 2 processes", partial(_puts, 2)),
    "importtsv": Way("HBase's ImportTsv, bulk load", _import_tsv),
    "hfiles": Way("load --via hfiles, 2 processes", partial(_hfiles, 2)),
}


if __name__ == "__main__":
    _plain_loop(*sys.argv[1:])
