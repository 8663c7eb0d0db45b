"""`predictions train`."""

import click

from predictions.cli.session import Session, model_option, release_option
from predictions.errors import InputError
from predictions.formats.manifest import ModelManifest
from predictions.progress import say
from predictions.settings import RELEASE, ModelSettings, Settings
from predictions.stages.score import take_models
from predictions.storage import ReleaseFolder, Storage


@click.command("train")
@release_option
@model_option
@click.pass_obj
def command(session: Session, release: str | None, model: str | None) -> None:
    """Train the model of a release.

    Trains on the exported records that have a label, and measures the model on a holdout. With model.from, takes in a
    fitted model instead, and measures that.
    """
    settings, storage = session.settings, session.storage
    run_train(settings, storage.release(release), earlier_release(settings, storage, model))


def earlier_release(settings: Settings, storage: Storage, release: str | None) -> ReleaseFolder | None:
    """Return the release whose model to take: that of the option, or of the setting `model.from`; else None."""
    origins = {model.from_ for model in settings.models}
    named = {origin.partition(":")[2] for origin in origins if origin and origin.startswith(f"{RELEASE}:")}
    if named and len(origins) > 1:
        raise InputError("model.from: release:ID takes the models of all labels; name the same one in each [[model]]")
    release = release or next(iter(named), None)
    return storage.release(release) if release else None


def run_train(settings: Settings, folder: ReleaseFolder, earlier: ReleaseFolder | None) -> None:
    """Train the model of a release, or take it from an earlier release, unless the release has a model."""
    if folder.has("model"):
        say(f"{folder.path}/model exists already; for another model, start a new release (predictions export)")
        return
    if earlier:
        taken = take_models(folder, earlier)
        say(f"took the model of release {earlier.release}")
        for model, wanted in zip(taken.each, settings.models, strict=False):
            if wanted.from_ and not wanted.from_.startswith(f"{RELEASE}:"):
                say(f"omit --model and --changed to take {wanted.from_} as it is now")
            elif wanted.from_ and not _keeps_as_wanted(model, wanted):
                say("warning: threshold, outputs and top are those of the earlier release; the settings ask for others")
            elif not wanted.from_ and not _is_wanted(model, wanted):
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
        of, done = f"{label}: " if label else "", f"took in {model.source}" if model.origin else "trained"
        say(f"{of}{done} in {training.seconds:.1f} s; on {training.measured_on}: {metrics}")


def _is_wanted(model: ModelManifest, wanted: ModelSettings) -> bool:
    """Return whether a model is what the settings ask for."""
    return (model.estimator, model.params) == (wanted.estimator, wanted.params) and _keeps_as_wanted(model, wanted)


def _keeps_as_wanted(model: ModelManifest, wanted: ModelSettings) -> bool:
    """Return whether a model has the threshold and the outputs that the settings ask for."""
    if wanted.threshold not in (None, model.threshold):
        return False
    return (model.outputs, model.top) == (wanted.outputs, wanted.top)
