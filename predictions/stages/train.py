"""Train a release's models, or take in fitted ones: one for each label, tried in a fresh process."""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from predictions.errors import InputError
from predictions.formats.manifest import MODEL_MANIFEST, ReleaseModels
from predictions.jobs.bundle import script
from predictions.scoring.files import collect_models
from predictions.settings import Settings
from predictions.stages.fit import fit_label
from predictions.stages.fitted import take_in
from predictions.storage import ReleaseFolder


def train(settings: Settings, folder: ReleaseFolder, progress: Callable[[str], None]) -> ReleaseModels:
    """Train the models of a release on its exported records, one for each label, and write them into its folder.

    Args:
        settings: for each label the estimator, its parameters, the size of the sample and the seed.
        folder: a release that was exported.
        progress: called with a line of text at each step.

    Returns:
        The models' manifests, with the holdout's metrics under `training`.

    Raises:
        InputError: an estimator or its parameters are wrong, or the labels cannot be learnt from.
    """
    folder.require("export", "export")
    labels = folder.manifest.all_labels
    if [label.name for label in labels] != [model.label for model in settings.models]:
        raise InputError(
            f"{folder.path}: was exported with {folder.manifest.text}, but the settings have other labels; start a new "
            "release (predictions export)"
        )
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch, str(number)) for number in range(len(labels))]
        for number, target in enumerate(folders):
            target.mkdir()
            _make_model(settings, folder, number, target, progress)
        collected = Path(scratch, "model")
        collected.mkdir()
        collect_models(folders, collected)
        try_in_fresh_process(collected / MODEL_MANIFEST, folder.release)
        with folder.writing("model") as written:
            for path in sorted(collected.iterdir()):
                with folder.create(f"{written}/{path.name}") as file:
                    file.write(path.read_bytes())
    return folder.models


def _make_model(
    settings: Settings, folder: ReleaseFolder, number: int, target: Path, progress: Callable[[str], None]
) -> None:
    """Make the model of one of a release's labels, given by its number, and write it into a folder."""
    labels = folder.manifest.all_labels
    name, several = labels[number].name, len(labels) > 1
    make = take_in if settings.models[number].from_ else fit_label
    try:
        make(settings, folder, number, target, lambda text: progress(f"{name}: {text}" if several else text))
    except InputError as error:
        if several:
            raise InputError(f"{name}: {error}") from error
        raise


def try_in_fresh_process(manifest: Path, release: str) -> None:
    """Have the mapper load the model as a task would, in a new process, where it replays the golden records.

    Raises:
        InputError: the model does not load there, or its predictions differ from those here.
    """
    command = [sys.executable, str(script("mapper.py")), str(manifest), release]
    process = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"the trained model does not work in a new process: {reason}")
