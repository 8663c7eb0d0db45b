"""Contributions (`contributions.py`) of fitted estimators: trees without a compiled form, linear models, boosters.

LightGBM and XGBoost compute the same Shapley values themselves, with Lundberg's TreeSHAP.

What is explained is the raw score. Of boosted trees, it is the sum of the leaves: the log-odds of two classes, the
score of one of several classes, the value of a regressor before its link. Of a forest or a tree, it is the probability
or the value. Of a linear model, it is the weighted sum, before its link. With two classes, it is the second one's.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sklearn
from sklearn.base import is_classifier
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV
from sklearn.pipeline import Pipeline
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor, ExtraTreeClassifier, ExtraTreeRegressor

from predictions.errors import InputError
from predictions.formats.manifest import Contributions
from predictions.scoring.contributions import Paths, columns_of, explain, path_groups

_HISTOGRAM = (HistGradientBoostingClassifier, HistGradientBoostingRegressor)
_GRADIENT = (GradientBoostingClassifier, GradientBoostingRegressor)
_FORESTS = (RandomForestClassifier, RandomForestRegressor, ExtraTreesClassifier, ExtraTreesRegressor)
_TREES = (DecisionTreeClassifier, DecisionTreeRegressor, ExtraTreeClassifier, ExtraTreeRegressor)
_LINEAR = "sklearn.linear_model."
_LIGHTGBM, _XGBOOST = "lightgbm.sklearn", "xgboost.sklearn"
_CATEGORIES = 256  # that a bitset of HistGradientBoosting has
_CHECKED_ROWS = 100
_BLOCK_ROWS = 50_000  # prepared at a time: a row has a value for each category of its columns
_TOLERANCE = 1e-9  # relative difference between a raw score and the sum of its contributions
_SINGLE_TOLERANCE = 1e-4  # of XGBoost, which adds in single precision

Array = np.ndarray[Any, Any]


class Explainer(ABC):
    """Explain the raw scores of a fitted estimator, or of a pipeline that ends with one.

    Args:
        model: the estimator or the pipeline.
        sources: for each value that the estimator compares or weighs, the index of the column that it comes from.
        columns: number of columns.
    """

    expected: Array  # float64, shape (outputs): what contributions are relative to

    def __init__(self, model: Any, sources: Sequence[int], columns: int) -> None:
        self._preparation = model[:-1] if isinstance(model, Pipeline) and len(model) > 1 else None
        self._estimator = _estimator(model)
        self._sources = np.array(sources, dtype=np.intp)
        self._columns = columns

    def prepared(self, frame: Any) -> Array:
        """Return the values that the estimator compares or weighs, float64, shape (rows, values)."""
        with np.errstate(over="ignore", invalid="ignore"):  # a record with too large a number has no prediction anyhow
            values = frame if self._preparation is None else self._preparation.transform(frame)
            if type(self._estimator) in _HISTOGRAM:
                return np.asarray(self._estimator._preprocess_X(values, reset=False), dtype=np.float64)
            return np.asarray(values, dtype=np.float64)

    def by_column(self, contributions: Array) -> Array:
        """Return the sums of the values' contributions, shape (rows, values), by column."""
        sums = np.zeros((len(contributions), self._columns))
        for value, column in enumerate(self._sources.tolist()):
            sums[:, column] += contributions[:, value]
        return sums

    @abstractmethod
    def contributions(self, frame: Any, outputs: Array) -> Array:
        """Return how much each column moved the raw score.

        Args:
            frame: rows with the columns of the features, at least one.
            outputs: intp, shape (rows): with several classes, the class that is explained; else 0.

        Returns:
            float64, shape (rows, columns).
        """


def explainer_for(model: Any, sources: Sequence[int], columns: int, means: Sequence[float]) -> Explainer:
    """Return what explains a fitted estimator, or a pipeline that ends with one.

    Args:
        model, sources, columns: see `Explainer`.
        means: of a linear model, the means of the values that it weighs in training; empty for other models.

    Raises:
        InputError: the estimator is neither a tree model nor a linear one.
    """
    try:
        if means:
            return LinearExplainer(model, sources, columns, means)
        if type(_estimator(model)).__module__ in (_LIGHTGBM, _XGBOOST):
            return BoosterExplainer(model, sources, columns)
        return TreeExplainer(model, sources, columns)
    except AttributeError as error:  # scikit-learn's trees are in private attributes, which another version may rename
        raise _no_contributions(f"one of scikit-learn {sklearn.__version__}, whose trees differ: {error}") from error


def check_kind(estimator: Any) -> None:
    """Raise InputError if an estimator, which need not be fitted, has no contributions; some others need it fitted."""
    if isinstance(estimator, FixedThresholdClassifier | TunedThresholdClassifierCV):
        estimator = estimator.estimator
    kind = type(estimator)
    is_tree = kind in (*_HISTOGRAM, *_GRADIENT, *_FORESTS, *_TREES) or kind.__module__ in (_LIGHTGBM, _XGBOOST)
    if not is_tree and not kind.__module__.startswith(_LINEAR):
        raise _no_contributions(kind.__name__)


def describe(model: Any, sources: Sequence[int], columns: int, frame: Any) -> Contributions:
    """Return what the manifest keeps about the contributions, after checking those of some rows.

    Args:
        model, sources, columns: see `Explainer`.
        frame: rows of the training, with the columns of the features, at least one.

    Raises:
        InputError: the estimator is neither a tree model nor a linear one, or the contributions do not add up to its
            raw scores.
    """
    estimator = _estimator(model)
    means: list[float] = []
    if type(estimator).__module__.startswith(_LINEAR) and hasattr(estimator, "coef_"):
        means = _means(LinearExplainer(model, sources, columns, [0.0] * len(sources)), frame)
    explainer = explainer_for(model, sources, columns, means)
    rows = frame[:_CHECKED_ROWS]
    scores = raw_scores(model, rows)
    tolerance = _SINGLE_TOLERANCE if type(estimator).__module__ == _XGBOOST else _TOLERANCE
    for output in range(scores.shape[1]):
        sums = explainer.contributions(rows, np.full(len(rows), output)).sum(axis=1) + explainer.expected[output]
        if not np.allclose(sums, scores[:, output], tolerance, tolerance * np.abs(scores).max()):
            raise _no_contributions("one whose contributions do not add up to its scores")
    return Contributions(list(sources), means, explainer.expected.tolist())


def _means(explainer: Explainer, frame: Any) -> list[float]:
    """Return the means of the prepared values of a frame."""
    blocks = (frame[start : start + _BLOCK_ROWS] for start in range(0, len(frame), _BLOCK_ROWS))
    sums = [explainer.prepared(block).sum(axis=0) for block in blocks]
    return (np.sum(sums, axis=0) / len(frame)).tolist()


def raw_scores(model: Any, frame: Any) -> Array:
    """Return what contributions explain, float64, shape (rows, outputs), as scikit-learn computes it."""
    estimator = _estimator(model)
    if type(estimator).__module__ == _LIGHTGBM:
        scores = model.predict(frame, raw_score=True)
    elif type(estimator).__module__ == _XGBOOST:
        scores = model.predict(frame, output_margin=True)
    elif not is_classifier(model):
        values = model.predict(frame)
        loss = getattr(estimator, "_loss", None) or getattr(estimator, "_base_loss", None)
        scores = values if loss is None else loss.link.link(values)
    elif hasattr(model, "decision_function"):
        scores = model.decision_function(frame)
    else:
        scores = model.predict_proba(frame)
        scores = scores[:, 1] if scores.shape[1] == 2 else scores
    return np.asarray(scores, dtype=np.float64).reshape(len(frame), -1)


def _estimator(model: Any) -> Any:
    return model[-1] if isinstance(model, Pipeline) else model


def _no_contributions(what: str) -> InputError:
    return InputError(
        f"model.outputs: contributions need a tree or a linear model, not {what}; leave them out, or choose another "
        "model"
    )


class LinearExplainer(Explainer):
    """Explain a linear model: coefficient times the distance of the prepared value from its mean in training.

    Args:
        model, sources, columns: see `Explainer`.
        means: of the prepared values.
    """

    def __init__(self, model: Any, sources: Sequence[int], columns: int, means: Sequence[float]) -> None:
        super().__init__(model, sources, columns)
        self._means = np.array(means)
        self._weights = np.atleast_2d(self._estimator.coef_)
        self.expected = self._weights @ self._means + self._estimator.intercept_

    def contributions(self, frame: Any, outputs: Array) -> Array:
        """See `Explainer`."""
        return self.by_column((self.prepared(frame) - self._means) * self._weights[outputs])


class BoosterExplainer(Explainer):
    """Explain a model of LightGBM or XGBoost by the contributions that the library computes.

    Args:
        model, sources, columns: see `Explainer`.
    """

    def __init__(self, model: Any, sources: Sequence[int], columns: int) -> None:
        super().__init__(model, sources, columns)
        self.expected = self._own(np.full((1, len(sources)), np.nan))[0, :, -1]

    def contributions(self, frame: Any, outputs: Array) -> Array:
        """See `Explainer`."""
        own = self._own(self.prepared(frame))
        return self.by_column(own[np.arange(len(own)), outputs, :-1])

    def _own(self, values: Array) -> Array:
        """Return the library's contributions, shape (rows, outputs, values and then the expected score)."""
        if type(self._estimator).__module__ == _LIGHTGBM:
            own = self._estimator.predict(values, pred_contrib=True)
        else:
            xgboost = importlib.import_module("xgboost")
            own = self._estimator.get_booster().predict(xgboost.DMatrix(values, missing=np.nan), pred_contribs=True)
        return np.asarray(own, dtype=np.float64).reshape(len(values), -1, values.shape[1] + 1)


class TreeExplainer(Explainer):
    """Explain a tree model by the paths to its leaves.

    Args:
        model, sources, columns: see `Explainer`.
    """

    def __init__(self, model: Any, sources: Sequence[int], columns: int) -> None:
        super().__init__(model, sources, columns)
        trees, self.expected = _trees_of(self._estimator)
        self._paths: list[list[tuple[Paths, Array]]] = [[] for _output in self.expected]
        for outputs in sorted({tree.outputs for tree in trees}):
            leaves = [_leaves(tree, self._sources, columns) for tree in trees if tree.outputs == outputs]
            self._add(
                outputs, _Leaves(*map(np.concatenate, zip(*(vars(each).values() for each in leaves), strict=True)))
            )

    def prepared(self, frame: Any) -> Array:
        """See `Explainer`."""
        values = super().prepared(frame)
        if type(self._estimator) in _HISTOGRAM:
            return values
        with np.errstate(over="ignore"):
            return values.astype(np.float32).astype(np.float64)

    def contributions(self, frame: Any, outputs: Array) -> Array:
        """See `Explainer`."""
        values = self.prepared(frame)
        result = np.zeros((len(values), self._columns))
        for output in np.unique(outputs).tolist():
            rows = np.flatnonzero(outputs == output)
            result[rows] = explain(self._paths[output], list(values[rows].T), self._columns)
        return result

    def _add(self, outputs: tuple[int, ...], leaves: "_Leaves") -> None:
        self.expected[list(outputs)] += leaves.shares.prod(axis=1) @ leaves.values
        try:
            groups = list(path_groups(leaves.shares))
        except ValueError as error:
            raise _no_contributions(f"one with such trees: {error}") from error
        for group in groups:
            paths = _ComparingPaths(_Leaves(*(array[group] for array in vars(leaves).values())), self._sources)
            for place, output in enumerate(outputs):
                self._paths[output].append((paths, leaves.values[group, place]))


@dataclass(frozen=True)
class _Tree:
    """A tree of scikit-learn's, the root first; arrays of nodes, if not said otherwise.

    Args:
        left, right: the children; a leaf is its own.
        inputs: the index of the value that a node compares.
        thresholds: numbers up to it go to the left.
        missing_left: whether NaN goes to the left.
        categories: bool, shape (nodes, `_CATEGORIES` or 0): which categories go to the left.
        categorical: number of inputs that are categories, which come first.
        records: the number, or the weight, of the training records.
        values: shape (nodes, outputs).
        outputs: to which outputs of the model it adds.
    """

    left: Array
    right: Array
    inputs: Array
    thresholds: Array
    missing_left: Array
    categories: Array
    categorical: int
    records: Array
    values: Array
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class _Leaves:
    """Leaves, and the conditions on the paths that lead to them.

    Args:
        low, high: shape (leaves, inputs): numbers above `low` and up to `high` lead there.
        takes_missing: bool, shape (leaves, inputs): whether NaN does.
        categories: bool, shape (leaves, categorical inputs, `_CATEGORIES`): which categories do.
        shares: shape (leaves, columns): see `contributions.path_groups`.
        values: shape (leaves, outputs).
    """

    low: Array
    high: Array
    takes_missing: Array
    categories: Array
    shares: Array
    values: Array


class _ComparingPaths(Paths):
    """Paths whose inputs are the values that the splits compare.

    Args:
        leaves: where the paths lead.
        sources: for each input the column that it comes from.
    """

    def __init__(self, leaves: _Leaves, sources: Array) -> None:
        super().__init__(*columns_of(leaves.shares))
        self._leaves = leaves
        self._sources = sources

    def inputs(self) -> Iterable[int]:
        """See `Paths`."""
        return np.flatnonzero(np.isin(self._sources, self.columns)).tolist()

    def missed(self, index: int, distinct: Array) -> Array:
        """See `Paths`."""
        is_missing = np.isnan(distinct)
        if index < self._leaves.categories.shape[1]:
            codes = np.where(is_missing, 0, distinct).astype(np.uint8)
            is_met = self._leaves.categories[:, index, codes].T
        else:
            values, low = distinct[:, None], self._leaves.low[:, index]
            is_met = ((values > low) | (low == -np.inf)) & (values <= self._leaves.high[:, index])
        is_met = np.where(is_missing[:, None], self._leaves.takes_missing[:, index], is_met)
        return np.where(is_met, self.bits.type(0), self.bit_of(int(self._sources[index])))


def _leaves(tree: _Tree, sources: Array, columns: int) -> _Leaves:
    """Return the leaves of a tree with their conditions, which grow level by level from the root."""
    nodes, inputs = len(tree.left), len(sources)
    low, high = np.full((nodes, inputs), -np.inf), np.full((nodes, inputs), np.inf)
    takes_missing = np.ones((nodes, inputs), dtype=bool)
    categories = np.ones((nodes, tree.categorical, _CATEGORIES), dtype=bool)
    shares = np.ones((nodes, columns))
    is_leaf = tree.left == np.arange(nodes)
    level = np.zeros(1, dtype=np.intp)
    while len(level := level[~is_leaf[level]]):
        compared = tree.inputs[level]
        is_number = compared >= tree.categorical
        thresholds, goes_left = tree.thresholds[level[is_number]], tree.categories[level[~is_number]]
        for children, is_left in ((tree.left[level], True), (tree.right[level], False)):
            for array in (low, high, takes_missing, categories, shares):
                array[children] = array[level]
            takes_missing[children, compared] &= tree.missing_left[level] == is_left
            shares[children, sources[compared]] *= tree.records[children] / tree.records[level]
            numbers = children[is_number], compared[is_number]
            if is_left:
                high[numbers] = np.minimum(high[numbers], thresholds)
            else:
                low[numbers] = np.maximum(low[numbers], thresholds)
            if tree.categorical:
                categories[children[~is_number], compared[~is_number]] &= goes_left == is_left
        level = np.concatenate([tree.left[level], tree.right[level]])
    arrays = (low, high, takes_missing, categories, shares, tree.values)
    return _Leaves(*(array[is_leaf] for array in arrays))


def _trees_of(estimator: Any) -> tuple[list[_Tree], Array]:
    """Return an estimator's trees, and what their leaves are added to, float64, shape (outputs).

    Raises:
        InputError: it is not a model of trees, or not only of trees.
    """
    kind = type(estimator)
    if kind in _HISTOGRAM:
        categorical = 0 if estimator._preprocessor is None else int(estimator.is_categorical_.sum())
        predictors = [each for stage in estimator._predictors for each in enumerate(stage)]
        trees = [_histogram_tree(predictor, output, categorical) for output, predictor in predictors]
        return trees, estimator._baseline_prediction.ravel().astype(np.float64)
    if kind in _GRADIENT:
        if estimator.init is not None and estimator.init != "zero":
            raise _no_contributions(f"{kind.__name__} with an init of its own")
        rows = np.zeros((2, estimator.n_features_in_), dtype=np.float32)  # any: no feature is used
        members = [each for stage in estimator.estimators_ for each in enumerate(stage)]
        trees = [
            _tree(each.tree_, estimator.learning_rate * each.tree_.value[:, 0], (output,)) for output, each in members
        ]
        return trees, estimator._raw_predict_init(rows)[0].astype(np.float64)
    if kind in _FORESTS or kind in _TREES:
        fitted = estimator.estimators_ if kind in _FORESTS else [estimator]
        outputs = tuple(range(len(estimator.classes_) if is_classifier(estimator) else estimator.n_outputs_))
        outputs = outputs[:-1] if is_classifier(estimator) and len(outputs) == 2 else outputs
        trees = [_tree(each.tree_, _node_values(each) / len(fitted), outputs) for each in fitted]
        return trees, np.zeros(len(outputs))
    raise _no_contributions(kind.__name__)


def _node_values(tree: Any) -> Array:
    """Return what a tree predicts at its nodes, shape (nodes, outputs); of two classes, the second's probability."""
    if not is_classifier(tree):
        return tree.tree_.value[:, :, 0]
    values = tree.tree_.value[:, 0, :]
    shares = values / values.sum(axis=1, keepdims=True)
    return shares[:, 1:] if shares.shape[1] == 2 else shares


def _tree(tree: Any, values: Array, outputs: tuple[int, ...]) -> _Tree:
    """Return a tree of `sklearn.tree`."""
    nodes = np.arange(tree.node_count)
    is_leaf = tree.children_left == -1
    return _checked(
        _Tree(
            left=np.where(is_leaf, nodes, tree.children_left),
            right=np.where(is_leaf, nodes, tree.children_right),
            inputs=tree.feature,
            thresholds=tree.threshold,
            missing_left=tree.missing_go_to_left != 0,
            categories=np.zeros((len(nodes), 0), dtype=bool),
            categorical=0,
            records=tree.weighted_n_node_samples,
            values=values,
            outputs=outputs,
        )
    )


def _histogram_tree(predictor: Any, output: int, categorical: int) -> _Tree:
    """Return a tree of HistGradientBoosting, of which so many inputs are categories."""
    nodes, numbers = predictor.nodes, np.arange(len(predictor.nodes))
    is_leaf, is_categorical = nodes["is_leaf"] != 0, nodes["is_categorical"] != 0
    categories = np.zeros((len(nodes), _CATEGORIES if categorical else 0), dtype=bool)
    if is_categorical.any():
        bitsets = predictor.raw_left_cat_bitsets[nodes["bitset_idx"][is_categorical]].astype("<u4")
        categories[is_categorical] = np.unpackbits(bitsets.view(np.uint8), axis=1, bitorder="little")
    return _checked(
        _Tree(
            left=np.where(is_leaf, numbers, nodes["left"]),
            right=np.where(is_leaf, numbers, nodes["right"]),
            inputs=nodes["feature_idx"].astype(np.intp),
            thresholds=nodes["num_threshold"],
            missing_left=nodes["missing_go_to_left"] != 0,
            categories=categories,
            categorical=categorical,
            records=nodes["count"].astype(np.float64),
            values=nodes["value"][:, None],
            outputs=(output,),
        )
    )


def _checked(tree: _Tree) -> _Tree:
    if not (tree.records > 0).all():
        raise _no_contributions("one whose nodes do not say how many records they had in training")
    return tree
