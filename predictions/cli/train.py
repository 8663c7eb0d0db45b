"""`predictions train`."""

import click

from predictions.cli.session import Session, model_option, release_option
from predictions.formats.manifest import ModelManifest
from predictions.progress import say
from predictions.settings import ModelSettings, Settings
from predictions.stages.score import take_models
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
        taken = take_models(folder, earlier)
        say(f"took the model of release {earlier.release}")
        for model, wanted in zip(taken.each, settings.models, strict=False):
            if not _is_wanted(model, wanted):
                say(
                    f"warning: the settings ask for another model, {wanted.estimator} {wanted.params}; omit --model "
                    "and --changed to train it"
                )
        return
    from predictions.stages.train import train  # scikit-learn, which takes seconds to import

    models = train(settings, folder, say)
    for label, model in zip(models.names, models.each, strict=True):
        training = model.training
        metrics = ", ".join(
            f"{name.replace('_', ' ')} {value:.4f} (baseline {training.baseline[name]:.4f})"
            for name, value in sorted(training.metrics.items(), reverse=True)
        )
        of = f"{label}: " if label else ""
        say(f"{of}trained in {training.seconds:.1f} s; on a holdout of {training.holdout:,} records: {metrics}")


def _is_wanted(model: ModelManifest, wanted: ModelSettings) -> bool:
    """Return whether a model is what the settings ask for."""
    if wanted.threshold not in (None, model.threshold):
        return False
    kept = model.estimator, model.params, model.outputs, model.top
    return kept == (wanted.estimator, wanted.params, wanted.outputs, wanted.top)
