"""Splits and moves regions: there is no `hbase shell` among the engine's jars, and Thrift 1 can do neither."""

from hbasedriver.client.client import Client
from hbasedriver.protobuf_py.HBase_pb2 import RegionSpecifier
from hbasedriver.protobuf_py.Master_pb2 import MoveRegionRequest


class Admin:
    """What a cluster's master does when it is asked to; it answers at once and does it afterwards."""

    def __init__(self, cluster):
        self._client = Client({"hbase.zookeeper.quorum": f"localhost:{cluster.config.port('zookeeper')}"})

    def close(self):
        self._client.close()

    def split(self, table, key):
        """Split the region that a row key is in, at that key."""
        self._client.get_admin().split_region(self._region(table, key).region_info, key)

    def move(self, table, key):
        """Move the region that a row key is in to another server; hbase-driver has the message, but no method for it."""
        name = self._region(table, key).get_region_name()
        request = MoveRegionRequest()
        request.region.type = RegionSpecifier.ENCODED_REGION_NAME
        request.region.value = name.rstrip(b".").rpartition(b".")[2]
        self._client.master_conn.send_request(request, "MoveRegion")

    def keep_regions_in_place(self):
        """Let no region move by itself."""
        self._client.get_admin().set_balancer(False, synchronous=True)

    def _region(self, table, key):
        # hbase-driver takes the first row key of a region for the last one of the region before.
        return self._client.meta_conn.locate_region(b"", table.encode(), key + b"\0")
