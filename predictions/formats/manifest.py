"""The manifests of a release, as JSON: `manifest.json` says what each stage did, `model/model.json` what the model is.

Each stage adds its part. That no record was lost or swapped is proven by the counts and the ID digests of the parts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from predictions.formats.id_digest import NO_IDS, IdDigest
from predictions.formats.record_line import Column

MANIFEST = "manifest.json"
MODEL_MANIFEST = "model.json"
FORMAT = 1  # of both


class Account(NamedTuple):
    """What one step says of the records: what it did, with how many, and the digest of their IDs."""

    step: str
    rows: int
    id_digest: IdDigest

    def __str__(self) -> str:
        return f"{self.rows:,} {self.step} (ID digest {self.id_digest})"


def mismatches(accounts: Sequence[Account]) -> Iterator[str]:
    """Yield where two accounts of the same records differ, a line each; none where no record was lost or swapped.

    Args:
        accounts: the first and the second are of the same records, the third and the fourth, and so on.
    """
    for before, after in zip(accounts[::2], accounts[1::2], strict=True):
        if before[1:] != after[1:]:
            yield f"{before}, but {after}"


@dataclass(frozen=True)
class Snapshot:
    """The moment of which the records are: ISO 8601, and the database's own name for it, where it has one."""

    time: str
    id: str | None = None


@dataclass(frozen=True)
class Export:
    """What was exported.

    Args:
        rows: records.
        labelled: of these, with a label.
        id_digest: of their IDs.
        unfit_ids: IDs that cannot be row keys.
        parts: files.
        bytes: of these.
        seconds: that it took.
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
        read: lines.
        scored, failed: of the rows, those with and without a prediction.
        duplicates: lines left out, since the same record had come before.
        unreadable: lines that are no record.
        carried: of the rows, those with the line of an earlier release.
        rows: prediction lines.
        id_digest: of their IDs.
        duplicates_digest: of the lines left out.
        split_points: between the regions.
        carried_from: that earlier release.
        job: its ID; None where no job scored.
        seconds: that it took.
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
        """How many regions, and part files."""
        return len(self.split_points) + 1

    @property
    def lines(self) -> int:
        """How many lines are accounted for."""
        return self.scored + self.failed + self.duplicates + self.unreadable


@dataclass(frozen=True)
class Part:
    """What was loaded of one part file: its rows, and the digest of their IDs."""

    rows: int = 0
    id_digest: IdDigest = NO_IDS


@dataclass(frozen=True)
class Loaded:
    """What was loaded: all rows, the seconds that it took, and what each part has."""

    rows: int = 0
    seconds: float = 0.0
    parts: list[Part] = field(default_factory=list)


@dataclass(frozen=True)
class Training:
    """How a model was trained and measured.

    Args:
        labelled: records to choose from.
        sample: of these, chosen.
        seed: of the choice.
        fitted, holdout: of the sample, those that it was fitted on and those that it was measured on.
        metrics, baseline: of the model, and of one that knows no feature, on the holdout.
        calibration: means of what was predicted and of what was so, in bins of the holdout.
        quantiles: of a regressor's labels, the edges of the bins of its predictions.
        seconds: that it took.
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


@dataclass(frozen=True, kw_only=True)
class ModelManifest:
    """What `model.json` says of the model beside it.

    Args:
        sha256: of the model's file.
        versions: of the libraries that it was trained with.
        id: the column of the record ID.
        features, label: the other columns of its record lines.
        task: `classification` or `regression`.
        classes: of a classifier, in the order of its probabilities.
        estimator, params: the class and its parameters.
        training: how it was trained.
        golden: record lines with the answers at training, to be replayed wherever it is loaded.
    """

    format: int = FORMAT
    sha256: str = ""
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

    @property
    def names(self) -> str:
        """The columns, for messages."""
        return _names(self.features, self.label)


@dataclass(frozen=True)
class ModelFacts:
    """Which model scored a release, as its `model.json` has it."""

    estimator: str
    sha256: str
    versions: dict[str, str]
    training: Training


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `manifest.json` says of a release.

    Args:
        name: of the predictions.
        release: its ID.
        source: the table or the query, and the column of the ID.
        id, features, label: the columns of the record lines.
        snapshot: the moment of the export.
        export, scored, loaded: what the stages did; None of what was not done yet.
        model, task: which model scored it.
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
        """The columns, for messages."""
        return _names(self.features, self.label)

    @property
    def accounts(self) -> list[Account]:
        """What each step of a loaded release says, for `mismatches`."""
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
        """What is to be kept: what was not done yet is left out."""
        return {name: value for name, value in vars(self).items() if value is not None}


def exported_and_scored(export: Export, scored: Scored) -> list[Account]:
    """Return the accounts of the records that were exported.

    An unreadable line has no ID, so these differ for a release with one.
    """
    digest = scored.id_digest + scored.duplicates_digest
    return [
        Account("exported", export.rows, export.id_digest),
        Account("scored, failed, duplicate or unreadable", scored.lines, digest),
    ]


def _names(features: list[Column], label: Column | None) -> str:
    return f"{', '.join(map(str, features))} and the label {label}"
