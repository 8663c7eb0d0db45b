"""A release that was warmed (--full): what its lookups read is in HBase's cache, and not read from HDFS again."""

import pytest
from conftest import SETTINGS
from test_hfiles import TIME, write
from test_hfiles_hbase import BULK_LOAD, run_hbase

from predictions.formats.row_key import row_keys
from predictions.hbase.connection import Connection
from predictions.stages.warm import warm
from predictions.storage import Storage

pytestmark = pytest.mark.cluster

ROWS = 6_000
BLOCK_BYTES = 9_000  # so that the file has 28 blocks


@pytest.fixture(autouse=True)
def only_with_full(full):
    if not full:
        pytest.skip("with --full only")


def test_lookups_find_the_blocks_of_a_warmed_release_in_the_cache(cluster, project, tmp_path):
    made = project(SETTINGS)
    keys = sorted(row_keys([b"%d" % row for row in range(ROWS)]))
    write(tmp_path / "file", (keys, {b"prediction": [b"1"] * ROWS}, [TIME] * ROWS), block_bytes=BLOCK_BYTES)
    storage = Storage(made.settings.hadoop.storage, made.name)
    table, data_node = f"{made.name}.files", cluster.process("datanode")
    storage.fs.makedirs(f"{storage.folder}/files/p")
    storage.fs.put_file(str(tmp_path / "file"), f"{storage.folder}/files/p/part-00000")
    with Connection(made.settings.hbase.server(loading=True)) as connection:
        connection.create_table(table, "p")
        try:
            run_hbase(made, BULK_LOAD, "-Dcreate.table=no", f"hdfs://{storage.folder}/files", table)
            cold = data_node.io_counters().read_chars
            warm(connection, table, ROWS)
            warmed = data_node.io_counters().read_chars
            assert len(connection.receive(connection.send_rows(table, keys))) == ROWS
            looked_up = data_node.io_counters().read_chars
        finally:
            connection.delete_table(table)
    size = (tmp_path / "file").stat().st_size
    assert (warmed - cold) / size > 0.9
    assert (looked_up - warmed) / size < 0.1
