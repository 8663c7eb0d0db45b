"""A second cluster beside the first, with every port moved: its daemons may be killed, and all of it stopped.

One for all tests of a session that do so, in any order: each leaves it running, or the next one brings it back.
"""

import os
import subprocess
import sys
from dataclasses import dataclass

import psutil
from conftest import CHECKOUT

from hadoop.config import ClusterConfig
from hadoop.engine import Cluster

# To the ports of the first, of this cluster and of those of single tests. No two of the ports below 32768 are the same,
# which is where those begin that the kernel gives away.
OFFSET, OFFSET_OF_USERS, OFFSET_OF_ENGINE = 1000, 1500, 500
REGION_SERVERS = 2
NAMELESS = "no-such-host-name"


@dataclass(frozen=True)
class TwoNames(ClusterConfig):
    """Whose daemons find their own name, on a host that is called `NAMELESS`, and its clients theirs, on this one."""

    def write(self):
        super().write()
        with open(self.conf / "hosts", "a") as hosts:
            hosts.write(f"127.0.0.1 {NAMELESS}\n")


class Second(Cluster):
    """The cluster, started by the command; where the user may, on a host whose own name does not resolve.

    Args:
        folder: of its files.
        first: the cluster beside it.
    """

    def __init__(self, folder, first):
        super().__init__(TwoNames(folder, first.config.port_offset + OFFSET))
        self.first_states: dict[str, str] = {}
        self.first_listening: set[tuple[str, int]] = set()

    def begin(self):
        """Start it for the first time, and keep what there is then, for the test of that."""
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
        done = run_command(self.config, *arguments, is_nameless=os.geteuid() == 0)
        if arguments[0] == "start":
            self.config.write()  # the command knew one name alone
        return done

    def bring_back(self):
        """Start what is not running; by the command, since whoever stops a daemon waits for its parent, too."""
        if not all(state.startswith("running") for _name, state in self.status()):
            done = self.command("start", "--region-servers", str(REGION_SERVERS))
            assert done.returncode == 0, done.stderr

    def kill(self, name):
        """Kill a daemon."""
        process = self.process(name)
        process.kill()
        process.wait()


def kill_all(cluster):
    """End a cluster, and whatever it was just doing: its files are nobody's any more."""
    processes = [process for name in dict(cluster.status()) if (process := cluster.process(name))]
    for process in processes:
        process.kill()
    psutil.wait_procs(processes)


def run_command(config, *arguments, is_nameless=False):
    """Run `hadoop/cluster` for a cluster, and return how it ended and what it wrote."""
    nameless = ["unshare", "--uts", "sh", "-c", f'hostname {NAMELESS} && exec "$0" "$@"']
    return subprocess.run(
        [*(nameless if is_nameless else ()), sys.executable, "-m", "hadoop", *arguments],
        cwd=CHECKOUT,
        env={**os.environ, "CLUSTER_DIR": str(config.folder), "CLUSTER_PORT_OFFSET": str(config.port_offset)},
        capture_output=True,
        text=True,
    )
