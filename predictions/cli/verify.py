"""`predictions verify`."""

import click

from predictions.cli.session import Session, processes_option, release_option
from predictions.errors import VerificationError
from predictions.formats.names import release_table
from predictions.progress import bar, say
from predictions.stages.verify import verify
from predictions.workers import cores


@click.command("verify")
@release_option
@click.option(
    "--full", is_flag=True, help="Compare every cell with the prediction lines; default: row counts and ID digests."
)
@processes_option()
@click.pass_obj
def command(session: Session, release: str | None, full: bool, processes: int | None) -> None:
    """Compare a loaded table with what was scored.

    Prints each mismatch, and exits with code 5 if there are any.
    """
    settings, folder, processes = session.settings, session.storage.release(release), processes or cores()
    with bar("verify", "rows") as progress:
        verified = verify(settings, folder, full, processes, progress)
    for mismatch in verified.mismatches:
        click.echo(mismatch)
    what = f"every cell ({verified.cells:,}) and the prediction lines" if full else "row keys only"
    speed = verified.rows / verified.seconds
    say(
        f"{verified.rows:,} rows of table {release_table(settings.name, folder.release)}: read {what}, up to "
        f"{processes} regions at once, in {verified.seconds:.1f} s ({speed:,.0f} rows per second)"
    )
    if verified.mismatches:
        counts = ", ".join(f"{count:,} {kind}" for kind, count in verified.counts.items())
        message = f"the table of release {folder.release} is not what was scored"
        raise VerificationError(f"{message}: {counts}" if counts else message)
