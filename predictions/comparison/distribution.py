"""The distribution of a release's predictions: a histogram of the scores, the classes, and the reasons of failures."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from predictions.formats.manifest import ModelManifest
from predictions.formats.prediction_line import AFTER, Place, PredictionLine, split_block
from predictions.formats.record_line import NULL, escape, unescape

REASONS = 100  # how many different reasons of failures are counted; the rest count as `OTHERS`
OTHERS = b"other reasons"
BYTES = "latin-1"  # decodes any bytes: those of a failed record may not be valid UTF-8
FINE_BINS = 100  # of the histogram, which also gives the quantiles
SHARES = tuple(edge / FINE_BINS for edge in range(1, FINE_BINS))  # the share of the labels below each edge of the bins
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)

Values = np.ndarray


Fields = Sequence[bytes]


class Lines(NamedTuple):
    """Prediction lines as columns, sorted by row key; `cells` are those between the row keys and `records`."""

    keys: Fields
    cells: tuple[Fields, ...]
    records: Fields
    scored: Fields
    errors: Fields

    @classmethod
    def of(cls, block: bytes) -> "Lines":
        """Parse a block of prediction lines; InputError if they have different numbers of fields, or too few."""
        keys, *cells = split_block(block)
        return cls(keys, tuple(cells[:-AFTER]), *cells[-AFTER:])

    @property
    def columns(self) -> tuple[Fields, ...]:
        """The columns in the order of the fields."""
        return self.keys, *self.cells, self.records, self.scored, self.errors

    def take(self, rows: slice | Values) -> "Lines":
        """Return some of the lines."""
        keys, *cells = (_take(column, rows) for column in self.columns)
        return Lines(keys, tuple(cells[:-AFTER]), *cells[-AFTER:])

    def line(self, row: int) -> PredictionLine:
        """Return a line."""
        cells = tuple(column[row] for column in self.cells)
        return PredictionLine(self.keys[row], cells, self.records[row], self.scored[row], self.errors[row])

    def rows(self, place: Place) -> "Rows":
        """Return what the lines say about one label."""
        if not self.keys:
            return NO_ROWS
        errors = self.errors
        if place.error is not None and (own_errors := self.cells[place.error]).count(NULL) < len(errors):
            # Where the record failed, none of its labels has an error of its own.
            errors = [own if error == NULL else error for error, own in zip(errors, own_errors, strict=True)]
        return Rows(self.keys, self.cells[place.prediction], self.cells[place.probability], errors)


NO_LINES = Lines((), (), (), (), ())


class Rows(NamedTuple):
    """The predictions of one label as columns, sorted by row key."""

    keys: Fields
    predictions: Fields
    probabilities: Fields
    errors: Fields

    def take(self, rows: slice | Values) -> "Rows":
        """Return some of the rows."""
        return Rows(*(_take(column, rows) for column in self))

    def answer(self, row: int) -> tuple[bytes, bytes]:
        """Return the prediction and the probability of a row."""
        return self.predictions[row], self.probabilities[row]


NO_ROWS = Rows((), (), (), ())


def _take(column: Fields, rows: slice | Values) -> Fields:
    return column[rows] if isinstance(rows, slice) else list(map(column.__getitem__, rows.tolist()))


@dataclass(frozen=True)
class Bins:
    """How predictions are scored, and the bins of the histogram of their scores.

    For a regressor, the score is the predicted value. For a classifier with two classes, it is the probability of the
    second class; with more classes, it is the probability of the predicted class.

    Args:
        classes: the classes of a classifier, escaped as in a prediction line, in the model's order; empty for a
            regressor.
        edges: the inner edges of the bins, ascending; a score on an edge belongs to the bin above it.
    """

    classes: tuple[bytes, ...]
    edges: tuple[float, ...]

    @property
    def bounds(self) -> tuple[float, ...]:
        """Return where each bin begins, and where the last bin ends.

        A regressor's outermost bins are open; the first and the last edge stand in for their missing bounds.
        """
        return (0.0, *self.edges, 1.0) if self.classes else (self.edges[0], *self.edges, self.edges[-1])

    @classmethod
    def of_model(cls, model: ModelManifest) -> "Bins":
        """Return the bins of a model: fixed bins of probabilities, or a regressor's quantiles of the labels."""
        if model.task == "regression":
            return cls((), tuple(model.training.quantiles or ()))
        return cls(tuple(escape(str(label).encode()) for label in model.classes or ()), SHARES)

    def are_like(self, other: "Bins") -> bool:
        """Return whether both are bins of classifiers, or both of regressors."""
        return bool(self.classes) == bool(other.classes)

    def scores(self, predictions: Sequence[bytes], probabilities: Sequence[bytes]) -> Values:
        """Return the score of each prediction (shape: predictions)."""
        if not self.classes:
            return _numbers(predictions)
        scores = _numbers(probabilities)
        if len(self.classes) == 2:
            is_first_class = np.fromiter(map(self.classes[0].__eq__, predictions), bool, len(predictions))
            scores = np.where(is_first_class, 1 - scores, scores)
        return scores

    def histogram(self, scores: Values) -> Values:
        """Return the number of scores in each bin (shape: edges + 1)."""
        bins = np.searchsorted(np.array(self.edges), scores, side="right")
        return np.bincount(bins, minlength=len(self.edges) + 1)


@dataclass
class Distribution:
    """The distribution of the predictions of a release, or of a range of its row keys.

    Args:
        bins: the bins of the histogram.
        rows: number of rows, failed ones included.
        classes: for a classifier, the number of predictions of each class.
        failures: the number of records that could not be scored, by reason.
        histogram: the number of scores in each bin.
        total: sum of the scores.
        lowest, highest: the lowest and the highest score.
    """

    bins: Bins
    rows: int = 0
    classes: Counter[bytes] = field(default_factory=Counter)
    failures: Counter[bytes] = field(default_factory=Counter)
    histogram: Values = field(init=False)
    total: float = 0.0
    lowest: float = np.inf
    highest: float = -np.inf

    def __post_init__(self) -> None:
        self.histogram = np.zeros(len(self.bins.edges) + 1, dtype=np.int64)

    @property
    def failed(self) -> int:
        """Return the number of records that could not be scored."""
        return self.failures.total()

    @property
    def mean(self) -> float | None:
        """Return the mean score; None if there are no scores."""
        return self.total / (self.rows - self.failed) if self.rows > self.failed else None

    def quantile(self, share: float) -> float | None:
        """Return the score below which this share of the scores lies, interpolated in its bin; None without scores."""
        if self.rows == self.failed:
            return None
        edges = [self.lowest, *np.clip(self.bins.edges, self.lowest, self.highest), self.highest]
        shares = np.concatenate([[0.0], np.cumsum(self.histogram) / self.histogram.sum()])
        return float(np.interp(share, shares, edges))

    def as_json(self) -> dict[str, Any]:
        """Return the distribution as a report for JSON; None stands for what is not known."""
        return {
            "rows": self.rows,
            "failed": self.failed,
            "failures": {text(reason): count for reason, count in sorted(self.failures.items())},
            "classes": {text(label): count for label, count in sorted(self.classes.items())},
            "mean": self.mean,
            "quantiles": {str(share): self.quantile(share) for share in QUANTILES},
            "histogram": {"edges": self.bins.edges, "counts": self.histogram.tolist()},
        }

    def state(self) -> dict[str, Any]:
        """Return everything as JSON for `of_state`, with bytes as the characters of the same numbers (`BYTES`)."""
        return {
            "rows": self.rows,
            "classes": {label.decode(BYTES): count for label, count in self.classes.items()},
            "failures": {reason.decode(BYTES): count for reason, count in self.failures.items()},
            "histogram": self.histogram.tolist(),
            "total": self.total,
            "ends": [self.lowest, self.highest] if self.lowest <= self.highest else None,
        }

    @classmethod
    def of_state(cls, bins: Bins, state: dict[str, Any]) -> "Distribution":
        """Restore the distribution from its `state`."""
        distribution = cls(bins, state["rows"], total=state["total"])
        distribution.classes, distribution.failures = (
            Counter({name.encode(BYTES): count for name, count in state[kind].items()})
            for kind in ("classes", "failures")
        )
        distribution.histogram = np.array(state["histogram"], dtype=np.int64)
        if state["ends"]:
            distribution.lowest, distribution.highest = state["ends"]
        return distribution

    def add(self, rows: Rows, scores: Values) -> None:
        """Add rows; `scores` has the scores of those that did not fail."""
        self.rows += len(rows.keys)
        if len(scores) < len(rows.keys):
            for error in rows.errors:
                if error != NULL:
                    self.failures[error if error in self.failures or len(self.failures) < REASONS else OTHERS] += 1
        if self.bins.classes:
            self.classes.update(rows.predictions)
            del self.classes[NULL]
        if len(scores):
            self.histogram = self.histogram + self.bins.histogram(scores)
            self.total += float(scores.sum())
            self.lowest = min(self.lowest, float(scores.min()))
            self.highest = max(self.highest, float(scores.max()))

    def merge(self, other: "Distribution") -> None:
        """Add the distribution of another range of row keys."""
        self.rows += other.rows
        self.classes += other.classes
        self.failures += other.failures
        self.histogram = self.histogram + other.histogram
        self.total += other.total
        self.lowest, self.highest = min(self.lowest, other.lowest), max(self.highest, other.highest)


def _numbers(fields: Sequence[bytes]) -> Values:
    return np.fromiter(map(float, fields), float, len(fields))


def text(value: bytes) -> str | None:
    """Return a field of a prediction line as readable text; None for NULL."""
    return None if value == NULL else unescape(value).decode(errors="replace")
