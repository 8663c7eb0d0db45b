"""`predictions score`."""

import click

from predictions.cli.exits import DONE, WITH_FAILURES
from predictions.cli.session import Session, changed_option, release_option, runner_option
from predictions.errors import ServiceError
from predictions.progress import bar, say
from predictions.settings import Settings
from predictions.stages.score import check_model, score
from predictions.stages.score_hadoop import ScoreJob
from predictions.storage import ReleaseFolder, Storage


@click.command("score")
@release_option
@runner_option
@changed_option("Score only what has changed since the release that is served; the rest keeps what that one has.")
@click.option("--dry-run", is_flag=True, help="Put the job's files into HDFS, print its command and do not run it.")
@click.pass_obj
def command(session: Session, release: str | None, runner: str | None, changed: bool, dry_run: bool) -> int:
    """Score every exported record, in a Hadoop Streaming job or by the same two scripts on this machine."""
    settings, folder = session.settings, session.storage.release(release)
    if not dry_run:
        return run_score(settings, folder, runner, changed)
    if runner not in (None, "hadoop"):
        raise click.UsageError("--dry-run prints a Hadoop job: leave --runner out")
    check_model(folder)
    job = ScoreJob(settings, folder, *_before(settings, folder, runner, changed))
    job.ship()
    click.echo(job.command())
    return DONE


def run_score(settings: Settings, folder: ReleaseFolder, runner: str | None, changed: bool) -> int:
    """Score it; return the exit code."""
    current, changed = _before(settings, folder, runner, changed)
    with bar("score") as progress:
        done = score(settings, folder, runner, lambda share: progress(share, 1.0), current, changed)
    more = f", {done.duplicates:,} came twice" if done.duplicates else ""
    if done.carried_from:
        more += f"; {done.carried:,} have not changed and keep what release {done.carried_from} has"
    say(f"scored {done.scored:,} records, {done.failed:,} failed{more}; it took {done.seconds:.1f} s")
    return WITH_FAILURES if done.failed else DONE


def current_release(settings: Settings, storage: Storage) -> ReleaseFolder | None:
    """Return the release that is served, if its lines are there; ServiceError where HBase does not answer."""
    # Here, since scoring without a cluster needs no client of HBase.
    from predictions.hbase.connection import Connection
    from predictions.hbase.releases import Releases

    with Connection(settings.hbase.server()) as connection:
        return storage.scored(Releases(connection, settings.name).pointer().current)


def _before(
    settings: Settings, folder: ReleaseFolder, runner: str | None, changed: bool
) -> tuple[ReleaseFolder | None, bool]:
    """Return the release that is served, to compare with, and whether lines can be kept of it, if that is wanted."""
    if not changed or folder.has("scored"):
        return _served(settings, folder.storage) if runner in (None, "hadoop") else None, False
    current = current_release(settings, folder.storage)
    if not current:
        say("no release is current whose lines are there: every record is scored")
        return None, False
    if current.model.sha256 != folder.model.sha256:
        say(f"release {current.release} has another model: every record is scored")
        return current, False
    return current, True


def _served(settings: Settings, storage: Storage) -> ReleaseFolder | None:
    """Return the release that is served, if a job can read its lines; `activate` asks again."""
    if not storage.is_hdfs:
        return None
    try:
        return current_release(settings, storage)
    except ServiceError as error:
        say(f"the job compares with no other release: {error}")
        return None
