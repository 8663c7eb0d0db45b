"""What `hbase shell` would do: there is none among the engine's jars, and Thrift 1 can neither split nor move."""

from contextlib import contextmanager

from hbasedriver.client.client import Client
from hbasedriver.protobuf_py.HBase_pb2 import ColumnFamilySchema, RegionSpecifier
from hbasedriver.protobuf_py.Master_pb2 import MoveRegionRequest
from kazoo.client import KazooClient


def make_table(cluster, table, family, points):
    """Ask for a table that is split at these row keys."""
    with _connect(cluster) as client:
        client.master_conn.create_table(b"", table.encode(), [ColumnFamilySchema(name=family)], points)


def split_region(cluster, table, key):
    """Ask for the split of the region that a row key is in, at that key."""
    with _connect(cluster) as client:
        client.get_admin().split_region(_region(client, table, key).region_info, key)


def move_region(cluster, table, key):
    """Ask for the move of the region that a row key is in to another server."""
    with _connect(cluster) as client:
        name = _region(client, table, key).get_region_name()
        request = MoveRegionRequest()  # hbase-driver has the message, but no method for it
        request.region.type = RegionSpecifier.ENCODED_REGION_NAME
        request.region.value = name.rstrip(b".").rpartition(b".")[2]
        client.master_conn.send_request(request, "MoveRegion")


def keep_regions_in_place(cluster):
    """Let no region move by itself."""
    with _connect(cluster) as client:
        client.get_admin().set_balancer(False, synchronous=True)


def expire_server(cluster, address):
    """Let a region server that was killed be missed at once, rather than when its session is over.

    HBase's own start script does so, where a region server dies: it removes its node from ZooKeeper.
    """
    host, port = address.split(":")
    zookeeper = KazooClient(_zookeeper(cluster))
    zookeeper.start()
    try:
        for node in zookeeper.get_children("/hbase/rs"):
            if node.startswith(f"{host},{port},"):
                zookeeper.delete(f"/hbase/rs/{node}")
    finally:
        zookeeper.stop()


@contextmanager
def _connect(cluster):
    client = Client({"hbase.zookeeper.quorum": _zookeeper(cluster)})
    try:
        yield client
    finally:
        client.close()
        client.cluster_connection.registry.zk.stop()  # hbase-driver leaves it open, and it would try to connect anew


def _zookeeper(cluster):
    return f"localhost:{cluster.config.port('zookeeper')}"


def _region(client, table, key):
    # hbase-driver takes the first row key of a region for the last one of the region before.
    return client.meta_conn.locate_region(b"", table.encode(), key + b"\0")
