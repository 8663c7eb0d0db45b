"""Check a fitted model before a release is started: types, versions, columns, and how it predicts some records."""

import importlib.metadata
import importlib.util
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from predictions.errors import InputError
from predictions.formats.manifest import ModelManifest, Package
from predictions.formats.record_line import (
    NULL,
    SEPARATOR,
    Column,
    field_ends,
    join_lines,
    split_columns,
    split_lines,
)
from predictions.jobs.wheels import check_wheels
from predictions.scoring import estimator as estimators
from predictions.scoring.estimator import EstimatorPredictor
from predictions.scoring.features import NumberDecoder
from predictions.scoring.files import sha256
from predictions.scoring.model import Model, Scores
from predictions.scoring.packages import install
from predictions.scoring.threshold import split_threshold
from predictions.settings import DatabaseSettings, ModelSettings
from predictions.sources import open_database
from predictions.stages.fit import output_fields
from predictions.stages.fitted import Fitted, estimator_name, fitted_manifest, load_fitted, opened
from predictions.stages.sample import decode_labels
from predictions.stages.schema import columns_with_null, infer_schema

RECORDS = 10_000  # that are read from the database
ALONE = 100  # that are also predicted one by one
EXAMPLES = 3
_KINDS = {"FunctionNode": "a function", "TypeNode": "a type", "MethodNode": "a method", "PartialNode": "a partial call"}


@dataclass(frozen=True)
class Finding:
    """A line of the report: what was checked, what was found, and whether `train` would refuse the model for it."""

    subject: str
    text: str
    refused: bool = False


def check_model(database: DatabaseSettings, model: ModelSettings, origin: str) -> Iterator[Finding]:
    """Yield what a check of a fitted model finds, in the order of the checks; the first refusal ends it.

    Args:
        database: the database.
        model: the features, the label, trusted types and packages.
        origin: the model, as in `model.from`.

    Raises:
        InputError: there is no such model, or it is not a file that skops wrote; or the database or its columns are
            missing.
        ServiceError: the registry or the database does not answer.
    """
    wheels = check_wheels(model.packages)
    with opened(origin) as fitted:
        size = fitted.path.stat().st_size
        version = f" (version {fitted.version})" if fitted.version else ""
        yield Finding("model", f"{origin}{version}, {size / 1e6:.1f} MB, SHA-256 {sha256(fitted.path)}")
        yield from _versions(fitted)
        untrusted = estimators.untrusted_types(fitted.path, model.trusted)
        for name in untrusted:
            yield Finding("types", f"{name}: {_describe(name, fitted.schema, wheels)}; not trusted", refused=True)
        if untrusted:
            names = ", ".join(f'"{name}"' for name in [*model.trusted, *untrusted])
            yield Finding("types", f"if you know them and trust their code: [model] trusted = [{names}]", refused=True)
            return
        yield Finding("types", "all are trusted")
        install(wheels)
        started = time.monotonic()
        estimator = load_fitted(fitted, model.trusted)
        seconds = time.monotonic() - started
        yield Finding("estimator", f"{estimator_name(estimator)}, loaded in {seconds:.2f} s")
        yield from _predictions(database, model, fitted, estimator)


def _versions(fitted: Fitted) -> Iterator[Finding]:
    for name, version in fitted.versions.items():
        here = importlib.metadata.version(name)
        refused = name == "scikit-learn" and version != here
        cure = f"; install {name}=={version} here and for the tasks, or fit it again" if refused else ""
        yield Finding("versions", f"{name} {version} wrote it, {here} is here{cure}", refused)


def _describe(name: str, schema: Any, wheels: Sequence[tuple[Path, Package]]) -> str:
    """Return what a type of a file is and where it comes from, without importing it."""
    kinds = {_KINDS.get(str(node.get("__loader__")), "a class") for node in _nodes(schema, name)}
    top = name.partition(".")[0]
    libraries = importlib.metadata.packages_distributions().get(top, [])
    wheel = next((path.name for path, _package in wheels if path.name.startswith(f"{top}-")), None)
    if wheel:
        source = f"from {wheel}"
    elif top in sys.stdlib_module_names:
        source = "from Python's own library"
    elif libraries:
        source = f"from {libraries[0]} {importlib.metadata.version(libraries[0])}"
    else:
        source = "not installed here: give its wheel with model.packages"
    return f"{' or '.join(sorted(kinds)) or 'a type'} {source}"


def _nodes(schema: Any, name: str) -> Iterator[dict[str, Any]]:
    children: Any = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    if isinstance(schema, dict) and name in (
        f"{schema.get('__module__')}.{schema.get('__class__')}",
        f"{schema.get('__module__')}.{schema.get('content')}",
    ):
        yield schema
    for child in children:
        yield from _nodes(child, name)


def _predictions(database: DatabaseSettings, model: ModelSettings, fitted: Fitted, estimator: Any) -> Iterator[Finding]:
    (_record_id, *features, label), lines = _read(database, model)
    try:
        schema = infer_schema(
            estimator, features, columns_with_null(join_lines(lines), features), fitted.signature, model.schema_
        )
        manifest = fitted_manifest(estimator, fitted, model, features, label, schema)
    except InputError as error:
        yield Finding("columns", str(error), refused=True)
        return
    types = {column.name: column for column in features}
    for feature in schema:
        column = types[feature.name]
        yield Finding("columns", f"{feature.name}: {column.declared or column.type} as {feature.dtype}")
    scorer = Model(EstimatorPredictor(estimator, manifest), manifest)
    block = join_lines(lines)
    try:
        scores = scorer.score(block)
        values, _bad_rows = scorer.predictor.predict(block, field_ends(block, manifest.fields))
    except Exception as error:  # whatever a model raises
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        yield Finding("records", f"the model raises for {len(lines):,} records: {reason}", refused=True)
        return
    try:
        output_fields(model, *split_threshold(estimator), values)
    except InputError as error:
        yield Finding("outputs", str(error), refused=True)
    yield from _classes(manifest, lines)
    failed = sorted({error.decode() for error in scores.errors if error != b"\\N"})
    count = sum(error != b"\\N" for error in scores.errors)
    yield Finding(
        "records",
        f"{count:,} of {len(lines):,} cannot be predicted" + "".join(f"; {text}" for text in failed[:EXAMPLES]),
    )
    yield _alone(scorer, lines, scores)
    started = time.monotonic()
    scorer.score(block)
    yield Finding("speed", f"{(time.monotonic() - started) / len(lines) * 1e6:.1f} µs a record")


def _classes(manifest: ModelManifest, lines: list[bytes]) -> Iterator[Finding]:
    """Yield a refusal if no labelled record has one of a classifier's classes."""
    labelled = [line for line in lines if not line.endswith(SEPARATOR + NULL)]
    if manifest.classes and manifest.label and labelled:
        found = set(decode_labels(labelled, manifest.label).tolist())
        if found.isdisjoint(manifest.classes):
            classes, labels = (", ".join(map(repr, values[:EXAMPLES])) for values in (manifest.classes, sorted(found)))
            text = f"the model's are {classes}, but {manifest.label.name} has {labels}"
            yield Finding("classes", f"{text}; predict numbers of classes with a label of numbers", refused=True)


def _alone(model: Model, lines: list[bytes], scores: Scores) -> Finding:
    """Compare the predictions of records alone with those in their block."""
    differ = []
    for row, line in enumerate(lines[:ALONE]):
        alone, block = _texts(model, line), _at(scores, row)
        if alone != block:
            record = line.partition(b"\t")[0].decode(errors="replace")
            differ.append(f"record {record} is {alone} alone and {block} in its block")
    compared = min(ALONE, len(lines))
    if not differ:
        return Finding("alone", f"{compared:,} records are predicted alone as in their block")
    return Finding(
        "alone",
        f"{len(differ):,} of {compared:,} records are predicted otherwise alone than in their block, so the model "
        f"looks at other records: {'; '.join(differ[:EXAMPLES])}",
        refused=True,
    )


def _texts(model: Model, line: bytes) -> str:
    """Return the prediction of a record alone; if the model raises, what it raises."""
    try:
        return _at(model.score(join_lines([line])), 0)
    except Exception as error:  # whatever a model raises
        return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _at(scores: Scores, row: int) -> str:
    return b" ".join((scores.predictions[row], scores.probabilities[row], scores.errors[row])).decode()


def _read(settings: DatabaseSettings, model: ModelSettings) -> tuple[list[Column], list[bytes]]:
    """Return the columns of the first records of the database, and their lines."""
    names = [settings.id, *model.features, model.label]
    database = open_database(settings)
    lines: list[bytes] = []
    with database.errors("export_timeout"), database.snapshot(names) as snapshot:
        for share in snapshot.shares():
            for block in share.blocks():
                lines += islice(split_lines(block), RECORDS - len(lines))
                if len(lines) == RECORDS:
                    break
            if len(lines) == RECORDS:
                break
        columns = snapshot.columns
    if not lines:
        raise InputError(f"{settings.table or 'the query'}: no records to check the model with")
    fields = split_columns(join_lines(lines), len(columns))
    return [_typed(column, values) for column, values in zip(columns, fields, strict=True)], lines


def _typed(column: Column, fields: list[bytes]) -> Column:
    """Return a column whose type the database does not say with the type of its values."""
    if column.type:
        return column
    values = [field for field in fields if field != b"\\N"]
    with suppress(ValueError):
        numbers = list(map(NumberDecoder().decode, values))
        whole = all(number.is_integer() for number in numbers) and not any(b"." in field for field in values)
        return replace(column, type="integer" if whole else "real")
    return replace(column, type="text")
