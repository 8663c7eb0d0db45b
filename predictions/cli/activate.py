"""`predictions activate`."""

import click

from predictions.cli.session import Session, release_option
from predictions.progress import bar, say
from predictions.settings import Settings
from predictions.stages.activate import activate
from predictions.storage import Storage


@click.command("activate")
@release_option
@click.option("--force", metavar="REASON", help="Though a gate refuses it, or it was rolled back from; is kept.")
@click.pass_obj
def command(session: Session, release: str | None, force: str | None) -> None:
    """Make a loaded release the one that is served, in one write, if it is whole and the gates let it pass."""
    run_activate(session.settings, session.storage, release or session.storage.release().release, force)


def run_activate(settings: Settings, storage: Storage, release: str, force: str | None = None) -> None:
    """Make it the current one, if it is fit to be."""
    with bar("compare") as progress:
        pointer = activate(settings, storage, release, force, say, lambda share: progress(share, 1.0))
    before = f", before it {pointer.previous}" if pointer.previous else ""
    say(f"release {pointer.current} is current{before}")
