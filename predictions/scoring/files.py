"""Trained models on disk: `model.json` describes them, `model.skops` has one, `model.npz` its compiled form, if any.

Whatever is loaded is checked first: hash, versions, types, and the predictions for the golden records. A compiled model
is loaded without scikit-learn.
"""

import hashlib
import importlib.metadata
import platform
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from predictions.errors import InputError
from predictions.formats.document import to_file
from predictions.formats.manifest import COMPILED_FILE, MODEL_FILE, MODEL_MANIFEST, ModelManifest, ReleaseModels
from predictions.formats.record_line import Column
from predictions.scoring import boosters
from predictions.scoring.bins import CompiledPredictor, SharedWords
from predictions.scoring.compiled import CompiledModel, NumberColumn
from predictions.scoring.compiled import load as load_compiled
from predictions.scoring.model import Model, Models, Predictor
from predictions.scoring.packages import install

# The libraries that a prediction passes through.
_LIBRARIES = ("scikit-learn", "numpy", "scipy", "pandas", "skops")


def versions(further: Sequence[str] = ()) -> dict[str, str]:
    """Return the versions of Python and of the libraries that training and scoring use.

    Args:
        further: `lightgbm` or `xgboost`, if the model needs them.
    """
    return {"python": platform.python_version()} | {name: boosters.version(name) for name in (*_LIBRARIES, *further)}


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
    libraries = boosters.libraries_of(estimator)
    manifest = replace(manifest, sha256=sha256(folder / MODEL_FILE), versions=versions(libraries), boosters=libraries)
    if compiled:
        model, compared = compiled
        model.save(folder / COMPILED_FILE, manifest.sha256, compared)
        manifest = replace(manifest, compiled=sha256(folder / COMPILED_FILE))
    (folder / MODEL_MANIFEST).write_bytes(to_file(manifest))


def collect_models(folders: Sequence[Path], target: Path) -> None:
    """Write the files of a release's models into a folder.

    Args:
        folders: for each label, a folder that `save_model` has filled.
        target: an existing folder.
    """
    models = ReleaseModels([read_models(folder / MODEL_MANIFEST).only for folder in folders])
    for number, (folder, manifest) in enumerate(zip(folders, models.each, strict=True)):
        for name in manifest.files:
            if name != MODEL_MANIFEST:
                (folder / name).rename(target / f"{models.prefix(number)}{name}")
    (target / MODEL_MANIFEST).write_bytes(models.to_file())


def load_models(manifest_path: Path) -> Model | Models:
    """Load the models of a release, after checking hashes, versions and types, and replay their golden records.

    Args:
        manifest_path: the path of `model.json`; the files that tasks need (`ReleaseModels.task_files`) must be in the
            same folder.

    Raises:
        InputError: a model is missing, was changed, needs another version of a library, holds a type that was not
            reviewed, or does not answer as at training.
    """
    manifest = read_models(manifest_path)
    if len(manifest.each) == 1:
        return _load(manifest.only, manifest_path, "", None)
    shared = _Shared(manifest.features)
    models = {
        str(name): _load(model, manifest_path, manifest.prefix(number), shared)
        for number, (name, model) in enumerate(zip(manifest.names, manifest.each, strict=True))
    }
    return Models(models, manifest)


def load_model(manifest_path: Path) -> Model:
    """Load the model of a release with one label, as `load_models` does."""
    return _load(read_models(manifest_path).only, manifest_path, "", None)


class _Shared:
    """What the models of several labels share, so that the features of a block are read once."""

    def __init__(self, features: Sequence[Column]) -> None:
        self._features = features

    @cached_property
    def words(self) -> SharedWords:
        """For compiled models."""
        return SharedWords(len(self._features))

    @cached_property
    def reader(self) -> Any:
        """For models that scikit-learn scores."""
        from predictions.scoring.frame import SharedReader

        return SharedReader(self._features)


def _load(manifest: ModelManifest, manifest_path: Path, prefix: str, shared: _Shared | None) -> Model:
    """Load a model whose files begin with a prefix."""
    predictor: Predictor
    if manifest.compiled:
        path = manifest_path.with_name(f"{prefix}{COMPILED_FILE}")
        compiled = load_compiled(path, manifest.compiled, manifest.sha256)
        _check_version(manifest)
        is_number = [column.is_number for column in manifest.features]
        if [isinstance(column, NumberColumn) for column in compiled.columns] != is_number or (
            compiled.classes != len(manifest.classes or ())
        ):
            raise InputError(
                f"{path}: is for other columns or classes than {manifest_path}; restore them, or start a new release"
            )
        predictor = CompiledPredictor(compiled, manifest.features, shared.words if shared else None)
    else:
        path = manifest_path.with_name(f"{prefix}{MODEL_FILE}")
        _check_hash(path, manifest.sha256, manifest_path)
        _check_version(manifest)
        wheels = [(manifest_path.with_name(f"{prefix}{package.name}"), package) for package in manifest.packages]
        for wheel, package in wheels:
            _check_hash(wheel, package.sha256, manifest_path)
        install(wheels)
        # scikit-learn takes seconds to import.
        from predictions.scoring import estimator as estimators

        reader = shared.reader if shared and not manifest.schema else None
        estimator = estimators.load(path, manifest.trusted)
        predictor = estimators.EstimatorPredictor(estimator, manifest, reader)
    model = Model(predictor, manifest)
    model.replay_golden_records()
    return model


def read_models(path: Path) -> ReleaseModels:
    """Read `model.json`.

    Raises:
        InputError: the file does not exist, is not JSON, or has another format.
    """
    try:
        return ReleaseModels.read(path.read_bytes(), str(path))
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
    """Raise InputError unless the libraries that score have the versions of the training."""
    for name in ("numpy",) if manifest.compiled else ("scikit-learn", *manifest.boosters):
        trained_with = manifest.versions.get(name, "of an unknown version")
        try:
            installed = boosters.version(name)
        except importlib.metadata.PackageNotFoundError as error:
            raise InputError(
                f"the model needs {name} {trained_with}, and this Python has none: install it, or pack it with "
                "`predictions pack environment.tar.gz` and set hadoop.environment"
            ) from error
        if trained_with != installed:
            raise InputError(
                f"the model was trained with {name} {trained_with}, this Python has {installed}: install "
                f"{boosters.distribution(name)}=={trained_with}, or train in a new release"
            )
