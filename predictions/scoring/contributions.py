"""How much each column moved a prediction: Shapley values of a sum of trees, exact, with numpy alone.

The players are the columns. What a set of columns is worth is the "path-dependent" mean of S. M. Lundberg et al., "From
local explanations to global understanding with explainable AI for trees", Nature Machine Intelligence 2 (2020): a split
of a column of the set sends the record where its value leads; a split of any other column sends it to both sides, in
the shares in which the training records went there.

That is a sum over the leaves, so each leaf adds contributions of its own (R. Mitchell, E. Frank, G. Holmes,
"GPUTreeShap: massively parallel exact calculation of SHAP scores for tree ensembles", PeerJ Computer Science 8, 2022).
Let d columns be on the path to a leaf with the value v. Let o_j be 1 if the record meets all the path's conditions on
column j, else 0, and z_j the product of the shares of column j's splits. Then column i contributes

    v * (o_i - z_i) * integral from 0 to 1 of the product over j != i of (t * o_j + (1 - t) * z_j) dt

(G. Owen, "Multilinear extensions of games", Management Science 18, 1972). What is integrated is a polynomial of degree
d - 1, for which Gauss-Legendre quadrature with d / 2 points is exact.

A leaf's contributions depend on the o_j alone. For many records, they are computed for all 2**d combinations of them,
and looked up.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

MAX_COLUMNS = 63  # on a path, since each has a bit
DIGITS = 4  # significant digits of a contribution in a cell

_ROWS = 4096  # explained at a time; more would need fewer tables a row, and more memory
_CELLS = 1 << 16  # rows times leaves that are looked up at a time
_TABLE_CELLS = 1 << 20  # numbers in a table, which should stay in the processor's cache
_MIN_LEAVES, _MAX_LEAVES = 64, 1024  # explained at a time, whatever the number of rows: the sums depend on it
_TABLE_GAIN = 2  # rows for each combination from which on a table is faster

Array = np.ndarray[Any, Any]
Values = tuple[Array, Array]  # an input's distinct values, and for each row the index of its value


class Paths(ABC):
    """Paths from the root to leaves, all with the same number of columns, d.

    Args:
        columns: intp, shape (paths, d): the columns that a path's splits compare.
        shares: float64, shape (paths, d): for each of them, the product over its splits on the path of the share of
            the split's training records that follow the path.
    """

    def __init__(self, columns: Array, shares: Array) -> None:
        self.columns = columns
        self.shares = shares
        self.bits = np.min_scalar_type((1 << columns.shape[1]) - 1)  # a bit for each column of a path

    def bit_of(self, column: int) -> Array:
        """Return a column's bit in each path, shape (paths); 0 where the path does not compare it."""
        places = np.arange(self.columns.shape[1], dtype=self.bits)
        return ((self.columns == column).astype(self.bits) << places).sum(axis=1, dtype=self.bits)

    @abstractmethod
    def inputs(self) -> Iterable[int]:
        """Return the indexes of the inputs that the splits compare."""

    @abstractmethod
    def missed(self, index: int, distinct: Array) -> Array:
        """Return which columns' conditions on an input are not met.

        Args:
            index: the input.
            distinct: its values, shape (values).

        Returns:
            Unsigned integers of the type `bits`, shape (values, paths): bit j is set if the input belongs to the path's
            j-th column, and a condition on it is not met.
        """


def path_groups(shares: Array) -> Iterator[Array]:
    """Yield the indexes of paths in groups that have equally many columns and are explained together.

    Args:
        shares: float64, shape (paths, columns): 1 for columns that a path does not compare.

    Raises:
        ValueError: a path has more columns than there are bits.
    """
    counts = np.count_nonzero(shares != 1, axis=1)
    for count in np.unique(counts[counts > 0]).tolist():
        if count > MAX_COLUMNS:
            raise ValueError(f"a path compares {count} columns, more than {MAX_COLUMNS}")
        paths = np.flatnonzero(counts == count)
        size = min(max(_TABLE_CELLS // (count << count), _MIN_LEAVES), _MAX_LEAVES)
        yield from np.split(paths, range(size, len(paths), size))


def columns_of(shares: Array) -> tuple[Array, Array]:
    """Return `columns` and `shares` as `Paths` takes them, from the shares of one of the `path_groups`."""
    rows, columns = np.nonzero(shares != 1)
    return columns.reshape(len(shares), -1), shares[rows, columns].reshape(len(shares), -1)


def distinct(values: Array) -> Values:
    """Return an input's distinct values, and for each row the index of its value."""
    found, indexes = np.unique(values, return_inverse=True)
    return found, indexes


def explain(paths: Sequence[tuple[Paths, Array]], inputs: Sequence[Array], columns: int) -> Array:
    """Return the contributions of all columns for each row.

    A row's contributions do not depend on the other rows, not even in the last bit.

    Args:
        paths: groups of paths, with the values of their leaves.
        inputs: for each input, the rows' values.
        columns: number of columns.

    Returns:
        float64, shape (rows, columns).
    """
    sums = np.zeros((len(inputs[0]), columns))
    for start in range(0, len(sums), _ROWS):
        values = [distinct(each[start : start + _ROWS]) for each in inputs]
        for group, leaves in paths:
            _add(group, leaves, values, sums[start : start + _ROWS])
    return sums


def _add(paths: Paths, leaves: Array, inputs: Sequence[Values], sums: Array) -> None:
    """Add the contributions of a group of paths to `sums`, shape (rows, columns)."""
    count, d = paths.columns.shape
    combinations = np.zeros((len(sums), count), dtype=paths.bits)
    for index in paths.inputs():
        distinct, indexes = inputs[index]
        combinations |= paths.missed(index, distinct).take(indexes, axis=0, mode="clip")  # there is nothing to clip
    table = None
    if len(sums) >= _TABLE_GAIN << d:
        all_combinations = np.arange(1 << d, dtype=paths.bits)[:, None]
        table = _contributions(all_combinations, paths.shares, leaves).reshape(-1, d)
    order = np.argsort(paths.columns, axis=None, kind="stable")
    columns, starts = np.unique(paths.columns.ravel()[order], return_index=True)
    step = _CELLS // count
    for start in range(0, len(sums), step):
        rows = slice(start, start + step)
        if table is None:
            added = _contributions(combinations[rows], paths.shares, leaves)
        else:
            added = table.take(combinations[rows].astype(np.intp) * count + np.arange(count), axis=0, mode="clip")
        by_column = added.reshape(len(added), -1).take(order, axis=1, mode="clip")
        sums[rows, columns] += np.add.reduceat(by_column, starts, axis=1)


def _contributions(missed: Array, shares: Array, leaves: Array) -> Array:
    """Return the contributions of each path's columns, shape (rows, paths, d).

    Args:
        missed: unsigned integers, shape (rows, paths) or (rows, 1): bit j is set where o_j is 0.
        shares: float64, shape (paths, d): z.
        leaves: float64, shape (paths): v.
    """
    d = shares.shape[1]
    is_missed = [(missed >> column) & 1 != 0 for column in range(d)]
    sums = np.zeros((d, len(missed), len(leaves)))
    for point, weight in _quadrature((d + 1) // 2):
        factors, factors_missed = point + (1 - point) * shares.T, (1 - point) * shares.T
        product = np.broadcast_to(weight * leaves, sums.shape[1:]).copy()
        for column in range(d):
            product *= np.where(is_missed[column], factors_missed[column], factors[column])
        # The product without a column's own factor, times o - z; without a division by z if o is 0.
        product_missed = product / (point - 1)
        ratios = (1 - shares.T) / factors
        for column in range(d):
            sums[column] += np.where(is_missed[column], product_missed, product * ratios[column])
    return np.ascontiguousarray(np.moveaxis(sums, 0, -1))


@lru_cache(MAX_COLUMNS)
def _quadrature(points: int) -> list[tuple[float, float]]:
    """Return the points of Gauss-Legendre quadrature from 0 to 1, with their weights."""
    places, weights = np.polynomial.legendre.leggauss(points)
    return list(zip(((places + 1) / 2).tolist(), (weights / 2).tolist(), strict=True))


def as_json(contributions: Array, keys: Sequence[bytes], top: int | None) -> list[bytes]:
    """Return the largest contributions of each row as JSON: `{"dep_delay": 0.83, "carrier": -0.12}`.

    Args:
        contributions: float64, shape (rows, columns).
        keys: the columns' names as JSON.
        top: how many columns to keep for each row, at most; None: all. Contributions of 0 are left out.
    """
    largest = np.argsort(-np.abs(contributions), axis=1, kind="stable")[:, :top]
    kept = np.take_along_axis(contributions, largest, axis=1)
    return [
        b"{%b}" % b", ".join(b"%b: %.*g" % (keys[column], DIGITS, value) for column, value in row if value)
        for row in map(zip, largest.tolist(), kept.tolist())
    ]
