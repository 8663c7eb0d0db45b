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
    """Start a release: export every record from the database, all of one snapshot."""
    click.echo(run_export(session.settings, session.storage, rate).release)


def run_export(settings: Settings, storage: Storage, rate: float | None) -> ReleaseFolder:
    """Start a release and return its folder."""
    with bar("export", "records") as progress:
        folder = export(settings, storage, progress, say, rate)
    done = folder.manifest.export
    say(f"exported {done.rows:,} records to {folder.path}/export in {done.seconds:.1f} s")
    if done.unfit_ids:
        say(f"warning: {done.unfit_ids:,} IDs cannot be row keys; `predictions score` will name them and stop")
    return folder
