"""The command `hadoop/cluster`: start, stop and show the embedded cluster."""

import click

from hadoop.config import ClusterConfig
from hadoop.engine import Cluster
from predictions.cli import exits
from predictions.progress import say


@click.group()
def cli() -> None:
    """Run the embedded cluster: HDFS, YARN and HBase on loopback, with their files under var/cluster.

    The environment variable CLUSTER_DIR names another folder; CLUSTER_PORT_OFFSET is added to every port.
    """


@cli.command()
@click.option(
    "--region-servers", type=click.IntRange(1, 9), default=1, show_default=True, help="Number of HBase region servers."
)
def start(region_servers: int) -> None:
    """Start the daemons that are not running, and wait until all of them answer."""
    _cluster().start(region_servers, say)


@cli.command()
def stop() -> None:
    """Stop the cluster's processes; the data stay."""
    _cluster().stop(say)


@cli.command()
def status() -> int:
    """Show the state of each daemon; exit with code 4 unless all of them run."""
    states = list(_cluster().status())
    for name, state in states:
        click.echo(f"{name:16} {state}")
    return 0 if all(state.startswith("running") for _name, state in states) else 4


def _cluster() -> Cluster:
    return Cluster(ClusterConfig.from_environment())


if __name__ == "__main__":
    exits.run(cli, "cluster")
