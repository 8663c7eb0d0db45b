"""The frame that a fitted model was fitted on: which columns, in which order, of which data types.

A file of skops has the columns' names, but not their types. The types come, the first that says one, from the settings,
from categories that the model has kept, from the signature in the registry, and else from what `pandas.read_sql`
returns for the columns of the database.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.pipeline import Pipeline

from predictions.errors import InputError
from predictions.formats.manifest import FeatureType
from predictions.formats.record_line import NULL, Column, field_ends
from predictions.scoring import boosters
from predictions.scoring.checks.errors import ContentsError
from predictions.scoring.dtypes import reader_for

# MLflow's types (mlflow.types.DataType): without and with missing values. Its "datetime" says neither unit nor zone.
_SIGNATURE = {
    "boolean": ("bool", "object[bool]"),
    "integer": ("int32", "Int32"),
    "long": ("int64", "Int64"),
    "float": ("float32", "float32"),
    "double": ("float64", "float64"),
    "string": ("str", "str"),
}
# What pandas.read_sql returns: without and with NULL.
_READ_SQL = {
    "integer": ("int64", "float64"),
    "real": ("float64", "float64"),
    "date": ("str", "str"),  # SQLite's dates are text
    "text": ("str", "str"),
    "boolean": ("bool", "object[bool]"),
    "day": ("object[date]", "object[date]"),
    "timestamp": ("datetime64[us]", "datetime64[us]"),
    "timestamptz": ("datetime64[us, UTC]", "datetime64[us, UTC]"),
}


def infer_schema(
    estimator: Any,
    features: Sequence[Column],
    with_null: set[str],
    signature: Sequence[Mapping[str, Any]] | None,
    chosen: Mapping[str, str],
) -> list[FeatureType]:
    """Return the columns of the frame that a fitted model takes.

    Args:
        estimator: the fitted model.
        features: the columns of the record lines.
        with_null: the features that are NULL in some record.
        signature: the inputs of the model's signature in the registry (`name`, `type`, `required`), if it has one.
        chosen: data types that the settings give, by feature.

    Raises:
        InputError: the model takes other columns, or a data type is unknown or lacks its categories.
    """
    columns = {column.name: column for column in features}
    inputs = {entry.get("name"): entry for entry in signature or ()}
    native, encoded = _native_categories(estimator), _encoded_categories(estimator)
    schema = []
    for name in _names(estimator, [column.name for column in features], signature):
        column, null = columns[name], name in with_null
        if name in chosen:
            dtype = chosen[name]
        elif name in native:
            dtype = "category"
        elif name in inputs:
            dtype = _of_signature(inputs[name], column)
        else:
            dtype = _READ_SQL[column.declared or column.type][null]
        if dtype == "str" and None in encoded.get(name, ()):
            dtype = "object"  # pandas 2 had None for NULL, which an encoder keeps as a category of its own
        categories = native.get(name) or encoded.get(name)
        schema.append(_checked(column, dtype, categories))
    return schema


def columns_with_null(block: bytes, features: Sequence[Column], labels: int = 1) -> set[str]:
    """Return the features that are NULL in some record of a block of record lines with so many labels."""
    ends = field_ends(block, 1 + len(features) + labels)[:, : len(features) + 1]
    characters = np.frombuffer(block, dtype=np.uint8)
    is_null = (np.diff(ends, axis=1) == len(NULL) + 1) & (characters[ends[:, 1:] - 1] == NULL[-1])
    is_null &= characters[ends[:, 1:] - len(NULL)] == NULL[0]
    return {column.name for column, null in zip(features, is_null.any(axis=0).tolist(), strict=True) if null}


def _names(estimator: Any, features: list[str], signature: Sequence[Mapping[str, Any]] | None) -> list[str]:
    """Return the names of the columns that a model takes, in its order."""
    names = getattr(estimator, "feature_names_in_", None)
    if names is None and signature and all(entry.get("name") for entry in signature):
        names = [entry["name"] for entry in signature]
    if names is None:
        count = getattr(estimator, "n_features_in_", len(features))
        if count != len(features):
            raise InputError(
                f"model.features: the model takes {count} columns without names, but {len(features)} features are set: "
                "name them in the order in which it was fitted"
            )
        return features
    names = [str(name) for name in names]
    if missing := [name for name in names if name not in features]:
        raise InputError(f"model.features: the model takes {', '.join(missing)} as well; set {json.dumps(names)}")
    if surplus := [name for name in features if name not in names]:
        raise InputError(f"model.features: the model does not take {', '.join(surplus)}; set {json.dumps(names)}")
    return names


def _of_signature(entry: Mapping[str, Any], column: Column) -> str:
    kind = str(entry.get("type"))
    if kind == "datetime":
        read = _READ_SQL[column.declared or column.type][0]
        return read if read.startswith("datetime64") else "datetime64[ns]"
    if kind not in _SIGNATURE:
        raise InputError(f"{column.name}: the model's signature has the type {kind}, which no feature can have")
    return _SIGNATURE[kind][not entry.get("required", True)]


def _checked(column: Column, dtype: str, categories: list[Any] | None) -> FeatureType:
    feature = FeatureType(column.name, dtype)
    if dtype == "category":
        if categories is None:
            raise InputError(
                f'model.schema: {column.name}: "category" needs the categories of the fit, and the model has kept '
                'none; fit it with an encoder for this column, or choose "str"'
            )
        feature = FeatureType(column.name, dtype, [value for value in categories if value is not None])
    try:
        reader_for(column, feature)
    except ValueError as error:
        raise InputError(f"model.schema: {column.name}: {error}") from error
    return feature


def _native_categories(estimator: Any) -> dict[str, list[Any]]:
    """Return the categories of the columns that the estimator itself takes as pandas' categories."""
    steps = (
        [step for _name, step in estimator.steps if step != "passthrough"] if _is_pipeline(estimator) else [estimator]
    )
    first = steps[0]
    try:
        if categories := boosters.pandas_categories(first):
            return categories
    except ContentsError as error:
        raise InputError(f"model.from: its model of {first.__module__.partition('.')[0]}: {error}") from error
    if not isinstance(first, (HistGradientBoostingClassifier, HistGradientBoostingRegressor)):
        return {}
    preprocessor = getattr(first, "_preprocessor", None)
    if preprocessor is None or not hasattr(first, "feature_names_in_"):
        return {}
    names = first.feature_names_in_[first.is_categorical_].tolist()
    return dict(zip(names, map(_known, preprocessor.named_transformers_["encoder"].categories_), strict=True))


def _encoded_categories(estimator: Any) -> dict[str, list[Any]]:
    """Return the categories that the encoders of a pipeline's first step have kept, by column."""
    first = estimator.steps[0][1] if _is_pipeline(estimator) else None
    categories: dict[str, list[Any]] = {}
    for _name, transformer, names in first.transformers_ if isinstance(first, ColumnTransformer) else ():
        steps = [step for _step, step in transformer.steps] if _is_pipeline(transformer) else [transformer]
        values = next((step.categories_ for step in steps if hasattr(step, "categories_")), None)
        if values is not None and len(values) == len(names) and all(isinstance(name, str) for name in names):
            categories |= dict(zip(names, map(_known, values), strict=True))
    return categories


def _known(categories: np.ndarray) -> list[Any]:
    """Return categories without NaN; None stays."""
    return [value for value in categories.tolist() if value == value]


def _is_pipeline(estimator: Any) -> bool:
    return isinstance(estimator, Pipeline) and bool(estimator.steps)
