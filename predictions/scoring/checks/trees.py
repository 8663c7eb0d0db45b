"""Check the nodes of scikit-learn's trees: its compiled code follows them without looking whether they exist.

The types `Tree` and `TreePredictor` are trusted, so a file may hold any numbers in them. A child or a column that does
not exist is read out of bounds; a child that is its own parent is followed for ever.
"""

from typing import Any

import numpy as np
from sklearn.ensemble._hist_gradient_boosting.common import PREDICTOR_RECORD_DTYPE
from sklearn.ensemble._hist_gradient_boosting.predictor import TreePredictor
from sklearn.tree._tree import Tree

from predictions.scoring.checks.errors import ContentsError

_NO_CHILD = -1
_BITSET_WORDS = 8  # a bit for each of 256 categories, in uint32

Array = np.ndarray[Any, Any]


def check_parts(arguments: Any, state: Any) -> None:
    """Check what a tree of `DecisionTree…` is made of, before it is made: scikit-learn takes these sizes for granted.

    Args:
        arguments: those of `Tree`: the numbers of columns, of classes of each output (shape: outputs), of outputs.
        state: what `Tree.__setstate__` is given.

    Raises:
        ContentsError: an array has another number of dimensions or of elements than scikit-learn reads.
    """
    _columns, classes, outputs = arguments
    if type(classes) is not np.ndarray or classes.shape != (outputs,):
        raise ContentsError("a tree has no number of classes for each output")
    nodes, count = state["nodes"], state["node_count"]
    if type(nodes) is not np.ndarray or nodes.ndim != 1 or type(count) is not int or count != len(nodes):
        raise ContentsError(f"a tree does not have the {count!r} nodes that it should have")


def check_tree(tree: Any, columns: int) -> None:
    """Check a tree of `DecisionTree…`, also of those in forests and in `GradientBoosting…`.

    Args:
        tree: its `tree_`.
        columns: number of columns that it is given.

    Raises:
        ContentsError: a node is not as scikit-learn makes them.
    """
    if type(tree) is not Tree:
        raise ContentsError(f"it is a {type(tree).__name__}")
    if tree.node_count < 1 or tree.n_outputs < 1 or tree.max_n_classes < 1:
        raise ContentsError("it has no nodes or no outputs")
    if tree.n_features != columns:
        raise ContentsError(f"it is for {tree.n_features} columns, not for {columns}")
    left, right = tree.children_left, tree.children_right
    is_split = left != _NO_CHILD
    _refuse((right != _NO_CHILD) != is_split, "has one child")
    depth = _check_nodes(left, right, is_split, tree.feature, tree.threshold, columns)
    if depth > tree.max_depth:  # `decision_path` has room for so many nodes
        raise ContentsError(f"it has a depth of {depth}, not of {tree.max_depth}")
    _refuse(~np.isfinite(tree.value).all(axis=(1, 2)), "has a value that is not finite")


def check_predictor(predictor: Any, is_categorical: Array) -> None:
    """Check a tree of `HistGradientBoosting…`.

    Args:
        predictor: one of its `_predictors`.
        is_categorical: bool, shape (columns): the columns of known categories.

    Raises:
        ContentsError: a node is not as scikit-learn makes them.
    """
    if type(predictor) is not TreePredictor:
        raise ContentsError(f"it is a {type(predictor).__name__}")
    nodes, bitsets = predictor.nodes, predictor.raw_left_cat_bitsets
    if not _is_array(nodes, PREDICTOR_RECORD_DTYPE, 1) or not len(nodes):
        raise ContentsError("it has no nodes of the right type")
    if not _is_array(bitsets, np.dtype(np.uint32), 2) or bitsets.shape[1] != _BITSET_WORDS:
        raise ContentsError("it has no bitsets of categories")
    is_split = nodes["is_leaf"] == 0
    columns = nodes["feature_idx"]
    _check_nodes(nodes["left"], nodes["right"], is_split, columns, nodes["num_threshold"], len(is_categorical))
    by_category = is_split & (nodes["is_categorical"] != 0)
    if by_category.any():
        _refuse(
            by_category & (nodes["bitset_idx"] >= len(bitsets)), f"has a bitset beyond the {len(bitsets)} there are"
        )
        by_category[by_category] = ~is_categorical[columns[by_category]]
        _refuse(by_category, "looks for categories in a column of numbers")
    _refuse(~np.isfinite(nodes["value"]), "has a value that is not finite")
    for array in (nodes, bitsets):
        array.setflags(write=False)  # what was checked stays so


def _check_nodes(left: Array, right: Array, is_split: Array, feature: Array, threshold: Array, columns: int) -> int:
    """Check that the nodes are one tree over the columns; return its depth.

    Args:
        left, right: integers, shape (nodes): the children of nodes that split.
        is_split: bool, shape (nodes): whether it has children.
        feature: integers, shape (nodes): the column that it compares.
        threshold: float64, shape (nodes): with what.
        columns: the number of columns.
    """
    count, splits = len(is_split), np.flatnonzero(is_split)
    parents = np.concatenate([splits, splits])
    children = np.concatenate([left[splits], right[splits]]).astype(np.int64)
    wrong = (children <= parents) | (children >= count)
    if wrong.any():
        place = wrong.argmax()
        raise ContentsError(f"node {parents[place]} has a child {children[place]} of {count} nodes")
    is_wrong = np.bincount(children, minlength=count) != 1
    is_wrong[0] = False  # the root: children come after their parents, so it is none
    _refuse(is_wrong, "has no parent or several")
    compared = feature[splits]
    wrong = (compared < 0) | (compared >= columns)
    if wrong.any():
        place = wrong.argmax()
        raise ContentsError(f"node {splits[place]} compares column {compared[place]} of {columns}")
    _refuse(is_split & np.isnan(threshold), "has no threshold")
    return _depth(parents, children, count)


def _depth(parents: Array, children: Array, count: int) -> int:
    """Return the depth, in as many steps as its logarithm."""
    ancestor, distance = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    ancestor[children], distance[children] = parents, 1
    while ancestor.any():
        distance += distance[ancestor]
        ancestor = ancestor[ancestor]
    return int(distance.max())


def _is_array(array: Any, dtype: np.dtype[Any], dimensions: int) -> bool:
    return type(array) is np.ndarray and array.dtype == dtype and array.ndim == dimensions


def _refuse(is_wrong: Array, reason: str) -> None:
    """Raise ContentsError, naming the first node that is wrong, if one is."""
    if is_wrong.any():
        raise ContentsError(f"node {is_wrong.argmax()} {reason}")
