"""A release that was warmed (--full): the first lookups of all its records find their blocks in HBase's cache."""

import time

import happybase
import pytest
import requests
from conftest import SETTINGS
from test_hfiles import TIME, write
from test_hfiles_hbase import BULK_LOAD, run_hbase

from predictions.formats.row_key import row_keys
from predictions.hbase.connection import Connection
from predictions.stages.warm import warm
from predictions.storage import Storage

pytestmark = pytest.mark.cluster

ROWS = 6_000
BLOCKS = 30
BLOCK_BYTES = ROWS * 45 // BLOCKS
METRICS_SECONDS = 11.0  # for which HBase shows the same metrics again


@pytest.fixture(autouse=True)
def only_with_full(full):
    if not full:
        pytest.skip("with --full only")


def test_lookups_find_the_blocks_of_a_warmed_release_in_the_cache(cluster, project, tmp_path):
    made = project(SETTINGS)
    keys = sorted(row_keys([b"%d" % row for row in range(ROWS)]))
    write(tmp_path / "file", (keys, {b"prediction": [b"1"] * ROWS}, [TIME] * ROWS), block_bytes=BLOCK_BYTES)
    storage = Storage(made.settings.hadoop.storage, made.name)
    storage.fs.makedirs(f"{storage.folder}/files/p")
    storage.fs.put_file(str(tmp_path / "file"), f"{storage.folder}/files/p/part-00000")
    table = f"{made.name}.files"

    def misses():
        time.sleep(METRICS_SECONDS)
        url = f"http://127.0.0.1:{cluster.config.port('regionserver_web')}/jmx"
        query = {"qry": "Hadoop:service=HBase,name=RegionServer,sub=Server"}
        [metrics] = requests.get(url, query, timeout=60).json()["beans"]
        return metrics["blockCacheMissCount"]

    with Connection(made.settings.hbase.server(loading=True)) as connection:
        happybase.Connection("127.0.0.1", cluster.config.port("thrift")).create_table(table, {"p": {}})
        try:
            run_hbase(made, BULK_LOAD, "-Dcreate.table=no", f"hdfs://{storage.folder}/files", table)
            cold = misses()
            warm(connection, table, ROWS)
            warmed = misses()
            assert len(connection.receive(connection.send_rows(table, keys))) == ROWS
            assert warmed - cold >= 0.9 * BLOCKS
            assert misses() - warmed <= 0.1 * BLOCKS
        finally:
            connection.delete_table(table)
