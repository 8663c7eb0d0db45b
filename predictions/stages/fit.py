"""Fit the model of a label: a scikit-learn pipeline on record lines, measured, compiled and saved."""

import importlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from sklearn.base import BaseEstimator, is_classifier, is_regressor
from sklearn.compose import ColumnTransformer
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.impute import SimpleImputer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.utils import get_tags
from threadpoolctl import threadpool_limits

from predictions.errors import InputError
from predictions.formats.manifest import Contributions, ModelManifest, Package, Training
from predictions.formats.prediction_line import CONTRIBUTIONS, PROBABILITIES
from predictions.formats.record_line import Column
from predictions.jobs.wheels import check_wheels
from predictions.scoring import boosters
from predictions.scoring.bins import CompiledPredictor
from predictions.scoring.compiled import CompiledModel
from predictions.scoring.compiler import NoCompiledFormError, check, compile_pipeline, sources_of
from predictions.scoring.estimator import EstimatorPredictor
from predictions.scoring.estimator_contributions import check_kind, describe
from predictions.scoring.files import save_model
from predictions.scoring.frame import FrameReader
from predictions.scoring.model import Model, Predictor
from predictions.scoring.packages import install
from predictions.scoring.threshold import Threshold, split_threshold
from predictions.settings import ModelSettings, Settings
from predictions.stages import train_boosters
from predictions.stages.measure import calibration, label_quantiles, metrics_of
from predictions.stages.sample import Sample, first_texts, read_sample
from predictions.storage import ReleaseFolder

HOLDOUT = 0.2  # share of the sample that the model never sees and is measured on
GOLDEN_RECORDS = 5
CELLS_PER_THREAD = 500_000  # features times records
BUSY_SECONDS = 0.2  # for which the use of the cores is measured
MAX_CLASS_BYTES = 1_000  # of the name of a class that is part of a column's name
MAX_CATEGORIES = 254  # of a column; the rarest share one. HistGradientBoosting accepts 255 at most


def fit_label(
    all_settings: Settings, folder: ReleaseFolder, number: int, target: Path, progress: Callable[[str], None]
) -> None:
    """Train the model of one of a release's labels, and write it into a folder.

    Args:
        all_settings: the settings; those of the label are one of `models`.
        folder: a release that was exported.
        number: the label's number.
        target: the folder to write to.
        progress: called with a line of text at each step.

    Raises:
        InputError: the estimator or its parameters are wrong, or the labels cannot be learnt from.
    """
    started = time.monotonic()
    release, settings = folder.manifest, all_settings.models[number]
    features, label = release.features, release.all_labels[number]
    wheels = check_wheels(settings.packages)
    install(wheels)
    estimator = make_estimator(settings)
    sample = read_sample(folder, number, FrameReader(features), settings)
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
        compiled = compile_or_say(pipeline, features, sample.features, explained, progress)
    manifest = ModelManifest(
        id=release.id,
        features=features,
        label=label,
        task="classification" if is_classifier(estimator) else "regression",
        classes=(pipeline.classes_ if classes is None else classes).tolist() if is_classifier(estimator) else None,
        estimator=settings.estimator,
        params=settings.params,
        contributions=contributions,
        training=training,
        trusted=settings.trusted,
        packages=[package for _path, package in wheels],
        **output_fields(settings, pipeline, threshold, _first_values(pipeline, sample.features)),
    )
    write_model(target, pipeline, manifest, sample.lines, compiled, wheels, started)


def write_model(
    target: Path,
    estimator: Any,
    manifest: ModelManifest,
    lines: list[bytes],
    compiled: tuple[CompiledModel, int] | None,
    wheels: Sequence[tuple[Path, Package]],
    started: float,
    source: Path | None = None,
) -> None:
    """Make the golden records of a model, and write its files into a folder.

    Args:
        target: the folder.
        estimator: the fitted estimator.
        manifest: what is known about it.
        lines: record lines, of which the first are the golden records.
        compiled: its compiled form, if it has one, and on how many rows that was compared.
        wheels: own code that it needs.
        started: when the work on the model began, by the monotonic clock.
        source: the file that the estimator was loaded from, if it was brought in.
    """
    predictor: Predictor = (
        CompiledPredictor(compiled[0], manifest.features) if compiled else EstimatorPredictor(estimator, manifest)
    )
    golden = Model(predictor, manifest).golden_records(first_texts(lines, GOLDEN_RECORDS))
    training = replace(manifest.training, seconds=round(time.monotonic() - started, 3))
    for path, _package in wheels:
        shutil.copyfile(path, target / path.name)
    save_model(estimator, replace(manifest, training=training, golden=golden), target, compiled, source)


def _first_values(estimator: Any, features: pd.DataFrame) -> np.ndarray:
    """Return what an estimator predicts for the first record (shape: 1, or 1 and the number of values)."""
    return np.asarray(estimator.predict(features[:1]))


def output_fields(
    settings: ModelSettings, estimator: Any, threshold: Threshold | None, values: np.ndarray
) -> dict[str, Any]:
    """Return the fields of a model's manifest that say what it predicts and what is kept of it.

    Args:
        settings: the settings of its outputs.
        estimator: fitted, without its own threshold.
        threshold: its own threshold.
        values: of a regressor, what it predicts for some records (shape: records, or records and values).

    Raises:
        InputError: the settings ask for what the estimator does not say.
    """
    if not is_classifier(estimator):
        if PROBABILITIES in settings.outputs or settings.threshold is not None:
            key = "outputs" if settings.threshold is None else "threshold"
            raise InputError(
                f"model.{key}: {type(estimator).__name__} is a regressor, which has no probabilities; omit it"
            )
        names = _value_names(estimator, values)
        if names and settings.outputs:
            raise InputError("model.outputs: contributions are for one value, but the estimator predicts several")
        return {"values": names, "outputs": list(settings.outputs), "top": settings.top}
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


def _value_names(regressor: Any, values: np.ndarray) -> list[str] | None:
    """Return the names of what a regressor predicts, if it predicts several values: its `output_names_`, or numbers."""
    if values.ndim == 1 or values.shape[1] == 1:
        return None
    names = getattr(regressor[-1] if isinstance(regressor, Pipeline) else regressor, "output_names_", None)
    return list(map(str, range(values.shape[1]) if names is None else names))


def make_estimator(settings: ModelSettings) -> BaseEstimator:
    """Return the settings' estimator, unfitted.

    Raises:
        InputError: the class or function does not exist, or what it returns is neither a classifier nor a regressor,
            or a parameter is wrong.
    """
    module, _dot, name = settings.estimator.rpartition(".")
    if module.partition(".")[0] in boosters.DISTRIBUTIONS:
        boosters.library(module.partition(".")[0])
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"model.estimator: {settings.estimator}: {error}") from error
    try:
        estimator = make(**settings.params)
    except TypeError as error:
        raise InputError(f"model.params: {settings.estimator}: {error}") from error
    if train_boosters.is_ranker(estimator):
        raise InputError(f"model.estimator: {settings.estimator} is fitted on groups, which an export has none of")
    if not isinstance(estimator, BaseEstimator) or not (is_classifier(estimator) or is_regressor(estimator)):
        raise InputError(f"model.estimator: {settings.estimator} is neither a classifier nor a regressor")
    if is_classifier(estimator) and not hasattr(estimator, "predict_proba"):
        raise InputError(f"model.estimator: {settings.estimator} with these parameters gives no probabilities")
    if isinstance(estimator, Pipeline):
        unset = [name for name, value in estimator.get_params().items() if _is_seed(name) and value is None]
        return estimator.set_params(**dict.fromkeys(unset, settings.seed))
    if "random_state" in estimator.get_params() and "random_state" not in settings.params:
        estimator.set_params(random_state=settings.seed)
    return train_boosters.with_defaults(estimator, settings.params)


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
    pipeline: Any,
    features: list[Column],
    frame: pd.DataFrame,
    contributions: bool,
    progress: Callable[[str], None],
) -> tuple[CompiledModel, int] | None:
    """Return the pipeline's compiled form and on how many rows it was proven; None if it has none."""
    if libraries := boosters.libraries_of(pipeline):
        progress(f"{' and '.join(libraries)} will score")
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
    training = Training(
        labelled=sample.labelled,
        sample=len(sample.lines),
        seed=seed,
        fitted=len(fitted),
        holdout=len(holdout),
        metrics=metrics_of(pipeline, holdout, holdout_labels),
        baseline=metrics_of(baseline, holdout, holdout_labels),
        calibration=calibration(pipeline, holdout, holdout_labels),
        quantiles=None if classify else label_quantiles(sample.labels),
    )
    return pipeline, training


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
