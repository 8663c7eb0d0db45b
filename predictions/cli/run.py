"""`predictions run`: all stages in order."""

import time

import click

from predictions.cli.activate import run_activate
from predictions.cli.export import run_export
from predictions.cli.load import run_load
from predictions.cli.score import current_release, run_score
from predictions.cli.session import Session, changed_option, export_rate_option, model_option, runner_option
from predictions.cli.train import earlier_release, run_train
from predictions.errors import InputError, PredictionsError
from predictions.hbase.lease import lease
from predictions.progress import say
from predictions.settings import Settings
from predictions.stages.load import How, table_ahead
from predictions.storage import ReleaseFolder


@click.command("run")
@runner_option
@export_rate_option
@changed_option("Take the served release's model, and score only records that changed since that release.")
@model_option
@click.pass_obj
def command(session: Session, runner: str | None, rate: float | None, changed: bool, model: str | None) -> int:
    """Run all stages, from export to activate.

    Exports, trains, scores, loads and activates a new release, and prints its ID. While a run is active, a second run
    of the same name exits with code 3.
    """
    settings, storage, started = session.settings, session.storage, time.monotonic()
    with lease(settings.hbase.server(), settings.name, say):
        earlier = earlier_release(settings, storage, model) or (current_release(settings, storage) if changed else None)
        if earlier:
            _require_columns(settings, earlier)
        folder = run_export(settings, storage, rate)
        try:
            run_train(settings, folder, earlier)
            with table_ahead(settings, folder.release, say):
                code = run_score(settings, folder, runner, changed)
            run_load(settings, folder, How())
            run_activate(settings, storage, folder.release)
        except PredictionsError:
            say(f"release {folder.release} is not activated; repeat the stage that failed, or start a new run")
            raise
    say(f"done in {time.monotonic() - started:.0f} s")
    click.echo(folder.release)
    return code


def _require_columns(settings: Settings, earlier: ReleaseFolder) -> None:
    """Raise InputError if a release's model is not for the columns of the settings; it is checked before the export."""
    names = [column.name for column in earlier.models.features]
    labels = [label.name for label in earlier.models.labels if label]
    wanted = [model.label for model in settings.models]
    if (names, labels) != (settings.features, wanted):
        raise InputError(
            f"the model of release {earlier.release} predicts {', '.join(labels)} from {', '.join(names)}; the "
            f"settings ask for {', '.join(wanted)} from {', '.join(settings.features)}; omit --model and --changed to "
            "train a new model"
        )
