"""The command of the embedded cluster, `hadoop/cluster`."""

import click

from hadoop.config import ClusterConfig
from hadoop.engine import Cluster
from predictions.cli import exits
from predictions.progress import say


@click.group()
def cli() -> None:
    """The embedded cluster: HDFS, YARN and HBase on loopback, its files under var/cluster.

    CLUSTER_DIR names another folder, CLUSTER_PORT_OFFSET moves every port.
    """


@cli.command()
@click.option("--region-servers", type=click.IntRange(1, 9), default=1, show_default=True, help="Number of region servers.")
def start(region_servers: int) -> None:
    """Start what is not running, and wait until it answers."""
    _cluster().start(region_servers, say)


@cli.command()
def stop() -> None:
    """Stop this cluster's processes; its data stay."""
    _cluster().stop(say)


@cli.command()
def status() -> int:
    """Show each daemon; exit with 4 unless all of them run."""
    states = list(_cluster().status())
    for name, state in states:
        click.echo(f"{name:16} {state}")
    return 0 if all(state.startswith("running") for _name, state in states) else 4


def _cluster() -> Cluster:
    return Cluster(ClusterConfig.from_environment())


if __name__ == "__main__":
    exits.run(cli, "cluster")
