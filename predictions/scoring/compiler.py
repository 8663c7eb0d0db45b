"""Compile a fitted pipeline to tables, and compare them with scikit-learn bit for bit; training alone imports this.

Every bin of a column has a representative value. For each node of each tree, the representatives go through the fitted
transformers and are compared with the node's threshold as scikit-learn does it; so whatever the preparation does to a
column, the tables have it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
import sklearn
from sklearn._loss.loss import (
    AbsoluteError,
    HalfBinomialLoss,
    HalfGammaLoss,
    HalfMultinomialLoss,
    HalfPoissonLoss,
    HalfSquaredError,
    HuberLoss,
    PinballLoss,
)
from sklearn.base import is_classifier
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, StandardScaler

from predictions.formats.record_line import Column
from predictions.scoring.compiled import MAX_LEAVES, CategoryColumn, CompiledModel, NumberColumn

_HISTOGRAM = (HistGradientBoostingClassifier, HistGradientBoostingRegressor)
_GRADIENT = (GradientBoostingClassifier, GradientBoostingRegressor)
_LINKS = {
    HalfBinomialLoss: "logit",
    HalfMultinomialLoss: "softmax",
    HalfSquaredError: "identity",
    AbsoluteError: "identity",
    PinballLoss: "identity",
    HuberLoss: "identity",
    HalfPoissonLoss: "log",
    HalfGammaLoss: "log",
}
_PREPARATIONS = ((FunctionTransformer,), (SimpleImputer, StandardScaler), (OrdinalEncoder,), (OneHotEncoder,))

MAX_TABLE_BYTES = 64 << 20  # a task holds the tables about three times

_CHECKED_ROWS = 50_000  # compared at a time: prepared, a row has a value for each category of its columns
_LARGEST = np.finfo(np.float64).max
_LARGEST_SINGLE = float(np.finfo(np.float32).max)
_SEED = 0  # of the rows that fill up the made-up ones

Array = np.ndarray[Any, Any]


class NoCompiledFormError(Exception):
    """The pipeline has no compiled form, so scikit-learn has to score; the message is the reason."""


@dataclass(frozen=True)
class _Split:
    """A node with two children: what it compares, and the masks of the leaves that remain on either side.

    Args:
        output: the index of the value that it compares, among those that come out of the preparation.
        threshold: values up to it go to the left.
        missing_left: whether NaN goes to the left.
        left_categories: of a split by category, the bits of the categories that go to the left; else None.
        left, right: the masks.
        left_share, right_share: the shares of the node's training records on either side.
    """

    output: int
    threshold: float
    missing_left: bool
    left_categories: Array | None
    left: int
    right: int
    left_share: float
    right_share: float


@dataclass(frozen=True)
class _Tree:
    """A tree: the values of its leaves from left to right, and its nodes with children."""

    leaves: list[float]
    splits: list[_Split]


class _Preparation:
    """What happens to a frame between the reader and the trees' comparisons.

    Args:
        pipeline: a fitted pipeline, as `make_pipeline_for` makes them.
        features: the columns.
    """

    def __init__(self, pipeline: Pipeline, features: Sequence[Column]) -> None:
        self.transformer, self.estimator = (step for _name, step in pipeline.steps)
        self.names = [column.name for column in features]
        self.is_number = [column.is_number for column in features]
        self.sources, self.categories = self._trace()
        # The native categories of HistGradientBoosting, by output.
        self.native: dict[int, Array] = {}
        native = getattr(self.estimator, "_preprocessor", None)
        if native is not None:
            # It puts its categories first.
            (_name, encoder, is_category), (_name, _check, is_other), *_rest = native.transformers_
            order = [*np.flatnonzero(is_category), *np.flatnonzero(is_other)]
            self.sources = [self.sources[index] for index in order]
            self.native = dict(enumerate(encoder.categories_))
        # The numbers that scikit-learn takes; other columns are categories.
        self.ranges = {
            index: (-np.inf, np.inf) if self._takes_infinity(name) else (-_LARGEST, _LARGEST)
            for index, (name, is_number) in enumerate(zip(self.names, self.is_number, strict=True))
            if is_number
        }

    def __call__(self, frame: pd.DataFrame) -> Array:
        """Return the values that the trees compare, shape (rows, outputs)."""
        with np.errstate(over="ignore", invalid="ignore"):  # of numbers that are not finite
            values = self.transformer.transform(frame)
            if type(self.estimator) in _HISTOGRAM:
                return self.estimator._preprocess_X(values, reset=False)
            return np.asarray(values, dtype=np.float32)

    def frame(self, columns: dict[str, Any], rows: int) -> pd.DataFrame:
        """Return a frame with some columns' values; all others are missing."""
        return pd.DataFrame(
            {
                name: pd.Series(columns.get(name, [np.nan] * rows), dtype=np.float64 if is_number else object)
                for name, is_number in zip(self.names, self.is_number, strict=True)
            }
        )

    def _trace(self) -> tuple[list[int], dict[int, tuple[str, ...]]]:
        """Return the column that each output comes from, and the known categories of each category column."""
        sources: list[int] = []
        known: dict[int, tuple[str, ...]] = {}
        for _name, preparation, names in self.transformer.transformers_:
            if not isinstance(names, list) or not set(names) <= set(self.names):
                raise NoCompiledFormError("it selects columns otherwise than by their names")
            columns = [self.names.index(name) for name in names]
            if not columns:
                continue
            steps = [step for _name, step in preparation.steps] if type(preparation) is Pipeline else [preparation]
            if tuple(map(type, steps)) not in _PREPARATIONS:
                raise NoCompiledFormError(f"the preparation {type(preparation).__name__}")
            first = steps[0]
            if getattr(first, "func", None):
                raise NoCompiledFormError("a preparation by a function")
            if isinstance(first, FunctionTransformer):
                sources += columns
            elif isinstance(first, SimpleImputer):
                sources += columns + [columns[index] for index in first.indicator_.features_]
            else:
                for index, column in enumerate(columns):
                    sources += [column] * (_one_hot_outputs(first, index) if isinstance(first, OneHotEncoder) else 1)
                    known[column] = tuple(text for text in first.categories_[index] if isinstance(text, str))
        return sources, known

    def _takes_infinity(self, name: str) -> bool:
        try:
            self(self.frame({name: [np.inf]}, 1))
        except ValueError:
            return False
        return type(self.estimator) in _HISTOGRAM


def compile_pipeline(pipeline: Pipeline, features: Sequence[Column], contributions: bool = False) -> CompiledModel:
    """Return a fitted pipeline as tables.

    Args:
        pipeline: a fitted pipeline, as `make_pipeline_for` makes them.
        features: the columns that it was fitted on.
        contributions: whether to keep what contributions need.

    Raises:
        NoCompiledFormError: the estimator is not one of those that can be compiled, or not with these parameters.
    """
    try:
        return _compile(pipeline, features, contributions)
    except AttributeError as error:  # scikit-learn's trees are in private attributes, which another version may rename
        raise NoCompiledFormError(
            f"scikit-learn {sklearn.__version__} is not known to the compiler: {error}"
        ) from error


def _compile(pipeline: Pipeline, features: Sequence[Column], contributions: bool) -> CompiledModel:
    estimator = pipeline.steps[-1][1]
    _check_types(pipeline, estimator)
    trees, baseline = _histogram_trees(estimator) if type(estimator) in _HISTOGRAM else _gradient_trees(estimator)
    largest = max(len(tree.leaves) for tree in trees)
    dtype = next(dtype for dtype, leaves in MAX_LEAVES.items() if largest <= leaves)
    preparation = _Preparation(pipeline, features)
    columns = _columns(preparation, trees)
    table_bytes = sum(column.bins for column in columns) * len(trees) * dtype.itemsize
    if table_bytes > MAX_TABLE_BYTES:
        values, name = max((column.bins, name) for column, name in zip(columns, preparation.names, strict=True))
        raise NoCompiledFormError(f"its tables would take {table_bytes >> 20} MB; column {name} has {values:,} values")
    leaves = np.zeros((len(trees), largest))
    for row, tree in zip(leaves, trees, strict=True):
        row[: len(tree.leaves)] = tree.leaves
    return CompiledModel(
        columns,
        _masks(preparation, columns, trees, dtype),
        leaves,
        baseline,
        _LINKS[type(estimator._loss)],
        by_row=type(estimator) in _GRADIENT,
        shares=_shares(preparation, trees, leaves.shape) if contributions else None,
    )


def sources_of(pipeline: Pipeline, features: Sequence[Column]) -> list[int]:
    """Return for each value that a fitted pipeline's estimator compares or weighs the index of its column.

    Args:
        pipeline: a fitted pipeline, as `make_pipeline_for` makes them.
        features: the columns that it was fitted on.

    Raises:
        NoCompiledFormError: its preparation is another one.
    """
    return [int(source) for source in _Preparation(pipeline, features).sources]


def check(compiled: CompiledModel, pipeline: Pipeline, frame: pd.DataFrame) -> int:
    """Compare a compiled model with its pipeline on given and on made-up rows, bit for bit.

    The made-up rows have, in every column, each threshold and the numbers next to it, missing, infinite, tiny and huge
    values, -0.0, each category and one that is unknown; the other columns are those of random given rows.

    Args:
        compiled: the compiled model.
        pipeline: what it was compiled from.
        frame: rows with the columns of the features, at least one.

    Returns:
        The number of rows compared.

    Raises:
        NoCompiledFormError: a prediction differs.
    """
    rows = 0
    for compared in chain(_blocks(frame), _blocks(_made_up(compiled, frame))):
        with np.errstate(over="ignore", invalid="ignore"):  # of numbers that are not finite
            expected = pipeline.predict_proba(compared) if is_classifier(pipeline) else pipeline.predict(compared)
        found = compiled.predict(bins_of(compiled, compared))
        same = found.shape == expected.shape and found.dtype == expected.dtype
        if not same or (found.view(np.uint64) != np.ascontiguousarray(expected).view(np.uint64)).any():
            raise NoCompiledFormError("its predictions are not scikit-learn's to the last bit")
        rows += len(compared)
    return rows


def _blocks(frame: pd.DataFrame) -> Iterator[pd.DataFrame]:
    return (frame.iloc[start : start + _CHECKED_ROWS] for start in range(0, len(frame), _CHECKED_ROWS))


def bins_of(compiled: CompiledModel, frame: pd.DataFrame) -> list[Array]:
    """Return the bins of a frame's columns, which are in the order of the features."""
    return [
        compiled.bins_of_numbers(index, frame.iloc[:, index].to_numpy(np.float64))
        if isinstance(column, NumberColumn)
        else compiled.bins_of_categories(index, frame.iloc[:, index].tolist())
        for index, column in enumerate(compiled.columns)
    ]


def _check_types(pipeline: Pipeline, estimator: Any) -> None:
    if type(pipeline) is not Pipeline or [type(step) for _name, step in pipeline.steps[:-1]] != [ColumnTransformer]:
        raise NoCompiledFormError("the pipeline is not the one that `train` makes")
    if type(estimator) not in (*_HISTOGRAM, *_GRADIENT):
        raise NoCompiledFormError(f"{type(estimator).__name__} is not an estimator that is compiled")
    if type(estimator) in _GRADIENT and estimator.init is not None:
        raise NoCompiledFormError(f"{type(estimator).__name__} with an init of its own")
    if type(estimator._loss) not in _LINKS:
        raise NoCompiledFormError(f"{type(estimator).__name__} with the loss {type(estimator._loss).__name__}")


def _one_hot_outputs(encoder: OneHotEncoder, index: int) -> int:
    known = encoder.categories_[index]
    infrequent = encoder.infrequent_categories_[index] if encoder._infrequent_enabled else None
    return len(known) if infrequent is None else len(known) - len(infrequent) + 1


def _histogram_trees(estimator: Any) -> tuple[list[_Tree], Array]:
    trees = []
    for stage in estimator._predictors:
        for predictor in stage:
            nodes = predictor.nodes
            trees.append(
                _tree(
                    nodes["left"],
                    nodes["right"],
                    nodes["is_leaf"] != 0,
                    nodes["value"],
                    nodes["feature_idx"],
                    nodes["num_threshold"],
                    nodes["missing_go_to_left"] != 0,
                    [
                        predictor.raw_left_cat_bitsets[node["bitset_idx"]] if node["is_categorical"] else None
                        for node in nodes
                    ],
                    nodes["count"],
                )
            )
    return trees, estimator._baseline_prediction.ravel().astype(np.float64)


def _gradient_trees(estimator: Any) -> tuple[list[_Tree], Array]:
    trees = []
    for stage in estimator.estimators_:
        for regressor in stage:
            nodes = regressor.tree_
            values = float(estimator.learning_rate) * nodes.value[:, 0, 0]
            count = nodes.node_count
            trees.append(
                _tree(
                    nodes.children_left,
                    nodes.children_right,
                    nodes.children_left == -1,
                    values,
                    nodes.feature,
                    nodes.threshold,
                    np.zeros(count, dtype=bool),  # these have no missing values
                    [None] * count,
                    nodes.weighted_n_node_samples,
                )
            )
    # Any rows: the first estimator uses no feature.
    return trees, estimator._raw_predict_init(np.zeros((2, estimator.n_features_in_), dtype=np.float32))[0]


def _tree(
    left: Array,
    right: Array,
    is_leaf: Array,
    values: Array,
    outputs: Array,
    thresholds: Array,
    missing_left: Array,
    left_categories: Sequence[Array | None],
    records: Array,
) -> _Tree:
    """Return a tree from scikit-learn's arrays of nodes, the root first.

    Raises:
        NoCompiledFormError: it has more leaves than a mask has bits.
    """
    count, most = np.count_nonzero(is_leaf), max(MAX_LEAVES.values())
    if count > most:
        raise NoCompiledFormError(f"a tree has {count} leaves, more than {most}")
    leaves: list[float] = []
    splits: list[_Split] = []

    def visit(node: int) -> int:
        """Number the leaves below a node from left to right; return their mask."""
        if is_leaf[node]:
            leaves.append(float(values[node]))
            return 1 << (len(leaves) - 1)
        left_mask = visit(int(left[node]))
        right_mask = visit(int(right[node]))
        splits.append(
            _Split(
                int(outputs[node]),
                float(thresholds[node]),
                bool(missing_left[node]),
                left_categories[node],
                left_mask,
                right_mask,
                float(records[left[node]]) / float(records[node]),
                float(records[right[node]]) / float(records[node]),
            )
        )
        return left_mask | right_mask

    visit(0)
    return _Tree(leaves, splits)


def _columns(preparation: _Preparation, trees: Sequence[_Tree]) -> list[NumberColumn | CategoryColumn]:
    """Return the columns with their bins, so fine that each split sends a whole bin to one side."""
    outputs = {output for output, source in enumerate(preparation.sources) if preparation.is_number[source]}
    cuts = {
        (split.output, split.threshold)
        for tree in trees
        for split in tree.splits
        if split.output in outputs and split.left_categories is None
    }
    if type(preparation.estimator) in _GRADIENT:  # it raises where an output is not finite in single precision
        cuts |= {(output, bound) for output in outputs for bound in (-np.inf, _LARGEST_SINGLE)}
    last_below = _last_below(preparation, sorted(cuts))
    return [
        _number_column(preparation, index, last_below) if is_number else CategoryColumn(preparation.categories[index])
        for index, is_number in enumerate(preparation.is_number)
    ]


def _number_column(preparation: _Preparation, index: int, last_below: dict[tuple[int, float], float]) -> NumberColumn:
    lowest, highest = preparation.ranges[index]
    thresholds: list[float] = []
    for (output, threshold), number in last_below.items():
        if preparation.sources[output] == index:
            thresholds.append(number)
            if threshold == -np.inf and number > -np.inf:
                lowest = max(lowest, float(np.nextafter(number, np.inf)))
            if threshold == _LARGEST_SINGLE:
                highest = min(highest, number)
    for output, categories in preparation.native.items():
        if preparation.sources[output] == index:
            # Each number that is a category has a bin of its own.
            numbers = categories[~np.isnan(categories)].astype(np.float64)
            thresholds += [*np.nextafter(numbers, -np.inf).tolist(), *numbers.tolist()]
    distinct = np.unique(np.array(thresholds, dtype=np.float64))
    return NumberColumn(distinct[(distinct >= lowest) & (distinct < highest)], lowest, highest)


def _last_below(preparation: _Preparation, cuts: Sequence[tuple[int, float]]) -> dict[tuple[int, float], float]:
    """Return for each output and threshold the largest number whose output is at most the threshold, or -inf.

    The preparation of numbers is monotone, so the numbers are found by bisection over all doubles, all at once.
    """
    if not cuts:
        return {}
    outputs, thresholds = np.array([output for output, _ in cuts]), np.array([threshold for _, threshold in cuts])
    sources = np.array(preparation.sources)[outputs]
    rows = np.zeros(len(cuts), dtype=np.intp)  # the cuts of a column are tried one below another
    for source in np.unique(sources):
        rows[sources == source] = np.arange(np.count_nonzero(sources == source))
    height = int(rows.max()) + 1

    def is_below(numbers: Array) -> Array:
        columns = {}
        for source in np.unique(sources):
            columns[preparation.names[source]] = values = np.full(height, np.nan)
            values[rows[sources == source]] = numbers[sources == source]
        values = preparation(preparation.frame(columns, height))[rows, outputs]
        return values.astype(np.float64) <= thresholds

    lowest, highest = np.array([preparation.ranges[source] for source in sources]).T
    never, always = ~is_below(lowest), is_below(highest)
    low, high = _order(lowest), _order(highest)
    # Most columns are not changed, and the number is the threshold itself.
    guess = np.clip(thresholds, lowest, highest)
    guessed = is_below(guess) & ~is_below(np.clip(np.nextafter(guess, np.inf), lowest, highest))
    low[guessed], high[guessed] = _order(guess[guessed]), _order(guess[guessed]) + 1
    while (low + 1 < high).any():
        middle = (low & high) + ((low ^ high) >> 1)  # their mean, without an overflow
        below = is_below(_double(middle))
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    numbers = np.where(never, -np.inf, np.where(always, highest, _double(low)))
    return dict(zip(cuts, numbers.tolist(), strict=True))


def _order(numbers: Array) -> Array:
    """Return doubles as integers (int64) in the same order, neighbours one apart; zero is +0.0."""
    bits = (numbers + 0.0).view(np.int64)
    return np.where(bits < 0, np.iinfo(np.int64).min - bits, bits)


def _double(order: Array) -> Array:
    """Return the doubles of `_order`'s integers."""
    return np.where(order < 0, np.iinfo(np.int64).min - order, order).view(np.float64)


def _representatives(column: NumberColumn | CategoryColumn) -> list[Any]:
    """Return a value of each bin."""
    if isinstance(column, NumberColumn):
        return [*column.thresholds.tolist(), column.highest, np.nan]
    return [*column.categories, _unknown(column), np.nan]


def _unknown(column: CategoryColumn) -> str:
    return max(column.categories, key=len, default="") + "?"


def _masks(
    preparation: _Preparation,
    columns: Sequence[NumberColumn | CategoryColumn],
    trees: Sequence[_Tree],
    dtype: np.dtype[Any],
) -> Array:
    """Return the masks, shape (bins of all columns one after the other, trees)."""
    rows = max(column.bins for column in columns)
    representatives = {}
    for name, column in zip(preparation.names, columns, strict=True):
        representatives[name] = _representatives(column) + [np.nan] * (rows - column.bins)
    values = preparation(preparation.frame(representatives, rows)).astype(np.float64)
    known = {}
    if preparation.native:
        bitsets, index = preparation.estimator._bin_mapper.make_known_categories_bitsets()
        known = {output: bitsets[index[output]] for output in preparation.native}
    ends = np.cumsum([column.bins for column in columns])
    masks = np.empty((ends[-1], len(trees)), dtype=dtype)
    for index, tree in enumerate(trees):
        every = (1 << len(tree.leaves)) - 1
        masks[:, index] = every
        for split in tree.splits:
            source = preparation.sources[split.output]
            bins = columns[source].bins
            goes_left = _goes_left(split, values[:bins, split.output], known.get(split.output))
            masks[ends[source] - bins : ends[source], index] &= np.where(
                goes_left, dtype.type(every & ~split.right), dtype.type(every & ~split.left)
            )
    return masks


def _shares(preparation: _Preparation, trees: Sequence[_Tree], shape: tuple[int, ...]) -> Array:
    """Return the shares of `CompiledModel`; `shape` is that of its leaves."""
    shares = np.ones((len(preparation.names), *shape))
    bits = np.arange(shape[1])
    for index, tree in enumerate(trees):
        for split in tree.splits:
            of_leaves = shares[preparation.sources[split.output], index]
            of_leaves[(split.left >> bits) & 1 != 0] *= split.left_share
            of_leaves[(split.right >> bits) & 1 != 0] *= split.right_share
    return shares


def _goes_left(split: _Split, values: Array, known: Array | None) -> Array:
    """Return for each value whether scikit-learn sends it to the left."""
    if split.left_categories is None or known is None:
        return np.where(np.isnan(values), split.missing_left, values <= split.threshold)
    is_missing = np.isnan(values) | (values < 0)
    categories = np.where(is_missing, 0, values).astype(np.uint8)
    goes_left = _in_bitset(split.left_categories, categories)
    is_unknown = ~goes_left & ~_in_bitset(known, categories)
    return np.where(is_missing | is_unknown, split.missing_left, goes_left)


def _in_bitset(bitset: Array, values: Array) -> Array:
    return (bitset[values // 32] >> (values % 32)) & 1 != 0


def _made_up(compiled: CompiledModel, frame: pd.DataFrame) -> pd.DataFrame:
    random = np.random.default_rng(_SEED)
    blocks = []
    for index, column in enumerate(compiled.columns):
        values = list(_made_up_values(column))
        block = frame.iloc[random.integers(0, len(frame), len(values))].reset_index(drop=True)
        dtype: Any = np.float64 if isinstance(column, NumberColumn) else object
        block[block.columns[index]] = pd.Series(values, dtype=dtype)
        blocks.append(block)
    return pd.concat(blocks, ignore_index=True)


def _made_up_values(column: NumberColumn | CategoryColumn) -> Iterator[Any]:
    if isinstance(column, CategoryColumn):
        yield from (*column.categories, _unknown(column), "", np.nan)
        return
    tiny = np.finfo(np.float64).smallest_subnormal
    edges = np.array([*column.thresholds, column.lowest, column.highest, 0.0, -0.0])
    with np.errstate(over="ignore"):
        near = np.concatenate([np.nextafter(edges, -np.inf), edges, np.nextafter(edges, np.inf)])
    special = [tiny, -tiny, _LARGEST_SINGLE, -_LARGEST_SINGLE, _LARGEST, -_LARGEST, np.inf, -np.inf]
    numbers = np.array([*near, *special])
    yield from numbers[(numbers >= column.lowest) & (numbers <= column.highest)].tolist()
    yield np.nan
