"""`predictions train`."""

import click

from predictions.cli.session import Session, model_option, release_option
from predictions.progress import say
from predictions.settings import RELEASE, Settings
from predictions.stages.score import take_model
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
    kind, _colon, named = (settings.model.from_ or "").partition(":")
    release = release or (named if kind == RELEASE else None)
    return storage.release(release) if release else None


def run_train(settings: Settings, folder: ReleaseFolder, earlier: ReleaseFolder | None) -> None:
    """Train the model of a release, or take it from an earlier release, unless the release has a model."""
    if folder.has("model"):
        say(f"{folder.path}/model exists already; for another model, start a new release (predictions export)")
        return
    if earlier:
        model = take_model(folder, earlier)
        say(f"took the model of release {earlier.release}")
        wanted = settings.model
        if wanted.from_ and not wanted.from_.startswith(f"{RELEASE}:"):
            say(f"omit --model and --changed to take {wanted.from_} as it is now")
        elif not wanted.from_ and (model.estimator, model.params) != (wanted.estimator, wanted.params):
            say(
                f"warning: the settings ask for another model, {settings.model.estimator} {settings.model.params}; "
                "omit --model and --changed to train it"
            )
        return
    # Imported here, as scikit-learn takes seconds to import.
    if settings.model.from_:
        from predictions.stages.fitted import take_in as train
    else:
        from predictions.stages.train import train

    manifest = train(settings, folder, say)
    training = manifest.training
    metrics = ", ".join(
        f"{name.replace('_', ' ')} {value:.4f} (baseline {training.baseline[name]:.4f})"
        for name, value in sorted(training.metrics.items(), reverse=True)
    )
    done = f"took in {manifest.source}" if manifest.origin else "trained"
    say(f"{done} in {training.seconds:.1f} s; on {training.measured_on}: {metrics}")
