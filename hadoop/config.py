"""The embedded cluster's folders, ports and configuration files.

All files are in one folder (`var/cluster`; `CLUSTER_DIR` names another), except for the engine's jars in `var/lib`.
A second cluster on the same machine needs its own folder and `CLUSTER_PORT_OFFSET`, which is added to every port.
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
CLASSES = LIB.with_name("classes.jsa")  # an archive of the engine's parsed classes (quickstart makes it)

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

# Java 17 closes these packages to reflection; Hadoop and HBase were written when they were open.
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
    """The folder and the ports of one embedded cluster.

    Args:
        folder: where its files are.
        port_offset: added to every port.
        region_server_options: options of its region servers (`-Dname=value`); a benchmark has some.
    """

    folder: Path
    port_offset: int
    region_server_options: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls) -> "ClusterConfig":
        """Read `CLUSTER_DIR` and `CLUSTER_PORT_OFFSET`; InputError if the offset is not a number or is too large."""
        folder = os.environ.get("CLUSTER_DIR") or CHECKOUT / "var" / "cluster"
        offset = os.environ.get("CLUSTER_PORT_OFFSET") or "0"
        limit = _first_ephemeral_port()
        if not offset.isdecimal() or int(offset) + max(PORTS.values()) >= limit:
            raise InputError(
                f"CLUSTER_PORT_OFFSET: {offset}: must be a number that leaves every port below {limit}; from that "
                "port on, the system assigns ports to connections"
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
        """Return the port of a service; `index` is the number of the region server."""
        return PORTS[name] + self.port_offset + index

    @property
    def java_options_file(self) -> Path:
        """The file with the JVM options, for `java @FILE`; `hadoop/bin` uses it too."""
        return self.conf / "java.options"

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of the daemons and, through YARN, of the tasks: where Hadoop is, as on a real node."""
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
        # The JDK resolves names from this file alone. So a host whose own name is not in the DNS works, and no daemon
        # finds an address that other machines can reach.
        hosts = self.conf / "hosts"
        hosts.write_text(f"127.0.0.1 localhost {socket.gethostname()}\n")
        options = [*_JAVA_OPTIONS, f"-Djdk.net.hosts.file={hosts}"]
        if CLASSES.exists():  # if it named a missing file, the JVM would not use its default archive either
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
        # The web servers of NameNode and DataNode do not start without these folders, which the jars lack.
        for name in ("hdfs", "datanode", "secondary"):
            (self.conf / "webapps" / name).mkdir(parents=True, exist_ok=True)

    def java(self, *arguments: str) -> list[str]:
        """Return the command that runs a Java class of the engine with this configuration."""
        # The jars come first: the JVM uses the archive only if the class path begins with that of the archive.
        return ["java", f"@{self.java_options_file}", "-cp", f"{LIB}/*:{self.conf}", *arguments]


def _first_ephemeral_port() -> int:
    """Return the first port that the system may give to a connection at any time (ip(7), `ip_local_port_range`)."""
    return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
