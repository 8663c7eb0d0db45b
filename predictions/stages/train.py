"""Train a release's model: fit a scikit-learn pipeline on record lines, measure it on a holdout, save it and try it."""

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress, islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from sklearn.base import BaseEstimator, is_classifier, is_regressor
from sklearn.compose import ColumnTransformer
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.impute import SimpleImputer
from sklearn.metrics import log_loss, mean_absolute_error, roc_auc_score, root_mean_squared_error
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.utils import get_tags
from threadpoolctl import threadpool_limits

from predictions.comparison.distribution import SHARES
from predictions.errors import InputError
from predictions.formats.manifest import MODEL_MANIFEST, ModelManifest, Package, Training
from predictions.formats.record_line import NULL, SEPARATOR, Column, join_lines, split_lines, unescape
from predictions.jobs.bundle import script
from predictions.jobs.wheels import check_wheels
from predictions.scoring.bins import CompiledPredictor
from predictions.scoring.compiled import CompiledModel
from predictions.scoring.compiler import NoCompiledFormError, check, compile_pipeline
from predictions.scoring.estimator import EstimatorPredictor
from predictions.scoring.features import NumberDecoder
from predictions.scoring.files import save_model
from predictions.scoring.frame import FrameReader
from predictions.scoring.model import Model, Predictor
from predictions.scoring.packages import install
from predictions.settings import ModelSettings, Settings
from predictions.storage import ReleaseFolder

HOLDOUT = 0.2  # share of the sample that the model never sees and is measured on
GOLDEN_RECORDS = 5
CALIBRATION_BINS = 10
CELLS_PER_THREAD = 500_000  # features times records
BUSY_SECONDS = 0.2  # for which the use of the cores is measured
MAX_CATEGORIES = 254  # of a column; the rarest share one. HistGradientBoosting accepts 255 at most


@dataclass(frozen=True)
class Sample:
    """Labelled records: their lines, features and labels (shape: rows), and how many the export has in all.

    `bad_rows` are those with a value that could not be read, which counts as missing, and the reasons.
    """

    lines: list[bytes]
    features: pd.DataFrame
    labels: np.ndarray
    labelled: int
    bad_rows: dict[int, str]


def train(settings: Settings, folder: ReleaseFolder, progress: Callable[[str], None]) -> ModelManifest:
    """Train the model of a release on its exported records and write it into the release's folder.

    Args:
        settings: the estimator, its parameters, the size of the sample and the seed.
        folder: a release that was exported.
        progress: called with a line of text at each step.

    Returns:
        The model's manifest, with the holdout's metrics under `training`.

    Raises:
        InputError: the estimator or its parameters are wrong, or the labels cannot be learnt from.
    """
    folder.require("export", "export")
    started = time.monotonic()
    release = folder.manifest
    features, label = release.features, release.label
    wheels = check_wheels(settings.model.packages)
    install(wheels)
    estimator = make_estimator(settings.model)
    sample = read_sample(folder, FrameReader(features), label, release.export.labelled, settings.model)
    _check_labels(sample, label, estimator)
    progress(f"training on {len(sample.lines):,} of {sample.labelled:,} labelled records, seed {settings.model.seed}")
    with threadpool_limits(_threads(sample.features)):
        pipeline, training = _fit(make_pipeline_for(estimator, features), sample, settings.model.seed)
        compiled = compile_or_say(pipeline, features, sample.features, progress)
    manifest = ModelManifest(
        id=release.id,
        features=features,
        label=label,
        task="classification" if is_classifier(estimator) else "regression",
        classes=pipeline.classes_.tolist() if is_classifier(estimator) else None,
        estimator=settings.model.estimator,
        params=settings.model.params,
        training=training,
        trusted=settings.model.trusted,
        packages=[package for _path, package in wheels],
    )
    return write_model(folder, pipeline, manifest, sample.lines, compiled, wheels, started)


def write_model(
    folder: ReleaseFolder,
    estimator: Any,
    manifest: ModelManifest,
    lines: list[bytes],
    compiled: tuple[CompiledModel, int] | None,
    wheels: Sequence[tuple[Path, Package]],
    started: float,
    source: Path | None = None,
) -> ModelManifest:
    """Make the golden records of a model, write it into the release's folder, and try it in a fresh process.

    Args:
        folder: the release's folder.
        estimator: the fitted estimator.
        manifest: what is known about it.
        lines: record lines, of which the first are the golden records.
        compiled: its compiled form, if it has one, and on how many rows that was compared.
        wheels: own code that it needs.
        started: when the work on the model began, by the monotonic clock.
        source: the file that the estimator was loaded from, if it was brought in.

    Returns:
        The manifest as it was written.
    """
    predictor: Predictor = (
        CompiledPredictor(compiled[0], manifest.features) if compiled else EstimatorPredictor(estimator, manifest)
    )
    golden = Model(predictor, manifest).golden_records(_first_texts(lines, GOLDEN_RECORDS))
    training = replace(manifest.training, seconds=round(time.monotonic() - started, 3))
    with tempfile.TemporaryDirectory() as local, folder.writing("model") as target:
        for path, _package in wheels:
            shutil.copyfile(path, Path(local) / path.name)
        manifest = replace(manifest, training=training, golden=golden)
        save_model(estimator, manifest, Path(local), compiled, source)
        try_in_fresh_process(Path(local) / MODEL_MANIFEST, folder.release)
        for path in sorted(Path(local).iterdir()):
            with folder.create(f"{target}/{path.name}") as file:
                file.write(path.read_bytes())
    return folder.model


def make_estimator(settings: ModelSettings) -> BaseEstimator:
    """Return the settings' estimator, unfitted.

    Raises:
        InputError: the class or function does not exist, or what it returns is neither a classifier nor a regressor,
            or a parameter is wrong.
    """
    module, _dot, name = settings.estimator.rpartition(".")
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"model.estimator: {settings.estimator}: {error}") from error
    try:
        estimator = make(**settings.params)
    except TypeError as error:
        raise InputError(f"model.params: {settings.estimator}: {error}") from error
    if not isinstance(estimator, BaseEstimator) or not (is_classifier(estimator) or is_regressor(estimator)):
        raise InputError(f"model.estimator: {settings.estimator} is neither a classifier nor a regressor")
    if is_classifier(estimator) and not hasattr(estimator, "predict_proba"):
        raise InputError(f"model.estimator: {settings.estimator} with these parameters gives no probabilities")
    if isinstance(estimator, Pipeline):
        unset = [name for name, value in estimator.get_params().items() if _is_seed(name) and value is None]
        return estimator.set_params(**dict.fromkeys(unset, settings.seed))
    if "random_state" in estimator.get_params() and "random_state" not in settings.params:
        estimator.set_params(random_state=settings.seed)
    return estimator


def _is_seed(name: str) -> bool:
    return name.rpartition("__")[2] == "random_state"


def make_pipeline_for(estimator: BaseEstimator, features: list[Column]) -> Pipeline:
    """Return a pipeline from the feature columns to the estimator.

    An estimator that accepts missing values (mostly trees) gets numbers as they are and categories as ordinals; any
    other gets imputed and scaled numbers, and one-hot categories. A category unseen in training counts as missing.
    A pipeline of one's own is returned as it is.
    """
    if isinstance(estimator, Pipeline):
        return estimator
    numbers = [column.name for column in features if column.is_number]
    categories = [column.name for column in features if not column.is_number]
    if get_tags(estimator).input_tags.allow_nan:
        prepare_numbers: Any = "passthrough"
        prepare_categories: Any = OrdinalEncoder(
            handle_unknown="use_encoded_value",
            unknown_value=np.nan,
            encoded_missing_value=np.nan,
            max_categories=MAX_CATEGORIES,
        )
    else:
        prepare_numbers = make_pipeline(
            SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True), StandardScaler()
        )
        prepare_categories = OneHotEncoder(
            handle_unknown="infrequent_if_exist", max_categories=MAX_CATEGORIES, sparse_output=False
        )
    columns = ColumnTransformer([("numbers", prepare_numbers, numbers), ("categories", prepare_categories, categories)])
    return Pipeline([("columns", columns), ("estimator", estimator)])


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


def _threads(features: pd.DataFrame) -> int:
    """Return how many threads to fit with: no more than there are free cores, and than the features are worth.

    OpenMP's threads wait for one another many times, and spin meanwhile. Without a free core for each, fitting takes
    several times as long; for few records, one thread is about as fast as two.
    """
    worth = features.size // CELLS_PER_THREAD
    if worth <= 1:
        return 1
    free = round(len(os.sched_getaffinity(0)) * (1 - psutil.cpu_percent(interval=BUSY_SECONDS) / 100))
    return max(1, min(free, worth))


def compile_or_say(
    pipeline: Any, features: list[Column], frame: pd.DataFrame, progress: Callable[[str], None]
) -> tuple[CompiledModel, int] | None:
    """Return the pipeline's compiled form and on how many rows it was proven; None if it has none."""
    try:
        compiled = compile_pipeline(pipeline, features)
        compared = check(compiled, pipeline, frame)
    except NoCompiledFormError as reason:
        progress(f"scikit-learn will score, since the model cannot be compiled: {reason}")
        return None
    progress(f"compiled; {compared:,} predictions are scikit-learn's to the last bit")
    return compiled, compared


def _fit(pipeline: Pipeline, sample: Sample, seed: int) -> tuple[Pipeline, Training]:
    classify = is_classifier(pipeline)
    _labels, counts = np.unique(sample.labels, return_counts=True)
    baseline = DummyClassifier(strategy="prior") if classify else DummyRegressor()
    try:
        fitted, holdout, fitted_labels, holdout_labels = train_test_split(
            sample.features,
            sample.labels,
            test_size=HOLDOUT,
            random_state=seed,
            stratify=sample.labels if classify and counts.min() > 1 else None,
        )
        pipeline.fit(fitted, fitted_labels)
    except ValueError as error:  # from scikit-learn's checks of parameters and data
        empty = [str(name) for name in sample.features if sample.features[name].isna().all()]
        reason = (
            f"{', '.join(empty)}: no value in any labelled record; leave it out of model.features" if empty else error
        )
        raise InputError(f"model.estimator: cannot be fitted: {reason}") from error
    baseline.fit(fitted, fitted_labels)
    metrics = _classifier_metrics if classify else _regressor_metrics
    training = Training(
        labelled=sample.labelled,
        sample=len(sample.lines),
        seed=seed,
        fitted=len(fitted),
        holdout=len(holdout),
        metrics=metrics(pipeline, holdout, holdout_labels),
        baseline=metrics(baseline, holdout, holdout_labels),
        calibration=_calibration(pipeline, holdout, holdout_labels),
        quantiles=None if classify else label_quantiles(sample.labels),
    )
    return pipeline, training


def measure(model: Any, features: Any, labels: np.ndarray) -> dict[str, Any]:
    """Measure a fitted model, as fields of `Training`; the baseline knows how frequent each label is.

    Args:
        model: a classifier or a regressor.
        features: the frame or the array that it takes, at least one row.
        labels: values of its classes, or numbers (shape: rows).
    """
    classify = is_classifier(model)
    baseline = _Prior(model.classes_, labels) if classify else DummyRegressor().fit(features, labels)
    metrics = _classifier_metrics if classify else _regressor_metrics
    return {
        "metrics": metrics(model, features, labels),
        "baseline": metrics(baseline, features, labels),
        "calibration": _calibration(model, features, labels),
        "quantiles": None if classify else label_quantiles(labels),
    }


class _Prior:
    """A classifier that gives each class its share of the labels, which need not have all of a model's classes."""

    def __init__(self, classes: np.ndarray, labels: np.ndarray) -> None:
        self.classes_ = classes
        self._shares = np.array([(labels == value).mean() for value in classes])

    def predict_proba(self, features: Any) -> np.ndarray:
        return np.tile(self._shares, (len(features), 1))


def label_quantiles(labels: np.ndarray) -> list[float]:
    """Return the edges of the bins of a regressor's predictions (`predictions.comparison.distribution`)."""
    return np.unique(np.quantile(labels, SHARES)).tolist()


def _classifier_metrics(classifier: Any, features: Any, labels: np.ndarray) -> dict[str, float]:
    # A label so rare that only the holdout has it can be neither predicted nor measured.
    is_class = np.isin(labels, classifier.classes_)
    labels, shares = labels[is_class], classifier.predict_proba(features)[is_class]
    metrics = {"log_loss": float(log_loss(labels, shares, labels=classifier.classes_))}
    if not np.isin(classifier.classes_, labels).all():
        return metrics
    if len(classifier.classes_) == 2:
        metrics["roc_auc"] = float(roc_auc_score(labels == classifier.classes_[1], shares[:, 1]))
    else:
        metrics["roc_auc"] = float(roc_auc_score(labels, shares, multi_class="ovr", labels=classifier.classes_))
    return metrics


def _regressor_metrics(regressor: Any, features: Any, labels: np.ndarray) -> dict[str, float]:
    values = regressor.predict(features)
    return {
        "rmse": float(root_mean_squared_error(labels, values)),
        "mae": float(mean_absolute_error(labels, values)),
    }


def _calibration(model: Any, features: Any, labels: np.ndarray) -> list[dict[str, float]]:
    """Return the predicted and the actual means of the holdout, in bins of equally many records by predicted value.

    The predicted value is, with two classes, the probability of the second one; with more, the probability of the
    predicted class; with a regressor, its prediction.
    """
    if is_regressor(model):
        predicted, actual = model.predict(features), labels
    else:
        shares = model.predict_proba(features)
        column = np.ones(len(labels), dtype=int) if len(model.classes_) == 2 else shares.argmax(axis=1)
        predicted, actual = shares[np.arange(len(labels)), column], labels == model.classes_[column]
    order = np.argsort(predicted, kind="stable")
    bins = [rows for rows in np.array_split(order, CALIBRATION_BINS) if len(rows)]
    return [
        {"predicted": float(predicted[rows].mean()), "actual": float(actual[rows].mean()), "records": len(rows)}
        for rows in bins
    ]


def read_sample(
    folder: ReleaseFolder, reader: FrameReader, label: Column, labelled: int, settings: ModelSettings
) -> Sample:
    """Return the labelled records of a release, or a random sample of them if there are more than the settings allow.

    Raises:
        InputError: there are none, or a label is not of the column's type.
    """
    lines = _labelled_lines(folder)
    if labelled > settings.sample:
        chosen = np.zeros(labelled, dtype=bool)
        chosen[np.random.default_rng(settings.seed).choice(labelled, settings.sample, replace=False)] = True
        lines = compress(lines, chosen)
    sampled_lines = list(lines)
    if not sampled_lines:
        raise InputError(f"model.label: {label.name} is NULL in every record: there is nothing to learn from")
    frame, bad_rows = reader.read(join_lines(sampled_lines))
    return Sample(sampled_lines, frame, _decode_labels(sampled_lines, label), labelled, bad_rows)


def _first_texts(lines: list[bytes], count: int) -> list[bytes]:
    """Return the first so many lines that are valid UTF-8, which JSON requires."""
    return list(islice((line for line in lines if line.decode(errors="replace").encode() == line), count))


def _labelled_lines(folder: ReleaseFolder) -> Iterator[bytes]:
    unlabelled = SEPARATOR + NULL
    for path in folder.files("export"):
        for block in folder.blocks(path):
            yield from (line for line in split_lines(block) if not line.endswith(unlabelled))


def _decode_labels(lines: list[bytes], label: Column) -> np.ndarray:
    decode, labels = _label_decoder(label.type), []
    for line in lines:
        field = line[line.rindex(SEPARATOR) + 1 :]
        try:
            labels.append(decode(field))
        except ValueError as error:
            record, value = (each.decode(errors="replace") for each in (line.partition(SEPARATOR)[0], field[:80]))
            raise InputError(
                f"model.label: {label.name} of record {record} is {value}, which is not of type {label.type}: {error}"
            ) from error
    return np.array(labels)


def _label_decoder(type_: str) -> Callable[[bytes], Any]:
    if type_ == "integer":
        return int
    return NumberDecoder().decode if type_ == "real" else lambda field: unescape(field).decode()


def _check_labels(sample: Sample, label: Column, estimator: BaseEstimator) -> None:
    values = np.unique(sample.labels)
    if len(values) == 1:
        raise InputError(f"model.label: {label.name} is {values[0]} in every labelled record: nothing to learn")
    if len(values) == len(sample.labels) and is_classifier(estimator):
        raise InputError(f"model.label: {label.name} has a different value in every record: choose a regressor")
    if is_regressor(estimator) and label.type not in ("integer", "real"):
        raise InputError(
            f"model.label: {label.name} is {label.type}, but a regressor predicts numbers: choose a classifier"
        )
