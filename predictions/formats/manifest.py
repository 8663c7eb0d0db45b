"""The manifests of a release: `manifest.json` says what each stage did, `model/model.json` describes the model.

Each stage adds its own section to `manifest.json`. The counts and ID digests of the sections prove that no record was
lost or swapped.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from predictions.formats.id_digest import NO_IDS, IdDigest
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
        labelled: number of records with a label.
        id_digest: digest of the record IDs.
        unfit_ids: number of IDs that cannot be row keys.
        parts: number of files.
        bytes: size of these files.
        seconds: time taken.
    """

    rows: int = 0
    labelled: int = 0
    id_digest: IdDigest = NO_IDS
    unfit_ids: int = 0
    parts: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Export") -> "Export":
        return Export(**{name: value + getattr(other, name) for name, value in vars(self).items()})


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


@dataclass(frozen=True, kw_only=True)
class ModelManifest:
    """The contents of `model.json`, which describes the model in the same folder.

    Args:
        sha256: SHA-256 of `model.skops`, in hex.
        compiled: SHA-256 of `model.npz`, the model's compiled form; None if it has none, so that scikit-learn scores.
        versions: versions of the libraries that the model was trained with.
        id: the column of the record ID.
        features, label: the other columns of the record lines.
        task: `classification` or `regression`.
        classes: the classes of a classifier, in the order of its probabilities.
        estimator, params: the estimator's class and its parameters.
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
    training: Training = Training()
    golden: list[dict[str, str]] = field(default_factory=list)
    origin: str = ""
    origin_version: str = ""
    schema: list[FeatureType] = field(default_factory=list)
    trusted: list[str] = field(default_factory=list)
    packages: list[Package] = field(default_factory=list)

    @property
    def fields(self) -> int:
        """Return the number of fields of a record line: ID, features, label."""
        return len(self.features) + 2

    @property
    def engine(self) -> str:
        """Return the name of the library that scores."""
        return "numpy" if self.compiled else "scikit-learn"

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
    def names(self) -> str:
        """Return the columns as text, for messages."""
        return _names(self.features, self.label)

    @property
    def source(self) -> str:
        """Return where the model was brought in from, as text; empty if it was trained here."""
        return f"{self.origin} (version {self.origin_version})" if self.origin_version else self.origin


@dataclass(frozen=True)
class ModelFacts:
    """The facts about the model that scored a release, copied from its `model.json`; `engine` is what scored.

    `origin` says where a fitted model was brought in from, with its version in the registry.
    """

    estimator: str
    sha256: str
    versions: dict[str, str]
    training: Training
    engine: str = "scikit-learn"
    origin: str = ""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contents of `manifest.json`, which describes a release.

    Args:
        name: the name of the predictions.
        release: the release ID.
        source: the table or the query, and the column of the record ID.
        id, features, label: the columns of the record lines.
        snapshot: the moment of the export.
        export, scored, loaded: what each stage did; None for a stage that has not run yet.
        model, task: the model that scored the release, and its task.
    """

    format: int = FORMAT
    name: str
    release: str
    source: dict[str, str]
    id: Column
    features: list[Column]
    label: Column
    snapshot: Snapshot
    export: Export
    model: ModelFacts | None = None
    task: str | None = None
    scored: Scored | None = None
    loaded: Loaded | None = None

    @property
    def names(self) -> str:
        """Return the columns as text, for messages."""
        return _names(self.features, self.label)

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


def _names(features: list[Column], label: Column | None) -> str:
    return f"{', '.join(map(str, features))} and the label {label}"
