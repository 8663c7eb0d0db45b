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
    "--full", is_flag=True, help="Compare every cell with the prediction lines, rather than counts and digests."
)
@processes_option
@click.pass_obj
def command(session: Session, release: str | None, full: bool, processes: int | None) -> None:
    """Compare what stands in a loaded release's table with what was scored."""
    settings, folder, processes = session.settings, session.storage.release(release), processes or cores()
    with bar("verify", "rows") as progress:
        found = verify(settings, folder, full, processes, progress)
    for mismatch in found.mismatches:
        click.echo(mismatch)
    read = f"every cell ({found.cells:,}), beside the prediction lines" if full else "row keys alone"
    say(
        f"{found.rows:,} rows of table {release_table(settings.name, folder.release)}: read {read}, by scans of up to "
        f"{processes} regions at once, in {found.seconds:.1f} s ({found.rows / found.seconds:,.0f} rows a second)"
    )
    if found.mismatches:
        counts = ", ".join(f"{count:,} {kind}" for kind, count in found.counts.items())
        raise VerificationError(f"release {folder.release} is not what was scored" + (f": {counts}" if counts else ""))
