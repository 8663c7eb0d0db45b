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
    "--via",
    type=click.Choice(VIAS),
    help="hfiles: HBase takes over the job's HFiles; puts: write row by row. Default: hfiles, if they are on HDFS, "
    "`hbase` is installed, and neither --runner nor --rate is given.",
)
@click.option(
    "--runner",
    type=click.Choice(LOADERS),
    help="For puts. local: processes of this machine; hadoop: a job. Default: local.",
)
@processes_option("one for each core; in a job: all")
@rate_option("For puts: rows per second in total, at most; default: no limit.")
@click.pass_obj
def command(
    session: Session,
    release: str | None,
    via: str | None,
    runner: str | None,
    processes: int | None,
    rate: float | None,
) -> None:
    """Load a release into an HBase table of its own.

    After an interruption, run it again: it continues where it stopped.
    """
    run_load(session.settings, session.storage.release(release), How(via, runner, processes, rate))


def run_load(settings: Settings, folder: ReleaseFolder, how: How) -> None:
    """Load a release into its table, and say how many rows it has, and how that was proved."""
    loaded = load(settings, folder, how, bar, say)
    table = release_table(settings.name, folder.release)
    proof = "counted them"
    if loaded.proved:
        proof = f"proved {loaded.proved} of {len(loaded.parts)} regions by the checksums of their files"
        if loaded.proved < len(loaded.parts):
            proof += ", and counted the others' rows"
    say(f"loaded {loaded.rows:,} rows into table {table} in {loaded.seconds:.1f} s, and {proof}")
