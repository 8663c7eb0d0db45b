"""Start, stop and show the embedded cluster: HDFS, YARN and HBase as ordinary processes on loopback."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from hadoop.config import LIB, ClusterConfig
from predictions.errors import InputError, InternalError, ServiceError

START_TIMEOUT = 180  # seconds in which the whole cluster must be ready
STOP_TIMEOUT = 60  # seconds that a daemon has to end after SIGTERM
LOG_TAIL = 15  # last lines of a dead daemon's log to show


@dataclass(frozen=True)
class Daemon:
    """A process of the cluster: its heap, its main class with arguments, and the services whose ports it uses."""

    name: str
    heap: str
    command: tuple[str, ...]
    ports: tuple[str, ...] = field(default=())
    index: int = 0

    @property
    def java_options(self) -> tuple[str, ...]:
        """JVM options: the quick compiler alone halves the start; daemons that carry data get the better one too."""
        quick = not self.name.startswith(("regionserver", "thrift"))
        return (f"-Xmx{self.heap}", *(["-XX:TieredStopAtLevel=1"] if quick else []))


def daemons(region_servers: int, config: ClusterConfig) -> list[Daemon]:
    """Return the cluster's daemons in the order in which they start; they stop in reverse order."""
    hdfs, yarn = "org.apache.hadoop.hdfs.server", "org.apache.hadoop.yarn.server"
    hbase = "org.apache.hadoop.hbase"
    return [
        Daemon("namenode", "384m", (f"{hdfs}.namenode.NameNode",), ("namenode", "namenode_web")),
        Daemon("datanode", "384m", (f"{hdfs}.datanode.DataNode",), ("datanode", "datanode_web", "datanode_ipc")),
        Daemon("zookeeper", "128m", (f"{hbase}.zookeeper.HQuorumPeer",), ("zookeeper",)),
        Daemon(
            "resourcemanager",
            "384m",
            (f"{yarn}.resourcemanager.ResourceManager",),
            (
                "resourcemanager",
                "resourcemanager_scheduler",
                "resourcemanager_tracker",
                "resourcemanager_admin",
                "resourcemanager_web",
            ),
        ),
        Daemon(
            "nodemanager",
            "384m",
            (f"{yarn}.nodemanager.NodeManager",),
            ("nodemanager", "nodemanager_localizer", "nodemanager_web", "shuffle"),
        ),
        Daemon("master", "512m", (f"{hbase}.master.HMaster", "start"), ("master", "master_web")),
        *(
            Daemon(
                f"regionserver-{index}",
                "1536m",
                (
                    f"{hbase}.regionserver.HRegionServer",
                    f"-Dhbase.regionserver.port={config.port('regionserver', index)}",
                    f"-Dhbase.regionserver.info.port={config.port('regionserver_web', index)}",
                    *config.region_server_options,
                    "start",
                ),
                ("regionserver", "regionserver_web"),
                index,
            )
            for index in range(region_servers)
        ),
        Daemon(
            "thrift",
            "512m",
            (f"{hbase}.thrift.ThriftServer", "start", "-b", "127.0.0.1", "-p", str(config.port("thrift"))),
            ("thrift", "thrift_web"),
        ),
    ]


class Cluster:
    """An embedded cluster in one folder.

    `FOLDER/run` has a file for each daemon with its process ID and creation time, so that another process that later
    gets the ID of a dead daemon is not taken for the daemon.
    """

    def __init__(self, config: ClusterConfig) -> None:
        self.config = config
        self._run = config.folder / "run"
        self._log_starts: dict[str, int] = {}

    @property
    def region_servers(self) -> int:
        """The number of region servers of the last start."""
        return max(1, len(list(self._run.glob("regionserver-*"))))

    def process(self, name: str) -> psutil.Process | None:
        """Return a daemon's process; None if it is not running."""
        try:
            entry = json.loads((self._run / name).read_text())
            process = psutil.Process(entry["pid"])
            alive = process.create_time() == entry["created"] and process.status() != psutil.STATUS_ZOMBIE
        except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
            return None
        return process if alive else None

    def log(self, name: str) -> Path:
        """Return the path of a daemon's log."""
        return self.config.logs / f"{name}.log"

    def start(self, region_servers: int, report: Callable[[str], None]) -> None:
        """Start the daemons that are not running, and return when all of them answer.

        Args:
            region_servers: the number of HBase region servers.
            report: called with a line of text at each step.

        Raises:
            InputError: a port is taken, or Java or the engine's jars are missing.
            InternalError: a daemon died; the message has the end of its log.
            ServiceError: the cluster was not ready within `START_TIMEOUT`.
        """
        if not any(LIB.glob("hadoop-streaming-*.jar")):
            raise InputError(f"{LIB}: the engine's jars are missing; run ./quickstart, which downloads them")
        if not shutil.which("java"):
            raise InputError("java: not found; install a Java runtime from 17 to 23 (Debian: openjdk-N-jre-headless)")
        self._run.mkdir(parents=True, exist_ok=True)
        wanted = daemons(region_servers, self.config)
        missing = [daemon for daemon in wanted if not self.process(daemon.name)]
        if not missing:
            report("the cluster is running already")
            return
        for daemon in missing:
            self._check_ports(daemon)
        self.config.write()
        if not (self.config.data / "namenode" / "current" / "VERSION").exists():
            report("formatting HDFS")
            self._format_namenode()
        for daemon in missing:
            if daemon.name == "master":
                self._wait_for_namenode()
            self._launch(daemon)
        report(f"starting {', '.join(daemon.name for daemon in missing)}")
        self._wait_until_ready(wanted, report)

    def stop(self, report: Callable[[str], None]) -> None:
        """End this cluster's processes, and no others, with SIGTERM, in the reverse order of their start."""
        running = [d for d in daemons(self.region_servers, self.config) if self.process(d.name)]
        for daemon in reversed(running):
            report(f"stopping {daemon.name}")
            if process := self.process(daemon.name):
                process.terminate()
                _gone, alive = psutil.wait_procs([process], timeout=STOP_TIMEOUT)
                for survivor in alive:
                    report(f"{daemon.name} ignored SIGTERM for {STOP_TIMEOUT} s; killing it")
                    survivor.kill()
                    survivor.wait()
            (self._run / daemon.name).unlink(missing_ok=True)  # another `stop` may have removed it
        report("the cluster is stopped" if running else "the cluster was not running")

    def status(self) -> Iterator[tuple[str, str]]:
        """Yield each daemon's name and its state: `running`, `stopped` or `died`."""
        for daemon in daemons(self.region_servers, self.config):
            if process := self.process(daemon.name):
                ports = ", ".join(str(self.config.port(port, daemon.index)) for port in daemon.ports)
                yield daemon.name, f"running, process {process.pid}, ports {ports}"
            elif (self._run / daemon.name).exists():
                yield daemon.name, f"died; the end of {self.log(daemon.name)}:\n{self._log_end(daemon.name)}"
            else:
                yield daemon.name, "stopped"

    def _check_ports(self, daemon: Daemon) -> None:
        for name in daemon.ports:
            port = self.config.port(name, daemon.index)
            with socket.socket() as probe:
                # As servers do: a port that is in TIME_WAIT after a restart counts as free.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError as error:
                    raise InputError(
                        f"port {port} ({name} of the embedded cluster) is taken{_owner(port)}; end that process, or "
                        "move all ports with CLUSTER_PORT_OFFSET=100 and set PREDICTIONS_HBASE_THRIFT and "
                        "PREDICTIONS_HADOOP_STORAGE to the moved ports"
                    ) from error

    def _format_namenode(self) -> None:
        name_node = "org.apache.hadoop.hdfs.server.namenode.NameNode"
        with open(self.log("format"), "wb") as log:
            command = self.config.java(name_node, "-format", "-nonInteractive")
            if subprocess.run(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL).returncode:
                raise InternalError(f"HDFS could not be formatted; the end of its log:\n{self._log_end('format')}")

    def _launch(self, daemon: Daemon) -> None:
        with open(self.log(daemon.name), "ab") as log:
            self._log_starts[daemon.name] = log.tell()
            process = psutil.Popen(
                self.config.java(*daemon.java_options, *daemon.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.config.folder,
                env={**os.environ, **self.config.environment},
                start_new_session=True,
            )
        entry = {"pid": process.pid, "created": process.create_time()}
        (self._run / daemon.name).write_text(json.dumps(entry))

    def _wait_for_namenode(self) -> None:
        """Wait until the NameNode accepts connections, or has died: HBase's master ends if it cannot reach HDFS."""
        deadline = time.monotonic() + START_TIMEOUT
        while self.process("namenode") and time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.config.port("namenode"))) == 0:
                    return
            time.sleep(0.1)

    def _wait_until_ready(self, wanted: list[Daemon], report: Callable[[str], None]) -> None:
        waiting = {
            "HDFS": self._hdfs_ready,
            "YARN": self._yarn_ready,
            "HBase": self._hbase_ready,
            "Thrift": self._thrift_ready,
        }
        started = time.monotonic()
        while waiting:
            for daemon in wanted:
                if not self.process(daemon.name):
                    raise InternalError(
                        f"{daemon.name} died; the end of {self.log(daemon.name)}:\n{self._log_end(daemon.name)}"
                    )
            for service in [service for service, ready in waiting.items() if ready()]:
                report(f"{service} is up after {time.monotonic() - started:.0f} s")
                del waiting[service]
            if waiting and time.monotonic() - started > START_TIMEOUT:
                raise ServiceError(
                    f"{', '.join(waiting)}: not ready after {START_TIMEOUT} s; see the logs in {self.config.logs}"
                )
            time.sleep(0.5)

    def _hdfs_ready(self) -> bool:
        state = _fetch_json(self.config.port("namenode_web"), "/jmx?qry=Hadoop:service=NameNode,name=NameNodeInfo")
        bean = state["beans"][0] if state and state["beans"] else {}
        return bean.get("Safemode") == "" and bean.get("LiveNodes") not in (None, "{}")

    def _yarn_ready(self) -> bool:
        state = _fetch_json(self.config.port("resourcemanager_web"), "/ws/v1/cluster/metrics")
        return state is not None and state["clusterMetrics"]["activeNodes"] > 0

    def _hbase_ready(self) -> bool:
        # The log, because the master's metrics are ten seconds late.
        with open(self.log("master"), "rb") as log:
            log.seek(self._log_starts.get("master", 0))
            return b"Master has completed initialization" in log.read()

    def _thrift_ready(self) -> bool:
        with contextlib.closing(socket.socket()) as probe:
            return probe.connect_ex(("127.0.0.1", self.config.port("thrift"))) == 0

    def _log_end(self, name: str) -> str:
        lines = self.log(name).read_text(errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-LOG_TAIL:])


def _owner(port: int) -> str:
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr[1:2] == (port,) and connection.pid:
            return f" by process {connection.pid} ({psutil.Process(connection.pid).name()})"
    return ""


def _fetch_json(port: int, path: str) -> dict[str, Any] | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return json.load(response)
    except (OSError, ValueError):
        return None
