"""Check a model in LightGBM's text format, and write it anew from what was checked.

LightGBM trusts the text: a child, a feature or a class out of range reads or writes outside its arrays, a circle never
ends, and `tree_sizes` are offsets that it jumps to. It is given no line that was not read here.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from predictions.scoring.checks.errors import ContentsError, require
from predictions.scoring.checks.nodes import Array, check_children, check_range

_HEADER = (
    *("version", "num_class", "num_tree_per_iteration", "label_index", "max_feature_idx", "objective"),
    *("feature_names", "monotone_constraints", "feature_infos", "tree_sizes"),
)
_AVERAGE = "average_output"  # a line of the header without a value, of random forests
_NODE_FIELDS = ("split_gain", "internal_value", "internal_weight")  # which no walk needs
_LEAF_FIELDS = ("leaf_weight",)
_NODE_COUNTS, _LEAF_COUNTS = ("internal_count",), ("leaf_count",)
_TREE = (
    *("num_leaves", "num_cat", "split_feature", "threshold", "decision_type", "left_child", "right_child"),
    *("leaf_value", "cat_boundaries", "cat_threshold", "is_linear", "shrinkage"),
    *(*_NODE_FIELDS, *_LEAF_FIELDS, *_NODE_COUNTS, *_LEAF_COUNTS),
)
_MULTICLASS = ("multiclass", "multiclassova")
_NUMBER = frozenset("0123456789+-.einfa ")  # also of inf and nan; anything else ends the process of some versions
_MOST_CLASSES = 10_000
_MOST_LEAVES = 131_072  # LightGBM's own limit
_CATEGORICAL = 1  # the bit of a decision type
_DECISION_TYPES = 16
_CATEGORIES = "pandas_categorical:"
_INFOS = "feature_infos="


def checked(text: str) -> str:
    """Return a model's text, written anew without the parts that scoring does not need.

    Args:
        text: what `Booster.model_to_string` returns.

    Raises:
        ContentsError: the text is not one that LightGBM writes, or has what is not supported.
    """
    body, end, tail = text.partition("\nend of trees\n")
    require(end, "it has no end of trees")
    header, *trees = body.split("\nTree=")
    lines, classes, features = _checked_header(header)
    require(len(trees) % classes == 0, "trees are missing")
    for number, tree in enumerate(trees):
        first, _line_end, rest = tree.partition("\n")
        require(first == str(number), f"tree {number} is missing")
        try:
            lines += [f"Tree={number}", *_checked_tree(rest, features), ""]
        except ContentsError as error:
            raise ContentsError(f"tree {number}: {error}") from error
    return "\n".join([*lines, "end of trees", "", _CATEGORIES + _checked_categories(tail), ""])


def pandas_categories(text: str, categories: list[list[Any]]) -> dict[int, list[Any]]:
    """Return the categories of the columns that were pandas' categories at fitting, by the feature's number.

    The text has the lists of all such columns, in the columns' order, but not their names. A feature's line of
    `feature_infos` is `[least:largest]` for numbers, a list for categories, and `none` for either if it had one value.

    Args:
        text: the model.
        categories: `Booster.pandas_categorical`.

    Raises:
        ContentsError: it is not clear which columns these are.
    """
    infos = next(line for line in text.split("\n") if line.startswith(_INFOS)).removeprefix(_INFOS).split(" ")
    unclear = [number for number, info in enumerate(infos) if not info.startswith("[")]
    certain = [number for number in unclear if infos[number] != "none"]
    numbers = certain if len(certain) == len(categories) else unclear
    require(len(numbers) == len(categories), "it does not say which columns are categories: one has a single value")
    return dict(zip(numbers, categories, strict=True))


def _checked_header(text: str) -> tuple[list[str], int, int]:
    """Return the lines of the header without `tree_sizes`, and the numbers of trees an iteration and of features."""
    first, *lines = text.strip("\n").split("\n")
    require(first == "tree", "it does not begin with the line tree")
    is_average = _AVERAGE in lines
    fields = _fields([line for line in lines if line != _AVERAGE], _HEADER)
    classes, trees = _integer(fields, "num_class"), _integer(fields, "num_tree_per_iteration")
    require(1 <= classes <= _MOST_CLASSES, "num_class is out of range")
    name, *parameters = fields.get("objective", "none").split(" ")
    if name in _MULTICLASS:
        require(trees == classes and f"num_class:{classes}" in parameters, "the numbers of classes differ")
        require(sum(each.startswith("num_class:") for each in parameters) == 1, "the numbers of classes differ")
    else:
        require(trees == classes, "the numbers of classes differ")
        require(classes == 1 or name == "none", f"objective {name} with several classes")
    features = _integer(fields, "max_feature_idx") + 1
    require(features >= 1, "max_feature_idx is out of range")
    for key in ("feature_names", "feature_infos"):
        require(len(fields.get(key, "").split(" ")) == features, f"{key} is not one for each feature")
    fields.pop("tree_sizes", None)
    fields.pop("monotone_constraints", None)
    return ["tree", *(f"{key}={value}" for key, value in fields.items()), *[_AVERAGE] * is_average, ""], trees, features


def _checked_tree(text: str, features: int) -> list[str]:
    """Return the lines of a tree after its first."""
    fields = _fields([line for line in text.split("\n") if line], _TREE)
    require(fields.get("is_linear", "0") == "0", "linear trees are not supported")
    leaves, categorical = _integer(fields, "num_leaves"), _integer(fields, "num_cat")
    nodes = leaves - 1
    require(0 <= categorical <= nodes < _MOST_LEAVES, "num_leaves or num_cat is out of range")
    _numbers(fields, "leaf_value", leaves)
    _numbers(fields, "shrinkage", 1)
    if not nodes:
        return [f"{key}={fields.get(key, '')}" for key in ("num_leaves", "num_cat", "leaf_value", "shrinkage")]
    for names, length, numbers in (
        *((_NODE_FIELDS, nodes, _numbers), (_LEAF_FIELDS, leaves, _numbers)),
        *((_NODE_COUNTS, nodes, _integers), (_LEAF_COUNTS, leaves, _integers)),
    ):
        for key in fields.keys() & set(names):
            numbers(fields, key, length)
    children = np.concatenate([_integers(fields, key, nodes) for key in ("left_child", "right_child")])
    require((children < nodes).all(), "a child is not one of the tree's nodes")
    check_children(np.where(children < 0, nodes + ~children, children), nodes + leaves)
    check_range(_integers(fields, "split_feature", nodes), features, "a feature")
    decisions = _integers(fields, "decision_type", nodes)
    check_range(decisions, _DECISION_TYPES, "a decision type")
    thresholds = _numbers(fields, "threshold", nodes)[(decisions & _CATEGORICAL) != 0]
    require(np.isin(thresholds, np.arange(categorical)).all(), "a set of categories is out of range")
    if categorical:
        bounds = _integers(fields, "cat_boundaries", categorical + 1)
        require(bounds[0] == 0 and (np.diff(bounds) >= 0).all(), "the sets of categories overlap")
        check_range(_integers(fields, "cat_threshold", int(bounds[-1])), 1 << 32, "a set of categories")
    return [f"{key}={value}" for key, value in fields.items()]


def _checked_categories(tail: str) -> str:
    """Return the JSON of the categories of pandas' columns: a list for each, or null."""
    line = next((line for line in reversed(tail.split("\n")) if line.startswith(_CATEGORIES)), f"{_CATEGORIES}null")
    try:
        categories = json.loads(line.removeprefix(_CATEGORIES))
    except ValueError as error:
        raise ContentsError("pandas_categorical is not JSON") from error
    lists = categories if isinstance(categories, list) else []
    require(categories is None or isinstance(categories, list), "pandas_categorical is not a list")
    require(all(isinstance(each, list) for each in lists), "pandas_categorical is not a list of lists")
    return json.dumps(categories)


def _fields(lines: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """Return the values of lines `name=value`."""
    fields: dict[str, str] = {}
    for line in lines:
        name, equals, value = line.partition("=")
        require(equals and name in known, f"unknown line {name[:40]}")
        require(name not in fields, f"{name} is there twice")
        fields[name] = value
    return fields


def _integer(fields: dict[str, str], name: str) -> int:
    return int(_integers(fields, name, 1)[0])


def _integers(fields: dict[str, str], name: str, length: int) -> Array:
    return _numbers(fields, name, length, np.int64)


def _numbers(fields: dict[str, str], name: str, length: int, dtype: Any = np.float64) -> Array:
    text = fields.get(name, "")
    require(_NUMBER.issuperset(text), f"{name} has something that is not a number")
    values = text.split()
    require(len(values) == length, f"{name} has {len(values):,} values, not {length:,}")
    try:
        return np.array(values, dtype=dtype)
    except (ValueError, OverflowError) as error:
        raise ContentsError(f"{name} has something that is not a number") from error
