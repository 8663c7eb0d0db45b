"""The command line: each stage is a command; `run` is all of them in order."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from predictions.cli import exits, stages
from predictions.cli.exits import DONE, UNAVAILABLE, log_to_stderr
from predictions.errors import InputError
from predictions.progress import bar, say
from predictions.settings import FILE_NAME, LOADERS, RUNNERS, VIAS, Settings, load_settings
from predictions.storage import Storage

F = TypeVar("F", bound=Callable[..., Any])


class Session:
    """The options before the command; settings are read when a command asks for them."""

    def __init__(self, settings: Path | None, storage: str | None) -> None:
        self._path = settings
        self._storage = storage

    @property
    def settings(self) -> Settings:
        return load_settings(self._path)

    def storage_url(self, settings: Settings) -> str:
        return self._storage or settings.hadoop.storage

    def storage(self, settings: Settings) -> Storage:
        return Storage(self.storage_url(settings), settings.name)


def release_option(command: F) -> F:
    return click.option("--release", metavar="ID", help="The release; by default the newest.")(command)


def processes_option(command: F) -> F:
    text = "How many regions at once; by default as many as there are cores."
    return click.option("--processes", type=click.IntRange(1), metavar="N", help=text)(command)


def export_rate_option(command: F) -> F:
    text = "Rows a second, at most, that are read from the database."
    return click.option("--rate", type=click.FloatRange(0, min_open=True), metavar="ROWS", help=text)(command)


def runner_option(command: F) -> F:
    text = "pipe: one process of each script; local: all cores; hadoop: a job. By default hadoop on HDFS, else local."
    return click.option("--runner", type=click.Choice(RUNNERS), help=text)(command)


def model_option(command: F) -> F:
    return click.option("--model", metavar="RELEASE", help="Take that release's model instead of training one.")(
        command
    )


def changed_option(text: str) -> Callable[[F], F]:
    return click.option("--changed", is_flag=True, help=text)


@click.group()
@click.option("--settings", type=click.Path(path_type=Path), metavar="FILE", help=f"Default: {FILE_NAME}.")
@click.option("--storage", metavar="URL", help="Over hadoop.storage: a webhdfs:// URL or a local folder.")
@click.version_option(package_name="predictions")
@click.pass_context
def cli(context: click.Context, settings: Path | None, storage: str | None) -> None:
    """Predictions for every record of a database, made by MapReduce and served from HBase."""
    context.obj = Session(settings, storage)


@cli.command()
@click.argument("url")
@click.argument("table")
@click.option("--id", "record_id", required=True, metavar="COLUMN", help="The column with the unique record ID.")
@click.option("--label", required=True, metavar="COLUMN", help="The column that is to be predicted.")
@click.option("--name", metavar="NAME", help="Of the predictions; by default the table's.")
def init(url: str, table: str, record_id: str, label: str, name: str | None) -> None:
    """Write predictions.toml for TABLE of the database URL, all other columns as features.

    The URL is sqlite:///PATH, postgresql://USER@HOST:PORT/DATABASE, or one of SQLAlchemy.
    """
    from predictions.stages.init import write_settings

    say(f"wrote {write_settings(Path(FILE_NAME), url, table, record_id, label, name or table)}; look through it")


@cli.command()
@export_rate_option
@click.pass_obj
def export(session: Session, rate: float | None) -> int:
    """Start a release: export every record from the database, all of one snapshot."""
    settings = session.settings
    click.echo(stages.run_export(settings, session.storage(settings), rate).release)
    return DONE


@cli.command()
@release_option
@model_option
@click.pass_obj
def train(session: Session, release: str | None, model: str | None) -> int:
    """Train the model on the exported records that have a label."""
    settings = session.settings
    storage = session.storage(settings)
    stages.run_train(settings, storage.release(release), storage.release(model) if model else None)
    return DONE


@cli.command()
@release_option
@runner_option
@changed_option("Score only what has changed since the release that is served; the rest keeps what that one has.")
@click.option("--dry-run", is_flag=True, help="Put the job's files into HDFS, print its command and do not run it.")
@click.pass_obj
def score(session: Session, release: str | None, runner: str | None, changed: bool, dry_run: bool) -> int:
    """Score every exported record, in a Hadoop Streaming job or by the same two scripts on this machine."""
    settings = session.settings
    folder = session.storage(settings).release(release)
    if not dry_run:
        return stages.run_score(settings, folder, runner, changed)
    if runner not in (None, "hadoop"):
        raise click.UsageError("--dry-run prints a Hadoop job: leave --runner out")
    from predictions.stages.score import check_model
    from predictions.stages.score_hadoop import ScoreJob

    check_model(folder)
    job = ScoreJob(settings, folder, *stages.before(settings, folder, runner, changed))
    job.ship()
    click.echo(job.command())
    return DONE


@cli.command()
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
@click.option(
    "--rate", type=click.FloatRange(0, min_open=True), metavar="ROWS", help="Of puts: rows a second, at most, in all."
)
@click.pass_obj
def load(
    session: Session,
    release: str | None,
    via: str | None,
    runner: str | None,
    processes: int | None,
    rate: float | None,
) -> int:
    """Load a release's predictions into an HBase table of its own; begun again, it goes on where it ended."""
    from predictions.stages.load import How

    settings = session.settings
    stages.run_load(settings, session.storage(settings).release(release), How(via, runner, processes, rate))
    return DONE


@cli.command()
@release_option
@click.option(
    "--full", is_flag=True, help="Compare every cell with the prediction lines, rather than counts and digests."
)
@processes_option
@click.pass_obj
def verify(session: Session, release: str | None, full: bool, processes: int | None) -> int:
    """Compare what stands in a loaded release's table with what was scored."""
    settings = session.settings
    stages.run_verify(settings, session.storage(settings).release(release), full, processes)
    return DONE


@cli.command()
@release_option
@click.option("--force", metavar="REASON", help="Though a gate refuses it, or it was rolled back from; is kept.")
@click.pass_obj
def activate(session: Session, release: str | None, force: str | None) -> int:
    """Make a loaded release the one that is served, in one write, if it is whole and the gates let it pass."""
    settings = session.settings
    storage = session.storage(settings)
    stages.run_activate(settings, storage, release or storage.release().release, force)
    return DONE


@cli.command()
@click.pass_obj
def rollback(session: Session) -> int:
    """Make the release that was served before the current one the served one again, in one write."""
    from predictions.hbase.connection import Connection
    from predictions.hbase.releases import Releases

    settings = session.settings
    with Connection(settings.hbase.server()) as connection:
        pointer = Releases(connection, settings.name).rollback()
    say(f"release {pointer.current} is current again; {pointer.rolled_back[-1]} was rolled back from")
    return DONE


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--clean", is_flag=True, help="Remove what has had its time ([retention]), and what crashes left behind.")
@click.pass_obj
def releases(session: Session, as_json: bool, clean: bool) -> int:
    """List the releases, the newest first."""
    from predictions.cli.releases import show
    from predictions.stages.releases import list_releases

    settings = session.settings
    if clean:
        stages.run_clean(settings, session.storage(settings))
        return DONE
    found = list_releases(settings, session.storage(settings))
    if as_json:
        for release in found:
            click.echo(json.dumps(release._asdict()))
    else:
        show(found)
    return DONE


@cli.command()
@click.argument("before")
@click.argument("after")
@processes_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def compare(session: Session, before: str, after: str, processes: int | None, as_json: bool) -> int:
    """Show what release AFTER predicts otherwise than release BEFORE, and how both are distributed."""
    from predictions.cli.compare import show
    from predictions.stages.compare import compare_releases, to_json
    from predictions.workers import cores

    settings = session.settings
    earlier, later = (session.storage(settings).release(release) for release in (before, after))
    with bar("compare") as progress:
        found = compare_releases(earlier, later, processes or cores(), lambda share: progress(share, 1.0))
    if as_json:
        click.echo(to_json(found, before, after))
    else:
        show(found, earlier, later)
    return DONE


@cli.command()
@click.argument("release", required=False)
@click.option(
    "--output", type=click.Path(path_type=Path), default=".", metavar="FOLDER", help="For the files; by default here."
)
@click.pass_obj
def report(session: Session, release: str | None, output: Path) -> int:
    """Write the report of RELEASE (by default the newest): one HTML file, and its figures as PNGs."""
    from predictions.report.report import write_report

    settings = session.settings
    with bar("compare") as progress:
        path = write_report(settings, session.storage(settings), release, output, lambda share: progress(share, 1.0))
    click.echo(path)
    return DONE


@cli.command()
@runner_option
@export_rate_option
@changed_option("With the model of the release that is served, score only what has changed since.")
@model_option
@click.pass_obj
def run(session: Session, runner: str | None, rate: float | None, changed: bool, model: str | None) -> int:
    """Export, train, score, load and activate a new release; of two runs at once for one name, the second is told."""
    settings = session.settings
    release, code = stages.run_all(settings, session.storage(settings), runner, rate, changed, model)
    click.echo(release)
    return code


@cli.command(context_settings={"ignore_unknown_options": True})  # -5 is an ID
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_obj
def get(session: Session, ids: Sequence[str], as_json: bool) -> int:
    """Look up records and their predictions: of the IDs given, or of those on stdin, one a line, exactly as it is."""
    from predictions.cli.get import look_up, print_json, print_table, read_ids
    from predictions.lookup.client import Client

    if not ids and (sys.stdin is None or sys.stdin.isatty()):
        raise click.UsageError("which records? Name IDs, or write them to stdin, one a line")
    code = DONE
    with Client(session.settings) as client:
        found = look_up(client, ids or read_ids(sys.stdin.buffer))
        for answer in print_json(found) if as_json else print_table(found):
            if answer.status == "unavailable":
                code = UNAVAILABLE
    return code


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Any but loopback needs a token.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option("--max-age", type=click.FloatRange(0), metavar="SECONDS", help="After which a prediction is `expired`.")
@click.option("--online", is_flag=True, help="Score what is not in the release, or has changed, when it is asked for.")
@click.pass_obj
def serve(session: Session, host: str, port: int, max_age: float | None, online: bool) -> int:
    """Answer lookups over HTTP, with a page at /; the token for other machines is in PREDICTIONS_TOKEN."""
    from predictions.lookup.client import Client

    try:
        from predictions.service.server import serve
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed: pip install 'predictions[serve]'") from error
    log_to_stderr()
    settings = session.settings
    with Client(settings, max_age=max_age, model=online and session.storage_url(settings)) as client:
        serve(settings, client, host, port)
    return DONE


@cli.command(context_settings={"ignore_unknown_options": True})  # -5 is an ID
@click.argument("record_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def explain(session: Session, record_id: str, as_json: bool) -> int:
    """Show what led to the prediction that is served for a record: release, model, lines as scored, record as it is."""
    from predictions.cli.explain import explain, show

    settings = session.settings
    found = explain(settings, session.storage(settings), record_id)
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
    else:
        show(found)
    return DONE


@cli.group()
def hfile() -> None:
    """Read an HFile of ours: a path of this machine, or a URL such as webhdfs://HOST:PORT/PATH."""


@hfile.command("verify")
@click.argument("file")
def verify_file(file: str) -> int:
    """Check every byte of FILE that a reader relies on: checksums, order, index and counts."""
    from predictions.cli.hfile import summary

    for name, value in summary(file).items():
        click.echo(f"{name:12} {value}")
    return DONE


@hfile.command("dump")
@click.argument("file")
def dump_file(file: str) -> int:
    """Print the cells of FILE: row key, column, timestamp and value, tabs between, escaped like a record line."""
    from predictions.cli.hfile import lines

    for block in lines(file):
        click.echo(block, nl=False)
    return DONE


@cli.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def pack(file: Path) -> int:
    """Pack the libraries of the tasks into FILE (.tar.gz), for hadoop.environment."""
    from predictions.jobs.bundle import pack_environment

    pack_environment(file)
    say(f"wrote {file}")
    return DONE


@cli.command()
@click.argument("job", required=False)
@click.pass_obj
def doctor(session: Session, job: str | None) -> int:
    """Say why JOB failed and what to do; without one, check that the setup is fit for a run."""
    from predictions.stages.doctor import examine_job, examine_setup

    settings, code = session.settings, DONE
    if job:
        click.echo(examine_job(settings, job))
        return DONE
    for finding in examine_setup(settings, session.storage(settings)):
        click.echo(f"{'FAIL' if finding.error else 'ok  '}  {finding.name}: {finding.text}")
        if finding.error:
            code = code or finding.error.exit_code
    return code


def main() -> None:
    """Run the command line."""
    exits.run(cli, "predictions")
