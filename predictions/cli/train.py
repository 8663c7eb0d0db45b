"""`predictions train`."""

import click

from predictions.cli.session import Session, model_option, release_option
from predictions.progress import say
from predictions.settings import Settings
from predictions.stages.score import take_model
from predictions.storage import ReleaseFolder


@click.command("train")
@release_option
@model_option
@click.pass_obj
def command(session: Session, release: str | None, model: str | None) -> None:
    """Train the model of a release.

    Trains on the exported records that have a label, and measures the model on a holdout.
    """
    storage = session.storage
    run_train(session.settings, storage.release(release), storage.release(model) if model else None)


def run_train(settings: Settings, folder: ReleaseFolder, earlier: ReleaseFolder | None) -> None:
    """Train the model of a release, or take it from an earlier release, unless the release has a model."""
    if folder.has("model"):
        say(f"{folder.path}/model exists already; for another model, start a new release (predictions export)")
        return
    if earlier:
        model = take_model(folder, earlier)
        say(f"took the model of release {earlier.release}")
        if (model.estimator, model.params) != (settings.model.estimator, settings.model.params):
            say(
                f"warning: the settings ask for another model, {settings.model.estimator} {settings.model.params}; "
                "omit --model and --changed to train it"
            )
        return
    from predictions.stages.train import train  # scikit-learn, which takes seconds to import

    training = train(settings, folder, say).training
    metrics = ", ".join(
        f"{name.replace('_', ' ')} {value:.4f} (baseline {training.baseline[name]:.4f})"
        for name, value in sorted(training.metrics.items(), reverse=True)
    )
    say(f"trained in {training.seconds:.1f} s; on a holdout of {training.holdout:,} records: {metrics}")
