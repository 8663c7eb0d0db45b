"""Take in a fitted model (`model.from`): a pipeline of a notebook or of a registry becomes the model of a release."""

import json
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sklearn
from sklearn.base import BaseEstimator, is_classifier, is_regressor
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from predictions.errors import InputError
from predictions.formats.manifest import FeatureType, ModelManifest, Package, Training
from predictions.formats.prediction_line import CONTRIBUTIONS
from predictions.formats.record_line import Column, split_columns, unescape
from predictions.jobs.wheels import check_wheels
from predictions.scoring import boosters
from predictions.scoring import estimator as estimators
from predictions.scoring.estimator import EstimatorPredictor
from predictions.scoring.frame import FrameReader
from predictions.scoring.packages import install
from predictions.scoring.threshold import split_threshold
from predictions.settings import FILE, REGISTRY, DatabaseSettings, ModelSettings, Settings
from predictions.sources import open_database
from predictions.stages import registry
from predictions.stages.fit import compile_or_say, output_fields, write_model
from predictions.stages.measure import measure
from predictions.stages.sample import Sample, read_sample
from predictions.stages.schema import columns_with_null, infer_schema
from predictions.storage import ReleaseFolder

SCHEMA_FILE = "schema.json"  # in a file of skops
_HOW_TO_SAVE = "on the machine that trained it, save it with skops.io.dump(model, {name!r})"
_TRUE = (b"1", b"t", b"true")
_COMPILED_DTYPES = {"integer": ("int64", "float64"), "real": ("int64", "float64"), "text": ("str", "object")}


@dataclass(frozen=True)
class Fitted:
    """A fitted model on this machine.

    Args:
        path: the file of skops.
        origin: the setting `model.from`.
        version: its version in the registry; empty if it is a file.
        signature: the inputs of its signature in the registry, if it has one.
    """

    path: Path
    origin: str
    version: str = ""
    signature: list[dict[str, Any]] | None = None

    @property
    def schema(self) -> dict[str, Any]:
        """Return what the file says that it holds; nothing is loaded or imported."""
        with zipfile.ZipFile(self.path) as archive:
            return json.loads(archive.read(SCHEMA_FILE))

    @property
    def versions(self) -> dict[str, str]:
        """Return the versions that wrote the file: of scikit-learn, if the file says it, and of skops."""
        schema = self.schema
        versions = {
            "scikit-learn": next(_values(schema, "_sklearn_version"), ""),
            "skops": schema.get("_skops_version", ""),
        }
        return {name: version for name, version in versions.items() if version}


@contextmanager
def opened(origin: str) -> Iterator[Fitted]:
    """Yield a fitted model as a file on this machine.

    Args:
        origin: `file:PATH`, or a model of the registry.

    Raises:
        InputError: there is no such model, or it is not a file that skops wrote.
        ServiceError: the registry does not answer.
    """
    kind, _colon, rest = origin.partition(":")
    with tempfile.TemporaryDirectory(prefix="model.") as folder:
        if kind == FILE:
            fitted = Fitted(Path(rest), origin)
        elif kind == REGISTRY:
            path, version, inputs = registry.fetch(origin, Path(folder))
            fitted = Fitted(path, origin, version, inputs)
        else:
            raise InputError(f"model.from: {origin}: must be file:PATH, models:/NAME@ALIAS or models:/NAME/VERSION")
        _require_skops(fitted.path)
        yield fitted


def load_fitted(fitted: Fitted, trusted: Sequence[str]) -> Any:
    """Load a fitted model, after its types and its version were checked.

    Raises:
        InputError: it holds types that neither this project nor the settings trust, it was fitted by another version of
            scikit-learn, its code is missing, or it is neither a fitted classifier of one label that gives
            probabilities nor a fitted regressor.
    """
    if untrusted := estimators.untrusted_types(fitted.path, trusted):
        raise InputError(
            f"model.from: {fitted.origin}: holds types that are not trusted: {', '.join(untrusted)}; "
            "`predictions model check` says what they are and how to allow them"
        )
    version = fitted.versions.get("scikit-learn", sklearn.__version__)
    if version != sklearn.__version__:
        raise InputError(
            f"model.from: {fitted.origin}: was fitted with scikit-learn {version}, this Python has "
            f"{sklearn.__version__}: install scikit-learn=={version} here and for the tasks, or fit it again"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator = estimators.load(fitted.path, trusted)
    reason = None
    if not isinstance(estimator, BaseEstimator) or not (
        is_classifier(estimator) or is_regressor(estimator) or estimator_name(estimator) in boosters.RANKERS
    ):
        reason = "is neither a classifier nor a regressor"
    elif not _is_fitted(estimator):
        reason = "is not fitted; fit it before it is saved"
    elif is_classifier(estimator) and not hasattr(estimator, "predict_proba"):
        reason = "gives no probabilities"
    elif is_classifier(estimator) and np.ndim(estimator.classes_) != 1:
        reason = "predicts several labels; save a model for each, with a table [[model]]"
    elif is_classifier(estimator) and len(estimator.classes_) < 2:
        reason = "has one class only, so there is nothing to predict"
    if reason:
        raise InputError(f"model.from: {fitted.origin}: {type(estimator).__name__} {reason}")
    return estimator


def _is_fitted(estimator: Any) -> bool:
    if is_classifier(estimator):
        return hasattr(estimator, "classes_")
    try:
        check_is_fitted(estimator)
    except NotFittedError:
        return False
    return True


def take_in(
    settings: Settings, folder: ReleaseFolder, number: int, target: Path, progress: Callable[[str], None]
) -> None:
    """Write the fitted model of `model.from` into a folder, as the model of one of a release's labels.

    Args:
        settings: the database, and for each label where its model is, which types are trusted, and how it is measured.
        folder: a release that was exported.
        number: the label's number.
        target: the folder to write to.
        progress: called with a line of text at each step.

    Raises:
        InputError: the model cannot be used (`opened`, `load_fitted`), takes other columns than were exported, or there
            is no labelled record to measure it on.
        ServiceError: the registry or the database does not answer.
    """
    started, model = time.monotonic(), settings.models[number]
    release = folder.manifest
    features, label = release.features, release.all_labels[number]
    assert model.from_
    wheels = check_wheels(model.packages)
    install(wheels)
    with opened(model.from_) as fitted:
        estimator = load_fitted(fitted, model.trusted)
        with_null = _exported_with_null(folder, features)
        schema = infer_schema(estimator, features, with_null, fitted.signature, model.schema_)
        progress("the model takes " + ", ".join(f"{feature.name} {feature.dtype}" for feature in schema))
        sample = read_sample(folder, number, FrameReader(features, schema), model)
        manifest = fitted_manifest(estimator, fitted, model, features, label, schema, wheels)
        unseen = _unseen(settings.database, model.holdout, sample.lines)
        training, values = _measure(estimator, manifest, sample, unseen)
        progress(f"measured on {training.measured_on}")
        outputs = output_fields(model, *split_threshold(estimator), values)
        manifest = replace(manifest, id=release.id, training=replace(training, seed=model.seed), **outputs)
        compiled = _compiled(estimator, features, schema, sample.features, progress)
        write_model(target, estimator, manifest, sample.lines, compiled, wheels, started, fitted.path)


def fitted_manifest(
    estimator: Any,
    fitted: Fitted,
    settings: ModelSettings,
    features: list[Column],
    label: Column,
    schema: list[FeatureType],
    wheels: Sequence[tuple[Path, Package]] = (),
) -> ModelManifest:
    """Return a manifest with which a fitted model can score.

    Raises:
        InputError: the model's classes or numbers are not values of the label's column, or the settings ask for what no
            fitted model has.
    """
    if CONTRIBUTIONS in settings.outputs:
        raise InputError("model.outputs: contributions need a model that `train` fits; omit them, or `from`")
    if not is_classifier(estimator) and label.type not in ("integer", "real"):
        raise InputError(
            f"model.label: {label.name} is {label.type}, but the model is a regressor and predicts numbers"
        )
    return ModelManifest(
        features=features,
        label=label,
        task="classification" if is_classifier(estimator) else "regression",
        classes=classes_as_labels(estimator, label) if is_classifier(estimator) else None,
        estimator=estimator_name(estimator),
        origin=fitted.origin,
        origin_version=fitted.version,
        schema=schema,
        trusted=settings.trusted,
        packages=[package for _path, package in wheels],
    )


def estimator_name(estimator: Any) -> str:
    """Return the full name of an estimator's class, of a pipeline that of its last step."""
    last = estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator
    return f"{type(last).__module__}.{type(last).__qualname__}"


def classes_as_labels(classifier: Any, label: Column) -> list[Any]:
    """Return a classifier's classes as values of the label's column, in their order.

    A notebook reads a column with NULLs as floats, or compares it with a value: 1.0 and True stand for the label 1.
    PostgreSQL writes a boolean as t and f; XGBoost has the numbers 0 and 1 for it.

    Raises:
        InputError: a class cannot be a value of the column.
    """
    classes = classifier.classes_.tolist()
    try:
        return [_as_label(value, label) for value in classes]
    except (ValueError, OverflowError):
        raise InputError(
            f"model.label: the model's classes are {', '.join(map(repr, classes))}, which are not values of {label}"
        ) from None


def _as_label(value: Any, label: Column) -> Any:
    if label.type == "integer":
        if isinstance(value, str) or value != int(value):
            raise ValueError
        return int(value)
    if label.type == "real":
        return float(value)
    is_boolean = isinstance(value, bool) or (label.declared == "boolean" and value in (0, 1))
    return ("f", "t")[int(value)] if is_boolean else str(value)


def _measure(
    estimator: Any, manifest: ModelManifest, sample: Sample, unseen: np.ndarray | None
) -> tuple[Training, np.ndarray]:
    """Measure a model on the records that it has not seen, or if that is not known on all.

    Records that cannot be predicted, or whose label the model does not know, are left out.

    Returns:
        How it was measured, and what it predicts for all records (`EstimatorPredictor.predict`).
    """
    bad_rows = dict(sample.bad_rows)
    predictor = EstimatorPredictor(estimator, manifest)
    try:
        values = predictor.predict_frame(sample.features, bad_rows)
    except Exception as error:  # whatever a model raises
        message = " ".join(str(error).split())
        raise InputError(
            f"model.from: the model raises {type(error).__name__} for the labelled records: {message}; "
            "`predictions model check` says what it gets"
        ) from error
    measured = np.ones(len(sample.lines), dtype=bool) if unseen is None else unseen
    measured[list(bad_rows)] = False
    labels = sample.labels
    if manifest.classes:
        by_label = dict(zip(manifest.classes, estimator.classes_, strict=True))
        measured &= np.array([value in by_label for value in labels.tolist()])
        labels = np.array([by_label.get(value, estimator.classes_[0]) for value in labels.tolist()])
    if not measured.any():
        reasons = f"; {next(iter(bad_rows.values()))}" if bad_rows else ""
        raise InputError(
            f"model.label: no labelled record can be predicted and has one of the model's classes{reasons}"
        )
    training = Training(
        labelled=sample.labelled,
        sample=len(sample.lines),
        holdout=int(measured.sum()),
        possibly_seen=unseen is None,
        **measure(estimator, predictor.input(sample.features[measured]), labels[measured]),
    )
    return training, values


def _unseen(database: DatabaseSettings, holdout: str | None, lines: Sequence[bytes]) -> np.ndarray | None:
    """Return which records the model was not fitted on; None if the settings do not say.

    Args:
        database: the database.
        holdout: `model.holdout`: a column, or a query that returns record IDs.
        lines: record lines.
    """
    if holdout is None:
        return None
    rows = {line.partition(b"\t")[0]: row for row, line in enumerate(lines)}
    unseen = np.zeros(len(lines), dtype=bool)
    is_query = " " in holdout.strip()
    if is_query:
        database = DatabaseSettings(**database.model_dump(exclude={"table", "query"}), query=holdout)
    names = [database.id, database.id, database.id if is_query else holdout]
    source = open_database(database)
    with source.errors("export_timeout"), source.snapshot(names) as snapshot:
        for share in snapshot.shares():
            for block in share.blocks():
                record_ids, _ids, values = split_columns(block, len(names))
                for record_id, value in zip(record_ids, values, strict=True):
                    if record_id in rows and (is_query or unescape(value) in _TRUE):
                        unseen[rows[record_id]] = True
    if not unseen.any():
        raise InputError(f"model.holdout: {holdout}: no labelled record is in it")
    return unseen


def _exported_with_null(folder: ReleaseFolder, features: Sequence[Column]) -> set[str]:
    with_null: set[str] = set()
    for path in folder.files("export"):
        for block in folder.blocks(path):
            with_null |= columns_with_null(block, features, len(folder.manifest.all_labels))
    return with_null


def _compiled(
    estimator: Any,
    features: list[Column],
    schema: Sequence[FeatureType],
    frame: pd.DataFrame,
    progress: Callable[[str], None],
) -> Any:
    """Return the model's compiled form if its frame is, value by value, that of a model that was trained here."""
    types = {feature.name: feature.dtype for feature in schema}
    if not all(types[column.name] in _COMPILED_DTYPES.get(column.type, ()) for column in features):
        progress("scikit-learn will score, since the model takes other data types than those that are compiled")
        return None
    return compile_or_say(estimator, features, frame[[column.name for column in features]], False, progress)


def _require_skops(path: Path) -> None:
    """Raise InputError unless a file is one that skops wrote; nothing is loaded."""
    how = _HOW_TO_SAVE.format(name=f"{path.stem}.skops")
    try:
        with open(path, "rb") as file:
            head = file.read(2)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if SCHEMA_FILE in archive.namelist():
                    return
    except (OSError, zipfile.BadZipFile) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"model.from: {path}: {reason}") from error
    if head[:1] == b"\x80" or path.suffix in (".pkl", ".pickle", ".joblib", ".cloudpickle"):
        raise InputError(f"model.from: {path}: a pickle, which runs code when it is loaded: {how}")
    raise InputError(f"model.from: {path}: not a file of skops: {how}")


def _values(schema: Any, key: str) -> Iterator[str]:
    """Yield the values of an attribute of the objects in a schema of skops."""
    for name, child in (
        schema.items() if isinstance(schema, dict) else enumerate(schema) if isinstance(schema, list) else ()
    ):
        if name == key and isinstance(child, dict) and isinstance(child.get("content"), str):
            yield json.loads(child["content"])
        else:
            yield from _values(child, key)
