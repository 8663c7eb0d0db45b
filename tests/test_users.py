"""Three users, as on most clusters: HDFS's superuser, the user of HBase, and the user that loads predictions."""

import time

import pytest
from conftest import Project, make_orders
from second import OFFSET_OF_USERS, kill_all

from hadoop.config import ClusterConfig
from hadoop.engine import Cluster, daemons
from predictions.storage import Storage

pytestmark = pytest.mark.cluster

HDFS = ("namenode", "datanode")
HBASE = ("zookeeper", "master", "regionserver-0", "thrift")
OPENED = {"/hbase": ("hbase", "755"), "/tmp": ("hdfs", "1777"), "/analyst": ("analyst", "755")}
DEADLINE = 300  # seconds; a start takes some tens


def launch(cluster, names, is_ready):
    for daemon in daemons(1, cluster.config):
        if daemon.name in names:
            cluster._launch(daemon)
    deadline = time.monotonic() + DEADLINE
    while not is_ready():
        assert time.monotonic() < deadline, f"{names} are not ready"
        time.sleep(0.5)


@pytest.fixture(scope="module")
def three_users(cluster, tmp_path_factory):
    """A cluster without YARN, whose HDFS runs as the user `hdfs` and whose HBase runs as the user `hbase`."""
    offset = cluster.config.port_offset + OFFSET_OF_USERS
    cluster = Cluster(ClusterConfig(tmp_path_factory.mktemp("cluster"), offset))
    cluster.config.write()
    (cluster.config.folder / "run").mkdir()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HADOOP_USER_NAME", "hdfs")
            cluster._format_namenode()
            launch(cluster, HDFS, cluster._hdfs_ready)
            storage = Storage(f"webhdfs://hdfs@127.0.0.1:{cluster.config.port('namenode_web')}/", "any")
            for path, (owner, mode) in OPENED.items():
                storage.fs.makedirs(path)
                storage.fs._call("SETOWNER", method="put", path=path, owner=owner)
                storage.fs._call("SETPERMISSION", method="put", path=path, permission=mode)
            patch.setenv("HADOOP_USER_NAME", "hbase")
            launch(cluster, HBASE, lambda: cluster._hbase_ready() and cluster._thrift_ready())
        yield cluster
    finally:
        kill_all(cluster)


def test_a_bulk_load_by_another_user(three_users, tmp_path, monkeypatch):
    monkeypatch.setenv("HADOOP_USER_NAME", "analyst")
    monkeypatch.setenv("CLUSTER_DIR", str(three_users.config.folder))
    project = Project(tmp_path, three_users, (make_orders(tmp_path) / "predictions.toml").read_text(), "/analyst")
    project.train()
    project.succeed("score", "--runner", "local")
    assert "ok    bulk load: HFiles can be moved to /hbase/staging" in project.run("doctor").stdout
    project.succeed("load", "--via", "hfiles")
    assert project.succeed("verify", "--full").stdout == ""
    project.succeed("activate")
    [answer] = project.get("order-007")
    assert answer["prediction"] is not None
    fs = project.storage.fs
    files = fs.glob(f"/hbase/data/default/{project.name}.*/*/p/*")
    assert [fs.info(path)["owner"] for path in files] == ["analyst"] * 4
