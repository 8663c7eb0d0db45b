"""`predictions load`."""

import click

from predictions.cli.session import Session, processes_option, rate_option, release_option
from predictions.formats.names import release_table
from predictions.progress import bar, say
from predictions.settings import LOADERS, VIAS, Settings
from predictions.stages.load import How, load
from predictions.storage import ReleaseFolder


@click.command("load")
@release_option
@click.option(
    "--via", type=click.Choice(VIAS), help="hfiles (the default where they are on HDFS and `hbase` is here) or puts."
)
@click.option(
    "--runner",
    type=click.Choice(LOADERS),
    help="Of puts. local: processes of this machine (the default); hadoop: a job.",
)
@processes_option
@rate_option("Of puts: rows a second, at most, in all.")
@click.pass_obj
def command(
    session: Session,
    release: str | None,
    via: str | None,
    runner: str | None,
    processes: int | None,
    rate: float | None,
) -> None:
    """Load a release's predictions into an HBase table of its own; begun again, it goes on where it ended."""
    run_load(session.settings, session.storage.release(release), How(via, runner, processes, rate))


def run_load(settings: Settings, folder: ReleaseFolder, how: How) -> None:
    """Load it into its table."""
    loaded = load(settings, folder, how, bar, say)
    table = release_table(settings.name, folder.release)
    say(f"{loaded.rows:,} rows in table {table}, counted; loading took {loaded.seconds:.1f} s")
