"""HBase's own tools and region servers read our HFiles: every cell, and without warnings."""

import random
import subprocess
from contextlib import closing
from itertools import chain
from pathlib import Path

import happybase
import pytest
from conftest import SETTINGS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_hfiles import SMALL, TIME, arrays, cells, orders, read, tables, write

from predictions.errors import VerificationError
from predictions.formats.hfile.blocks import Codec
from predictions.formats.hfile.reader import HFileReader
from predictions.formats.hfile.trailer import TRAILER_BYTES
from predictions.formats.hfile.writer import HFileWriter
from predictions.hbase.connection import Connection
from predictions.storage import Storage

pytestmark = pytest.mark.cluster

READER = Path(__file__).parent / "ReadHFiles.java"
FULL_ROWS = 30_000_000
BULK_LOAD = "org.apache.hadoop.hbase.tool.BulkLoadHFilesTool"
COMPACT = "org.apache.hadoop.hbase.regionserver.CompactionTool"


class Hbase:
    """HBase's reader of HFiles, in one JVM for all files."""

    def __init__(self, config, folder):
        # A damaged length may crash the JVM: its crash report goes to a temporary folder.
        self._process = subprocess.Popen(
            config.java(f"-XX:ErrorFile={folder}/hs_err_pid%p.log", str(READER)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, command, path):
        self._process.stdin.write(f"{command} file://{path}\n")
        self._process.stdin.flush()
        lines = []
        while (line := self._process.stdout.readline()) != "end\n":
            assert line, "HBase's reader has exited"
            lines.append(line.rstrip("\n"))
        return lines

    def cells(self, path):
        lines = self.ask("cells", path)
        errors = [line for line in lines if line.startswith("error: ")]
        if errors:
            raise VerificationError(errors[0])
        for line in lines:
            _cell, row, family, name, time, kind, value = line.split(",")
            assert kind == "Put"
            yield (*map(bytes.fromhex, (row, family, name)), int(time), bytes.fromhex(value))

    def print(self, path):
        lines = self.ask("print", path)
        assert lines[-1] == "exit 0", lines
        assert not [line for line in lines if line.startswith(("WARN", "ERROR"))]
        return lines

    def close(self):
        self._process.stdin.close()
        self._process.wait(60)


@pytest.fixture(scope="module")
def hbase(cluster, tmp_path_factory):
    reader = Hbase(cluster.config, tmp_path_factory.mktemp("hbase"))
    yield reader
    reader.close()


def random_rows(number, columns, sizes, seed=1, keys=None):
    """Return rows whose values have random sizes out of the given ones."""
    chance = random.Random(seed)
    return (
        keys or [b"%08d" % row for row in range(number)],
        {
            b"c%02d" % column: [chance.randbytes(chance.choice(sizes)) for _row in range(number)]
            for column in range(columns)
        },
        [TIME] * number,
    )


BINARY = sorted({random.Random(seed).randbytes(1 + seed % 30) for seed in range(500)} | {b"\0", b"\0\0", b"\xff" * 9})
CASES = {
    "one_row": (random_rows(1, 1, [5]), {}),
    "one_block": (random_rows(100, 3, [5]), {}),
    "many_blocks": (random_rows(3000, 3, [20, 30]), {"block_bytes": 2000}),
    "multi_level": (random_rows(3000, 3, [20, 30]), SMALL),
    "fifty_cells": (random_rows(300, 50, [0, 1, 10]), {}),
    "large_values": (random_rows(6, 3, [0, 1, 100_000, 5_000_000]), {}),
    "binary_keys": (random_rows(len(BINARY), 1, [0, 9], keys=BINARY), SMALL),
}


@pytest.fixture(scope="module", params=[(name, codec) for name in CASES for codec in Codec], ids=str)
def case(request, tmp_path_factory):
    name, codec = request.param
    table, options = CASES[name]
    path = tmp_path_factory.mktemp(name) / "part-00000"
    write(path, table, codec=codec, **options)
    return table, path


def test_hbase_reads_what_was_written_and_does_not_complain(hbase, case):
    table, path = case
    expected = cells(*table)
    assert list(hbase.cells(path)) == expected
    assert f"    entries={len(expected)}," in hbase.print(path)


@given(tables(), st.sampled_from(Codec), st.sampled_from([{}, SMALL]))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_both_read_any_rows(hbase, tmp_path_factory, table, codec, options):
    path = tmp_path_factory.getbasetemp() / "any.hfile"
    write(path, table, codec=codec, **options)
    assert read(path) == list(hbase.cells(path)) == cells(*table)
    hbase.print(path)


def test_both_find_a_flipped_byte(hbase, tmp_path, full):
    write(tmp_path / "f", orders(30), **SMALL)
    good = (tmp_path / "f").read_bytes()
    for position in range(0, len(good) - TRAILER_BYTES, 3 if full else 7):
        bad = bytearray(good)
        bad[position] ^= 0xFF
        (tmp_path / "bad").write_bytes(bad)
        for reader in (read, lambda path: list(hbase.cells(path))):
            with pytest.raises(VerificationError):
                reader(tmp_path / "bad")


def run_hbase(made, *arguments):
    result = subprocess.run([made.settings.hadoop.bin / "hbase", *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_table_has_what_was_written_and_keeps_it_through_a_compaction(cluster, project, tmp_path):
    """Load each file into its own column family of one table; a compaction makes HBase read and rewrite all of them."""
    made = project(SETTINGS)
    families = {f"{name}-{codec.name}": (codec, *CASES[name]) for name in CASES for codec in Codec}
    storage = Storage(made.settings.hadoop.storage, made.name)
    folder, table = f"{storage.folder}/files", f"{made.name}.files"
    for family, (codec, rows, options) in families.items():
        write(tmp_path / "file", rows, family=family.encode(), codec=codec, **options)
        storage.fs.makedirs(f"{folder}/{family}")
        storage.fs.put_file(str(tmp_path / "file"), f"{folder}/{family}/part-00000")
    plain = happybase.Connection("127.0.0.1", cluster.config.port("thrift"))
    with closing(plain), Connection(made.settings.hbase.server()) as connection:
        plain.create_table(table, {family: {} for family in families})
        try:
            run_hbase(made, BULK_LOAD, "-Dcreate.table=no", f"hdfs://{folder}", table)

            def content(family):
                rows = 2 if family.startswith("large_values") else 200
                pages = connection.scan(table, b"", b"", [family.encode()], page_rows=rows)
                return [
                    (row.key, *column.split(b":", 1), cell.timestamp, cell.value)
                    for row in chain.from_iterable(pages)
                    for column, cell in sorted(row.cells.items())
                ]

            def files():
                paths = storage.fs.find(f"/hbase/data/default/{table}")
                return {path for path in paths if any(f"/{family}/" in path for family in families)}

            expected = {family: cells(*rows, family.encode()) for family, (_c, rows, _o) in families.items()}
            assert [family for family in families if content(family) != expected[family]] == []
            loaded = files()
            assert len(loaded) == len(families)
            plain.disable_table(table)  # the tool compacts only regions that no region server has open
            run_hbase(made, COMPACT, "-compactOnce", "-major", f"hdfs:///hbase/data/default/{table}")
            plain.enable_table(table)
            assert (len(files()), files() & loaded) == (len(families), set())
            assert [family for family in families if content(family) != expected[family]] == []
        finally:
            connection.delete_table(table)


def test_thirty_million_rows(hbase, tmp_path, full):
    rows, chunk = FULL_ROWS if full else 300_000, 50_000
    with HFileWriter(str(tmp_path / "f"), b"p", index_bytes=(128 << 10) if full else 1000) as file:
        for start in range(0, rows, chunk):
            numbers = range(start, start + chunk)
            predictions = {b"prediction": [b"%d" % (n % 9) for n in numbers]}
            file.write(*arrays([b"%010d" % n for n in numbers], predictions, [TIME] * chunk))
    lines = hbase.print(tmp_path / "f")
    assert f"    entries={rows}," in lines
    assert f"Scanned kv count -> {rows}" in lines
    with open(tmp_path / "f", "rb") as stored:
        reader = HFileReader(stored, "f")
        assert sum(1 for _cell in reader.read()) == rows
    assert "    numDataIndexLevels=2," in lines or "    numDataIndexLevels=3," in lines
