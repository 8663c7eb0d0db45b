"""`predictions rollback`."""

import click

from predictions.cli.session import Session
from predictions.hbase.connection import Connection
from predictions.hbase.releases import Releases
from predictions.progress import say


@click.command("rollback")
@click.pass_obj
def command(session: Session) -> None:
    """Make the release that was served before the current one the served one again, in one write."""
    with Connection(session.settings.hbase.server()) as connection:
        pointer = Releases(connection, session.settings.name).rollback()
    say(f"release {pointer.current} is current again; {pointer.rolled_back[-1]} was rolled back from")
