"""Replace `hbase shell`, which the engine's jars lack: Thrift 1 can neither split nor move regions."""

from contextlib import contextmanager

from hbasedriver.client.client import Client
from hbasedriver.protobuf_py.HBase_pb2 import ColumnFamilySchema, RegionSpecifier
from hbasedriver.protobuf_py.Master_pb2 import MoveRegionRequest
from kazoo.client import KazooClient
from kazoo.exceptions import KazooException
from kazoo.handlers.threading import KazooTimeoutError


def make_table(cluster, table, family, points):
    """Ask HBase to create a table that is split at these row keys."""
    with _connect(cluster) as client:
        client.master_conn.create_table(b"", table.encode(), [ColumnFamilySchema(name=family)], points)


def split_region(cluster, table, key):
    """Ask HBase to split the region of a row key at that key."""
    with _connect(cluster) as client:
        client.get_admin().split_region(_region(client, table, key).region_info, key)


def move_region(cluster, table, key):
    """Ask HBase to move the region of a row key to another server."""
    with _connect(cluster) as client:
        name = _region(client, table, key).get_region_name()
        request = MoveRegionRequest()  # hbase-driver has the message, but no method for it
        request.region.type = RegionSpecifier.ENCODED_REGION_NAME
        request.region.value = name.rstrip(b".").rpartition(b".")[2]
        client.master_conn.send_request(request, "MoveRegion")


def keep_regions_in_place(cluster):
    """Switch the balancer off, so that HBase moves no region."""
    with _connect(cluster) as client:
        client.get_admin().set_balancer(False, synchronous=True)


def expire_server(cluster, address):
    """Let HBase notice a killed region server at once, not only when its session times out.

    Remove the server's node from ZooKeeper, as HBase's own start script does when a region server dies.
    """
    host, port = address.split(":")
    with _zookeeper(cluster) as zookeeper:
        for node in zookeeper.get_children("/hbase/rs"):
            if node.startswith(f"{host},{port},"):
                zookeeper.delete(f"/hbase/rs/{node}")


def is_complete(cluster, region_servers):
    """Whether HBase has a master and so many region servers, as ZooKeeper knows them; False if it does not answer."""
    try:
        with _zookeeper(cluster) as zookeeper:
            return (
                bool(zookeeper.exists("/hbase/master")) and len(zookeeper.get_children("/hbase/rs")) == region_servers
            )
    except (KazooException, KazooTimeoutError):
        return False


@contextmanager
def _zookeeper(cluster):
    zookeeper = KazooClient(_address(cluster))
    zookeeper.start()
    try:
        yield zookeeper
    finally:
        zookeeper.stop()


@contextmanager
def _connect(cluster):
    client = Client({"hbase.zookeeper.quorum": _address(cluster)})
    try:
        yield client
    finally:
        client.close()
        client.cluster_connection.registry.zk.stop()  # hbase-driver leaves it open, and it would keep reconnecting


def _address(cluster):
    return f"localhost:{cluster.config.port('zookeeper')}"


def _region(client, table, key):
    # hbase-driver counts the first row key of a region as the last one of the previous region.
    return client.meta_conn.locate_region(b"", table.encode(), key + b"\0")
