"""The stages as a person sees them: each with its progress on stderr, and a line of what came of it."""

import sys
import time
from typing import TYPE_CHECKING

import click

from predictions.cli.exits import DONE, WITH_FAILURES
from predictions.errors import InputError, ServiceError, VerificationError
from predictions.formats.names import release_table
from predictions.progress import bar, say
from predictions.settings import Settings
from predictions.storage import ReleaseFolder, Storage

if TYPE_CHECKING:
    from predictions.stages.load import How


def run_export(settings: Settings, storage: Storage, rate: float | None) -> ReleaseFolder:
    """Start a release and return its folder."""
    from predictions.stages.export import export

    with bar("export", "records") as progress:
        folder = export(settings, storage, progress, say, rate)
    done = folder.manifest.export
    say(f"exported {done.rows:,} records to {folder.path}/export in {done.seconds:.1f} s")
    if done.unfit_ids:
        say(f"warning: {done.unfit_ids:,} IDs cannot be row keys; `predictions score` will name them and stop")
    return folder


def run_train(settings: Settings, folder: ReleaseFolder, earlier: ReleaseFolder | None) -> None:
    """Train its model, or give it that of an earlier release, unless it has one."""
    if folder.has("model"):
        say(f"{folder.path}/model is there already; another model is another release (predictions export)")
        return
    if earlier:
        from predictions.stages.score import take_model

        model = take_model(folder, earlier)
        say(f"the model is that of release {earlier.release}")
        if (model.estimator, model.params) != (settings.model.estimator, settings.model.params):
            say(
                f"warning: the settings ask for another one, {settings.model.estimator} {settings.model.params}; to "
                "train it, leave --model and --changed out"
            )
        return
    from predictions.stages.train import train

    done = train(settings, folder, say).training
    metrics = ", ".join(
        f"{name.replace('_', ' ')} {value:.4f} (baseline {done.baseline[name]:.4f})"
        for name, value in sorted(done.metrics.items(), reverse=True)
    )
    say(f"trained in {done.seconds:.1f} s; on {done.holdout:,} records held out: {metrics}")


def run_score(settings: Settings, folder: ReleaseFolder, runner: str | None, changed: bool) -> int:
    """Score it; return the exit code."""
    from predictions.stages.score import score

    current, changed = before(settings, folder, runner, changed)
    with bar("score") as progress:
        done = score(settings, folder, runner, lambda share: progress(share, 1.0), current, changed)
    more = f", {done.duplicates:,} came twice" if done.duplicates else ""
    if done.carried_from:
        more += f"; {done.carried:,} have not changed and keep what release {done.carried_from} has"
    say(f"scored {done.scored:,} records, {done.failed:,} failed{more}; it took {done.seconds:.1f} s")
    return WITH_FAILURES if done.failed else DONE


def before(
    settings: Settings, folder: ReleaseFolder, runner: str | None, changed: bool
) -> tuple[ReleaseFolder | None, bool]:
    """Return the release that is served, to compare with, and whether lines can be kept of it, if that is wanted."""
    if not changed or folder.has("scored"):
        return served(settings, folder.storage) if runner in (None, "hadoop") else None, False
    current = current_release(settings, folder.storage)
    if not current:
        say("no release is current whose lines are there: every record is scored")
        return None, False
    if current.model.sha256 != folder.model.sha256:
        say(f"release {current.release} has another model: every record is scored")
        return current, False
    return current, True


def current_release(settings: Settings, storage: Storage) -> ReleaseFolder | None:
    """Return the release that is served, if its lines are there; ServiceError where HBase does not answer."""
    from predictions.hbase.connection import Connection
    from predictions.hbase.releases import Releases

    with Connection(settings.hbase.server()) as connection:
        return storage.scored(Releases(connection, settings.name).pointer().current)


def served(settings: Settings, storage: Storage) -> ReleaseFolder | None:
    """Return the release that is served, if a job can read its lines; `activate` asks again."""
    if not storage.is_hdfs:
        return None
    try:
        return current_release(settings, storage)
    except ServiceError as error:
        say(f"the job compares with no other release: {error}")
        return None


def run_load(settings: Settings, folder: ReleaseFolder, how: "How") -> None:
    """Load it into its table."""
    from predictions.stages.load import load

    loaded = load(settings, folder, how, bar, say)
    table = release_table(settings.name, folder.release)
    say(f"{loaded.rows:,} rows in table {table}, counted; loading took {loaded.seconds:.1f} s")


def run_verify(settings: Settings, folder: ReleaseFolder, full: bool, processes: int | None) -> None:
    """Compare its table with what was scored; VerificationError where they differ."""
    from predictions.stages.verify import verify
    from predictions.workers import cores

    processes = processes or cores()
    with bar("verify", "rows") as progress:
        found = verify(settings, folder, full, processes, progress)
    for fault in found.faults:
        click.echo(fault)
    read = f"every cell ({found.cells:,}), beside the prediction lines" if full else "row keys alone"
    say(
        f"{found.rows:,} rows of table {release_table(settings.name, folder.release)}: read {read}, by scans of up to "
        f"{processes} regions at once, in {found.seconds:.1f} s ({found.rows / found.seconds:,.0f} rows a second)"
    )
    if found.faults:
        counts = ", ".join(f"{count:,} {kind}" for kind, count in found.counts.items())
        raise VerificationError(f"release {folder.release} is not what was scored" + (f": {counts}" if counts else ""))


def run_activate(settings: Settings, storage: Storage, release: str, force: str | None = None) -> None:
    """Make it the current one, if it is fit to be."""
    from predictions.stages.activate import activate

    with bar("compare") as progress:
        pointer = activate(settings, storage, release, force, say, lambda share: progress(share, 1.0))
    before = f", before it {pointer.previous}" if pointer.previous else ""
    say(f"release {pointer.current} is current{before}")


def run_all(
    settings: Settings, storage: Storage, runner: str | None, rate: float | None, changed: bool, model: str | None
) -> tuple[str, int]:
    """Make a release by all stages in order, holding the lease of the name; return its ID and the exit code."""
    from predictions.hbase.lease import lease
    from predictions.stages.load import How

    started = time.monotonic()
    with lease(settings.hbase.server(), settings.name, say):
        earlier = storage.release(model) if model else current_release(settings, storage) if changed else None
        if earlier:
            _require_columns(settings, earlier)
        folder = run_export(settings, storage, rate)
        run_train(settings, folder, earlier)
        code = run_score(settings, folder, runner, changed)
        run_load(settings, folder, How())
        run_activate(settings, storage, folder.release)
    say(f"done in {time.monotonic() - started:.0f} s")
    return folder.release, code


def _require_columns(settings: Settings, earlier: ReleaseFolder) -> None:
    """Raise InputError, before anything is exported, unless a release has a model for the settings' columns."""
    model, wanted = earlier.model, settings.model
    names, label = [column.name for column in model.features], model.label.name if model.label else None
    if (names, label) != (wanted.features, wanted.label):
        raise InputError(
            f"the model of release {earlier.release} predicts {label} from {', '.join(names)}; the "
            f"settings ask for {wanted.label} from {', '.join(wanted.features)}: train another one (without --model "
            "and --changed)"
        )


def run_clean(settings: Settings, storage: Storage) -> None:
    """Show what has had its time or was left behind, and remove it."""
    from predictions.hbase.connection import Connection
    from predictions.stages.releases import leftovers, remove

    with Connection(settings.hbase.server(loading=True)) as connection:
        found = leftovers(settings, storage, connection)
        for leftover in found:
            table = [f"table {release_table(settings.name, leftover.release)}"] if leftover.table else []
            places = ", ".join([*table, *leftover.paths]) or "an entry in HBase"
            click.echo(f"{leftover.release}: {leftover.why}: {places}")
        if found and sys.stdin.isatty():
            click.confirm("Remove all of that?", abort=True)
        for leftover in remove(settings, storage, connection, found):
            is_release = leftover.known or leftover.table
            say(f"removed {leftover.release if is_release else ', '.join(leftover.paths)}")
    if not found:
        say("there is nothing to remove")
