"""`predictions activate`."""

import click

from predictions.cli.session import Session, release_option
from predictions.progress import bar, say
from predictions.settings import Settings
from predictions.stages.activate import activate
from predictions.storage import Storage


@click.command("activate")
@release_option
@click.option(
    "--force", metavar="REASON", help="Activate despite a failed gate or an earlier rollback; REASON is recorded."
)
@click.pass_obj
def command(session: Session, release: str | None, force: str | None) -> None:
    """Serve a release, if its gates pass.

    Checks that a loaded release is complete, which --force does not overrule, and that its gates pass. Then reads a
    sample of it, for five seconds at most, so that lookups find it in HBase's cache, and switches the pointer to it, in
    one write.
    """
    run_activate(session.settings, session.storage, release or session.storage.release().release, force)


def run_activate(settings: Settings, storage: Storage, release: str, force: str | None = None) -> None:
    """Activate a release and say what was served before."""
    with bar("compare") as progress:
        pointer = activate(settings, storage, release, force, say, lambda share: progress(share, 1.0))
    previous = f", previously {pointer.previous}" if pointer.previous else ""
    say(f"release {pointer.current} is served{previous}")
