"""Training: a scikit-learn pipeline fitted on the exported record lines, measured on a holdout, saved and tried."""

import importlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import compress, islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, is_classifier, is_regressor
from sklearn.compose import ColumnTransformer
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.impute import SimpleImputer
from sklearn.metrics import log_loss, mean_absolute_error, roc_auc_score, root_mean_squared_error
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.utils import get_tags

from predictions.comparison.distribution import SHARES
from predictions.errors import InputError
from predictions.formats.manifest import MODEL_MANIFEST, ModelManifest, Training
from predictions.formats.record_line import NULL, SEPARATOR, Column, join_lines, split_lines, unescape
from predictions.jobs.bundle import script
from predictions.scoring.features import FrameReader, NumberDecoder
from predictions.scoring.model import MODEL_FILE, Model, save_model
from predictions.settings import ModelSettings, Settings
from predictions.storage import ReleaseFolder

HOLDOUT = 0.2  # share of the sample that the model never sees and is measured on
GOLDEN_RECORDS = 5
CALIBRATION_BINS = 10
MAX_CATEGORIES = 254  # a column; the rarer ones share one. HistGradientBoosting takes 255 at most


@dataclass(frozen=True)
class Sample:
    """Labelled records: their lines, features and labels (shape: rows), and how many there were to choose from."""

    lines: list[bytes]
    features: pd.DataFrame
    labels: np.ndarray
    labelled: int


def train(settings: Settings, folder: ReleaseFolder, progress: Callable[[str], None]) -> ModelManifest:
    """Train the model of a release on its exported records and put it into the release.

    Args:
        settings: the estimator, its parameters, the size of the sample and the seed.
        folder: a release that has been exported.
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
    estimator = make_estimator(settings.model)
    sample = _read_sample(folder, features, label, release.export.labelled, settings.model)
    _check_labels(sample, label, estimator)
    progress(f"training on {len(sample.lines):,} of {sample.labelled:,} labelled records, seed {settings.model.seed}")
    pipeline, training = _fit(make_pipeline_for(estimator, features), sample, settings.model.seed)
    manifest = ModelManifest(
        id=release.id,
        features=features,
        label=label,
        task="classification" if is_classifier(estimator) else "regression",
        classes=pipeline.classes_.tolist() if is_classifier(estimator) else None,
        estimator=settings.model.estimator,
        params=settings.model.params,
        training=training,
    )
    golden = Model(pipeline, manifest).golden_records(_first_texts(sample.lines, GOLDEN_RECORDS))
    training = replace(training, seconds=round(time.monotonic() - started, 3))
    model = Model(pipeline, replace(manifest, training=training, golden=golden))
    with tempfile.TemporaryDirectory() as local, folder.writing("model") as target:
        save_model(model, Path(local))
        try_in_fresh_process(Path(local) / MODEL_MANIFEST, folder.release)
        for name in (MODEL_FILE, MODEL_MANIFEST):
            with folder.create(f"{target}/{name}") as file:
                file.write((Path(local) / name).read_bytes())
    return folder.model


def make_estimator(settings: ModelSettings) -> BaseEstimator:
    """Return the settings' estimator, unfitted.

    Raises:
        InputError: there is no such class, it is no classifier or regressor, or a parameter is wrong.
    """
    module, _dot, name = settings.estimator.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"model.estimator: {settings.estimator}: {error}") from error
    try:
        estimator = found(**settings.params)
    except TypeError as error:
        raise InputError(f"model.params: {settings.estimator}: {error}") from error
    if not isinstance(estimator, BaseEstimator) or not (is_classifier(estimator) or is_regressor(estimator)):
        raise InputError(f"model.estimator: {settings.estimator} is neither a classifier nor a regressor")
    if is_classifier(estimator) and not hasattr(estimator, "predict_proba"):
        raise InputError(f"model.estimator: {settings.estimator} with these parameters gives no probabilities")
    if "random_state" in estimator.get_params() and "random_state" not in settings.params:
        estimator.set_params(random_state=settings.seed)
    return estimator


def make_pipeline_for(estimator: BaseEstimator, features: list[Column]) -> Pipeline:
    """Return a pipeline from the named columns to the estimator.

    An estimator that takes missing values (trees, mostly) gets numbers as they are and categories as ordinals; any
    other gets imputed, scaled numbers and one-hot categories. A category never seen at training counts as missing.
    """
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
    """Let the mapper load the model as a task would: in a process of its own, which replays the golden records.

    Raises:
        InputError: the model does not load there, or does not answer as it does here.
    """
    command = [sys.executable, str(script("mapper.py")), str(manifest), release]
    tried = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if tried.returncode:
        reason = (tried.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"the trained model does not work in a process of its own: {reason}")


def _fit(pipeline: Pipeline, sample: Sample, seed: int) -> tuple[Pipeline, Training]:
    classify = is_classifier(pipeline)
    _labels, counts = np.unique(sample.labels, return_counts=True)
    baseline = DummyClassifier(strategy="prior") if classify else DummyRegressor()
    try:
        known, holdout, known_labels, holdout_labels = train_test_split(
            sample.features,
            sample.labels,
            test_size=HOLDOUT,
            random_state=seed,
            stratify=sample.labels if classify and counts.min() > 1 else None,
        )
        pipeline.fit(known, known_labels)
    except ValueError as error:  # scikit-learn's checks of parameters and data
        empty = [str(name) for name in sample.features if sample.features[name].isna().all()]
        reason = f"{', '.join(empty)}: no value in any labelled record, leave it out" if empty else error
        raise InputError(f"model.estimator: it cannot be fitted: {reason}") from error
    baseline.fit(known, known_labels)
    metrics = _classifier_metrics if classify else _regressor_metrics
    training = Training(
        labelled=sample.labelled,
        sample=len(sample.lines),
        seed=seed,
        fitted=len(known),
        holdout=len(holdout),
        metrics=metrics(pipeline, holdout, holdout_labels),
        baseline=metrics(baseline, holdout, holdout_labels),
        calibration=_calibration(pipeline, holdout, holdout_labels),
        # The bins of a regressor's predictions (`predictions.comparison.distribution`).
        quantiles=None if classify else np.unique(np.quantile(sample.labels, SHARES)).tolist(),
    )
    return pipeline, training


def _classifier_metrics(classifier: Any, features: pd.DataFrame, labels: np.ndarray) -> dict[str, float]:
    # A label so rare that it is in the holdout alone cannot be predicted, nor measured.
    known = np.isin(labels, classifier.classes_)
    labels, shares = labels[known], classifier.predict_proba(features)[known]
    metrics = {"log_loss": float(log_loss(labels, shares, labels=classifier.classes_))}
    if not np.isin(classifier.classes_, labels).all():
        return metrics
    if len(classifier.classes_) == 2:
        metrics["roc_auc"] = float(roc_auc_score(labels == classifier.classes_[1], shares[:, 1]))
    else:
        metrics["roc_auc"] = float(roc_auc_score(labels, shares, multi_class="ovr", labels=classifier.classes_))
    return metrics


def _regressor_metrics(regressor: Any, features: pd.DataFrame, labels: np.ndarray) -> dict[str, float]:
    values = regressor.predict(features)
    return {
        "rmse": float(root_mean_squared_error(labels, values)),
        "mae": float(mean_absolute_error(labels, values)),
    }


def _calibration(model: Any, features: pd.DataFrame, labels: np.ndarray) -> list[dict[str, float]]:
    """Return predicted and actual means of the holdout in bins of equally many records, by what was predicted.

    Of two classes, it is the share of the second one that is predicted; of more, that of the class that was chosen; of
    a regressor, its value.
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


def _read_sample(
    folder: ReleaseFolder, features: list[Column], label: Column, labelled: int, settings: ModelSettings
) -> Sample:
    lines = _labelled_lines(folder)
    if labelled > settings.sample:
        chosen = np.zeros(labelled, dtype=bool)
        chosen[np.random.default_rng(settings.seed).choice(labelled, settings.sample, replace=False)] = True
        lines = compress(lines, chosen)
    kept = list(lines)
    if not kept:
        raise InputError(f"model.label: {label.name} is NULL in every record: there is nothing to learn from")
    labels = [line[line.rindex(SEPARATOR) + 1 :] for line in kept]
    frame, _bad_rows = FrameReader(features).read(join_lines(kept))
    return Sample(kept, frame, _decode_labels(labels, label), labelled)


def _first_texts(lines: list[bytes], count: int) -> list[bytes]:
    """Return the first lines that are valid UTF-8, as JSON needs it."""
    return list(islice((line for line in lines if line.decode(errors="replace").encode() == line), count))


def _labelled_lines(folder: ReleaseFolder) -> Iterator[bytes]:
    unlabelled = SEPARATOR + NULL
    for path in folder.files("export"):
        for block in folder.blocks(path):
            yield from (line for line in split_lines(block) if not line.endswith(unlabelled))


def _decode_labels(fields: list[bytes], label: Column) -> np.ndarray:
    try:
        if label.type == "integer":
            return np.array([int(field) for field in fields])
        if label.type == "real":
            return np.array([NumberDecoder().decode(field) for field in fields])
        return np.array([unescape(field).decode() for field in fields])
    except ValueError as error:
        raise InputError(
            f"model.label: {label.name} holds a value that is not of type {label.type}: {error}"
        ) from error


def _check_labels(sample: Sample, label: Column, estimator: BaseEstimator) -> None:
    values = np.unique(sample.labels)
    if len(values) == 1:
        raise InputError(f"model.label: {label.name} is {values[0]} in every labelled record: nothing to learn")
    if len(values) == len(sample.labels) and is_classifier(estimator):
        raise InputError(f"model.label: {label.name} has another value in every record: choose a regressor")
    if is_regressor(estimator) and label.type not in ("integer", "real"):
        raise InputError(
            f"model.label: {label.name} is {label.type}, a regressor predicts numbers: choose a classifier"
        )
