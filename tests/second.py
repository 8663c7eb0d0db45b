"""A second cluster next to the first, with every port moved: tests may kill its daemons and stop it.

All such tests of a session share it, in any order: a test leaves it running, or the next one starts it again.
"""

import os
import subprocess
import sys
from dataclasses import dataclass

import psutil
from conftest import CHECKOUT

from hadoop.config import ClusterConfig
from hadoop.engine import Cluster

# Added to the first cluster's ports, for this cluster and for those of single tests. All ports differ, and are below
# 32768, where the kernel's ephemeral ports begin.
OFFSET, OFFSET_OF_USERS, OFFSET_OF_ENGINE = 1000, 1500, 500
REGION_SERVERS = 2
NAMELESS = "no-such-host-name"


@dataclass(frozen=True)
class TwoNames(ClusterConfig):
    """A configuration whose hosts file also has `NAMELESS`, for daemons on that host and for clients on this one."""

    def write(self):
        super().write()
        with open(self.conf / "hosts", "a") as hosts:
            hosts.write(f"127.0.0.1 {NAMELESS}\n")


class Second(Cluster):
    """The second cluster, started by `hadoop/cluster`; as root, on a host whose own name does not resolve.

    Args:
        folder: for its files.
        first: the first cluster.
    """

    def __init__(self, folder, first):
        super().__init__(TwoNames(folder, first.config.port_offset + OFFSET))
        self.first_states: dict[str, str] = {}
        self.first_listening: set[tuple[str, int]] = set()

    def begin(self):
        """Start it for the first time; keep its daemons' states and listening addresses for the test of the start."""
        self.bring_back()
        self.first_states = dict(self.status())
        self.first_listening = {
            connection.laddr
            for name in self.first_states
            if (process := self.process(name))
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        }

    def command(self, *arguments):
        """Run `hadoop/cluster`."""
        finished = run_command(self.config, *arguments, is_nameless=os.geteuid() == 0)
        if arguments[0] == "start":
            self.config.write()  # the command wrote a hosts file without NAMELESS
        return finished

    def bring_back(self):
        """Start the daemons that are not running; by the command: a stop waits for the parent to reap the daemon."""
        if not all(state.startswith("running") for _name, state in self.status()):
            started = self.command("start", "--region-servers", str(REGION_SERVERS))
            assert started.returncode == 0, started.stderr

    def kill(self, name):
        """Kill a daemon."""
        process = self.process(name)
        process.kill()
        process.wait()


def kill_all(cluster):
    """Kill a cluster's daemons at once: its files are not needed any more."""
    processes = [process for name in dict(cluster.status()) if (process := cluster.process(name))]
    for process in processes:
        process.kill()
    psutil.wait_procs(processes)


def run_command(config, *arguments, is_nameless=False):
    """Run `hadoop/cluster` for a cluster; return its exit code and output."""
    renamed_host = ["unshare", "--uts", "sh", "-c", f'hostname {NAMELESS} && exec "$0" "$@"']
    return subprocess.run(
        [*(renamed_host if is_nameless else ()), sys.executable, "-m", "hadoop", *arguments],
        cwd=CHECKOUT,
        env={**os.environ, "CLUSTER_DIR": str(config.folder), "CLUSTER_PORT_OFFSET": str(config.port_offset)},
        capture_output=True,
        text=True,
    )
