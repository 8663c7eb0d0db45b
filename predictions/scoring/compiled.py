"""Score tree models exactly as scikit-learn does, to the last bit, with numpy alone.

A tree model is a function of one bin per column. The bin of a number is the number of thresholds below it; a category
is its own bin. For each tree and bin, a mask has a bit for each leaf that a record with this bin can still reach. The
AND of a record's masks, one per column, leaves one bit: its leaf (QuickScorer: C. Lucchese, F. M. Nardini, S. Orlando,
R. Perego, N. Tonellotto, R. Venturini, "QuickScorer: a fast algorithm to rank documents with additive ensembles of
regression trees", SIGIR 2015; here the masks of each bin are computed in advance). The leaves' values are added in
scikit-learn's order.

`predictions.scoring.compiler` makes compiled models. They are stored as `.npz`, in arrays of numbers and text.
"""

import hashlib
import io
import math
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from predictions.errors import InputError
from predictions.scoring.contributions import Paths, columns_of, explain, path_groups

FORMAT = 1
LINKS = ("identity", "log", "logit", "softmax")  # from the sum of leaves to the prediction
MAX_LEAVES: dict[np.dtype[Any], int] = {np.dtype(np.int32): 31, np.dtype(np.int64): 63}  # a mask's bits, but the sign
GROUP_BYTES = 32  # the masks of a group of trees in one bin: numpy copies rows of this size fastest

_CHUNK = 8192  # rows scored at a time: what a chunk needs stays in the processor's cache
_FEW = 1 << 16  # rows times trees; with so few, numpy's calls would cost more than what they do
_JOINT_BINS = 1024  # small columns are looked up together, while their table has at most so many rows
_JOINT_BYTES = 1 << 20  # and is at most so large
_EXPONENT_BITS = 23  # of a float32, to the right of its exponent
_BIAS = 127  # of a float32's exponent: 2**n has the exponent _BIAS + n
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the same model gives the same bytes

Bins = np.ndarray[Any, np.dtype[np.intp]]
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class NumberColumn:
    """A column of numbers; its bins are the intervals between thresholds, and one for missing values.

    Args:
        thresholds: float64, ascending, without NaN; bin k holds the numbers above threshold k-1 and up to threshold k.
        lowest, highest: the range of numbers for which scikit-learn makes a prediction; it raises for others.
    """

    thresholds: Array
    lowest: float
    highest: float

    @property
    def bins(self) -> int:
        """Return the number of bins; the last one is for missing values."""
        return len(self.thresholds) + 2


@dataclass(frozen=True)
class CategoryColumn:
    """A column of categories; each known one has a bin, then come the bins for unknown and for missing values.

    Args:
        categories: the known categories, in the order of their bins.
    """

    categories: tuple[str, ...]

    @property
    def bins(self) -> int:
        """Return the number of bins; the last but one is for unknown categories, the last one for missing values."""
        return len(self.categories) + 2


class CompiledModel:
    """A tree model as tables.

    Args:
        columns: the model's columns, in the order of the features.
        masks: int32 or int64, shape (bins of all columns one after the other, trees): bit k is set where a record with
            this bin can still reach leaf k of the tree.
        leaves: float64, shape (trees, leaves of the largest tree): the leaves' values; tree t adds to output t modulo
            the number of outputs.
        baseline: float64, shape (outputs): what the leaves are added to.
        link: one of `LINKS`, from the sums to probabilities or values.
        by_row: whether a record's outputs lie side by side in memory when the softmax adds them; numpy's sum of eight
            and more depends on it.
        shares: float64, shape (columns, trees, leaves of the largest tree): the share of the training records that a
            column's splits let through to a leaf (`contributions`); 1 if the path has none. None if no contributions
            are asked for.

    Raises:
        ValueError: the arrays do not fit together.
    """

    def __init__(
        self,
        columns: Sequence[NumberColumn | CategoryColumn],
        masks: Array,
        leaves: Array,
        baseline: Array,
        link: str,
        by_row: bool = False,
        shares: Array | None = None,
    ) -> None:
        _check(columns, masks, leaves, baseline, link, shares)
        self.columns = tuple(columns)
        self.masks = masks
        self.leaves = leaves
        self.baseline = baseline
        self.link = link
        self.by_row = by_row
        self.shares = shares
        self._category_bins = [
            {category: bin_ for bin_, category in enumerate(column.categories)}
            if isinstance(column, CategoryColumn)
            else {}
            for column in self.columns
        ]
        self._by_column = np.split(masks, np.cumsum([column.bins for column in self.columns])[:-1])
        self._joint = self._joint_columns()
        self._groups = self._tables()
        # A leaf's place is the exponent of its bit as a float32. Other places, which no model leads to, hold NaN.
        self._leaves = np.full((len(leaves), _BIAS + leaves.shape[1] + 1), np.nan)
        self._leaves[:, _BIAS:-1] = leaves
        self._starts = np.arange(len(leaves)) * self._leaves.shape[1]
        self._paths = [self._paths_of(output) for output in range(len(baseline))]

    @property
    def classes(self) -> int:
        """Return the number of a classifier's classes; 0 for a regressor."""
        return {"logit": 2, "softmax": len(self.baseline)}.get(self.link, 0)

    def bins_of_numbers(self, column: int, values: Array) -> Bins:
        """Return the bins of a number column's values.

        Args:
            column: the column's index.
            values: float64, shape (rows); NaN is missing.

        Raises:
            ValueError: a value is out of the column's range, so that scikit-learn would raise.
        """
        numbers = self.columns[column]
        if not isinstance(numbers, NumberColumn):
            raise ValueError(f"column {column} has categories, not numbers")
        if ((values < numbers.lowest) | (values > numbers.highest)).any():
            raise ValueError(f"column {column} has a number below {numbers.lowest!r} or above {numbers.highest!r}")
        bins = np.searchsorted(numbers.thresholds, values, "left")  # NaN comes after all thresholds, and one further
        bins += np.isnan(values)
        return bins

    def bins_of_categories(self, column: int, values: Sequence[Any]) -> Bins:
        """Return the bins of a category column's values.

        Args:
            column: the column's index.
            values: text, or NaN if missing.
        """
        categories = self.columns[column]
        if not isinstance(categories, CategoryColumn):
            raise ValueError(f"column {column} has numbers, not categories")
        bins, unknown = self._category_bins[column], len(categories.categories)
        # NaN alone is not itself.
        found = (bins.get(value, unknown) if value == value else unknown + 1 for value in values)
        return np.fromiter(found, np.intp, len(values))

    def raw(self, bins: Sequence[Bins]) -> Array:
        """Return the sums of leaves, before the link.

        Args:
            bins: for each column, the rows' bins.

        Returns:
            float64, shape (rows, outputs).

        Raises:
            IndexError: a bin is out of its column's range.
            ValueError: the columns have different numbers of rows.
        """
        rows = len(bins[0])
        if any(len(column_bins) != rows for column_bins in bins):
            raise ValueError("the columns have different numbers of rows")
        sums = np.zeros((len(self.baseline), rows))
        sums += self.baseline[:, None]
        for start in range(0, rows, _CHUNK):
            chunk = [column_bins[start : start + _CHUNK] for column_bins in bins]
            self._check_bins(chunk)
            add = self._add_leaves_of_few if len(chunk[0]) * len(self.leaves) <= _FEW else self._add_leaves
            add(chunk, sums[:, start : start + _CHUNK])
        return np.ascontiguousarray(sums.T) if self.by_row else sums.T

    def predict(self, bins: Sequence[Bins]) -> Array:
        """Return what scikit-learn's `predict_proba` returns, or of a regressor its `predict`.

        Args:
            bins: for each column, the rows' bins.

        Returns:
            float64: of a classifier the probabilities, shape (rows, classes); of a regressor the values, shape (rows).

        Raises:
            IndexError: a bin is out of its column's range.
        """
        raw = self.raw(bins)
        if self.link == "softmax":
            return _softmax(raw)
        values = raw.ravel()
        if self.link == "logit":
            probabilities = np.empty((len(values), 2))
            probabilities[:, 1] = _expit(values)
            probabilities[:, 0] = 1 - probabilities[:, 1]
            return probabilities
        return np.exp(values) if self.link == "log" else values

    def contributions(self, bins: Sequence[Bins], outputs: Array) -> Array:
        """Return how much each column moved the sum of leaves of one output (`predictions.scoring.contributions`).

        Args:
            bins: for each column, the rows' bins.
            outputs: intp, shape (rows): the output of each row that is explained.

        Returns:
            float64, shape (rows, columns); a row's sum is the difference between `raw` and `expected`.

        Raises:
            IndexError: a bin is out of its column's range.
        """
        if len(outputs):
            self._check_bins(bins)
        result = np.zeros((len(outputs), len(self.columns)))
        for output in np.unique(outputs).tolist():
            rows = np.flatnonzero(outputs == output)
            result[rows] = explain(self._paths[output], [column_bins[rows] for column_bins in bins], len(self.columns))
        return result

    @property
    def expected(self) -> Array:
        """Return the outputs that contributions are relative to, float64, shape (outputs)."""
        assert self.shares is not None
        trees = (self.leaves * self.shares.prod(axis=0)).sum(axis=1)
        return self.baseline + trees.reshape(-1, len(self.baseline)).sum(axis=0)

    def save(self, path: Path, model_sha256: str, compared: int) -> None:
        """Write the model; the same model gives the same bytes.

        Args:
            path: the file.
            model_sha256: SHA-256 of the `model.skops` that the model was compiled from, in hex.
            compared: number of rows for which the predictions were compared with scikit-learn's.
        """
        origin = {"model_sha256": np.array(model_sha256), "compared": np.array(compared)}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, array in sorted((self._arrays() | origin).items()):
                content = io.BytesIO()
                np.lib.format.write_array(content, array, version=(1, 0), allow_pickle=False)
                info = zipfile.ZipInfo(f"{name}.npy", _ZIP_TIME)
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, content.getvalue())

    def _arrays(self) -> dict[str, Array]:
        numbers = [column for column in self.columns if isinstance(column, NumberColumn)]
        texts = [
            category.encode()
            for column in self.columns
            if isinstance(column, CategoryColumn)
            for category in column.categories
        ]
        return {
            "format": np.array(FORMAT),
            "link": np.array(self.link),
            "by_row": np.array(self.by_row),
            "is_number": np.array([isinstance(column, NumberColumn) for column in self.columns]),
            "bins": np.array([column.bins for column in self.columns]),
            "thresholds": np.concatenate([np.empty(0), *(column.thresholds for column in numbers)]),
            "ranges": np.array([[column.lowest, column.highest] for column in numbers]).reshape(-1, 2),
            # numpy's own text would give each category the longest one's size.
            "categories": np.frombuffer(b"".join(texts), np.uint8),
            "category_bytes": np.array([len(text) for text in texts], dtype=np.int64),
            "masks": self.masks,
            "leaves": self.leaves,
            "baseline": self.baseline,
        } | ({} if self.shares is None else {"shares": self.shares})

    def _paths_of(self, output: int) -> list[tuple[Paths, Array]]:
        """Return the paths of the trees that add to an output, with the values of their leaves."""
        if self.shares is None:
            return []
        every_tree = np.arange(output, len(self.leaves), len(self.baseline))
        every_leaf = np.arange(self.leaves.shape[1])
        trees, leaves = np.repeat(every_tree, len(every_leaf)), np.tile(every_leaf, len(every_tree))
        shares = self.shares[:, trees, leaves].T
        return [
            (
                _MaskedPaths(*columns_of(shares[group]), self._by_column, trees[group], leaves[group]),
                self.leaves[trees[group], leaves[group]],
            )
            for group in path_groups(shares)
        ]

    def _joint_columns(self) -> list[list[int]]:
        """Return the columns in groups whose bins are looked up together."""
        limit = min(_JOINT_BINS, _JOINT_BYTES // self.masks[0].nbytes)
        groups: list[list[int]] = []
        product = limit + 1
        for index in sorted(range(len(self.columns)), key=lambda index: self.columns[index].bins):
            product *= self.columns[index].bins
            if product <= limit:
                groups[-1].append(index)
            else:
                groups.append([index])
                product = self.columns[index].bins
        return groups

    def _tables(self) -> list[list[tuple[int, Array]]]:
        """Return, for each group of trees, the joint columns that matter to it, each with its table of masks."""
        tables = []
        for first, *others in self._joint:
            table: Array = self._by_column[first]
            for index in others:
                table = (table[:, None, :] & self._by_column[index]).reshape(-1, table.shape[1])
            tables.append(table)
        all_leaves = np.bitwise_or.reduce(self.masks)  # a column all of whose masks have these excludes no leaf
        per_group = GROUP_BYTES // self.masks.itemsize
        groups = []
        for start in range(0, len(self.leaves), per_group):
            trees = slice(start, start + per_group)
            matter = [
                (index, _padded(table[:, trees], per_group))
                for index, table in enumerate(tables)
                if (table[:, trees] != all_leaves[trees]).any()
            ]
            groups.append(matter or [(0, _padded(tables[0][:, trees], per_group))])
        return groups

    def _check_bins(self, bins: Sequence[Bins]) -> None:
        # numpy's `take` is several times faster when it clips, so nothing may be left for it to clip.
        for index, (column, column_bins) in enumerate(zip(self.columns, bins, strict=True)):
            if not 0 <= column_bins.min() <= column_bins.max() < column.bins:
                raise IndexError(f"column {index} has {column.bins} bins, but a row has another one")

    def _add_leaves(self, bins: Sequence[Bins], sums: Array) -> None:
        """Add the leaves of some rows to `sums`, shape (outputs, rows), tree by tree."""
        joint = []
        for first, *others in self._joint:
            joint_bins = bins[first].astype(np.intp, copy=False)
            for index in others:
                joint_bins = joint_bins * self.columns[index].bins + bins[index]
            joint.append(joint_bins)
        for group, ((first, table), *other_tables) in enumerate(self._groups):
            masks = table.take(joint[first], axis=0, mode="clip")
            for index, table in other_tables:
                masks &= table.take(joint[index], axis=0, mode="clip")
            places = _places(masks).T
            start = group * len(places)
            for tree in range(start, min(start + len(places), len(self._leaves))):
                sums[tree % len(sums)] += self._leaves[tree].take(places[tree - start], mode="clip")

    def _add_leaves_of_few(self, bins: Sequence[Bins], sums: Array) -> None:
        """Add the leaves of some rows to `sums`, shape (outputs, rows), all trees at once."""
        masks = self._by_column[0].take(bins[0], axis=0)
        for column_masks, column_bins in zip(self._by_column[1:], bins[1:], strict=True):
            masks &= column_masks.take(column_bins, axis=0)
        leaves = self._leaves.ravel().take(self._starts + _places(masks)).reshape(len(masks), -1, len(sums))
        # accumulate adds one after the other; add.reduce may not.
        sums[:] = np.add.accumulate(np.concatenate([sums.T[:, None], leaves], axis=1), axis=1)[:, -1].T


class _MaskedPaths(Paths):
    """Paths whose leaves have bits in masks; the inputs are the columns' bins.

    Args:
        columns, shares: see `Paths`.
        masks: for each column, the masks, shape (bins, trees).
        trees, leaves: intp, shape (paths): where the paths lead.
    """

    def __init__(self, columns: Array, shares: Array, masks: Sequence[Array], trees: Array, leaves: Array) -> None:
        super().__init__(columns, shares)
        self._masks = masks
        self._trees = trees
        self._leaf_bits = masks[0].dtype.type(1) << leaves.astype(masks[0].dtype)

    def inputs(self) -> Iterable[int]:
        """See `Paths`."""
        return np.unique(self.columns).tolist()

    def missed(self, index: int, distinct: Array) -> Array:
        """See `Paths`."""
        column_bits = self.bit_of(index)
        masks = self._masks[index][distinct].take(self._trees, axis=1)
        return np.where(masks & self._leaf_bits, self.bits.type(0), column_bits)


def load(path: Path, sha256: str, model_sha256: str) -> CompiledModel:
    """Read a compiled model.

    Args:
        path: what `CompiledModel.save` wrote.
        sha256: the file's SHA-256, in hex.
        model_sha256: SHA-256 of the `model.skops` that it must have been compiled from, in hex.

    Raises:
        InputError: the file is missing, was changed or cut off, has another format, or belongs to another model.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; restore it, or start a new release") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise InputError(
            f"{path}: its sha256 is {digest[:16]}…, but its manifest was written for {sha256[:16]}…: the file was "
            "changed, cut off or replaced; restore it, or start a new release"
        )
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            if (format_ := int(archive["format"])) != FORMAT:
                raise InputError(
                    f"{path}: has format {format_}, but this version reads format {FORMAT}; start a new "
                    "release with this version"
                )
            arrays = {name: archive[name] for name in archive.files}
        model, origin = _from_arrays(arrays), str(arrays["model_sha256"])
    except InputError:
        raise
    except Exception as error:  # numpy raises anything, also MemoryError, if a file was changed
        raise InputError(f"{path}: not a compiled model: {error}; restore it, or start a new release") from error
    if origin != model_sha256:
        raise InputError(
            f"{path}: was compiled from the model {origin[:16]}…, not from {model_sha256[:16]}…: it "
            "belongs to another release; restore this one's, or start a new release"
        )
    return model


def _from_arrays(arrays: dict[str, Array]) -> CompiledModel:
    for name, dtype, dimensions in (
        ("model_sha256", np.str_, 0),
        ("compared", np.int64, 0),
        ("link", np.str_, 0),
        ("by_row", np.bool_, 0),
        ("is_number", np.bool_, 1),
        ("bins", np.int64, 1),
        ("thresholds", np.float64, 1),
        ("ranges", np.float64, 2),
        ("categories", np.uint8, 1),
        ("category_bytes", np.int64, 1),
    ):
        if not np.issubdtype(arrays[name].dtype, dtype) or arrays[name].ndim != dimensions:
            raise ValueError(f"{name} is {arrays[name].dtype} of {arrays[name].ndim} dimensions")
    is_number, known = arrays["is_number"], arrays["bins"] - 2
    thresholds, ranges, lengths = arrays["thresholds"], arrays["ranges"], arrays["category_bytes"]
    if is_number.shape != known.shape or (known < 0).any() or (lengths < 0).any():
        raise ValueError("the columns do not fit together")
    if (
        known[is_number].sum() != len(thresholds)
        or ranges.shape != (is_number.sum(), 2)
        or known[~is_number].sum() != len(lengths)
        or lengths.sum() != len(arrays["categories"])
    ):
        raise ValueError("thresholds and categories are not those of the columns")
    text, ends = arrays["categories"].tobytes(), np.cumsum(lengths).tolist()
    texts = iter([text[end - length : end].decode() for length, end in zip(lengths.tolist(), ends, strict=True)])
    pieces = iter(np.split(thresholds, np.cumsum(known[is_number])))
    limits = iter(ranges.tolist())
    columns = [
        NumberColumn(next(pieces), *next(limits)) if number else CategoryColumn(tuple(next(texts) for _ in range(size)))
        for number, size in zip(is_number.tolist(), known.tolist(), strict=True)
    ]
    return CompiledModel(
        columns,
        arrays["masks"],
        arrays["leaves"],
        arrays["baseline"],
        str(arrays["link"]),
        bool(arrays["by_row"]),
        arrays.get("shares"),
    )


def _check(
    columns: Sequence[NumberColumn | CategoryColumn],
    masks: Array,
    leaves: Array,
    baseline: Array,
    link: str,
    shares: Array | None,
) -> None:
    """Raise ValueError unless the arrays have the types, shapes and ranges that scoring relies on."""
    if not columns:
        raise ValueError("there are no columns")
    for column in columns:
        if isinstance(column, NumberColumn):
            if not (column.thresholds[1:] > column.thresholds[:-1]).all() or np.isnan(column.thresholds).any():
                raise ValueError("thresholds do not ascend")
        elif len(set(column.categories)) != len(column.categories):
            raise ValueError("a category comes twice")
    if leaves.ndim != 2:
        raise ValueError(f"leaves are of shape {leaves.shape}")
    if masks.dtype not in MAX_LEAVES or masks.shape != (sum(column.bins for column in columns), leaves.shape[0]):
        raise ValueError(f"masks are {masks.dtype} of shape {masks.shape}")
    if leaves.dtype != np.float64 or not 1 <= leaves.shape[1] <= MAX_LEAVES[masks.dtype]:
        raise ValueError(f"leaves are {leaves.dtype} of shape {leaves.shape}")
    if (masks < 0).any() or (masks >> leaves.shape[1]).any():
        raise ValueError("masks have bits for leaves that do not exist")
    if baseline.dtype != np.float64 or baseline.ndim != 1 or not len(baseline):
        raise ValueError(f"baseline is {baseline.dtype} of shape {baseline.shape}")
    if not len(leaves) or len(leaves) % len(baseline):
        raise ValueError(f"{len(leaves)} trees cannot be added to {len(baseline)} outputs")
    if shares is not None:
        if shares.dtype != np.float64 or shares.shape != (len(columns), *leaves.shape):
            raise ValueError(f"shares are {shares.dtype} of shape {shares.shape}")
        if not ((shares > 0) & (shares <= 1)).all():
            raise ValueError("shares are not above 0 and up to 1")
    if link not in LINKS or (link == "softmax") != (len(baseline) > 1):
        raise ValueError(f"the link {link} does not fit {len(baseline)} outputs")


def _padded(masks: Array, trees: int) -> Array:
    """Return the masks of a group, side by side for each bin, with trees of one leaf to fill it up."""
    padded = np.ones((len(masks), trees), dtype=masks.dtype)
    padded[:, : masks.shape[1]] = masks
    return padded


def _places(masks: Array) -> Array:
    """Return where in `_leaves` the one leaf is that each mask has left."""
    return masks.astype(np.float32).view(np.int32) >> _EXPONENT_BITS


def _expit(values: Array) -> Array:
    # scipy's expit takes the C library's exp; numpy's own, of processors with AVX-512, differs in 2 of 100 last bits.
    negative = (-values).tolist()
    try:
        exponentials = np.fromiter(map(math.exp, negative), np.float64, len(values))
    except OverflowError:
        exponentials = np.fromiter(map(_exp, negative), np.float64, len(values))
    return 1 / (1 + exponentials)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:  # where C's exp returns infinity
        return math.inf


def _softmax(raw: Array) -> Array:
    # The same steps on the same layout as sklearn.utils.extmath.softmax, for the same bits.
    shares = raw.copy(order="K")
    shares -= shares.max(axis=1).reshape(-1, 1)
    np.exp(shares, out=shares)
    shares /= shares.sum(axis=1).reshape(-1, 1)
    return shares
