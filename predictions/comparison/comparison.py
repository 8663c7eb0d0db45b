"""Two releases' predictions side by side: how each is distributed, and what became of each record.

Both come as prediction lines in the order of their row keys, so they are joined in one pass, with memory for a block of
each; what was found in two ranges of row keys adds up.
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

from predictions.comparison.distribution import BYTES, Bins, Distribution, Rows, Values, text
from predictions.formats.record_line import NULL, bytes_before
from predictions.formats.row_key import key_range, record_id

EXAMPLES = 20  # of the records that changed most
COARSE = 10  # fine bins in one of the population stability index: with more of these, chance alone moves small releases
COUNTS = ("both", "appeared", "gone", "changed")
AMOUNT_EDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)  # of the histogram of changes


class Change(NamedTuple):
    """A record whose prediction changed: by how much, its row key, and both predictions with their probabilities."""

    amount: float
    row_key: bytes
    before: tuple[bytes, bytes]
    after: tuple[bytes, bytes]


@dataclass
class Comparison:
    """A release's predictions beside those of the one before, or of a range of their row keys.

    Args:
        before, after: the distributions of each, over the same bins.
        both: records that were scored in both, and failed in neither.
        appeared, gone: records that only the later one has, or the earlier.
        changed: of `both`, those with another prediction; of a classifier, another class.
        moves: of a classifier, how many records went from one class to another.
        amounts: of `both`, the histogram of how much changed, by `AMOUNT_EDGES`: of a regressor, the difference over
            the spread of the earlier scores' bins; of a classifier, the probability that at least has moved.
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
        """Return one of nothing yet."""
        return cls(Distribution(bins), Distribution(bins))

    @property
    def stability(self) -> float:
        """The population stability index: the sum over bins of (after - before) * ln(after / before), in shares.

        A bin counts half a record more in each, so that an empty one does not make it infinite. A score counts in part
        in each of the two bins next to it: a model of few distinct scores, of which one moved over an edge, is not
        another one. Below 0.1 is commonly taken as stable, over 0.25 as another population (Siddiqi, Credit Risk
        Scorecards, 2006).
        """
        return float(sum(share for _bin, share in self.drift))

    @property
    def drift(self) -> list[tuple[str, float]]:
        """What each bin, or each of more than two classes, adds to the population stability index."""
        if self.before.bins.classes and len(self.before.bins.classes) != 2:
            names = [str(text(label)) for label in self._classes]
            counts = [np.array([side.classes[label] for label in self._classes]) for side in self._sides]
        else:
            counts = [_coarse(side.histogram) for side in self._sides]
            bounds = self.before.bins.bounds
            names = [f"{bounds[min(COARSE * place, len(bounds) - 1)]:.4g}" for place in range(len(counts[0]))]
        return list(zip(names, _drift(*counts).tolist(), strict=True))

    @property
    def _sides(self) -> tuple[Distribution, Distribution]:
        return self.before, self.after

    @property
    def _classes(self) -> list[bytes]:
        return sorted(self.before.classes.keys() | self.after.classes.keys())

    def as_json(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "before": self.before.as_json(),
            "after": self.after.as_json(),
            **{name: getattr(self, name) for name in (*COUNTS, "stability")},
            "drift": [{"bin": name, "value": value} for name, value in self.drift],
            "moves": [
                {"before": text(a), "after": text(b), "rows": count}
                for (a, b), count in sorted(self.moves.items(), key=lambda move: (-move[1], move[0]))
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
        """Return all of it for JSON, for `of_state`; bytes as the characters of the same numbers."""
        return {
            "before": self.before.state(),
            "after": self.after.state(),
            **{name: getattr(self, name) for name in COUNTS},
            "moves": [[*map(_decoded, move), count] for move, count in self.moves.items()],
            "amounts": self.amounts.tolist(),
            "examples": [
                [
                    each.amount,
                    _decoded(each.row_key),
                    *(list(map(_decoded, side)) for side in (each.before, each.after)),
                ]
                for each in self.examples
            ],
        }

    @classmethod
    def of_state(cls, bins: Bins, state: dict[str, Any]) -> "Comparison":
        """Return what `state` was taken of."""
        found = cls(Distribution.of_state(bins, state["before"]), Distribution.of_state(bins, state["after"]))
        for name in COUNTS:
            setattr(found, name, state[name])
        found.moves = Counter({(before.encode(BYTES), after.encode(BYTES)): n for before, after, n in state["moves"]})
        found.amounts = np.array(state["amounts"], dtype=np.int64)
        found.examples = [
            Change(amount, key.encode(BYTES), (a.encode(BYTES), b.encode(BYTES)), (c.encode(BYTES), d.encode(BYTES)))
            for amount, key, (a, b), (c, d) in state["examples"]
        ]
        return found

    def add(self, before: Rows, after: Rows) -> None:
        """Add the rows of one range of row keys."""
        ours, theirs = _shared(before.keys, after.keys)
        scores = []
        for side, rows in ((self.before, before), (self.after, after)):
            fine = np.array([error == NULL for error in rows.errors], dtype=bool)
            found = np.full(len(rows.keys), np.nan)
            scored = rows if fine.all() else rows.take(np.flatnonzero(fine))
            found[fine] = side.bins.scores(scored.predictions, scored.probabilities)
            side.add(rows, found[fine])
            scores.append(found)
        old, new = before.take(ours), after.take(theirs)
        self.gone += len(before.keys) - len(old.keys)
        self.appeared += len(after.keys) - len(new.keys)
        self._compare(old, new, scores[0][ours], scores[1][theirs])

    def _compare(self, old: Rows, new: Rows, was: Values, now: Values) -> None:
        valid = ~(np.isnan(was) | np.isnan(now))
        self.both += int(valid.sum())
        differ = np.fromiter(map(ne, old.predictions, new.predictions), dtype=bool, count=len(old.keys)) & valid
        self.changed += int(differ.sum())
        if self.before.bins.classes:
            for row in np.flatnonzero(differ).tolist():
                self.moves[old.predictions[row], new.predictions[row]] += 1
        amounts = np.where(valid, self._amounts(differ, was, now), 0.0)
        self.amounts = self.amounts + np.bincount(
            np.searchsorted(AMOUNT_EDGES, amounts[valid], side="right"), minlength=len(AMOUNT_EDGES) + 1
        )
        largest = np.argsort(-amounts, kind="stable")[:EXAMPLES].tolist()
        found = [
            Change(float(amounts[row]), old.keys[row], old.answer(row), new.answer(row))
            for row in largest
            if amounts[row]
        ]
        self._keep(found)

    def _amounts(self, differ: Values, was: Values, now: Values) -> Values:
        bins = self.before.bins
        if not bins.classes:
            edges = bins.edges
            return np.abs(now - was) / ((edges[-1] - edges[0]) or 1.0)
        if len(bins.classes) == 2:
            return np.abs(now - was)
        # The total variation is at least what the one class that each predicted has gained or lost.
        gained, lost = now - np.minimum(was, 1 - was), was - np.minimum(now, 1 - now)
        return np.where(differ, np.maximum(gained, lost), np.abs(now - was))

    def _keep(self, changes: list[Change]) -> None:
        # Of those that changed alike, always the same ones, however the ranges were cut.
        found = [*self.examples, *changes]
        self.examples = heapq.nsmallest(EXAMPLES, found, key=lambda change: (-change.amount, change.row_key))

    def merge(self, other: "Comparison") -> None:
        """Add that of another range."""
        self.before.merge(other.before)
        self.after.merge(other.after)
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.moves += other.moves
        self.amounts = self.amounts + other.amounts
        self._keep(other.examples)


EMPTY = Rows((), (), (), ())


def compare(before: Iterable[bytes], after: Iterable[bytes], bins: Bins) -> Comparison:
    """Compare two releases' predictions.

    Args:
        before: blocks of the earlier one's prediction lines, in the order of their row keys.
        after: of the later one's.
        bins: the earlier one's.
    """
    found = Comparison.of(bins)
    for old, new in _aligned(map(Rows.of, filter(None, before)), map(Rows.of, filter(None, after))):
        found.add(old, new)
    return found


def lines_between(
    points: Sequence[str], read: Callable[[int], Iterable[bytes]], start: bytes, stop: bytes
) -> Iterator[bytes]:
    """Yield a release's prediction lines of a range of row keys, in blocks.

    Args:
        points: the split points between its parts, which may be others than those of the range.
        read: returns the blocks of a part.
        start: the first row key.
        stop: the row key to stop before; empty for all.
    """
    for part in range(len(points) + 1):
        first, end = key_range(points, part)
        if (end and end <= start) or (stop and first >= stop):
            continue
        for block in read(part):
            begin = 0 if block >= start else bytes_before(block, start)
            is_inside = not stop or block[block.rfind(b"\n", 0, -1) + 1 :] < stop
            if kept := block[begin : None if is_inside else bytes_before(block, stop)]:
                yield kept
            if not is_inside:
                return


def _aligned(before: Iterator[Rows], after: Iterator[Rows]) -> Iterator[tuple[Rows, Rows]]:
    """Yield rows of both that are all there is between two row keys."""
    old, new = next(before, None), next(after, None)
    while old and new:
        stop = min(old.keys[-1], new.keys[-1])
        ends = bisect_right(old.keys, stop), bisect_right(new.keys, stop)
        yield old.take(slice(ends[0])), new.take(slice(ends[1]))
        old = old.take(slice(ends[0], None)) if ends[0] < len(old.keys) else next(before, None)
        new = new.take(slice(ends[1], None)) if ends[1] < len(new.keys) else next(after, None)
    for rest in chain([old] if old else [], before):
        yield rest, EMPTY
    for rest in chain([new] if new else [], after):
        yield EMPTY, rest


def _shared(before: Sequence[bytes], after: Sequence[bytes]) -> tuple[slice | Values, slice | Values]:
    """Return where the keys stand, in each, that both have."""
    if before == after:
        return slice(None), slice(None)
    places = dict(zip(before, range(len(before)), strict=True))
    pairs = [(places[key], row) for row, key in enumerate(after) if key in places]
    found = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def _decoded(value: bytes) -> str:
    return value.decode(BYTES)


def _coarse(histogram: Values) -> Values:
    """Return a histogram of every tenth bin or so, each count shared by the two of them next to it, by its distance."""
    places = (np.arange(len(histogram)) + 0.5) / COARSE
    centers = np.arange((len(histogram) + COARSE - 1) // COARSE + 1)
    return histogram @ np.maximum(0, 1 - np.abs(places[:, None] - centers))


def _drift(before: Values, after: Values) -> Values:
    old, new = ((side + 0.5) / (side.sum() + 0.5 * len(side)) for side in (before, after))
    return (new - old) * np.log(new / old)
