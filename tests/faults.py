"""Faults of the second cluster, for a test that looks records up meanwhile."""

import getpass
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import happybase
import requests
from hbase_admin import is_complete, move_region, split_region
from second import REGION_SERVERS
from thriftpy2.thrift import TException

from predictions.formats.names import release_table
from predictions.hbase.connection import Connection

DEADLINE = 300
PROBE_SECONDS = 0.2
SPLIT_SECONDS, SPLIT_ATTEMPTS = 10, 9  # HBase refuses to split a region that still has edits recovered from a crash
# A server of HBase ends 20 s after it lost its session with ZooKeeper, and 10 s after the DataNode of its log ended.
LATE_SECONDS = 25.0
FULL_SECONDS = 5.0  # that HDFS stays full once a region server has noticed
QUOTA_ERROR = b"DSQuotaExceededException"


class Faults:
    """Inject faults; each method returns once the cluster has recovered.

    Args:
        cluster: the second cluster.
        project: the project whose records are looked up.
        releases: the IDs of its releases.
    """

    def __init__(self, cluster, project, releases):
        self._cluster = cluster
        self._connection = Connection(project.settings.hbase.server())
        self._pointer_table = project.name
        self._rows = {}  # the row keys of each region of a release, by table and first row key
        for table in (release_table(project.name, release) for release in releases):
            starts = [region.start for region in self._connection.regions(table)]
            for start, stop in zip(starts, [*starts[1:], b""], strict=True):
                self._rows[table, start] = [key for page in self._connection.keys(table, start, stop) for key in page]
        self._regions_to_move, self._regions_to_split = list(self._rows), list(self._rows)

    def kill(self, *names):
        """Kill daemons at once, and start them again."""
        for name in names:
            self._cluster.kill(name)
        self._recover()

    def kill_below(self, name):
        """Kill what HBase's servers need, ZooKeeper or a daemon of HDFS; some notice later, and end."""
        self.kill(name)
        time.sleep(LATE_SECONDS)
        self._recover()

    def move_region(self):
        """Move a region of a release to the other server."""
        table, start = self._regions_to_move.pop()
        before = self._servers(table)[start]
        move_region(self._cluster, table, start)
        self._wait(lambda: self._servers(table)[start] != before)

    def split_region(self):
        """Split a region of a release in the middle."""
        table, start = self._regions_to_split.pop()
        rows = self._rows[table, start]
        middle = rows[len(rows) // 2]
        for _attempt in range(SPLIT_ATTEMPTS):
            split_region(self._cluster, table, middle)
            if self._holds(lambda: middle in self._servers(table), SPLIT_SECONDS):
                return
        raise AssertionError(f"HBase did not split {table}")

    def fill_hdfs(self):
        """Let HDFS be full for HBase, and the server of the pointer write a file: it has to, to give the region up."""
        logs = [self._cluster.log(f"regionserver-{index}") for index in range(REGION_SERVERS)]
        sizes = [log.stat().st_size for log in logs]
        self._limit_hbase(1)
        with ThreadPoolExecutor(1) as pool:
            try:
                pool.submit(move_region, self._cluster, self._pointer_table, b"pointer")  # takes as long as the fault
                self._wait(
                    lambda: any(QUOTA_ERROR in log.read_bytes()[size:] for log, size in zip(logs, sizes, strict=True))
                )
                time.sleep(FULL_SECONDS)
            finally:
                self._limit_hbase(-1)
        self._recover()

    def close(self):
        self._connection.close()

    def _limit_hbase(self, size):
        """Let the files of HBase have this many bytes in all; any number if it is -1."""
        url = f"http://127.0.0.1:{self._cluster.config.port('namenode_web')}/webhdfs/v1/hbase"
        query = {"op": "SETQUOTA", "storagespacequota": size, "user.name": getpass.getuser()}
        response = requests.put(url, params=query, timeout=60)
        assert response.status_code == 200, response.text

    def _servers(self, table):
        """Return the server of each region of a table by the region's first row key."""
        return {region.start: region.server for region in self._connection.regions(table)}

    def _recover(self):
        """Start what has ended, until HBase is complete and a plain HappyBase connection reads a row of each region."""
        self._cluster.bring_back()
        self._wait(self._is_back)

    def _is_back(self):
        self._cluster.bring_back()  # a daemon may end because of another one's fault
        try:
            with closing(
                happybase.Connection("127.0.0.1", self._cluster.config.port("thrift"), timeout=1_000)
            ) as plain:
                return (
                    is_complete(self._cluster, REGION_SERVERS)
                    and all(plain.table(table).row(rows[0]) for (table, _start), rows in self._rows.items())
                    and bool(plain.table(self._pointer_table).row(b"pointer"))
                )
        except (OSError, TException):
            return False

    def _wait(self, condition):
        assert self._holds(condition, DEADLINE), "the cluster did not recover"

    def _holds(self, condition, seconds):
        """Return whether a condition holds within some seconds."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(PROBE_SECONDS)
        return True
