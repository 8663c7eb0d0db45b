"""`predictions export`."""

import click

from predictions.cli.session import Session, export_rate_option
from predictions.progress import bar, say
from predictions.settings import Settings
from predictions.stages.export import export
from predictions.storage import ReleaseFolder, Storage


@click.command("export")
@export_rate_option
@click.pass_obj
def command(session: Session, rate: float | None) -> None:
    """Start a release: export every record.

    Reads all records from one snapshot of the database, and prints the new release's ID.
    """
    click.echo(run_export(session.settings, session.storage, rate).release)


def run_export(settings: Settings, storage: Storage, rate: float | None) -> ReleaseFolder:
    """Export a new release, and return its folder."""
    with bar("export", "records") as progress:
        folder = export(settings, storage, progress, say, rate)
    facts = folder.manifest.export
    say(f"exported {facts.rows:,} records to {folder.path}/export in {facts.seconds:.1f} s")
    if facts.unfit_ids:
        say(f"warning: {facts.unfit_ids:,} IDs cannot be row keys; `predictions score` will name them and stop")
    return folder
