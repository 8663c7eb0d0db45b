"""Compare the predictions of two releases: their distributions, and the change of each record's prediction.

The prediction lines of both releases are sorted by row key, so one pass joins them, and memory holds one block of each
release. There is a comparison for each label. The comparisons of two ranges of row keys can be added up.
"""

import heapq
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import ne
from typing import Any, NamedTuple

import numpy as np

from predictions.comparison.distribution import (
    BYTES,
    NO_LINES,
    NO_ROWS,
    Bins,
    Distribution,
    Lines,
    Rows,
    Values,
    text,
)
from predictions.formats.prediction_line import FIRST, Place
from predictions.formats.record_line import NULL, bytes_before
from predictions.formats.row_key import key_range, record_id

EXAMPLES = 20  # how many of the most changed records are kept
# Fine bins per bin of the population stability index: with smaller bins, chance alone moves that of small releases.
COARSE = 10
COUNTS = ("both", "appeared", "gone", "changed")
AMOUNT_EDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)  # edges of the histogram of changes


class Change(NamedTuple):
    """A changed prediction: the amount of the change, the row key, and both predictions with their probabilities."""

    amount: float
    row_key: bytes
    before: tuple[bytes, bytes]
    after: tuple[bytes, bytes]


@dataclass
class Comparison:
    """The comparison of a release's predictions with an earlier release's, or of a range of their row keys.

    Args:
        before, after: the distributions of the earlier and the later release, with the same bins.
        both: number of records that have a prediction in both releases.
        appeared, gone: number of records that only the later, or only the earlier, release has.
        changed: number of records of `both` whose prediction (for a classifier, the class) changed.
        moves: for a classifier, the number of records that moved from one class to another.
        amounts: histogram, by `AMOUNT_EDGES`, of the change of each record of `both`. For a regressor, the change is
            the difference of the predictions, divided by the spread of the edges of the earlier release's bins; for a
            classifier, it is the least probability that must have moved between classes.
        examples: the records that changed most.
    """

    before: Distribution
    after: Distribution
    both: int = 0
    appeared: int = 0
    gone: int = 0
    changed: int = 0
    moves: Counter[tuple[bytes, bytes]] = field(default_factory=Counter)
    amounts: Values = field(default_factory=lambda: np.zeros(len(AMOUNT_EDGES) + 1, dtype=np.int64))
    examples: list[Change] = field(default_factory=list)

    @classmethod
    def of(cls, bins: Bins) -> "Comparison":
        """Return an empty comparison."""
        return cls(Distribution(bins), Distribution(bins))

    @property
    def stability(self) -> float:
        """Return the population stability index: the sum over all bins of (after - before) * ln(after / before).

        `before` and `after` are the shares of the scores in a bin. Half a record is added to each bin of each release,
        so that an empty bin does not make the index infinite. A score counts partly in each of the two nearest bins:
        if a model gives few distinct scores and one of them crosses an edge, the index must not jump. An index below
        0.1 is commonly considered stable, one over 0.25 a different population (Siddiqi, Credit Risk Scorecards, 2006).
        """
        return float(sum(share for _bin, share in self.drift))

    @property
    def drift(self) -> list[tuple[str, float]]:
        """Return the contribution of each bin (with more than two classes, of each class) to the stability index."""
        if self.before.bins.classes and len(self.before.bins.classes) != 2:
            names = [str(text(label)) for label in self._classes]
            counts = [np.array([side.classes[label] for label in self._classes]) for side in self._sides]
        else:
            counts = [_coarse(side.histogram) for side in self._sides]
            bounds = self.before.bins.bounds
            names = [f"{bounds[min(COARSE * index, len(bounds) - 1)]:.4g}" for index in range(len(counts[0]))]
        return list(zip(names, _drift(*counts).tolist(), strict=True))

    @property
    def _sides(self) -> tuple[Distribution, Distribution]:
        return self.before, self.after

    @property
    def _classes(self) -> list[bytes]:
        return sorted(self.before.classes.keys() | self.after.classes.keys())

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as a report for JSON."""
        return {
            "before": self.before.as_json(),
            "after": self.after.as_json(),
            **{name: getattr(self, name) for name in (*COUNTS, "stability")},
            "drift": [{"bin": name, "value": value} for name, value in self.drift],
            "moves": [
                {"before": text(before), "after": text(after), "rows": count}
                for (before, after), count in sorted(self.moves.items(), key=lambda move: (-move[1], move[0]))
            ],
            "amounts": {"edges": AMOUNT_EDGES, "counts": self.amounts.tolist()},
            "examples": [
                {
                    "id": text(record_id(change.row_key)),
                    "amount": change.amount,
                    "before": list(map(text, change.before)),
                    "after": list(map(text, change.after)),
                }
                for change in self.examples
            ],
        }

    def state(self) -> dict[str, Any]:
        """Return everything as JSON for `of_state`, with bytes as the characters of the same numbers (`BYTES`)."""
        return {
            "before": self.before.state(),
            "after": self.after.state(),
            **{name: getattr(self, name) for name in COUNTS},
            "moves": [[*map(_decoded, move), count] for move, count in self.moves.items()],
            "amounts": self.amounts.tolist(),
            "examples": [
                [
                    change.amount,
                    _decoded(change.row_key),
                    *(list(map(_decoded, answer)) for answer in (change.before, change.after)),
                ]
                for change in self.examples
            ],
        }

    @classmethod
    def of_state(cls, bins: Bins, state: dict[str, Any]) -> "Comparison":
        """Restore the comparison from its `state`."""
        comparison = cls(Distribution.of_state(bins, state["before"]), Distribution.of_state(bins, state["after"]))
        for name in COUNTS:
            setattr(comparison, name, state[name])
        comparison.moves = Counter({(_encoded(before), _encoded(after)): n for before, after, n in state["moves"]})
        comparison.amounts = np.array(state["amounts"], dtype=np.int64)
        comparison.examples = [
            Change(amount, _encoded(key), (_encoded(a), _encoded(b)), (_encoded(c), _encoded(d)))
            for amount, key, (a, b), (c, d) in state["examples"]
        ]
        return comparison

    def add(self, before: Rows, after: Rows, in_before: slice | Values, in_after: slice | Values) -> None:
        """Add the rows of both releases in one range of row keys, and the indexes of those that both have."""
        scores_of_sides = []
        for side, rows in ((self.before, before), (self.after, after)):
            is_scored = np.fromiter(map(NULL.__eq__, rows.errors), bool, len(rows.errors))
            scores = np.full(len(rows.keys), np.nan)
            scored = rows if is_scored.all() else rows.take(np.flatnonzero(is_scored))
            scores[is_scored] = side.bins.scores(scored.predictions, scored.probabilities)
            side.add(rows, scores[is_scored])
            scores_of_sides.append(scores)
        old, new = before.take(in_before), after.take(in_after)
        self.gone += len(before.keys) - len(old.keys)
        self.appeared += len(after.keys) - len(new.keys)
        if old.keys:
            self._compare(old, new, scores_of_sides[0][in_before], scores_of_sides[1][in_after])

    def _compare(self, old: Rows, new: Rows, old_scores: Values, new_scores: Values) -> None:
        valid = ~(np.isnan(old_scores) | np.isnan(new_scores))
        self.both += int(valid.sum())
        differ = np.fromiter(map(ne, old.predictions, new.predictions), dtype=bool, count=len(old.keys)) & valid
        self.changed += int(differ.sum())
        if self.before.bins.classes:
            for row in np.flatnonzero(differ).tolist():
                self.moves[old.predictions[row], new.predictions[row]] += 1
        amounts = np.where(valid, self._amounts(differ, old_scores, new_scores), 0.0)
        self.amounts = self.amounts + np.bincount(
            np.searchsorted(AMOUNT_EDGES, amounts[valid], side="right"), minlength=len(AMOUNT_EDGES) + 1
        )
        largest = np.argsort(-amounts, kind="stable")[:EXAMPLES].tolist()
        self._keep_largest(
            Change(float(amounts[row]), old.keys[row], old.answer(row), new.answer(row))
            for row in largest
            if amounts[row]
        )

    def _amounts(self, differ: Values, old: Values, new: Values) -> Values:
        """Return the amount of each change, from the old and the new scores."""
        bins = self.before.bins
        if not bins.classes:
            edges = bins.edges
            return np.abs(new - old) / ((edges[-1] - edges[0]) or 1.0)
        if len(bins.classes) == 2:
            return np.abs(new - old)
        # Only the probability of each predicted class is known. The total variation between the two distributions is at
        # least what the newly predicted class has gained, and at least what the previously predicted one has lost.
        gained, lost = new - np.minimum(old, 1 - old), old - np.minimum(new, 1 - new)
        return np.where(differ, np.maximum(gained, lost), np.abs(new - old))

    def _keep_largest(self, changes: Iterable[Change]) -> None:
        # Changes of the same amount are ordered by row key: the examples must not depend on how the ranges were cut.
        candidates = [*self.examples, *changes]
        self.examples = heapq.nsmallest(EXAMPLES, candidates, key=lambda change: (-change.amount, change.row_key))

    def merge(self, other: "Comparison") -> None:
        """Add the comparison of another range of row keys."""
        self.before.merge(other.before)
        self.after.merge(other.after)
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.moves += other.moves
        self.amounts = self.amounts + other.amounts
        self._keep_largest(other.examples)


@dataclass(frozen=True)
class Compared:
    """A label whose predictions are compared.

    Args:
        bins: the bins of the earlier release, or of the later one if there is no earlier one with this label.
        name: the label; None if it is the only one of the later release.
        before, after: where its cells are in the lines of each release; None if the earlier release lacks it.
    """

    bins: Bins
    name: str | None = None
    before: Place | None = FIRST
    after: Place = FIRST


class Comparisons:
    """The comparison of two releases, or of a range of their row keys: one for each label.

    Args:
        labels: the labels.
        each: their comparisons; by default empty ones.
    """

    def __init__(self, labels: Sequence[Compared], each: Sequence[Comparison] = ()) -> None:
        self.labels = labels
        self.each = each or [Comparison.of(label.bins) for label in labels]

    @property
    def before_rows(self) -> int:
        """Return the number of rows of the earlier release."""
        return max(comparison.before.rows for comparison in self.each)

    def add(self, before: Lines, after: Lines) -> None:
        """Add the lines of both releases in one range of row keys."""
        in_before, in_after = _shared(before.keys, after.keys)
        for label, comparison in zip(self.labels, self.each, strict=True):
            if label.before:
                comparison.add(before.rows(label.before), after.rows(label.after), in_before, in_after)
            else:
                comparison.add(NO_ROWS, after.rows(label.after), slice(0), slice(0))

    def merge(self, other: "Comparisons") -> None:
        """Add the comparisons of another range of row keys."""
        for comparison, more in zip(self.each, other.each, strict=True):
            comparison.merge(more)

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as a report for JSON; of several labels, each has its own under `labels`."""
        reports = {label.name: comparison.as_json() for label, comparison in zip(self.labels, self.each, strict=True)}
        return reports.get(None, {"labels": reports})

    def state(self) -> list[dict[str, Any]]:
        """Return each label's `Comparison.state`."""
        return [comparison.state() for comparison in self.each]

    @classmethod
    def of_state(cls, labels: Sequence[Compared], state: list[dict[str, Any]]) -> "Comparisons":
        """Restore the comparisons from their `state`."""
        pairs = zip(labels, state, strict=True)
        return cls(labels, [Comparison.of_state(label.bins, values) for label, values in pairs])


def compare(before: Iterable[bytes], after: Iterable[bytes], labels: Sequence[Compared]) -> Comparisons:
    """Compare the predictions of two releases.

    Args:
        before: blocks of the earlier release's prediction lines, sorted by row key.
        after: the same of the later release.
        labels: the labels of the later release.
    """
    comparisons = Comparisons(labels)
    for old, new in aligned(map(Lines.of, filter(None, before)), map(Lines.of, filter(None, after))):
        comparisons.add(old, new)
    return comparisons


def lines_between(
    points: Sequence[str], read: Callable[[int], Iterable[bytes]], start: bytes, stop: bytes
) -> Iterator[bytes]:
    """Yield the prediction lines of a release in a range of row keys, in blocks.

    Args:
        points: the split points between the release's parts; the range may have other bounds.
        read: a function that returns the blocks of a part.
        start: the first row key of the range.
        stop: the row key to stop before; an empty key means no limit.
    """
    for part in range(len(points) + 1):
        first, end = key_range(points, part)
        if (end and end <= start) or (stop and first >= stop):
            continue
        for block in read(part):
            begin = 0 if block >= start else bytes_before(block, start)
            is_inside = not stop or block[block.rfind(b"\n", 0, -1) + 1 :] < stop
            if lines := block[begin : None if is_inside else bytes_before(block, stop)]:
                yield lines
            if not is_inside:
                return


def aligned(before: Iterator[Lines], after: Iterator[Lines]) -> Iterator[tuple[Lines, Lines]]:
    """Yield pairs of lines; each pair has all lines of both releases in one range of row keys."""
    old, new = next(before, None), next(after, None)
    while old and new:
        stop = min(old.keys[-1], new.keys[-1])
        ends = bisect_right(old.keys, stop), bisect_right(new.keys, stop)
        yield old.take(slice(ends[0])), new.take(slice(ends[1]))
        old = old.take(slice(ends[0], None)) if ends[0] < len(old.keys) else next(before, None)
        new = new.take(slice(ends[1], None)) if ends[1] < len(new.keys) else next(after, None)
    for rest in chain([old] if old else [], before):
        yield rest, NO_LINES
    for rest in chain([new] if new else [], after):
        yield NO_LINES, rest


def _shared(before: Sequence[bytes], after: Sequence[bytes]) -> tuple[slice | Values, slice | Values]:
    """Return the indexes, in `before` and in `after`, of the keys that both have."""
    if not before or not after:
        return slice(0), slice(0)
    if before == after:
        return slice(None), slice(None)
    before_rows = dict(zip(before, range(len(before)), strict=True))
    pairs = [(before_rows[key], row) for row, key in enumerate(after) if key in before_rows]
    indexes = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return indexes[:, 0], indexes[:, 1]


def _decoded(value: bytes) -> str:
    return value.decode(BYTES)


def _encoded(characters: str) -> bytes:
    return characters.encode(BYTES)


def _coarse(histogram: Values) -> Values:
    """Return a histogram with `COARSE` times fewer bins; each count is shared between the two nearest, by distance."""
    positions = (np.arange(len(histogram)) + 0.5) / COARSE
    centers = np.arange((len(histogram) + COARSE - 1) // COARSE + 1)
    return histogram @ np.maximum(0, 1 - np.abs(positions[:, None] - centers))


def _drift(before: Values, after: Values) -> Values:
    old, new = ((side + 0.5) / (side.sum() + 0.5 * len(side)) for side in (before, after))
    return (new - old) * np.log(new / old)
