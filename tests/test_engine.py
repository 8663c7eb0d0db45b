"""Starting and stopping an embedded cluster: the second one, on other ports than the first."""

import os
import re
import signal
import socket

import happybase
import psutil
import pytest
from second import OFFSET_OF_ENGINE, REGION_SERVERS, kill_all, run_command

import hadoop.__main__
from hadoop import engine
from hadoop.config import ClusterConfig
from hadoop.engine import Cluster
from predictions.cli import exits
from predictions.errors import InputError

pytestmark = pytest.mark.cluster

SHUFFLE = 13562


@pytest.fixture
def third(cluster, tmp_path):
    """A cluster that is never started completely."""
    third = Cluster(ClusterConfig(tmp_path, cluster.config.port_offset + OFFSET_OF_ENGINE))
    yield third
    kill_all(third)


def test_a_taken_port_is_named_and_nothing_is_started(third):
    port = third.config.port("thrift")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        failed = run_command(third.config, "start")
    assert failed.returncode == 2
    assert f"port {port} (thrift of the embedded cluster) is taken by process {os.getpid()}" in failed.stderr
    assert "CLUSTER_PORT_OFFSET" in failed.stderr
    assert [state for _name, state in third.status()] == ["stopped"] * 8
    assert run_command(third.config, "status").returncode == 4


def test_ports_are_below_the_ephemeral_ports(monkeypatch):
    monkeypatch.setenv("CLUSTER_PORT_OFFSET", "20000")
    with pytest.raises(
        InputError, match=r"CLUSTER_PORT_OFFSET: 20000: must be a number that leaves every port below \d+"
    ):
        ClusterConfig.from_environment()


def test_a_cluster_through_its_life(second, cluster):
    """The command `hadoop/cluster` started the cluster: for root, on a host whose own name does not resolve."""
    assert len(second.first_states) == 9
    assert all(state.startswith("running") for state in second.first_states.values()), second.first_states
    moved = SHUFFLE + second.config.port_offset
    assert second.first_listening
    assert {port for address, port in second.first_listening if address not in ("127.0.0.1", "::1")} <= {moved}

    second.bring_back()  # daemons that another test has killed
    states = dict(second.status())
    assert len(states) == 9
    assert all(state.startswith("running") for state in states.values()), states
    processes = {name: second.process(name) for name in states}
    result = second.command("start", "--region-servers", str(REGION_SERVERS))
    assert (result.returncode, "running already" in result.stderr) == (0, True)
    assert {name: second.process(name).pid for name in states} == {name: p.pid for name, p in processes.items()}

    port = second.config.port("thrift")
    connection = happybase.Connection("127.0.0.1", port, timeout=60_000)
    connection.create_table("t", {"f": {}})
    connection.table("t").put(b"row", {b"f:a": b"kept"})
    connection.close()

    second.kill("nodemanager")
    status = second.command("status")
    assert status.returncode == 4
    assert re.search(r"nodemanager +died; the end of .*nodemanager\.log:\n +\S", status.stdout)
    pids = psutil.pids()
    assert second.command("start", "--region-servers", str(REGION_SERVERS)).returncode == 0
    assert second.process("namenode").pid == processes["namenode"].pid
    assert second.process("nodemanager").pid not in pids

    stopped = second.command("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert not [name for name in states if second.process(name)]
    assert second.command("stop").stderr.strip() == "the cluster was not running"

    assert second.command("start", "--region-servers", str(REGION_SERVERS)).returncode == 0
    connection = happybase.Connection("127.0.0.1", port, timeout=60_000)
    assert connection.table("t").row(b"row") == {b"f:a": b"kept"}
    connection.close()
    assert all(state.startswith("running") for _name, state in cluster.status()), "the first cluster was affected"


def test_a_daemon_that_dies_at_the_start_is_reported_with_its_log(third, monkeypatch, capsys):
    """Start only this daemon and one that lives: the others would take too long on two cores."""
    namenode = third.config.data / "namenode" / "current"
    namenode.mkdir(parents=True)
    (namenode / "VERSION").write_text("damaged\n")
    monkeypatch.setenv("CLUSTER_DIR", str(third.config.folder))
    monkeypatch.setenv("CLUSTER_PORT_OFFSET", str(third.config.port_offset))
    monkeypatch.setattr(signal, "signal", lambda *_handler: None)  # keep this process's signal handlers
    two_daemons = [daemon for daemon in engine.daemons(1, third.config) if daemon.name in ("namenode", "master")]
    monkeypatch.setattr(engine, "daemons", lambda *_arguments: two_daemons)
    with pytest.raises(SystemExit) as failed:
        exits.run(hadoop.__main__.cli, "cluster", ["start"])
    stderr = capsys.readouterr().err
    assert failed.value.code == 6
    assert re.search(r"namenode died; the end of .*namenode\.log:\n +\S", stderr), stderr
