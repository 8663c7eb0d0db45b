"""How a release's predictions are distributed: a histogram of their scores, classes, and why records failed."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from predictions.formats.manifest import ModelManifest
from predictions.formats.prediction_line import split_block
from predictions.formats.record_line import NULL, escape, unescape

REASONS = 100  # of failures that are told apart
OTHERS = b"other reasons"
BYTES = "latin-1"  # any bytes as text: a failed record's may be no UTF-8
FINE_BINS = 100  # of a distribution's histogram; quantiles are read from it
SHARES = tuple(edge / FINE_BINS for edge in range(1, FINE_BINS))  # of the labels, below the edges of the bins
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)

Values = np.ndarray


class Rows(NamedTuple):
    """Prediction lines, column by column, in the order of their row keys."""

    keys: Sequence[bytes]
    predictions: Sequence[bytes]
    probabilities: Sequence[bytes]
    errors: Sequence[bytes]

    def take(self, rows: slice | Values) -> "Rows":
        """Return some of them."""
        if isinstance(rows, slice):
            return Rows(*(column[rows] for column in self))
        return Rows(*([column[row] for row in rows.tolist()] for column in self))

    @classmethod
    def of(cls, block: bytes) -> "Rows":
        """Return those of a block; InputError where a line is none."""
        keys, predictions, probabilities, _record, _scored, errors = split_block(block)
        return cls(keys, predictions, probabilities, errors)

    def answer(self, row: int) -> tuple[bytes, bytes]:
        """Return a row's prediction and probability."""
        return self.predictions[row], self.probabilities[row]


@dataclass(frozen=True)
class Bins:
    """What a prediction's score is, and the bins of its histogram.

    The score of a regressor's prediction is its value. That of a classifier's is the probability of the second of two
    classes, and of the predicted one where there are more.

    Args:
        classes: a classifier's, escaped as in a prediction line, in the model's order; none of a regressor.
        edges: of the bins, ascending; a score on an edge is in the bin above it.
    """

    classes: tuple[bytes, ...]
    edges: tuple[float, ...]

    @property
    def bounds(self) -> tuple[float, ...]:
        """Where each bin begins, and where the last one ends; of a regressor, the outermost ones have no other end."""
        return (0.0, *self.edges, 1.0) if self.classes else (self.edges[0], *self.edges, self.edges[-1])

    @classmethod
    def of_model(cls, model: ModelManifest) -> "Bins":
        """Return those of a model: fixed ones for probabilities, a regressor's by its labels' quantiles."""
        if model.task == "regression":
            return cls((), tuple(model.training.quantiles or ()))
        return cls(tuple(escape(str(label).encode()) for label in model.classes or ()), SHARES)

    def are_like(self, other: "Bins") -> bool:
        """Whether both are of classifiers, or both of regressors."""
        return bool(self.classes) == bool(other.classes)

    def scores(self, predictions: Sequence[bytes], probabilities: Sequence[bytes]) -> Values:
        """Return the scores of predictions (shape: predictions)."""
        if not self.classes:
            return _numbers(predictions)
        found = _numbers(probabilities)
        if len(self.classes) == 2:
            first = np.array([prediction == self.classes[0] for prediction in predictions], dtype=bool)
            found = np.where(first, 1 - found, found)
        return found

    def histogram(self, scores: Values) -> Values:
        """Return how many scores each bin has (shape: edges + 1)."""
        found = np.searchsorted(np.array(self.edges), scores, side="right")
        return np.bincount(found, minlength=len(self.edges) + 1)


@dataclass
class Distribution:
    """The predictions of one release, or of a range of its row keys.

    Args:
        bins: of the histogram.
        rows: all of them.
        classes: of a classifier's predictions, how many there are of each.
        failures: of records that could not be scored, how many for each reason.
        histogram: of the scores.
        total: sum of the scores.
        lowest, highest: of the scores.
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
        """How many records could not be scored."""
        return self.failures.total()

    @property
    def mean(self) -> float | None:
        """The mean score; None without any."""
        return self.total / (self.rows - self.failed) if self.rows > self.failed else None

    def quantile(self, share: float) -> float | None:
        """Return the score below which a share of them is, interpolated in its bin; None without any."""
        if self.rows == self.failed:
            return None
        edges = [self.lowest, *np.clip(self.bins.edges, self.lowest, self.highest), self.highest]
        shares = np.concatenate([[0.0], np.cumsum(self.histogram) / self.histogram.sum()])
        return float(np.interp(share, shares, edges))

    def as_json(self) -> dict[str, Any]:
        """Return it for JSON; what is not known is None."""
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
        """Return all of it for JSON, for `of_state`; bytes as the characters of the same numbers."""
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
        """Return what `state` was taken of."""
        found = cls(bins, state["rows"], total=state["total"])
        found.classes, found.failures = (
            Counter({name.encode(BYTES): count for name, count in state[kind].items()})
            for kind in ("classes", "failures")
        )
        found.histogram = np.array(state["histogram"], dtype=np.int64)
        if state["ends"]:
            found.lowest, found.highest = state["ends"]
        return found

    def add(self, rows: Rows, scores: Values) -> None:
        """Add predictions; `scores` are those of them that did not fail."""
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
        """Add those of another range."""
        self.rows += other.rows
        self.classes += other.classes
        self.failures += other.failures
        self.histogram = self.histogram + other.histogram
        self.total += other.total
        self.lowest, self.highest = min(self.lowest, other.lowest), max(self.highest, other.highest)


def _numbers(fields: Sequence[bytes]) -> Values:
    return np.array(list(map(float, fields)), dtype=float)


def text(value: bytes) -> str | None:
    """Return a field of a prediction line as a person reads it; None for NULL."""
    return None if value == NULL else unescape(value).decode(errors="replace")
