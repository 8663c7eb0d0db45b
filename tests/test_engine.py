"""Starting and stopping the embedded cluster: a second one, beside the first, with every port moved."""

import os
import re
import socket
import subprocess
import sys

import happybase
import psutil
import pytest
from conftest import CHECKOUT

from hadoop.config import ClusterConfig
from hadoop.engine import Cluster

pytestmark = pytest.mark.cluster

OFFSET = 1000
SHUFFLE = 13562


@pytest.fixture(scope="module")
def second(cluster, tmp_path_factory):
    """The command of a second cluster, and the cluster."""
    config = ClusterConfig(tmp_path_factory.mktemp("cluster"), OFFSET)

    def command(*arguments, before=()):
        return subprocess.run(
            [*before, sys.executable, "-m", "hadoop", *arguments],
            cwd=CHECKOUT,
            env={**os.environ, "CLUSTER_DIR": str(config.folder), "CLUSTER_PORT_OFFSET": str(OFFSET)},
            capture_output=True,
            text=True,
        )

    yield command, Cluster(config)
    assert command("stop").returncode == 0


def test_a_taken_port_is_named_and_nothing_is_started(second):
    command, cluster = second
    port = cluster.config.port("thrift")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        failed = command("start")
    assert failed.returncode == 2
    assert f"port {port} (thrift of the embedded cluster) is taken by process {os.getpid()}" in failed.stderr
    assert "CLUSTER_PORT_OFFSET" in failed.stderr
    assert [state for _name, state in cluster.status()] == ["stopped"] * 8
    assert command("status").returncode == 4


def test_a_cluster_through_its_life(second):
    command, cluster = second
    # Where it may, in a host whose own name does not resolve.
    nameless = ["unshare", "--uts", "sh", "-c", 'hostname no-such-host-name && exec "$0" "$@"']
    started = command("start", "--region-servers", "2", before=nameless if os.geteuid() == 0 else ())
    assert started.returncode == 0, started.stderr
    states = dict(cluster.status())
    assert len(states) == 9
    assert all(state.startswith("running") for state in states.values()), states

    processes = {name: cluster.process(name) for name in states}
    listening = {
        connection.laddr
        for process in processes.values()
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {port for address, port in listening if address not in ("127.0.0.1", "::1")} <= {SHUFFLE + OFFSET}

    again = command("start", "--region-servers", "2")
    assert (again.returncode, "running already" in again.stderr) == (0, True)
    assert {name: cluster.process(name).pid for name in states} == {name: p.pid for name, p in processes.items()}

    port = cluster.config.port("thrift")
    connection = happybase.Connection("127.0.0.1", port, timeout=60_000)
    connection.create_table("t", {"f": {}})
    connection.table("t").put(b"row", {b"f:a": b"kept"})
    connection.close()

    died = cluster.process("nodemanager")
    died.kill()
    died.wait()
    status = command("status")
    assert status.returncode == 4
    assert re.search(r"nodemanager +died; the end of .*nodemanager\.log:\n +\S", status.stdout)
    others = psutil.pids()
    assert command("start", "--region-servers", "2").returncode == 0
    assert cluster.process("namenode").pid == processes["namenode"].pid
    assert cluster.process("nodemanager").pid not in others

    stopped = command("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert not [name for name in states if cluster.process(name)]
    assert command("stop").stderr.strip() == "the cluster was not running"

    assert command("start").returncode == 0
    connection = happybase.Connection("127.0.0.1", port, timeout=60_000)
    assert connection.table("t").row(b"row") == {b"f:a": b"kept"}
    connection.close()


def test_the_first_cluster_was_left_alone(second, cluster):
    assert all(state.startswith("running") for _name, state in cluster.status())


def test_a_daemon_that_dies_at_the_start_is_reported_with_its_log(second, monkeypatch, tmp_path):
    config = ClusterConfig(tmp_path, 2 * OFFSET)
    namenode = config.data / "namenode" / "current"
    namenode.mkdir(parents=True)
    (namenode / "VERSION").write_text("damaged\n")
    environment = {"CLUSTER_DIR": str(tmp_path), "CLUSTER_PORT_OFFSET": str(2 * OFFSET)}
    try:
        failed = subprocess.run(
            [sys.executable, "-m", "hadoop", "start"],
            cwd=CHECKOUT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        )
    finally:
        subprocess.run([sys.executable, "-m", "hadoop", "stop"], cwd=CHECKOUT, env={**os.environ, **environment})
    assert failed.returncode == 6
    assert re.search(r"namenode died; the end of .*namenode\.log:\n +\S", failed.stderr), failed.stderr
