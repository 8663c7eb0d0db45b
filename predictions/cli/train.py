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
    """Train the model on the exported records that have a label."""
    storage = session.storage
    run_train(session.settings, storage.release(release), storage.release(model) if model else None)


def run_train(settings: Settings, folder: ReleaseFolder, earlier: ReleaseFolder | None) -> None:
    """Train its model, or give it that of an earlier release, unless it has one."""
    if folder.has("model"):
        say(f"{folder.path}/model is there already; another model is another release (predictions export)")
        return
    if earlier:
        model = take_model(folder, earlier)
        say(f"the model is that of release {earlier.release}")
        if (model.estimator, model.params) != (settings.model.estimator, settings.model.params):
            say(
                f"warning: the settings ask for another one, {settings.model.estimator} {settings.model.params}; to "
                "train it, leave --model and --changed out"
            )
        return
    from predictions.stages.train import train  # scikit-learn, which takes seconds to import

    done = train(settings, folder, say).training
    metrics = ", ".join(
        f"{name.replace('_', ' ')} {value:.4f} (baseline {done.baseline[name]:.4f})"
        for name, value in sorted(done.metrics.items(), reverse=True)
    )
    say(f"trained in {done.seconds:.1f} s; on {done.holdout:,} records held out: {metrics}")
