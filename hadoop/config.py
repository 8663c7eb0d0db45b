"""Where the embedded cluster keeps its files, which ports it takes, and its configuration files.

Everything lies under one folder (`var/cluster`; `CLUSTER_DIR` names another), the engine's jars under `var/lib`.
A second cluster on the same machine is a second folder and `CLUSTER_PORT_OFFSET`, which is added to every port.
"""

import getpass
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from string import Template

from predictions.errors import InputError

CHECKOUT = Path(__file__).resolve().parent.parent
TEMPLATES = Path(__file__).resolve().parent / "conf"
LIB = CHECKOUT / "var" / "lib"
CLASSES = LIB.with_name("classes.jsa")  # the engine's classes, parsed once (quickstart makes it for the tests)

PORTS = {
    "namenode": 8020,
    "namenode_web": 9870,
    "datanode": 9866,
    "datanode_web": 9864,
    "datanode_ipc": 9867,
    "resourcemanager": 8032,
    "resourcemanager_scheduler": 8030,
    "resourcemanager_tracker": 8031,
    "resourcemanager_admin": 8033,
    "resourcemanager_web": 8088,
    "nodemanager": 8041,
    "nodemanager_localizer": 8040,
    "nodemanager_web": 8042,
    "shuffle": 13562,
    "jobhistory": 10020,
    "jobhistory_admin": 10033,
    "jobhistory_web": 19888,
    "zookeeper": 2181,
    "master": 16000,
    "master_web": 16010,
    "regionserver": 16020,
    "regionserver_web": 16030,
    "thrift": 9090,
    "thrift_web": 9095,
}

# Java 17 closes these to reflection; Hadoop and HBase were written when they were open.
_OPENED = ("lang", "lang.reflect", "nio", "net", "util", "util.concurrent")
_JAVA_OPTIONS = [
    *(f"--add-opens=java.base/java.{package}=ALL-UNNAMED" for package in _OPENED),
    "--add-opens=java.base/sun.nio.ch=ALL-UNNAMED",
    "--add-opens=java.base/jdk.internal.ref=ALL-UNNAMED",
    "--add-exports=java.base/jdk.internal.misc=ALL-UNNAMED",
    "--add-exports=java.security.jgss/sun.security.krb5=ALL-UNNAMED",
    "-XX:+UseSerialGC",
    "-Djava.net.preferIPv4Stack=true",
    "-Dzookeeper.admin.enableServer=false",
]


@dataclass(frozen=True)
class ClusterConfig:
    """The folder and the ports of one embedded cluster."""

    folder: Path
    port_offset: int

    @classmethod
    def from_environment(cls) -> "ClusterConfig":
        """Read `CLUSTER_DIR` and `CLUSTER_PORT_OFFSET`; InputError where that is no number, or moves a port too far."""
        folder = os.environ.get("CLUSTER_DIR") or CHECKOUT / "var" / "cluster"
        offset = os.environ.get("CLUSTER_PORT_OFFSET") or "0"
        limit = _first_ephemeral_port()
        if not offset.isdecimal() or int(offset) + max(PORTS.values()) >= limit:
            raise InputError(
                f"CLUSTER_PORT_OFFSET: {offset}: must be a number that leaves every port below {limit}, from where on "
                "the system takes ports for connections"
            )
        return cls(Path(folder).resolve(), int(offset))

    @property
    def conf(self) -> Path:
        return self.folder / "conf"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    def port(self, name: str, index: int = 0) -> int:
        """Return the port of a service; `index` counts the region servers."""
        return PORTS[name] + self.port_offset + index

    @property
    def java_options_file(self) -> Path:
        """The JVM options as a file that `java @FILE` takes; `hadoop/bin` reads it too."""
        return self.conf / "java.options"

    @property
    def environment(self) -> dict[str, str]:
        """What the daemons, and through YARN the tasks, are to know: as on a real node, where Hadoop is."""
        return {
            "HADOOP_COMMON_HOME": str(CHECKOUT / "hadoop"),
            "HADOOP_CONF_DIR": str(self.conf),
            "HADOOP_MAPRED_HOME": str(LIB),
            "CLUSTER_DIR": str(self.folder),
        }

    def write(self) -> None:
        """Write the configuration of this cluster from the templates in `hadoop/conf`."""
        for folder in (self.conf, self.data, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
        # The JDK resolves names from this file alone, so a host whose own name is in no DNS works, and no
        # daemon finds an address that others can reach.
        hosts = self.conf / "hosts"
        hosts.write_text(f"127.0.0.1 localhost {socket.gethostname()}\n")
        options = [*_JAVA_OPTIONS, f"-Djdk.net.hosts.file={hosts}"]
        if CLASSES.exists():  # else the JVM would do without its own archive, too
            options.append(f"-XX:SharedArchiveFile={CLASSES}")
        self.java_options_file.write_text("".join(f'"{option}"\n' for option in options))
        values = {name: str(self.port(name)) for name in PORTS} | {
            "data": str(self.data),
            "logs": str(self.logs),
            "lib": str(LIB),
            "user": getpass.getuser(),
            "task_java": " ".join(
                [
                    *(option for option in options if "--add-exports" not in option),
                    "-XX:TieredStopAtLevel=1",
                    f"-cp {LIB}/*:.:job.jar/*:job.jar/classes/:job.jar/lib/*:./*",  # as CLASSPATH, but the jars first
                ]
            ),
        }
        for template in TEMPLATES.iterdir():
            (self.conf / template.name).write_text(Template(template.read_text()).substitute(values))
        # The jars lack these folders, without which the NameNode's and DataNode's web servers do not start.
        for name in ("hdfs", "datanode", "secondary"):
            (self.conf / "webapps" / name).mkdir(parents=True, exist_ok=True)

    def java(self, *arguments: str) -> list[str]:
        """Return the command that runs a Java class of the engine with this configuration."""
        # The jars first: a class path begins with that of the archive of classes, or this is not taken.
        return ["java", f"@{self.java_options_file}", "-cp", f"{LIB}/*:{self.conf}", *arguments]


def _first_ephemeral_port() -> int:
    """Return the first port that a connection may get at any time (ip(7), `ip_local_port_range`)."""
    return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
