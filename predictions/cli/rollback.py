"""`predictions rollback`."""

import click

from predictions.cli.session import Session
from predictions.hbase.connection import Connection
from predictions.hbase.releases import Releases
from predictions.progress import say


@click.command("rollback")
@click.pass_obj
def command(session: Session) -> None:
    """Serve the previous release again.

    Switches the pointer back in one write. The release that was served until now is marked as rolled back.
    """
    with Connection(session.settings.hbase.server()) as connection:
        pointer = Releases(connection, session.settings.name).rollback()
    say(f"release {pointer.current} is served again; release {pointer.rolled_back[-1]} is rolled back")
