"""`predictions report`."""

from pathlib import Path

import click

from predictions.cli.session import Session
from predictions.progress import bar
from predictions.report.report import write_report


@click.command("report")
@click.argument("release", required=False)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=".",
    metavar="FOLDER",
    help="Folder for the files; default: the current folder.",
)
@click.pass_obj
def command(session: Session, release: str | None, output: Path) -> None:
    """Write the report of a release, as HTML.

    Writes one HTML file, and its figures as PNGs. RELEASE is by default the newest release.
    """
    with bar("compare") as progress:
        path = write_report(session.settings, session.storage, release, output, lambda share: progress(share, 1.0))
    click.echo(path)
