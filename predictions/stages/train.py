"""Train a release's models: fit scikit-learn pipelines on record lines, measure, save and try them."""

import importlib
import os
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
from predictions.formats.manifest import MODEL_MANIFEST, Contributions, ModelManifest, ReleaseModels, Training
from predictions.formats.prediction_line import CONTRIBUTIONS, PROBABILITIES
from predictions.formats.record_line import NULL, SEPARATOR, Column, join_lines, split_lines, unescape
from predictions.jobs.bundle import script
from predictions.scoring import boosters
from predictions.scoring.bins import CompiledPredictor
from predictions.scoring.compiled import CompiledModel
from predictions.scoring.compiler import NoCompiledFormError, check, compile_pipeline, sources_of
from predictions.scoring.estimator import EstimatorPredictor
from predictions.scoring.estimator_contributions import check_kind, describe
from predictions.scoring.features import NumberDecoder
from predictions.scoring.files import collect_models, save_model
from predictions.scoring.frame import FrameReader
from predictions.scoring.model import Model, Predictor
from predictions.scoring.threshold import Threshold, split_threshold
from predictions.settings import ModelSettings, Settings
from predictions.stages import train_boosters
from predictions.storage import ReleaseFolder

HOLDOUT = 0.2  # share of the sample that the model never sees and is measured on
GOLDEN_RECORDS = 5
CALIBRATION_BINS = 10
CELLS_PER_THREAD = 500_000  # features times records
BUSY_SECONDS = 0.2  # for which the use of the cores is measured
MAX_CLASS_BYTES = 1_000  # of the name of a class that is part of a column's name
MAX_CATEGORIES = 254  # of a column; the rarest share one. HistGradientBoosting accepts 255 at most


@dataclass(frozen=True)
class Sample:
    """Labelled records: their lines, features and labels (shape: rows), and how many the export has in all."""

    lines: list[bytes]
    features: pd.DataFrame
    labels: np.ndarray
    labelled: int


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
        for number, (model, target) in enumerate(zip(settings.models, folders, strict=True)):
            target.mkdir()
            _train_label(model, folder, number, target, progress)
        collected = Path(scratch, "model")
        collected.mkdir()
        collect_models(folders, collected)
        try_in_fresh_process(collected / MODEL_MANIFEST, folder.release)
        with folder.writing("model") as written:
            for path in sorted(collected.iterdir()):
                with folder.create(f"{written}/{path.name}") as file:
                    file.write(path.read_bytes())
    return folder.models


def _train_label(
    settings: ModelSettings, folder: ReleaseFolder, number: int, target: Path, progress: Callable[[str], None]
) -> None:
    """Train the model of one of a release's labels, given by its number, and write it into a folder."""
    release = folder.manifest
    label, several = release.all_labels[number], len(release.all_labels) > 1
    try:
        _train(settings, folder, number, target, lambda text: progress(f"{label.name}: {text}" if several else text))
    except InputError as error:
        if several:
            raise InputError(f"{label.name}: {error}") from error
        raise


def _train(
    settings: ModelSettings, folder: ReleaseFolder, number: int, target: Path, progress: Callable[[str], None]
) -> None:
    started = time.monotonic()
    release = folder.manifest
    features, label = release.features, release.all_labels[number]
    estimator = make_estimator(settings)
    sample = _read_sample(folder, number, settings)
    _check_labels(sample, label, estimator)
    explained = CONTRIBUTIONS in settings.outputs
    if explained:
        check_kind(estimator)
    classes = None
    if train_boosters.needs_class_numbers(estimator):
        classes, numbers = np.unique(sample.labels, return_inverse=True)
        sample = replace(sample, labels=numbers)
    progress(f"training on {len(sample.lines):,} of {sample.labelled:,} labelled records, seed {settings.seed}")
    with threadpool_limits(_threads(sample.features)):
        pipeline, training = _fit(make_pipeline_for(estimator, features), sample, settings.seed)
        pipeline, threshold = split_threshold(pipeline)
        contributions = _contributions(pipeline, features, sample.features) if explained else None
        compiled = _compile(pipeline, features, sample.features, explained, progress)
    manifest = ModelManifest(
        id=release.id,
        features=features,
        label=label,
        task="classification" if is_classifier(estimator) else "regression",
        classes=(pipeline.classes_ if classes is None else classes).tolist() if is_classifier(estimator) else None,
        estimator=settings.estimator,
        params=settings.params,
        contributions=contributions,
        **output_fields(settings, pipeline, threshold, sample.features),
    )
    predictor: Predictor = (
        CompiledPredictor(compiled[0], features) if compiled else EstimatorPredictor(pipeline, manifest)
    )
    golden = Model(predictor, manifest).golden_records(_first_texts(sample.lines, GOLDEN_RECORDS))
    training = replace(training, seconds=round(time.monotonic() - started, 3))
    save_model(pipeline, replace(manifest, training=training, golden=golden), target, compiled)


def output_fields(
    settings: ModelSettings, estimator: Any, threshold: Threshold | None, features: pd.DataFrame
) -> dict[str, Any]:
    """Return the fields of a model's manifest that say what it predicts and what is kept of it.

    Args:
        settings: the settings of its outputs.
        estimator: fitted, without its own threshold.
        threshold: its own threshold.
        features: some rows, at least one.

    Raises:
        InputError: the settings ask for what the estimator does not say.
    """
    if not is_classifier(estimator):
        if PROBABILITIES in settings.outputs or settings.threshold is not None:
            key = "outputs" if settings.threshold is None else "threshold"
            raise InputError(f"model.{key}: {settings.estimator} is a regressor, which has no probabilities; omit it")
        values = _value_names(estimator, features)
        if values and settings.outputs:
            raise InputError("model.outputs: contributions are for one value, but the estimator predicts several")
        return {"values": values, "outputs": list(settings.outputs), "top": settings.top}
    if settings.threshold is not None:
        if len(estimator.classes_) != 2:
            raise InputError(f"model.threshold: is for two classes, but {settings.label} has {len(estimator.classes_)}")
        threshold = Threshold(settings.threshold)
    if PROBABILITIES in settings.outputs and not settings.top:
        for name in map(str, estimator.classes_):
            if len(name.encode()) > MAX_CLASS_BYTES:
                raise InputError(
                    f"model.outputs: the class {name[:40]!r}… has {len(name.encode()):,} bytes, too many for the "
                    "name of a column; set model.top, which keeps the classes in one cell"
                )
    kept = {"outputs": list(settings.outputs), "top": settings.top}
    return kept | ({"threshold": threshold.share, "positive": threshold.positive} if threshold else {})


def _value_names(regressor: Any, features: pd.DataFrame) -> list[str] | None:
    """Return the names of what a regressor predicts, if it predicts several values: its `output_names_`, or numbers."""
    values = regressor.predict(features.iloc[:1])
    if values.ndim == 1 or values.shape[1] == 1:
        return None
    names = getattr(regressor[-1] if isinstance(regressor, Pipeline) else regressor, "output_names_", None)
    return list(map(str, range(values.shape[1]) if names is None else names))


def make_estimator(settings: ModelSettings) -> BaseEstimator:
    """Return the settings' estimator, unfitted.

    Raises:
        InputError: the class does not exist or is neither a classifier nor a regressor, or a parameter is wrong.
    """
    module, _dot, name = settings.estimator.rpartition(".")
    if module.partition(".")[0] in boosters.DISTRIBUTIONS:
        boosters.library(module.partition(".")[0])
    try:
        estimator_class = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"model.estimator: {settings.estimator}: {error}") from error
    try:
        estimator = estimator_class(**settings.params)
    except TypeError as error:
        raise InputError(f"model.params: {settings.estimator}: {error}") from error
    if train_boosters.is_ranker(estimator):
        raise InputError(f"model.estimator: {settings.estimator} is fitted on groups, which an export has none of")
    if not isinstance(estimator, BaseEstimator) or not (is_classifier(estimator) or is_regressor(estimator)):
        raise InputError(f"model.estimator: {settings.estimator} is neither a classifier nor a regressor")
    if is_classifier(estimator) and not hasattr(estimator, "predict_proba"):
        raise InputError(f"model.estimator: {settings.estimator} with these parameters gives no probabilities")
    if "random_state" in estimator.get_params() and "random_state" not in settings.params:
        estimator.set_params(random_state=settings.seed)
    return train_boosters.with_defaults(estimator, settings.params)


def make_pipeline_for(estimator: BaseEstimator, features: list[Column]) -> Pipeline:
    """Return a pipeline from the feature columns to the estimator.

    An estimator that accepts missing values (mostly trees) gets numbers as they are and categories as ordinals; any
    other gets imputed and scaled numbers, and one-hot categories. A category unseen in training counts as missing.
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


def _compile(
    pipeline: Pipeline,
    features: list[Column],
    frame: pd.DataFrame,
    contributions: bool,
    progress: Callable[[str], None],
) -> tuple[CompiledModel, int] | None:
    """Return the pipeline's compiled form and on how many rows it was proven; None if it has none."""
    if library := train_boosters.library_of(pipeline[-1]):
        progress(f"{library} will score")
        return None
    try:
        compiled = compile_pipeline(pipeline, features, contributions)
        compared = check(compiled, pipeline, frame)
    except NoCompiledFormError as reason:
        progress(f"scikit-learn will score, since the model cannot be compiled: {reason}")
        return None
    progress(f"compiled; {compared:,} predictions are scikit-learn's to the last bit")
    return compiled, compared


def _contributions(pipeline: Pipeline, features: list[Column], frame: pd.DataFrame) -> Contributions:
    """Return what the pipeline's contributions need, after checking them on some rows."""
    try:
        sources = sources_of(pipeline, features)
    except NoCompiledFormError as reason:
        raise InputError(f"model.outputs: contributions need the preparation that `train` makes: {reason}") from reason
    return describe(pipeline, sources, len(features), frame)


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
        train_boosters.fit(pipeline, fitted, fitted_labels)
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
        # The bins of a regressor's predictions (`predictions.comparison.distribution`).
        quantiles=None if classify else np.unique(np.quantile(sample.labels, SHARES)).tolist(),
    )
    return pipeline, training


def _classifier_metrics(classifier: Any, features: pd.DataFrame, labels: np.ndarray) -> dict[str, float]:
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


def _regressor_metrics(regressor: Any, features: pd.DataFrame, labels: np.ndarray) -> dict[str, float]:
    values = _first_value(regressor, features)
    return {
        "rmse": float(root_mean_squared_error(labels, values)),
        "mae": float(mean_absolute_error(labels, values)),
    }


def _first_value(regressor: Any, features: pd.DataFrame) -> np.ndarray:
    """Return the first value that a regressor predicts for each row (shape: rows)."""
    values = regressor.predict(features)
    return values if values.ndim == 1 else values[:, 0]


def _calibration(model: Any, features: pd.DataFrame, labels: np.ndarray) -> list[dict[str, float]]:
    """Return the predicted and the actual means of the holdout, in bins of equally many records by predicted value.

    The predicted value is, with two classes, the probability of the second one; with more, the probability of the
    predicted class; with a regressor, its prediction.
    """
    if is_regressor(model):
        predicted, actual = _first_value(model, features), labels
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


def _read_sample(folder: ReleaseFolder, number: int, settings: ModelSettings) -> Sample:
    """Read the labelled records for a label, given by its number; their lines have this label alone."""
    release = folder.manifest
    label, export = release.all_labels[number], release.export
    labelled = export.labelled_each[number] if export.labelled_each else export.labelled
    lines = _labelled_lines(folder, number)
    if labelled > settings.sample:
        chosen = np.zeros(labelled, dtype=bool)
        chosen[np.random.default_rng(settings.seed).choice(labelled, settings.sample, replace=False)] = True
        lines = compress(lines, chosen)
    sampled_lines = list(lines)
    if not sampled_lines:
        raise InputError(f"model.label: {label.name} is NULL in every record: there is nothing to learn from")
    frame, _bad_rows = FrameReader(release.features).read(join_lines(sampled_lines))
    return Sample(sampled_lines, frame, _decode_labels(sampled_lines, label), labelled)


def _first_texts(lines: list[bytes], count: int) -> list[bytes]:
    """Return the first so many lines that are valid UTF-8, which JSON requires."""
    return list(islice((line for line in lines if line.decode(errors="replace").encode() == line), count))


def _labelled_lines(folder: ReleaseFolder, number: int) -> Iterator[bytes]:
    unlabelled, labels = SEPARATOR + NULL, len(folder.manifest.all_labels)
    for path in folder.files("export"):
        for block in folder.blocks(path):
            lines = split_lines(block)
            if labels > 1:
                rows = (line.rsplit(SEPARATOR, labels) for line in lines)
                lines = [SEPARATOR.join((record, values[number])) for record, *values in rows]
            yield from (line for line in lines if not line.endswith(unlabelled))


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
