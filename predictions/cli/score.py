"""`predictions score`."""

import click

from predictions.cli.exits import DONE, WITH_FAILURES
from predictions.cli.session import Session, changed_option, release_option, runner_option
from predictions.errors import ServiceError
from predictions.formats.manifest import Scored
from predictions.progress import bar, say
from predictions.settings import Settings
from predictions.stages.score import check_models, score
from predictions.stages.score_hadoop import ScoreJob
from predictions.storage import ReleaseFolder, Storage


@click.command("score")
@release_option
@runner_option
@changed_option("Score only records that changed since the served release; the others keep its predictions.")
@click.option("--dry-run", is_flag=True, help="Put the job's files on HDFS and print its command, but do not run it.")
@click.pass_obj
def command(session: Session, release: str | None, runner: str | None, changed: bool, dry_run: bool) -> int:
    """Score every record of a release.

    Runs mapper.py and reducer.py in a Hadoop Streaming job or on this machine; the prediction lines are the same.
    """
    settings, folder = session.settings, session.storage.release(release)
    if not dry_run:
        return run_score(settings, folder, runner, changed)
    if runner not in (None, "hadoop"):
        raise click.UsageError("--dry-run prints the command of a Hadoop job; omit --runner")
    check_models(folder)
    job = ScoreJob(settings, folder, *_served_and_changed(settings, folder, runner, changed))
    job.ship()
    click.echo(job.command())
    return DONE


def run_score(settings: Settings, folder: ReleaseFolder, runner: str | None, changed: bool) -> int:
    """Score a release, and return the exit code."""
    if folder.has("scored"):
        scored = folder.scored
        say(f"{folder.path}/scored exists already: {_summary(scored)}")
    else:
        served, changed = _served_and_changed(settings, folder, runner, changed)
        with bar("score") as progress:
            scored = score(settings, folder, runner, lambda share: progress(share, 1.0), served, changed)
        say(f"{_summary(scored)}; it took {scored.seconds:.1f} s")
    return WITH_FAILURES if scored.failed else DONE


def _summary(scored: Scored) -> str:
    more = f", {scored.duplicates:,} came twice" if scored.duplicates else ""
    if not scored.carried_from:
        return f"scored {scored.scored:,} records, {scored.failed:,} failed{more}"
    return (
        f"scored {scored.rows - scored.carried:,} of {scored.rows:,} records, {scored.failed:,} of all failed{more}; "
        f"{scored.carried:,} are unchanged and keep their predictions from release {scored.carried_from}"
    )


def current_release(settings: Settings, storage: Storage) -> ReleaseFolder | None:
    """Return the served release, if its prediction lines exist; raise ServiceError if HBase does not answer."""
    # Imported here, since scoring without a cluster needs no HBase client.
    from predictions.hbase.connection import Connection
    from predictions.hbase.releases import Releases

    with Connection(settings.hbase.server()) as connection:
        return storage.scored(Releases(connection, settings.name).pointer().current)


def _served_and_changed(
    settings: Settings, folder: ReleaseFolder, runner: str | None, changed: bool
) -> tuple[ReleaseFolder | None, bool]:
    """Return the served release, to compare with, and whether only records that changed since then can be scored."""
    if not changed:
        return _served(settings, folder.storage) if runner in (None, "hadoop") else None, False
    served = current_release(settings, folder.storage)
    if not served:
        say("no release is served, or its prediction lines are gone: scoring every record")
        return None, False
    if not folder.models.write_the_same_as(served.models):
        say(f"the served release {served.release} has another model: scoring every record")
        return served, False
    if folder.models.is_compiled:
        say("the model has a compiled form: scoring every record, without --changed, takes about as long")
    return served, True


def _served(settings: Settings, storage: Storage) -> ReleaseFolder | None:
    """Return the served release, if a job can read its lines; otherwise `activate` compares with it."""
    if not storage.is_hdfs:
        return None
    try:
        return current_release(settings, storage)
    except ServiceError as error:
        say(f"the job cannot compare with the served release: {error}")
        return None
