"""A trained model on disk: `model.json` describes it, `model.skops` has it, `model.npz` has its compiled form, if any.

Whatever is loaded is checked first: hash, versions, types, and the predictions for the golden records. A compiled model
is loaded without scikit-learn.
"""

import hashlib
import importlib.metadata
import platform
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from predictions.errors import InputError
from predictions.formats.document import read, to_file
from predictions.formats.manifest import COMPILED_FILE, MODEL_FILE, MODEL_MANIFEST, ModelManifest
from predictions.scoring.bins import CompiledPredictor
from predictions.scoring.compiled import CompiledModel, NumberColumn
from predictions.scoring.compiled import load as load_compiled
from predictions.scoring.model import Model, Predictor
from predictions.scoring.packages import install

# The libraries that a prediction passes through.
_LIBRARIES = ("scikit-learn", "numpy", "scipy", "pandas", "skops")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that training and scoring use."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _LIBRARIES}


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_model(
    estimator: Any,
    manifest: ModelManifest,
    folder: Path,
    compiled: tuple[CompiledModel, int] | None = None,
    source: Path | None = None,
) -> None:
    """Write the files of a model into a folder; add their hashes and the versions to the manifest.

    Args:
        estimator: the fitted estimator.
        manifest: what is known about the model.
        folder: an existing folder.
        compiled: the model's compiled form, if it has one, and on how many rows it was compared with the estimator.
        source: the file that the estimator was loaded from, of a fitted model; it is copied as it is, so that its
            SHA-256 stays the one that its owner knows. By default skops writes the estimator.

    Raises:
        InputError: skops cannot save the estimator, or it holds a type that was not reviewed.
    """
    from predictions.scoring import estimator as estimators

    if source:
        shutil.copyfile(source, folder / MODEL_FILE)
    else:
        estimators.save(estimator, folder / MODEL_FILE, manifest.trusted)
    manifest = replace(manifest, sha256=sha256(folder / MODEL_FILE), versions=versions())
    if compiled:
        model, compared = compiled
        model.save(folder / COMPILED_FILE, manifest.sha256, compared)
        manifest = replace(manifest, compiled=sha256(folder / COMPILED_FILE))
    (folder / MODEL_MANIFEST).write_bytes(to_file(manifest))


def load_model(manifest_path: Path) -> Model:
    """Load a model after checking its hash, its versions and its types, and replay its golden records.

    Args:
        manifest_path: the path of `model.json`; the file that it names, the compiled one if there is one, must be in
            the same folder.

    Raises:
        InputError: the model is missing, was changed, needs another version of a library, holds a type that was not
            reviewed, or does not answer as at training.
    """
    manifest = read_manifest(manifest_path)
    folder = manifest_path.parent
    predictor: Predictor
    if manifest.compiled:
        compiled = load_compiled(folder / COMPILED_FILE, manifest.compiled, manifest.sha256)
        _check_version(manifest)
        is_number = [column.is_number for column in manifest.features]
        if [isinstance(column, NumberColumn) for column in compiled.columns] != is_number or (
            compiled.classes != len(manifest.classes or ())
        ):
            raise InputError(
                f"{folder / COMPILED_FILE}: is for other columns or classes than {manifest_path}; restore them, or "
                "start a new release"
            )
        predictor = CompiledPredictor(compiled, manifest.features)
    else:
        _check_hash(folder / MODEL_FILE, manifest.sha256, manifest_path)
        _check_version(manifest)
        for package in manifest.packages:
            _check_hash(folder / package.name, package.sha256, manifest_path)
        install([(folder / package.name, package) for package in manifest.packages])
        # scikit-learn takes seconds to import.
        from predictions.scoring import estimator as estimators

        estimator = estimators.load(folder / MODEL_FILE, manifest.trusted)
        predictor = estimators.EstimatorPredictor(estimator, manifest)
    model = Model(predictor, manifest)
    model.replay_golden_records()
    return model


def read_manifest(path: Path) -> ModelManifest:
    """Read `model.json`.

    Raises:
        InputError: the file does not exist, is not JSON, or has another format.
    """
    try:
        return read(ModelManifest, path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; `predictions train` writes it") from error


def _check_hash(path: Path, expected: str, manifest_path: Path) -> None:
    try:
        digest = sha256(path)
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}; a model is {MODEL_MANIFEST} and {path.name} in the same folder"
        ) from error
    if digest != expected:
        raise InputError(
            f"{path}: its sha256 is {digest[:16]}…, but {manifest_path} was written for {expected[:16]}…: "
            "the file was changed or replaced; restore it, or start a new release"
        )


def _check_version(manifest: ModelManifest) -> None:
    """Raise InputError unless the library that scores has the version of the training."""
    trained_with = manifest.versions.get(manifest.engine, "of an unknown version")
    try:
        installed = importlib.metadata.version(manifest.engine)
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(
            f"the model needs {manifest.engine} {trained_with}, and this Python has none: install it, or pack it with "
            "`predictions pack environment.tar.gz` and set hadoop.environment"
        ) from error
    if trained_with != installed:
        raise InputError(
            f"the model was trained with {manifest.engine} {trained_with}, this Python has {installed}: install "
            f"{manifest.engine}=={trained_with}, or train in a new release"
        )
