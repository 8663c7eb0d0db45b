"""The manifests of a release: `manifest.json` says what each stage did, `model/model.json` describes its models.

Each stage adds its own section to `manifest.json`. The counts and ID digests of the sections prove that no record was
lost or swapped.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import zip_longest
from typing import Any, NamedTuple

from predictions.errors import InputError
from predictions.formats import document
from predictions.formats.id_digest import NO_IDS, IdDigest
from predictions.formats.prediction_line import (
    COLUMNS,
    CONTRIBUTIONS,
    ERROR,
    PREDICTION,
    PROBABILITIES,
    PROBABILITY,
    qualifier,
)
from predictions.formats.record_line import Column

MANIFEST = "manifest.json"
MODEL_MANIFEST = "model.json"
MODEL_FILE = "model.skops"
COMPILED_FILE = "model.npz"
FORMAT = 1  # of both manifests


class Account(NamedTuple):
    """What one step did to the records: the step, the number of records, and the digest of their IDs."""

    step: str
    rows: int
    id_digest: IdDigest

    def __str__(self) -> str:
        return f"{self.rows:,} {self.step} (ID digest {self.id_digest})"


def mismatches(accounts: Sequence[Account]) -> Iterator[str]:
    """Yield a line for each pair of accounts that differ; nothing if no record was lost or swapped.

    Args:
        accounts: pairs of accounts, flat: the first and second are of the same records, so are the third and fourth.
    """
    for before, after in zip(accounts[::2], accounts[1::2], strict=True):
        if before[1:] != after[1:]:
            yield f"{before}, but {after}"


@dataclass(frozen=True)
class Snapshot:
    """The moment at which the records were read: its time in ISO 8601, and the database's snapshot ID, if any."""

    time: str
    id: str | None = None


@dataclass(frozen=True)
class Export:
    """What was exported.

    Args:
        rows: number of records.
        labelled: number of records with a label; of several labels, with the first one.
        labelled_each: of several labels, the number of records with each.
        id_digest: digest of the record IDs.
        unfit_ids: number of IDs that cannot be row keys.
        parts: number of files.
        bytes: size of these files.
        seconds: time taken.
    """

    rows: int = 0
    labelled: int = 0
    labelled_each: list[int] = field(default_factory=list)
    id_digest: IdDigest = NO_IDS
    unfit_ids: int = 0
    parts: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Export") -> "Export":
        each = list(map(sum, zip_longest(self.labelled_each, other.labelled_each, fillvalue=0)))
        sums = {name: value + getattr(other, name) for name, value in vars(self).items()}
        return Export(**sums | {"labelled_each": each})


@dataclass(frozen=True)
class Scored:
    """What was scored.

    Args:
        read: number of lines read.
        scored, failed: number of rows with and without a prediction.
        duplicates: number of lines left out because the same record came twice.
        unreadable: number of unreadable lines.
        carried: number of rows that were carried over from an earlier release.
        rows: number of prediction lines.
        id_digest: digest of the IDs of the rows.
        duplicates_digest: digest of the IDs of the lines left out.
        split_points: the split points between the regions.
        carried_from: the release whose lines were carried over.
        job: the ID of the Hadoop job; None if the records were scored without one.
        seconds: time taken.
    """

    read: int = 0
    scored: int = 0
    failed: int = 0
    duplicates: int = 0
    unreadable: int = 0
    carried: int = 0
    rows: int = 0
    id_digest: IdDigest = NO_IDS
    duplicates_digest: IdDigest = NO_IDS
    split_points: list[str] = field(default_factory=list)
    carried_from: str | None = None
    job: str | None = None
    seconds: float = 0.0

    @property
    def parts(self) -> int:
        """Return the number of regions, which is also the number of part files."""
        return len(self.split_points) + 1

    @property
    def lines(self) -> int:
        """Return the number of input lines that are accounted for."""
        return self.scored + self.failed + self.duplicates + self.unreadable


@dataclass(frozen=True)
class Part:
    """What was loaded from one part file: the number of rows, and the digest of their IDs."""

    rows: int = 0
    id_digest: IdDigest = NO_IDS


@dataclass(frozen=True)
class Loaded:
    """What was loaded.

    Args:
        rows: number of rows.
        seconds: time taken.
        parts: the rows of each part.
        proved: number of parts that were proved by the HDFS checksums of their HFiles; the others were counted.
    """

    rows: int = 0
    seconds: float = 0.0
    parts: list[Part] = field(default_factory=list)
    proved: int = 0


@dataclass(frozen=True)
class Training:
    """How a model was trained and measured.

    Args:
        labelled: number of labelled records, from which the sample was drawn.
        sample: number of records in the sample.
        seed: random seed of the sample.
        fitted, holdout: number of sampled records that the model was fitted on, and measured on.
        metrics, baseline: metrics on the holdout, of the model and of one that uses no feature.
        calibration: the holdout in bins by prediction, with the mean prediction and the mean outcome of each bin.
        quantiles: for a regressor, quantiles of the labels: the edges of the bins of its predictions.
        seconds: time taken.
        possibly_seen: whether the model may have been fitted on the records that it was measured on.
    """

    labelled: int = 0
    sample: int = 0
    seed: int = 0
    fitted: int = 0
    holdout: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    baseline: dict[str, float] = field(default_factory=dict)
    calibration: list[dict[str, float]] = field(default_factory=list)
    quantiles: list[float] | None = None
    seconds: float = 0.0
    possibly_seen: bool = False

    @property
    def measured_on(self) -> str:
        """Return what the metrics were measured on, as text."""
        if self.possibly_seen:
            return f"{self.holdout:,} records, possibly seen in training"
        return f"a holdout of {self.holdout:,} records"


@dataclass(frozen=True)
class FeatureType:
    """The data type of a feature in the frame that a fitted model takes.

    Args:
        name: the feature.
        dtype: pandas' data type, such as `int64`, `Int64`, `bool`, `str`, `category` or `datetime64[us, UTC]`; or
            `object` for text, `object[bool]` and `object[date]` for Python's values, with None for NULL.
        categories: the values of a `category`, in their order.
    """

    name: str
    dtype: str
    categories: list[Any] | None = None


@dataclass(frozen=True)
class Package:
    """A wheel of own code in the model's folder: its file name, and its SHA-256 in hex."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Contributions:
    """What a model's contributions need (`predictions.scoring.contributions`).

    Args:
        sources: for each value that the estimator compares or weighs, the index of the feature that it comes from.
        means: of a linear model, the means of these values in training; empty for other models.
        expected: what contributions are relative to: the mean raw score; with several classes, of each.
    """

    sources: list[int]
    means: list[float]
    expected: list[float]


@dataclass(frozen=True, kw_only=True)
class ModelManifest:
    """What describes a model: the contents of `model.json`, if there is one label.

    Args:
        sha256: SHA-256 of `model.skops`, in hex.
        compiled: SHA-256 of `model.npz`, the model's compiled form; None if it has none, so that scikit-learn scores.
        versions: versions of the libraries that the model was trained with.
        id: the column of the record ID.
        features, label: the columns that it predicts from, and the one that it predicts.
        task: `classification` or `regression`.
        classes: the classes of a classifier, in the order of its probabilities.
        estimator, params: the estimator's class and its parameters.
        outputs: what it says beyond a prediction and its probability: `probabilities`, `contributions`.
        top: how many classes are kept of `probabilities`, in one cell; None: all, in a cell each. And how many features
            of `contributions`; None: all.
        threshold: of two classes, one is predicted if its probability is at least this; None: the more probable one.
        positive: the index of the class that has the threshold.
        values: the names of what a regressor predicts, if it predicts several values for a record.
        contributions: what its contributions need; None if none are asked for.
        boosters: which of `lightgbm` and `xgboost` the model's trees are from; empty for scikit-learn's own.
        training: how the model was trained.
        golden: the golden records: record lines with their predictions at training, to be replayed wherever the model
            is loaded.
        origin: the setting `model.from` of a fitted model that was brought in; empty if it was trained here.
        origin_version: its version in the registry, if it comes from one.
        schema: the columns of the frame that the model takes, in order; empty for a model that was trained here, whose
            frame has float64 for numbers and for dates (in days), and text.
        trusted: types that the settings trust (`model.trusted`) in addition to those that were reviewed.
        packages: wheels with own code, which are in the same folder.
    """

    format: int = FORMAT
    sha256: str = ""
    compiled: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    id: Column | None = None
    features: list[Column]
    label: Column | None = None
    task: str = "classification"
    classes: list[Any] | None = None
    estimator: str = ""
    params: dict[str, Any] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    top: int | None = None
    threshold: float | None = None
    positive: int = 1
    values: list[str] | None = None
    contributions: Contributions | None = None
    boosters: list[str] = field(default_factory=list)
    training: Training = Training()
    golden: list[dict[str, str]] = field(default_factory=list)
    origin: str = ""
    origin_version: str = ""
    schema: list[FeatureType] = field(default_factory=list)
    trusted: list[str] = field(default_factory=list)
    packages: list[Package] = field(default_factory=list)

    @property
    def fields(self) -> int:
        """Return the number of fields of a record line with this label alone: ID, features, label."""
        return len(self.features) + 2

    @property
    def columns(self) -> list[str]:
        """Return the columns of its prediction lines (`predictions.formats.prediction_line`)."""
        columns = [*COLUMNS, *(qualifier(PREDICTION, name) for name in self.values or ())]
        if PROBABILITIES in self.outputs and self.top:
            columns.append(PROBABILITIES)
        elif PROBABILITIES in self.outputs:
            columns += [qualifier(PROBABILITY, str(label)) for label in self.classes or ()]
        if CONTRIBUTIONS in self.outputs:
            columns.append(CONTRIBUTIONS)
        return columns

    @property
    def what_decides(self) -> tuple[Any, ...]:
        """Return what decides which cells a record gets: the model's file, its code, and what is read and kept."""
        read = self.features, self.schema
        kept = self.classes, self.outputs, self.top, self.threshold, self.positive, self.values
        return self.sha256, self.packages, *read, *kept

    @property
    def engine(self) -> str:
        """Return the name of the library that scores."""
        return "numpy" if self.compiled else ", ".join(self.boosters) or "scikit-learn"

    @property
    def task_files(self) -> tuple[str, ...]:
        """Return the names of the files that a task needs."""
        if self.compiled:
            return COMPILED_FILE, MODEL_MANIFEST
        return MODEL_FILE, MODEL_MANIFEST, *(package.name for package in self.packages)

    @property
    def files(self) -> tuple[str, ...]:
        """Return the names of all files of the model."""
        packages = [package.name for package in self.packages]
        return (MODEL_FILE, *([COMPILED_FILE] if self.compiled else []), MODEL_MANIFEST, *packages)

    @property
    def source(self) -> str:
        """Return where the model was brought in from, as text; empty if it was trained here."""
        return f"{self.origin} (version {self.origin_version})" if self.origin_version else self.origin


@dataclass(frozen=True)
class _Tables:
    """The contents of `model.json`, if there are several labels."""

    format: int = FORMAT
    models: list[ModelManifest] = field(default_factory=list)


@dataclass(frozen=True)
class ReleaseModels:
    """The models of a release, one for each label, over the same features.

    With one label, `model.json` is its model's manifest, and its files and columns have their plain names. With
    several, it is `{"format": 1, "models": [...]}`, the names of the files begin with the number of the label and a
    hyphen, and those of the columns with the label and a colon.

    Args:
        each: the models' manifests, in the order of the labels in a record line.
    """

    each: Sequence[ModelManifest]

    @classmethod
    def read(cls, data: bytes, path: str) -> "ReleaseModels":
        """Read `model.json`, given with its path for messages; InputError if it has another format."""
        models = document.read(_Tables, data, path).models
        return cls(models or [document.read(ModelManifest, data, path)])

    def to_file(self) -> bytes:
        """Return the contents of `model.json`."""
        return document.to_file(_Tables(models=list(self.each)) if self.names[0] is not None else self.each[0])

    @property
    def only(self) -> ModelManifest:
        """Return the manifest of the only model; raise InputError if there are several labels."""
        if len(self.each) > 1:
            raise InputError(f"the release has models for {', '.join(map(str, self.names))}, not for one label")
        return self.each[0]

    @cached_property
    def names(self) -> Sequence[str | None]:
        """The labels, as they begin the names of columns; a single None if there is only one."""
        return [None] if len(self.each) == 1 else [model.label.name if model.label else "" for model in self.each]

    @property
    def features(self) -> list[Column]:
        """The columns that the labels are predicted from."""
        return self.each[0].features

    @property
    def labels(self) -> list[Column | None]:
        """The columns of the labels."""
        return [model.label for model in self.each]

    @property
    def fields(self) -> int:
        """The number of fields of a record line: ID, features, labels."""
        return 1 + len(self.features) + len(self.each)

    @property
    def columns(self) -> list[str]:
        """The columns of the prediction lines (`predictions.formats.prediction_line`)."""
        return [
            column if name is None else f"{qualifier(name)}:{column}"
            for name, model in zip(self.names, self.each, strict=True)
            for column in (model.columns if name is None else [*model.columns, ERROR])
        ]

    @property
    def sha256(self) -> str:
        """The SHA-256 of the models, in hex, with commas between them."""
        return ",".join(model.sha256 for model in self.each)

    def write_the_same_as(self, other: "ReleaseModels") -> bool:
        """Return whether the same records get the same prediction lines, but for their time."""
        mine, others = ([model.what_decides for model in models.each] for models in (self, other))
        return (self.columns, mine) == (other.columns, others)

    @property
    def is_compiled(self) -> bool:
        """Whether all models have a compiled form."""
        return all(model.compiled for model in self.each)

    @property
    def boosters(self) -> list[str]:
        """Which of `lightgbm` and `xgboost` the models' trees are from."""
        return sorted({name for model in self.each for name in model.boosters})

    @property
    def task_files(self) -> list[str]:
        """The names of the files that a task needs."""
        return self._names_of([model.task_files for model in self.each])

    @property
    def files(self) -> list[str]:
        """The names of all files of the models."""
        return self._names_of([model.files for model in self.each])

    def prefix(self, number: int) -> str:
        """Return what the names of a model's files begin with, except that of `model.json`."""
        return "" if len(self.each) == 1 else f"{number}-"

    def _names_of(self, files: Sequence[Sequence[str]]) -> list[str]:
        names = [
            f"{self.prefix(number)}{name}"
            for number, model_files in enumerate(files)
            for name in model_files
            if name != MODEL_MANIFEST
        ]
        return [*names, MODEL_MANIFEST]

    @property
    def text(self) -> str:
        """The columns as text, for messages."""
        return _text(self.features, self.labels)


@dataclass(frozen=True)
class ModelFacts:
    """The facts about a model that scored a release, copied from its `model.json`.

    Args:
        estimator, sha256, versions, training: as there.
        engine: the library that scored.
        origin: where a fitted model was brought in from, with its version in the registry.
        task: as there; None if the release has only one label, see `Manifest`.
    """

    estimator: str
    sha256: str
    versions: dict[str, str]
    training: Training
    engine: str = "scikit-learn"
    origin: str = ""
    task: str | None = None


class Predicted(NamedTuple):
    """A label of a scored release.

    Args:
        name: the label, as it begins the names of columns; None if it is the only one.
        label: its column.
        model: the facts about its model.
        task: the model's task.
    """

    name: str | None
    label: Column
    model: ModelFacts
    task: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contents of `manifest.json`, which describes a release.

    Args:
        name: the name of the predictions.
        release: the release ID.
        source: the table or the query, and the column of the record ID.
        id, features, label: the columns of the record lines.
        labels: instead of `label`, if there are several.
        snapshot: the moment of the export.
        export, scored, loaded: what each stage did; None for a stage that has not run yet.
        model, task: the model that scored the release, and its task.
        models: instead of both, if there are several labels.
        columns: the columns of its prediction lines (`predictions.formats.prediction_line`).
    """

    format: int = FORMAT
    name: str
    release: str
    source: dict[str, str]
    id: Column
    features: list[Column]
    label: Column | None = None
    labels: list[Column] | None = None
    snapshot: Snapshot
    export: Export
    model: ModelFacts | None = None
    task: str | None = None
    models: list[ModelFacts] | None = None
    columns: list[str] = field(default_factory=lambda: list(COLUMNS))
    scored: Scored | None = None
    loaded: Loaded | None = None

    @property
    def all_labels(self) -> list[Column]:
        """Return the columns of the labels."""
        return self.labels or ([self.label] if self.label else [])

    @property
    def predicted(self) -> list[Predicted]:
        """Return the labels with their models, once the release is scored."""
        if self.label and self.model and self.task:
            return [Predicted(None, self.label, self.model, self.task)]
        if not self.labels or not self.models:
            return []
        pairs = zip(self.labels, self.models, strict=True)
        return [Predicted(label.name, label, model, model.task or "") for label, model in pairs]

    @property
    def text(self) -> str:
        """Return the columns as text, for messages."""
        return _text(self.features, self.all_labels)

    def scored_by(self, models: ReleaseModels) -> dict[str, Any]:
        """Return the fields that say which models scored the release."""
        facts = [
            ModelFacts(model.estimator, model.sha256, model.versions, model.training, model.engine, model.source)
            for model in models.each
        ]
        if models.names[0] is None:
            return {"model": facts[0], "task": models.only.task, "columns": models.columns}
        each = [replace(fact, task=model.task) for fact, model in zip(facts, models.each, strict=True)]
        return {"models": each, "columns": models.columns}

    @property
    def accounts(self) -> list[Account]:
        """Return the accounts of all steps of a loaded release, for `mismatches`."""
        assert self.scored
        assert self.loaded
        parts = self.loaded.parts
        return [
            *exported_and_scored(self.export, self.scored),
            Account("scored or failed", self.scored.rows, self.scored.id_digest),
            Account("loaded", sum(part.rows for part in parts), sum((part.id_digest for part in parts), NO_IDS)),
        ]

    @property
    def done(self) -> dict[str, Any]:
        """Return the fields to write; those of stages that have not run yet are left out."""
        return {name: value for name, value in vars(self).items() if value is not None}


def exported_and_scored(export: Export, scored: Scored) -> list[Account]:
    """Return the accounts of the exported records: at the export, and after scoring.

    An unreadable line has no ID, so the two accounts differ if there was one.
    """
    digest = scored.id_digest + scored.duplicates_digest
    return [
        Account("exported", export.rows, export.id_digest),
        Account("scored, failed, duplicate or unreadable", scored.lines, digest),
    ]


def _text(features: Sequence[Column], labels: Sequence[Column | None]) -> str:
    label = "label" if len(labels) == 1 else "labels"
    return f"{', '.join(map(str, features))} and the {label} {', '.join(map(str, labels))}"
